"""Monitors over what a model generates: each new token is watched, and an alarm stops or steers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from featuredb.errors import QueryError
from featuredb.monitors.new_alarms import SCHEMA, NewAlarms
from featuredb.monitors.watching import Floats, Watch
from featuredb.steering.edits import Edits
from featuredb.steering.hooks import HeldModel, held
from featuredb.steering.opened import ReadyEdits, SteeringOptions, ready
from featuredb.steering.passes import TokenFacts
from featuredb.store.store import Store
from ingest.extract.forward import positions, record
from ingest.model.device import full_float32
from queries.rules.stored import Monitor


@dataclass(eq=False)
class GenerationGuard:
    """A model whose generation is watched.

    model: the Hugging Face model itself. fired: the monitors that have fired in the last
    generation. steered: whether an alarm has steered it.
    """

    model: Any
    _watch: Watch
    _first: int | None
    fired: list[str] = field(default_factory=list)
    steered: bool = False
    _ids: list[int] = field(default_factory=list)
    _prompt: int = 0
    _columns: list[Floats] = field(default_factory=list)

    @property
    def alarms(self) -> NewAlarms:
        """The alarms of the last generation, prompt and new tokens as one text.

        Their role is ``assistant`` at new tokens, null in the prompt.
        """
        grid, roles = self.grid(), self.roles()
        store = self._watch.watched.store
        words = [store.texts.token_texts[i] for i in self._ids[: grid.shape[1]]]
        skipped = int(bool(words) and self._ids[0] == self._first)
        rows = []
        for alarm in self._watch.alarms(grid, roles):
            start, end = alarm["token_index"], alarm["token_index"] + alarm["n_tokens"]
            rows.append(
                alarm
                | {"text_index": 0, "text_id": None, "token_index": start - skipped}
                | {
                    "before": "".join(words[max(skipped, start - 8) : start]),
                    "text": "".join(words[start:end]),
                    "after": "".join(words[end : end + 8]),
                }
            )
        table = pa.Table.from_pylist(rows, SCHEMA)
        return NewAlarms(table, n_texts=1, n_tokens=len(words) - skipped)

    def grid(self) -> Floats:
        """The watched activations of all tokens so far, float64 [features, tokens]."""
        none = np.zeros((len(self._watch.watched.features), 0))
        return np.concatenate([none, *self._columns], axis=1)

    def roles(self) -> list[str | None]:
        """Who says each of them."""
        n = sum(columns.shape[1] for columns in self._columns)
        return [None if i < self._prompt else "assistant" for i in range(n)]

    def begin(self, ids: Tensor) -> None:
        """A generation from a prompt begins."""
        if ids.shape[0] != 1:
            raise QueryError(f"a guard watches one text at a time, not {ids.shape[0]}")
        self.fired, self.steered, self._columns = [], False, []
        self._ids = ids[0].tolist()
        self._prompt = ids.shape[1]

    def step(self, ids: Tensor, recorded: dict[str, Tensor]) -> bool:
        """The tokens of one more pass were read. Whether a monitor fires at the last of them."""
        self._ids = ids[0].tolist()
        self._columns.append(self._read(recorded))
        new = self._columns[-1].shape[1]
        firing = self._watch.firing(self.grid(), self.roles(), new)
        self.fired += [name for name in firing if name not in self.fired]
        return bool(firing)

    def _read(self, recorded: dict[str, Tensor]) -> Floats:
        """The watched activations of a pass, float64 [features, tokens], as stored."""
        watched = self._watch.watched
        start = sum(columns.shape[1] for columns in self._columns)
        tokens = next(iter(recorded.values())).shape[1]
        grid = np.zeros((len(watched.features), tokens))
        ids = np.array(self._ids[start : start + tokens])
        bos = start == 0 and bool(len(ids)) and ids[0] == self._first
        wanted = positions(np.array([tokens]), bos)
        values = watched.store.snapshot.recording.values
        for number, sae in enumerate(watched.loaded.saes):
            with full_float32():
                own = record(sae, recorded[sae.hook.canonical], wanted, ids[int(bos) :], values)
            column = watched.columns(number, own.feature_id)
            known = column >= 0
            grid[column[known], own.token_index[known]] = own.activation[known]
        return grid


@contextmanager
def guard(
    store: Store,
    monitors: Sequence[Monitor],
    where: str | None,
    *,
    abort: bool,
    then: Edits | None,
) -> Iterator[GenerationGuard]:
    """See `featuredb.Database.guard`."""
    watch = Watch(store, monitors, where)
    loaded = watch.watched.loaded
    made = None if then is None else ready(store, then, where, SteeringOptions())
    first = store.snapshot.corpora[0].bos_token_id
    guarded = GenerationGuard(loaded.model.model, watch, first)
    facts = TokenFacts(first) if made is None else made.facts
    hooks = [sae.hook for sae in loaded.saes]
    with held(loaded.model) as model, model.editing([], facts, loaded.saes, hooks):
        plain = model.loaded.model.generate
        model.loaded.model.__dict__["generate"] = _watched(guarded, model, plain, abort, made)
        yield guarded


def _watched(
    guarded: GenerationGuard,
    model: HeldModel,
    plain: Callable[..., Any],
    abort: bool,
    then: ReadyEdits | None,
) -> Callable[..., Any]:
    """`generate` with a criterion that reads each token, and edits that come with an alarm."""
    from transformers import StoppingCriteriaList

    def generate(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        if not isinstance(given, Tensor):
            raise QueryError("a guarded model generates from input_ids: give them")
        config = kwargs.get("generation_config")
        asked = {
            name: kwargs.get(name, getattr(config, name, None))
            for name in ("use_cache", "num_beams", "num_return_sequences")
        }
        several = max(asked["num_beams"] or 1, asked["num_return_sequences"] or 1) > 1
        if asked["use_cache"] is False or several:
            raise QueryError("a guard follows one text, token by token: leave beams and use_cache")
        guarded.begin(given)
        with ExitStack() as edits:

            def stop(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
                alarmed = guarded.step(ids, model.recorded)
                if alarmed and then is not None and not guarded.steered:
                    edits.enter_context(model.editing(then.applied, then.facts, then.saes))
                    guarded.steered = True
                halt = alarmed and abort
                return torch.full((ids.shape[0],), halt, dtype=torch.bool, device=ids.device)

            criteria = StoppingCriteriaList([*(kwargs.pop("stopping_criteria", None) or ()), stop])
            return plain(*args, stopping_criteria=criteria, **kwargs)

    return generate
