"""A database of hostile texts, served on loopback, and one browser for all tests."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import featuredb
from featuredb.database import Database
from featuredb.explorer.server import Serving, prepare
from featuredb.store.store import Store
from tests.make_store import MadeSae, World, make_store

_MARKUP = (
    "<script>hacked=1</script>",
    "<img src=x onerror=hacked=1>",
    "</span></mark></textarea></title><script>hacked=1</script>",
    '"><svg onload=hacked=1>',
    "' onfocus='hacked=1' autofocus='",
    '" onmouseover="hacked=1',
    "javascript:hacked=1",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "<!-- ",
    "]]>",
    "&lt;b&gt;",
    "<style>*{display:none}</style>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0>",
    "'; DROP TABLE features; --",
)
_CONTROLS = tuple(chr(c) for c in (*range(1, 32), 127, *range(0x80, 0xA0, 4)))
_BIDI = tuple(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200e\u200f\u2028\u2029\ufeff"
)
_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(0x80, 0x100, 8))
_LONG = ("A" * 10_000, "<b>" * 3_400, " \u202e" * 3_400)
HOSTILE = (*_MARKUP, *_CONTROLS, *_BIDI, *_PIECES, *_LONG)
"""Over a hundred tokens."""


LABEL = "viaducts\u202e\t<script>hacked=1</script>"
SHOWN_LABEL = "viaducts<U+202E>⇥<script>hacked=1</script>"
"""Of feature 5 of the first SAE, as it is written and as it is shown."""


@dataclass(frozen=True)
class Running:
    """A server that answers. url: with its token. base: without."""

    url: str
    base: str
    token: str
    saes: tuple[str, ...]

    @property
    def port(self) -> int:
        return urlsplit(self.base).port or 0

    def get(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers. With the cookie unless headers say otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Cookie": f"featuredb-{self.port}={self.token}", **headers}
        try:
            connection.putrequest(method, path, skip_host="Host" in given)
            if body is not None:
                given.setdefault("Content-Length", str(len(body)))
            for name, value in given.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()


def hostile_world() -> World:
    """Every hostile token in a text, features that fire on them, two SAEs, hostile metadata."""
    rng = np.random.default_rng(0)
    vocabulary = ["<bos>", " river", " bridge", " music", *HOSTILE]
    documents = []
    for start in range(1, len(vocabulary), 12):
        ids = list(range(start, min(start + 12, len(vocabulary))))
        documents.append([[0, 1, *ids, 3]])
    saes = []
    for name, d_sae in (("a/sae", 40), ("it's", 12)):
        dense = []
        for document in documents:
            for context in document:
                active = rng.random((len(context), d_sae)) < 0.3
                active[:, 3] = False
                dense.append((active * rng.uniform(-1, 9, active.shape)).astype(np.float32))
        directions = rng.normal(size=(2, d_sae, 4)).astype(np.float32)
        saes.append(MadeSae(name, dense, directions[0], directions[1], sha256=name))
    titles = [HOSTILE[i % len(_MARKUP)] for i in range(len(documents))]
    topics = [("<b>", "it's")[i % 2] for i in range(len(documents))]
    return World(documents, {"title": titles, "topic": topics}, vocabulary, saes)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile database's folder."""
    path = tmp_path_factory.mktemp("explorer") / "it's <b>.fdb"
    make_store(path, hostile_world())
    featuredb.map_features(path)
    with featuredb.open(path) as db:
        db.label("a/sae/5", LABEL)
    return path


@contextmanager
def serving(path: Path | str) -> Iterator[Running]:
    """A database, served on a free port."""
    store = Store.open(path)
    with Database(store, confined=True) as handle:
        saes = tuple(sae.name for sae in handle.saes)
        with served(prepare(handle, store, "127.0.0.1", 0), saes) as running:
            yield running


@contextmanager
def served(serving: Serving, saes: tuple[str, ...]) -> Iterator[Running]:
    """A server that is prepared, answering."""
    thread = threading.Thread(target=serving.run)
    thread.start()
    base, _, token = serving.url.partition("/?token=")
    yield Running(serving.url, base, token, saes)
    serving.server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def running(database: Path) -> Iterator[Running]:
    """The hostile database, served."""
    with serving(database) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium. Not for the session: its event loop would be in the way of other tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path="/usr/bin/chromium",
            # WebGL by the CPU: without these there is none.
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        yield launched
        launched.close()
