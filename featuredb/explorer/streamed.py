"""An answer that is sent as it is made, and stops being made when nobody reads it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from featuredb.errors import FeatureDBError, one_line
from featuredb.explorer.generation import Tell
from featuredb.explorer.guard import TooSlow


class ReaderGone(Exception):
    """Whoever asked has left: there is nobody to go on for."""


class Streamed(Response):
    """Lines of JSON, one for each that `work` tells, which runs in a thread."""

    media_type = "application/x-ndjson"

    def __init__(self, work: Callable[[Tell], None], limiter: CapacityLimiter) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._work = work
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        gone = threading.Event()
        write, read = anyio.create_memory_object_stream[bytes](float("inf"))

        def tell(fact: dict[str, Any]) -> None:
            if gone.is_set():
                raise ReaderGone
            from_thread.run_sync(write.send_nowait, json.dumps(fact).encode() + b"\n")

        def run() -> None:
            try:
                self._work(tell)
            except FeatureDBError as error:
                if not gone.is_set():
                    tell({"error": one_line(error)})
            except ReaderGone:
                pass
            finally:
                from_thread.run_sync(write.close)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, receive, gone)
            tasks.start_soon(lambda: to_thread.run_sync(run, limiter=self._limiter))
            async with read:
                async for line in read:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            tasks.cancel_scope.cancel()


async def _watch(receive: Receive, gone: threading.Event) -> None:
    """Say when the client has left, or the server ends."""
    try:
        while True:
            try:
                if (await receive())["type"] == "http.disconnect":
                    return
            except TooSlow:
                continue
    finally:
        gone.set()
