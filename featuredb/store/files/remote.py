"""Range reads of a remote database through fsspec, with an in-memory LRU cache.

The snapshot lists every file with its size, and files are immutable. So reads are cacheable, need
no size requests and never go beyond the end of a file.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featuredb.errors import CorruptDatabaseError, FeatureDBError, RemoteError, StorageError
from featuredb.store.files.fsspec_errors import open_file_system, remote_errors
from featuredb.store.files.scratch import scratch_folder

if TYPE_CHECKING:
    from featuredb.store.snapshot import File, Snapshot

BLOCK = 1 << 16
"""Block size of requests and of the cache, in bytes."""

WHOLE = 1 << 20
"""A file of at most this size is fetched whole in one request."""

WHOLE_SHARED = 8 << 20
"""The same for files that most queries read: arrays, vocabulary, documents, statistics."""

KEPT = 128 << 20
"""Cache size in bytes. The least recently used blocks are evicted first."""

_GAP = 4
"""Largest gap, in blocks, between two requested blocks that one request still covers."""

_REQUEST = 16 << 20
"""Longer ranges are split into parallel requests."""

_TAIL_LEAST, _TAIL_MOST, _TAIL_SHARE = 1 << 16, 1 << 20, 32
"""How much of a Parquet file's end to read for its footer: a share of the file, within bounds.
Footers measured 0.1 % to 2.1 % of their files."""

# A drive letter is not a scheme. A chain such as simplecache::s3:// is one.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]+)*://")

Span = tuple[int, int]
"""start <= byte < stop."""


class RemoteFiles:
    """The folder of a database behind a URL.

    Thread-safe. Pickles as URL and options, without the cache.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """Reads nothing yet. storage_options: options of the URL's fsspec file system.

        Raises `MissingExtraError` if the package for the scheme is not installed and
        `RemoteError` for a scheme that fsspec does not support.
        """
        self.url = url.rstrip("/")
        self.storage_options = dict(storage_options or {})
        self.fs, self._base = open_file_system(self.url, self.storage_options)
        self._sizes: dict[str, int] = {}
        self._shared: frozenset[str] = frozenset()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._kept = 0
        self._lock = threading.Lock()
        self.failure: FeatureDBError | None = None
        """Why DuckDB could not read a file, for the code that catches DuckDB's exception."""

    @property
    def scheme(self) -> str:
        """The scheme of the URL, before ``://``."""
        return self.url.partition("://")[0]

    def learn(self, snapshot: Snapshot) -> None:
        """Load file sizes, and which files most queries read, from a snapshot."""
        self._sizes = {f.path: f.bytes for f in snapshot.files()}
        shared = [snapshot.vocabulary, snapshot.derived.features]
        for corpus in snapshot.corpora:
            shared += [corpus.documents, corpus.index, corpus.tokens]
        shared += [sae.order for sae in snapshot.saes if sae.order is not None]
        shared += [segment.directory for segment in snapshot.segments]
        shared += [tables.examples_directory for tables in snapshot.derived.saes]
        self._shared = frozenset(f.path for f in shared)

    def __truediv__(self, path: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{path}"

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemoteFiles({self.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteFiles, (self.url, self.storage_options)

    def below(self, path: str) -> str:
        """A path of the store in the fsspec file system."""
        return f"{self._base}/{path}"

    def size(self, path: str) -> int:
        """Size of a file of the snapshot in bytes. Raises KeyError for any other file."""
        return self._sizes[path]

    def knows(self, path: str) -> bool:
        """Whether the snapshot lists this file."""
        return path in self._sizes

    def is_whole(self, path: str) -> bool:
        """Whether a file is small enough to fetch whole."""
        return self.size(path) <= (WHOLE_SHARED if path in self._shared else WHOLE)

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes start <= i < stop of a file, clipped to its size. Raises as `fetch`."""
        start, stop = max(0, start), min(stop, self.size(path))
        if start >= stop:
            return b""
        if stop - start > KEPT // 4:
            return self._straight(path, start, stop)
        blocks = self._have(path, [(start, stop)])
        first = start // BLOCK
        joined = b"".join(blocks[i] for i in range(first, (stop - 1) // BLOCK + 1))
        return joined[start - first * BLOCK : stop - first * BLOCK]

    def fetch(self, path: str, spans: Iterable[Span]) -> None:
        """Prefetch ranges of a file in parallel, skipping cached blocks.

        Does nothing if the ranges do not fit the cache. They are then read on demand.
        Raises `CorruptDatabaseError` if the file is missing or shorter than the snapshot lists,
        and `RemoteError` if the server cannot be reached or refuses.
        """
        spans = list(spans)
        if sum(stop - start for start, stop in spans) <= KEPT // 2:
            self._have(path, spans)

    def fetch_ends(self, paths: Iterable[str]) -> None:
        """Prefetch the footers of several Parquet files. Raises as `fetch`."""
        wanted = [(path, self.size(path)) for path in dict.fromkeys(paths)]
        self._collect({path: self._missing(path, [(size - 1, size)]) for path, size in wanted})

    def straight(self, path: str) -> bytes:
        """A whole file, bypassing the cache. Raises as `fetch`."""
        return self._straight(path, 0, self.size(path))

    def get_small(self, path: str, most: int) -> bytes:
        """At most the first `most` bytes of any file. Raises FileNotFoundError, `RemoteError`.

        Requesting a range avoids fsspec's request for the size.
        """
        with remote_errors(self.url):
            read: bytes = self.fs.cat_file(self.below(path), start=0, end=most)
            return read

    def find(self, below: str = "") -> dict[str, int]:
        """Sizes of all files below a folder of the store, by path. Raises `RemoteError`."""
        folder = self.below(below).rstrip("/")
        with remote_errors(self.url):
            self.fs.invalidate_cache()
            try:
                entries = self.fs.find(folder, detail=True)
            except FileNotFoundError:
                return {}
        prefix = self._base.rstrip("/") + "/"
        listed = {}
        for name, about in entries.items():
            # Some file systems return full URLs, some a leading slash, some neither.
            full = str(name)
            place = full.find(prefix.lstrip("/"))
            if place >= 0 and about.get("type", "file") == "file":
                listed[full[place + len(prefix.lstrip("/")) :]] = int(about["size"] or 0)
        return listed

    @contextmanager
    def copied(self, folder: str, files: Sequence[File] = ()) -> Iterator[Path]:
        """Download one folder of the store to a temporary folder, under the same path.

        files: its contents. If empty, the server lists them. The copy is removed after the block.
        Raises `CorruptDatabaseError` if the folder is empty, otherwise as `fetch`.
        """
        names = [file.path for file in files] or list(self.find(folder))
        if not names:
            raise CorruptDatabaseError(
                f"{self / folder} is missing, or the server does not list its files: "
                "`featuredb pull` the database where it can be listed, or restore it from a copy"
            )
        with scratch_folder() as root:
            for name in names:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                self.download(name, root / name)
            yield root

    def download(self, path: str, target: Path) -> None:
        """Download a file to `target`, whose folder exists. Raises as `fetch`."""
        try:
            with remote_errors(self.url):
                self.fs.get_file(self.below(path), str(target))
        except FileNotFoundError as error:
            raise self._damaged(path, "it is not there") from error

    def _have(self, path: str, spans: Iterable[Span]) -> Mapping[int, bytes]:
        """The blocks of the spans by number."""
        spans = list(spans)
        fresh = self._collect({path: self._missing(path, spans)})
        read: dict[int, bytes] = {}
        lost = []
        with self._lock:
            for number in _numbers(spans):
                block = self._blocks.get((path, number))
                block = fresh.get((path, number)) if block is None else block
                if block is None:
                    lost.append(number)
                else:
                    read[number] = block
        if lost:  # evicted in between by another thread
            again = self._collect({path: lost})
            read |= {number: again[path, number] for number in lost}
        return read

    def _missing(self, path: str, spans: Iterable[Span]) -> list[int]:
        """Numbers of the blocks to request, ascending, including read-ahead."""
        size = self.size(path)
        with self._lock:
            missing = []
            for number in _numbers(spans):
                if (path, number) in self._blocks:
                    self._blocks.move_to_end((path, number))
                else:
                    missing.append(number)
        if not missing:
            return []
        if self.is_whole(path):
            return list(_numbers([(0, size)]))
        if path.endswith(".parquet"):
            tail = max(_TAIL_LEAST, min(_TAIL_MOST, size // _TAIL_SHARE))
            first = max(0, size - tail) // BLOCK
            if missing[-1] == (size - 1) // BLOCK:
                missing = sorted({*missing, *range(first, missing[-1] + 1)})
        return missing

    def _collect(self, missing: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], bytes]:
        """Request blocks in parallel and cache them."""
        requests = [
            (path, start, stop)
            for path, numbers in missing.items()
            for start, stop in _stretches(numbers, self.size(path) if numbers else 0)
        ]
        fresh: dict[tuple[str, int], bytes] = {}
        if not requests:
            return fresh
        for (path, start, _), data in zip(requests, self._request(requests), strict=True):
            for offset in range(0, len(data), BLOCK):
                block = data[offset : offset + BLOCK]
                fresh[path, (start + offset) // BLOCK] = block
        with self._lock:
            for key, block in fresh.items():
                if key not in self._blocks:
                    self._kept += len(block)
                self._blocks[key] = block
            while self._kept > KEPT:
                _, dropped = self._blocks.popitem(last=False)
                self._kept -= len(dropped)
        return fresh

    def _straight(self, path: str, start: int, stop: int) -> bytes:
        cuts = [*range(start, stop, _REQUEST), stop]
        requests = [(path, a, b) for a, b in pairwise(cuts)]
        return b"".join(self._request(requests))

    def _request(self, requests: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of each (path, start, stop), in order."""
        paths, starts, stops = (list(part) for part in zip(*requests, strict=True))
        try:
            with remote_errors(self.url):
                got: list[Any] = self.fs.cat_ranges(
                    [self.below(path) for path in paths], starts, stops, on_error="return"
                )
                for answer in got:
                    if isinstance(answer, BaseException):
                        raise answer
        except FileNotFoundError as error:
            gone = next((p for p in paths if p in str(error)), paths[0])
            raise self._damaged(gone, "it is not there") from error
        for path, start, stop, data in zip(paths, starts, stops, got, strict=True):
            if len(data) > stop - start:
                raise RemoteError(
                    f"the server of {self.url} does not serve ranges of a file: use one that "
                    "does, or copy the database with `featuredb pull`"
                )
            if len(data) < stop - start:
                raise self._damaged(path, f"it ends before byte {stop}")
        return got

    def _damaged(self, path: str, what: str) -> CorruptDatabaseError:
        return CorruptDatabaseError(
            f"{self / path} is missing or damaged ({what}): `featuredb push` the database again "
            "from where it was made"
        )


class RemoteFile(io.RawIOBase):
    """One file of a `RemoteFiles` as a Python file. at: the current offset."""

    at: int

    def __init__(self, remote: RemoteFiles, path: str) -> None:
        self.remote = remote
        self.path = path
        self._size = remote.size(path)
        self.at = 0

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes. Raises as `RemoteFiles.fetch`."""
        stop = self._size if size is None or size < 0 else self.at + size
        data = self.remote.read(self.path, self.at, stop)
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self._size}[whence]
        self.at = max(0, base + offset)
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _numbers(spans: Iterable[Span]) -> list[int]:
    """Numbers of the blocks that hold the spans, ascending."""
    return sorted({n for a, b in spans if b > a for n in range(a // BLOCK, (b - 1) // BLOCK + 1)})


def _stretches(numbers: Sequence[int], size: int) -> Iterator[Span]:
    """Byte ranges that cover blocks, ascending. Near blocks are merged, long ranges split."""
    for at, here in enumerate(numbers):
        if at == 0:
            start = here
        elif here - numbers[at - 1] - 1 > _GAP or (here + 1 - start) * BLOCK > _REQUEST:
            yield start * BLOCK, (numbers[at - 1] + 1) * BLOCK
            start = here
    if numbers:
        yield start * BLOCK, min((numbers[-1] + 1) * BLOCK, size)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an fsspec URL such as ``s3://bucket/my.fdb``."""
    return isinstance(path, str) and _SCHEME.match(path) is not None


def local_folder(path: str | os.PathLike[str], doing: str) -> Path:
    """`path` as a local folder. Raises `StorageError` if it is a URL.

    doing: the operation, for the message.
    """
    if is_url(path):
        raise StorageError(
            f"{path} is a URL, and {doing} needs a folder: databases are written on a local disk "
            "and copied with `featuredb push` and `featuredb pull`"
        )
    return Path(path)
