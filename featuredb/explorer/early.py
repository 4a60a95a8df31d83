"""Pages whose beginning is sent while their panels are still being drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from anyio import CapacityLimiter, to_thread
from markupsafe import Markup
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

MARK = Markup("\0")
"""Where a template may be cut: ``{{ early }}``. No text has it, since `neutralize` takes it out."""


class Early(Response):
    """A page in two parts: a browser paints its title while the database is asked.

    pieces: what the template generates. sound: whether all of it could be drawn, asked once it is.
    whole: told the page then, if it is sound.
    """

    media_type = "text/html"

    def __init__(self, pieces: Iterator[str], status: int, sound: Callable[[], bool]) -> None:
        self._pieces, self._sound = pieces, sound
        super().__init__(_until_mark(pieces), status)
        del self.headers["content-length"]
        self.whole: Callable[[Response], Any] | None = None
        self.turns: CapacityLimiter | None = None

    def drawn(self) -> Response:
        """The whole page."""
        rest = "".join(self._pieces).encode()
        page = Response(bytes(self.body) + rest, self.status_code, media_type="text/html")
        # Those of a page that lasts, for who asks for it again.
        page.headers.update(
            {k: v for k, v in self.headers.items() if k in ("etag", "cache-control")}
        )
        return page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        headers = self.raw_headers
        start = {"type": "http.response.start", "status": self.status_code, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        page = await to_thread.run_sync(self.drawn, limiter=self.turns)
        if self.whole is not None and self._sound():
            self.whole(page)
        await send({"type": "http.response.body", "body": bytes(page.body)[len(self.body) :]})


def _until_mark(pieces: Iterator[str]) -> str:
    found = []
    for piece in pieces:
        if piece == MARK:
            break
        found.append(piece)
    return "".join(found)
