"""Ratings by a language model behind an OpenAI-compatible endpoint, as AxBench asks for them."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featuredb.errors import QueryError, first_line
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
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Judge:
    """Where texts are rated. url: such as http://localhost:8000/v1."""

    url: str
    model: str

    @classmethod
    def of(cls, url: str | None, model: str | None) -> Judge | None:
        """None where none is asked for. Raises `QueryError` for one without the other."""
        if url is None and model is None:
            return None
        if url is None or model is None:
            raise QueryError("a judge needs both its address and the name of its model")
        if not url.startswith(("http://", "https://")):
            raise QueryError(f"{url!r} is no address of a judge, such as http://localhost:8000/v1")
        return cls(url.rstrip("/"), model)

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
        body = {
            "model": self.model,
            "temperature": 0,
            "messages": [{"role": "user", "content": _ASKED.format(question=question, text=text)}],
        }
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **_key()},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                said = str(json.load(answer)["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise QueryError(f"the judge at {self.url} gives no answer: {first_line(error)}") from (
                error
            )
        found = _RATING.findall(said)
        if not found:
            raise QueryError(f"the judge at {self.url} gives no rating but {said[:80]!r}")
        return int(found[-1]) / 2


def _key() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
