"""Who may ask what of a local server: checks before any page, and the headers of every answer."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from featuredb.explorer.drawing import style_source

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_URL = 16_000
"""Bytes of a path and its query."""
MOST_HEADERS = 32_000
MOST_BODY = 1_000_000
SLOWEST = 10.0
"""Seconds that a client has for its headers, and for each piece of a body."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' {style}; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_LOCAL = "http://127.0.0.1:* http://localhost:*"


@dataclass(frozen=True)
class Guard:
    """Lets requests through to `app` that carry the token and come from its own pages.

    token: once in the URL's query, then in a cookie. hosts: what the header Host may say, which
    another site's name that was pointed here (DNS rebinding) does not.
    """

    app: App
    token: str
    hosts: frozenset[str]
    port: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = [pair for pair in _query(scope) if pair[0] == "token"]
        reason = self._refusal(scope, asked)
        if reason is not None:
            await _answer(send, *reason)
        elif asked:
            await self._welcome(scope, send)
        else:
            embedded = ("embed", "1") in _query(scope)
            await self.app(scope, _bounded(receive), _with_headers(send, embedded))

    def _refusal(self, scope: Scope, asked: list[tuple[str, str]]) -> _Refusal | None:
        headers = [(name.decode("latin-1"), v.decode("latin-1")) for name, v in scope["headers"]]
        if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_URL:
            return 414, f"the address is longer than {MOST_URL:,} bytes: ask for less at once"
        if sum(len(name) + len(value) for name, value in headers) > MOST_HEADERS:
            return 431, f"the headers are longer than {MOST_HEADERS:,} bytes"
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return 421, "this server answers only under the address that it printed"
        for name, value in headers:
            if name == "origin" and urlsplit(value).netloc.lower() != hosts[0].lower():
                return 403, "this server does not answer pages of other sites"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, f"there is nothing to {scope['method']} here: the database is only read"
        given = [value for _, value in asked] or list(self._cookies(headers))
        if not any(hmac.compare_digest(value.encode(), self.token.encode()) for value in given):
            return 403, "the token is missing or wrong: open the address that `serve` printed"
        length = next((value for name, value in headers if name == "content-length"), "0")
        if not length.isdigit() or int(length) > MOST_BODY:
            return 413, f"more than {MOST_BODY:,} bytes were sent: send less at once"
        return None

    @property
    def _cookie(self) -> str:
        """Of its own port: browsers share cookies among the ports of a host."""
        return f"featuredb-{self.port}"

    def _cookies(self, headers: Iterable[tuple[str, str]]) -> Iterable[str]:
        for name, value in headers:
            if name == "cookie":
                try:
                    cookies = SimpleCookie(value)
                except CookieError:
                    continue
                if self._cookie in cookies:
                    yield cookies[self._cookie].value

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """To the same page without the token in its address."""
        rest = urlencode([pair for pair in _query(scope) if pair[0] != "token"])
        # One slash: two would name another host, and browsers take a backslash for one.
        path = "/" + scope["raw_path"].decode("latin-1").lstrip("/\\")
        cookie = f"{self._cookie}={self.token}; HttpOnly; SameSite=Lax; Path=/"
        await _answer(
            send,
            303,
            "",
            (b"location", f"{path}?{rest}".rstrip("?").encode("latin-1")),
            (b"set-cookie", cookie.encode()),
        )


_Refusal = tuple[int, str]


class TooSlow(Exception):
    """A piece of a body did not come in time."""


class TooMuch(Exception):
    """A body is longer than it may be."""


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _bounded(receive: Receive) -> Receive:
    """What comes in, in time and not too much. Raises `TooSlow` and `TooMuch`."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        try:
            message = await asyncio.wait_for(receive(), SLOWEST)
        except TimeoutError as error:
            raise TooSlow from error
        received += len(message.get("body", b""))
        if received > MOST_BODY:
            raise TooMuch
        return message

    return bounded


def _with_headers(send: Send, embedded: bool) -> Send:
    ancestors = _LOCAL if embedded else "'none'"
    policy = _POLICY.format(style=style_source(), ancestors=ancestors).encode()

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                *_HEADERS,
                (b"content-security-policy", policy),
            ]
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    """A line of text."""
    body = f"featuredb: {text}\n".encode() if text else b""
    about = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    start = {"type": "http.response.start", "status": status, "headers": [*about, *headers]}
    await _with_headers(send, False)(start)
    await send({"type": "http.response.body", "body": body})
