"""Language models behind an OpenAI-compatible endpoint.

The key comes from the environment variable ``OPENAI_API_KEY``. It is sent, and neither stored nor
shown: a message that quotes it has ``***`` in its place.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featuredb.errors import QueryError, first_line

KEY = "OPENAI_API_KEY"
TRIES = 6
"""Times that a request is sent in all, where the server is busy or does not answer."""

_TIMEOUT = 120.0
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses after which another try may work."""


@dataclass
class Usage:
    """What was asked so far. tokens_in, tokens_out: as the server counts them, 0 where it does not.
    retried: requests that were sent again."""

    requests: int = 0
    retried: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class Endpoint:
    """One model at an address such as ``http://localhost:8000/v1``.

    rate: requests per minute at most, None for no bound. Used by several threads. tries, wait: how
    often, and after how many seconds first, it is asked again; each wait is about twice as long, or
    as long as the server says.
    """

    url: str
    model: str
    rate: float | None = None
    tries: int = TRIES
    wait: float = _FIRST_WAIT
    usage: Usage = field(default_factory=Usage)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _next: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise QueryError(
                f"{self.url!r} is no address of an endpoint, such as http://localhost:8000/v1"
            )
        if self.rate is not None and not self.rate > 0:
            raise QueryError(f"rate must be a positive number of requests per minute: {self.rate}")
        self.url = self.url.rstrip("/")

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """What the model answers, at temperature 0. Raises `QueryError` where it gives no text."""
        asked = {"model": self.model, "temperature": 0, "messages": list(messages)}
        answer = self._post("chat/completions", asked)
        try:
            return str(answer["choices"][0]["message"]["content"])
        except (LookupError, TypeError) as error:
            raise QueryError(
                f"{self.url} gives no answer: its reply has no message ({first_line(error)})"
            ) from None

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The embedding of each text. Raises `QueryError`."""
        answer = self._post("embeddings", {"model": self.model, "input": list(texts)})
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            vectors = [[float(value) for value in row["embedding"]] for row in rows]
        except (LookupError, TypeError, ValueError) as error:
            raise QueryError(f"{self.url} gives no embeddings: {first_line(error)}") from None
        if len(vectors) != len(texts):
            raise QueryError(f"{self.url} gives {len(vectors)} embeddings of {len(texts)} texts")
        return vectors

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        key = os.environ.get(KEY)
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), headers)
        wait = self.wait
        for number in range(1, self.tries + 1):
            self._take_turn(again=number > 1)
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
                    answer = json.load(reply)
                self._count(answer)
                return answer
            except urllib.error.HTTPError as error:
                reason, asked_wait = _refusal(error), error.headers.get("Retry-After", "")
                if error.code not in _PASSING or number == self.tries:
                    break
                if asked_wait.replace(".", "", 1).isdigit():
                    wait = max(wait, float(asked_wait))
            except (OSError, ValueError) as error:
                reason = first_line(error)
                if number == self.tries:
                    break
            time.sleep(min(wait, _LONGEST_WAIT) * random.uniform(1, 1.25))
            wait *= 2
        if key:
            reason = reason.replace(key, "***")
        raise QueryError(f"{self.model} at {self.url} gives no answer: {reason}") from None

    def _take_turn(self, *, again: bool) -> None:
        """Wait until the rate allows one more request."""
        with self._lock:
            self.usage.requests += 1
            self.usage.retried += again
            if self.rate is None:
                return
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60.0 / self.rate
        time.sleep(turn - now)

    def _count(self, answer: Any) -> None:
        used = answer.get("usage") if isinstance(answer, dict) else None
        if isinstance(used, dict):
            with self._lock:
                self.usage.tokens_in += _whole(used.get("prompt_tokens"))
                self.usage.tokens_out += _whole(used.get("completion_tokens"))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _refusal(error: urllib.error.HTTPError) -> str:
    """The status, and what the server says of it."""
    try:
        said = json.loads(error.read(10_000))
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", "") if isinstance(said, dict) else said
    except (OSError, ValueError):
        said = ""
    reason = first_line(str(said))[:200] if said else str(error.reason)
    return f"{error.code} {reason}"
