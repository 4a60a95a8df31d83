"""The server: its address, its token, and how long it waits for slow clients."""

from __future__ import annotations

import logging
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.h11_impl import H11Protocol

from featuredb.database import Database
from featuredb.errors import OptionError
from featuredb.explorer.app import application, draw_one
from featuredb.explorer.console import Console
from featuredb.explorer.generation import Generations
from featuredb.explorer.guard import MOST_HEADERS, SLOWEST, Guard
from featuredb.explorer.model import ModelLoader
from featuredb.explorer.placing import Placing
from featuredb.explorer.site import Site
from featuredb.explorer.static.write import MARK
from featuredb.store.store import Store
from queries.overseen import Overseer

_MOST_AT_ONCE = 500
_LAST_WORDS = 2
"""Seconds in which what is under way may end once the server stops."""

_FIRST_WORDS = 1
"""Seconds for the page that is opened at once, before one is drawn that nobody has asked for."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Serving(NamedTuple):
    """A server that listens and does not answer yet. url: its address, with the token.

    warm: what is done soon after the first request, so that later ones do not wait for it.
    """

    url: str
    server: uvicorn.Server
    listening: socket.socket
    warm: Callable[[], None] = lambda: None

    def run(self) -> None:
        """Answer until it is interrupted, or `server.should_exit`."""
        warming = Timer(_FIRST_WORDS, self.warm)
        warming.daemon = True
        warming.start()
        with self.listening:
            self.server.run(sockets=[self.listening])
        warming.cancel()
        warming.join(_LAST_WORDS)


def serve_site(folder: Path, host: str, port: int, *, open_browser: bool) -> None:
    """As `serve`, of a folder that `featuredb site` wrote. Raises `OptionError` for another."""
    _run(prepare_site(folder, host, port), host, "site", open_browser=open_browser)


def serve(database: Database, store: Store, host: str, port: int, *, open_browser: bool) -> None:
    """Answer until it is interrupted. Prints the address first. Raises as `prepare`."""
    serving = prepare(database, store, host, port)
    _run(serving, host, "database", open_browser=open_browser)


def _run(serving: Serving, host: str, what: str, *, open_browser: bool) -> None:
    print(serving.url, flush=True)
    if host not in _LOOPBACK:
        print(
            f"featuredb: {host} is not loopback: other machines can read this {what}, "
            "unencrypted, with the token",
            file=sys.stderr,
        )
    if open_browser:
        webbrowser.open(serving.url)
    serving.run()


def prepare(database: Database, store: Store, host: str, port: int) -> Serving:
    """Listen. port: 0 for any that is free. Raises `OptionError` where it cannot be had."""
    model = ModelLoader(database)
    generations = Generations(database, model)
    placing, name = Placing(database), str(database.location)
    overseer = Overseer()
    console = Console(store, overseer)
    site = Site(database, console, model, generations, placing, name, overseer)
    serving = _guarded(application(site), host, port, overseer.stop)
    return serving._replace(warm=partial(draw_one, site))


def prepare_site(folder: Path, host: str, port: int) -> Serving:
    """As `prepare`, of a folder that `featuredb site` wrote. Raises `OptionError` for another."""
    if not (folder / MARK).is_file():
        raise OptionError(f"{folder} is no site: make one with `featuredb site DB {folder}`")
    files = Mount("/", StaticFiles(directory=folder, html=True))
    app = Starlette(routes=[files], exception_handlers={HTTPException: _refused})
    return _guarded(app, host, port, lambda: None)


def _refused(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    reason = "there is no such file" if status == 404 else "a site is only read"
    return PlainTextResponse(f"featuredb: {reason}\n", status)


def _guarded(app: Any, host: str, port: int, stop: Callable[[], None]) -> Serving:
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    token = secrets.token_urlsafe(24)
    guard = Guard(app, token, allowed_hosts(host, port), port)
    shown = "127.0.0.1" if host == "localhost" else host
    url = f"http://{_spelled(shown)}:{port}/?token={token}"
    return Serving(url, _Server(configuration(guard), stop), listening)


class _Server(uvicorn.Server):
    """Stops what is being asked when it ends, and does not complain of what it ends."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._stop()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def configuration(guard: Guard) -> uvicorn.Config:
    """How uvicorn runs it: quietly, with bounds."""
    return uvicorn.Config(
        guard,
        http=_ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MOST_HEADERS,
        limit_concurrency=_MOST_AT_ONCE,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_LAST_WORDS,
    )


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """What browsers send as Host for a server at this address."""
    names = _LOOPBACK if host in _LOOPBACK else (host, *_LOOPBACK)
    return frozenset(f"{_spelled(name).lower()}:{port}" for name in names)


def _spelled(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen(host: str, port: int) -> socket.socket:
    listening = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol, by which asyncio knows to hold back no second part of a page.
        listening = socket.socket(*found[:3])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        # From here on a client waits, rather than being refused.
        listening.listen(128)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise OptionError(
            f"cannot listen at {host}, port {port} ({error.strerror}): give another --port, "
            "or 0 for any that is free"
        ) from error
    return listening


class _ImpatientProtocol(H11Protocol):
    """Closes a connection whose first request does not arrive in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(SLOWEST, self._give_up)

    def _give_up(self) -> None:
        began = getattr(self, "cycle", None)  # of which uvicorn says that it is never None
        if began is None and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n"
                b"content-type: text/plain\r\n\r\nfeaturedb: the request comes too slowly\n"
            )
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)
