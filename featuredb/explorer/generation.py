"""Generations of the database's model: one at a time, told as they go on, kept once done."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featuredb.database import Database
from featuredb.explorer.model import ModelLoader

if TYPE_CHECKING:
    from featuredb.steering.steered import Steered

_KEPT = 16
_PAUSE = 0.2
"""Seconds between two looks at whether the model is there, and whether it is one's turn."""

Tell = Callable[[dict[str, Any]], None]
"""Is told what happens, as a page reads it. What it raises ends the generation."""


@dataclass(frozen=True)
class SteeringRequest:
    """What is generated: with and without the edits, which are spelled. Temperature 0: greedy."""

    prompt: str
    edits: tuple[str, ...]
    chat: bool = False
    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0
    method: str = "code"

    def options(self) -> dict[str, Any]:
        """As of `Database.steer`."""
        names = ("max_new_tokens", "temperature", "seed", "method")
        return {name: getattr(self, name) for name in names}

    @property
    def given(self) -> Any:
        """The prompt, or the chat that it begins."""
        return [{"role": "user", "content": self.prompt}] if self.chat else self.prompt


class Generations:
    """Steered texts. The same is generated once."""

    def __init__(self, database: Database, model: ModelLoader) -> None:
        self._database = database
        self._model = model
        self._turn = threading.Lock()
        self._kept: OrderedDict[SteeringRequest, Steered] = OrderedDict()

    def kept(self, asked: SteeringRequest) -> Steered | None:
        """What was generated before."""
        return self._kept.get(asked)

    def told(self, asked: SteeringRequest, tell: Tell) -> Steered:
        """Wait for the model and for others' generations, then generate.

        tell: gets `{"state": "loading" or "waiting"}` while there is nothing yet, and `{"variant":
        "unsteered" or "steered", "text": …}` for each piece. Raises what it raises, and as
        `Database.steer`.
        """
        while not self._model.ready():
            tell({"state": "loading", **self._model.status()})
            time.sleep(_PAUSE)
        while not self._turn.acquire(timeout=_PAUSE):
            tell({"state": "waiting"})
        try:
            return self._answer(asked, tell)
        finally:
            self._turn.release()

    def answer(self, asked: SteeringRequest) -> Steered:
        """The same without a word. The model must be there. Raises as `Database.steer`."""
        with self._turn:
            return self._answer(asked, lambda _: None)

    def _answer(self, asked: SteeringRequest, tell: Tell) -> Steered:
        kept = self._kept.get(asked)
        if kept is not None:
            return kept
        tell({"state": "generating"})
        made = self._database.steer(
            asked.given,
            asked.edits,
            controls=False,
            watch=lambda variant, text: tell({"variant": variant, "text": text}),
            **asked.options(),
        )
        self._kept[asked] = made
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made
