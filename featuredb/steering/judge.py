"""Ratings by a language model behind an OpenAI-compatible endpoint, as AxBench asks for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featuredb.endpoint import Endpoint
from featuredb.errors import QueryError
from featuredb.steering.prompts import EncodedPrompt

_QUESTIONS = {
    "concept": "how much the text is about the concept, the words [{about}]",
    "fluency": "how fluent the text is, whatever it is about",
    "closeness": "how well the text goes on from, or answers, the prompt [{prompt}]",
}
_ASKED = (
    "Rate {question}. 0: not at all. 1: somewhat. 2: fully.\n\n[Text]\n{text}\n[End of text]\n\n"
    "Answer with one line, Rating: followed by 0, 1 or 2."
)
_RATING = re.compile(r"([012])(?:\.0)?\b")


@dataclass(frozen=True)
class Judge:
    """Where texts are rated."""

    endpoint: Endpoint

    @classmethod
    def of(cls, url: str | None, model: str | None) -> Judge | None:
        """None where none is asked for. Raises `QueryError` for one without the other."""
        if url is None and model is None:
            return None
        if url is None or model is None:
            raise QueryError("a judge needs both its address and the name of its model")
        return cls(Endpoint(url, model, tries=2))

    def rate(
        self, about: str, prompts: Sequence[EncodedPrompt], texts: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Ratings from 0 to 1 by axis, float64 [n].

        Raises:
            QueryError: The endpoint cannot be reached, refuses, or gives no rating.
        """
        return {
            axis: np.array(
                [
                    self._rating(question.format(about=about, prompt=prompt.text), text)
                    for prompt, text in zip(prompts, texts, strict=True)
                ]
            )
            for axis, question in _QUESTIONS.items()
        }

    def _rating(self, question: str, text: str) -> float:
        said = self.endpoint.ask(
            [{"role": "user", "content": _ASKED.format(question=question, text=text)}]
        )
        found = _RATING.findall(said)
        if not found:
            raise QueryError(f"the judge at {self.endpoint.url} gives no rating but {said[:80]!r}")
        return int(found[-1]) / 2
