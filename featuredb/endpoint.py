"""Language models behind an OpenAI-compatible endpoint.

The key comes from the environment variable ``OPENAI_API_KEY``. It is sent to the endpoint and
nowhere else, and neither stored nor shown: what quotes it has ``***`` in its place.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, IncompleteRead
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from featuredb.errors import QueryError, first_line

KEY = "OPENAI_API_KEY"
TRIES = 6
"""Times that a request is sent in all, where the server is busy or does not answer."""

LONGEST_ASKED = 300.0
"""Seconds that are waited where the server asks for it. For more, asking ends."""

_TIMEOUT = 120.0
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_LONGEST_ANSWER = 50 * 10**6
"""Bytes. Embeddings of a hundred texts as numbers in JSON are a few millions."""

_SHOWN = 200
"""Characters of what a server says that a message has."""

_RATES = 0.001, 1e9
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


class _Failed(Exception):
    """A request without an answer. after: seconds before another try, None where none may work."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is a refusal: the key is for no other server."""

    def redirect_request(self, *_: object) -> None:
        return None


def _without_redirects() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


@dataclass
class Endpoint:
    """One model at an address such as ``http://localhost:8000/v1``.

    rate: requests per minute at most, None for no bound. Used by several threads. tries, wait: how
    often, and after how many seconds first, it is asked again; each wait is about twice as long, or
    as long as the server says. stopped: once it is set no request is sent, and no wait goes on.
    """

    url: str
    model: str
    rate: float | None = None
    tries: int = TRIES
    wait: float = _FIRST_WAIT
    usage: Usage = field(default_factory=Usage)
    stopped: threading.Event = field(default_factory=threading.Event, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _opener: urllib.request.OpenerDirector = field(default_factory=_without_redirects, repr=False)
    _next: float = field(default=0.0, repr=False)
    _speaks: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self.url = _address(self.url)
        check_model(self.model)
        rate = self.rate
        if rate is not None and not (
            isinstance(rate, int | float) and _RATES[0] <= rate <= _RATES[1]
        ):
            raise QueryError(
                f"rate must be a positive number of requests per minute, {_RATES[0]:g} or more: "
                f"not {rate!r}"
            )
        _key()

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """What the model answers, at temperature 0, empty where that is no text.

        Raises `QueryError` where there is no answer.
        """
        asked = {"model": self.model, "temperature": 0, "messages": list(messages)}
        answer = self._post("chat/completions", asked)
        try:
            said = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError) as error:
            raise QueryError(
                f"{self.url} gives no answer: its reply has no message ({first_line(error)})"
            ) from None
        return said if isinstance(said, str) else ""

    def embed(self, texts: Sequence[str], model: str | None = None) -> list[list[float]]:
        """The embedding of each text, by another model of the endpoint. Raises `QueryError`."""
        asked = {"model": self.model if model is None else model, "input": list(texts)}
        answer = self._post("embeddings", asked)
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            vectors = [[float(value) for value in row["embedding"]] for row in rows]
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise QueryError(f"{self.url} gives no embeddings: {first_line(error)}") from None
        if len(vectors) != len(texts):
            raise QueryError(f"{self.url} gives {len(vectors)} embeddings of {len(texts)} texts")
        if len({len(v) for v in vectors}) > 1 or not all(map(math.isfinite, chain(*vectors))):
            raise QueryError(f"{self.url} gives embeddings that are not finite, or of two lengths")
        return vectors

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        key = _key()
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), headers)
        wait = self.wait
        for number in range(1, self.tries + 1):
            self._take_turn(again=number > 1)
            try:
                return self._counted(self._sent(request))
            except _Failed as failed:
                reason, after = str(failed), failed.after
            if after is None or number == self.tries:
                break
            if after > LONGEST_ASKED:
                reason = f"{reason}, and asks to come back in {math.ceil(after / 60)} minutes"
                break
            self._pause(max(after, min(wait, _LONGEST_WAIT)) * random.uniform(1, 1.25))
            wait *= 2
        # First without the key, then cut: a part of it is not found.
        reason = first_line(_without(key, reason))
        shown = reason if len(reason) <= 2 * _SHOWN else f"{reason[: 2 * _SHOWN]}…"
        raise QueryError(f"{body['model']} at {self.url} gives no answer: {shown}")

    def _sent(self, request: urllib.request.Request) -> str:
        """What the server answers. Raises `_Failed`."""
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as reply:
                data: bytes = reply.read(_LONGEST_ANSWER + 1)
                if len(data) <= _LONGEST_ANSWER and reply.length:
                    raise IncompleteRead(data, reply.length)
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error) from None
        except (OSError, HTTPException, ValueError) as error:
            raise _Failed(first_line(error), 0.0) from None
        if len(data) > _LONGEST_ANSWER:
            raise _Failed(f"it is longer than {_LONGEST_ANSWER / 1e6:.0f} MB")
        return _without(_key(), data.decode(errors="replace"))

    def _counted(self, text: str) -> Any:
        """An answer, counted. Raises `_Failed` where it is none of such a server."""
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            # A server that has answered before was cut off.
            raise _Failed(
                "it is no OpenAI-compatible server: what it says is not JSON",
                0.0 if self._speaks else None,
            ) from None
        if isinstance(answer, dict) and answer.get("error"):
            raise _Failed(_said(answer))
        self._speaks = True
        used = answer.get("usage") if isinstance(answer, dict) else None
        if isinstance(used, dict):
            with self._lock:
                self.usage.tokens_in += _whole(used.get("prompt_tokens"))
                self.usage.tokens_out += _whole(used.get("completion_tokens"))
        return answer

    def _take_turn(self, *, again: bool) -> None:
        """Wait until the rate allows one more request."""
        now = time.monotonic()
        with self._lock:
            turn = max(now, self._next)
            if self.rate is not None:
                self._next = turn + 60.0 / self.rate
        self._pause(turn - now)
        with self._lock:
            self.usage.requests += 1
            self.usage.retried += again

    def _pause(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise QueryError(f"{self.url} is asked no more")


def check_model(name: object) -> None:
    """Raises `QueryError` unless it may name a model."""
    if not isinstance(name, str) or not name.strip():
        raise QueryError(f"give the name of a model, as the endpoint has it: not {name!r}")


def _address(url: object) -> str:
    """The address without a slash at its end. Raises `QueryError`, without a password in it."""
    if isinstance(url, str) and "@" in url:
        raise QueryError(
            f"an endpoint's address has no user and no password: the key is read from {KEY}"
        )
    if not isinstance(url, str) or not _is_address(url):
        shown = url.partition("?")[0] if isinstance(url, str) else url
        raise QueryError(
            f"{shown!r} is no address of an endpoint, such as http://localhost:8000/v1"
        )
    return url.rstrip("/")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        return False
    return known and bool(parts.hostname) and _plain(url) and not {"?", "#"}.intersection(url)


def _key() -> str:
    """The key, empty where there is none. Raises `QueryError` for one that cannot be sent."""
    key = os.environ.get(KEY, "").strip()
    if not _plain(key):
        raise QueryError(
            f"{KEY} has characters that no key has, such as a space or a line break in it: "
            "set it again"
        )
    return key


def _plain(text: str) -> bool:
    """Whether it is of visible ASCII characters."""
    return all("!" <= character <= "~" for character in text)


def _without(key: str, text: str) -> str:
    return text.replace(key, "***") if key else text


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _refused(error: urllib.error.HTTPError) -> _Failed:
    """The status, and what the server says of it."""
    if 300 <= error.code < 400:
        place = error.headers.get("Location", "nowhere")
        return _Failed(
            f"{error.code}: it redirects to {place}, which is not followed: "
            "give the address that answers"
        )
    try:
        said = _said(json.loads(error.read(10_000)))
    except (OSError, HTTPException, ValueError, RecursionError):
        said = ""
    after = _asked_wait(error.headers.get("Retry-After", ""))
    reason = f"{error.code} {said or error.reason}"
    return _Failed(reason, after if error.code in _PASSING else None)


def _said(answer: Any) -> str:
    """The words of a server's error."""
    said = answer.get("error", answer) if isinstance(answer, dict) else answer
    said = said.get("message", "") if isinstance(said, dict) else said
    return " ".join(str(said or "").split())


def _asked_wait(text: str) -> float:
    """Seconds of a ``Retry-After``, a number or a date, 0 where it is neither."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
