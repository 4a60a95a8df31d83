"""Pages that were drawn before: the database is pinned to a snapshot, so they stay the same."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from starlette.responses import Response

MOST_BYTES = 64 * 10**6


class PageCache:
    """The pages asked for last, at most `MOST_BYTES` of them."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._bytes = 0
        self._pages: OrderedDict[Hashable, Response] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Keep none of them."""
        with self._lock:
            self._pages.clear()
            self._bytes = 0

    def get(self, key: Hashable) -> Response | None:
        """The page of that address, None if it is not kept."""
        with self._lock:
            page = self._pages.get(key)
            if page is not None:
                self._pages.move_to_end(key)
            return page

    def put(self, key: Hashable, page: Response) -> None:
        """Keep a page, and forget those asked for longest ago where there is no room."""
        with self._lock:
            if key in self._pages or len(page.body) > self._most:
                return
            self._pages[key] = page
            self._bytes += len(page.body)
            while self._bytes > self._most:
                self._bytes -= len(self._pages.popitem(last=False)[1].body)
