"""Reads of a remote database: ranges, the cache, and one clear line for each error."""

from __future__ import annotations

import io
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import featuredb
from featuredb.cli import main
from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    FeatureDBError,
    MissingExtraError,
    RemoteError,
    StorageError,
)
from featuredb.store.files import remote
from featuredb.store.files.arrays import RangedArray, remote_array
from featuredb.store.files.duckdb_files import DuckDBFileSystem
from featuredb.store.files.remote import RemoteFile, RemoteFiles, is_url, local_folder
from featuredb.store.history import PUSHING, read_remote_snapshot
from featuredb.store.snapshot import Snapshot
from tests.make_store import make_store
from tests.object_store import ObjectStore
from tests.queries.test_questions import small_world


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, empty before and after."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "my.fdb"
    make_store(path, small_world(("demo",)))
    return path


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/my.fdb", True),
        ("memory://my.fdb", True),
        ("simplecache::s3://bucket/my.fdb", True),
        ("my.fdb", False),
        ("./s3:/my.fdb", False),
        ("C://my.fdb", False),
        (Path("s3://bucket/my.fdb"), False),
    ],
)
def test_what_is_a_url(path: str | Path, url: bool) -> None:
    assert is_url(path) is url


def _remote(memory: Any, data: bytes, path: str = "a.bin") -> RemoteFiles:
    memory.pipe_file("/db/" + path, data)
    found = RemoteFiles("memory://db")
    found._sizes = {path: len(data)}
    return found


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 5_000),
    spans=st.lists(st.tuples(st.integers(0, 6_000), st.integers(0, 6_000)), max_size=8),
    whole=st.sampled_from([0, 2_000]),
    path=st.sampled_from(["a.bin", "a.parquet"]),
)
def test_any_range_is_those_bytes(
    size: int, spans: list[tuple[int, int]], whole: int, path: str
) -> None:
    import fsspec

    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"BLOCK": 64, "WHOLE": whole, "_REQUEST": 512, "KEPT": 2_048}.items():
            patched.setattr(remote, name, value)
        patched.setattr(remote, "_TAIL_LEAST", 100)
        data = np.random.default_rng(size).bytes(size)
        found = _remote(fsspec.filesystem("memory"), data, path)
        found.fetch(path, [(a, min(b, size)) for a, b in spans])
        for start, stop in spans:
            assert found.read(path, start, stop) == data[start:stop]
        assert found.straight(path) == data


def test_near_ranges_are_one_request_and_far_ones_several_at_once(memory: Any) -> None:
    size = 64 * remote.BLOCK
    found = _remote(memory, bytes(size))
    asked: list[tuple[list[int], list[int]]] = []
    fs = found.fs

    def watching(paths: list[str], starts: list[int], ends: list[int], **more: Any) -> Any:
        asked.append((starts, ends))
        return fs.cat_ranges(paths, starts, ends, **more)

    found.fs = SimpleNamespace(cat_ranges=watching)
    found.fetch("a.bin", [(10, 20), (3 * remote.BLOCK, 3 * remote.BLOCK + 1), (size - 5, size)])
    assert asked == [([0, 63 * remote.BLOCK], [4 * remote.BLOCK, size])]
    found.read("a.bin", remote.BLOCK, 2 * remote.BLOCK)
    assert len(asked) == 1


def test_a_file_reads_like_a_file(memory: Any) -> None:
    data = bytes(range(200))
    file = RemoteFile(_remote(memory, data), "a.bin")
    same = io.BytesIO(data)
    for offset, whence, size in [(0, 0, 10), (5, 1, 20), (-30, 2, 50), (190, 0, -1), (300, 0, 5)]:
        assert file.seek(offset, whence) == same.seek(offset, whence)
        assert file.read(size) == same.read(size)
        assert file.tell() == same.tell()


def test_threads_that_share_a_file_read_what_they_sought(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DuckDB's threads do: each seeks and reads, without a lock."""
    for name, value in {"BLOCK": 64, "WHOLE": 0, "KEPT": 4_096}.items():
        monkeypatch.setattr(remote, name, value)
    data = np.random.default_rng(0).bytes(50_000)
    found = _remote(memory, data, "a.parquet")
    file = DuckDBFileSystem(found).open("memory://db/a.parquet")

    def right(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for start, size in zip(
            rng.integers(0, 49_000, 200), rng.integers(1, 900, 200), strict=True
        ):
            file.seek(int(start))
            if file.read(int(size)) != data[start : start + size]:
                return False
        return True

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(right, range(8)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(
    "key", [3, -1, slice(2, 7), slice(2, 2), slice(None), (slice(1, 9), 1), (4, 0), slice(-3, None)]
)
def test_rows_of_an_array_are_those_of_the_array(
    memory: Any, monkeypatch: pytest.MonkeyPatch, key: Any
) -> None:
    monkeypatch.setattr(remote, "WHOLE", 0)
    array = np.arange(24, dtype=np.int64).reshape(12, 2)
    buffer = io.BytesIO()
    np.save(buffer, array)
    found = remote_array(_remote(memory, buffer.getvalue(), "a.npy"), "a.npy")
    assert isinstance(cast("Any", found), RangedArray)
    np.testing.assert_array_equal(found[key], array[key])
    np.testing.assert_array_equal(np.asarray(found), array)


def test_a_file_cut_short_or_gone_is_named(memory: Any) -> None:
    found = _remote(memory, bytes(100))
    found._sizes["a.bin"] = 200
    with pytest.raises(CorruptDatabaseError, match=r"memory://db/a\.bin is missing or damaged"):
        found.read("a.bin", 0, 200)
    found._sizes["b.bin"] = 10
    with pytest.raises(CorruptDatabaseError, match=r"memory://db/b\.bin .*not there"):
        found.read("b.bin", 0, 10)


def test_a_server_that_sends_everything_is_refused(memory: Any) -> None:
    found = _remote(memory, bytes(100_000))
    found._sizes["a.bin"] = 3_000_000
    found.fs = SimpleNamespace(cat_ranges=lambda *_, **__: [bytes(3_000_000)])
    with pytest.raises(RemoteError, match="does not serve ranges"):
        found.read("a.bin", 0, 10)


def _copy(fs: Any, folder: Path, to: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_any_file_system_of_fsspec_will_do(memory: Any, folder: Path) -> None:
    _copy(memory, folder, "/some/my.fdb")
    with featuredb.open("memory://some/my.fdb/") as db, featuredb.open(folder) as here:
        assert db.top_contexts(1).arrow().equals(here.top_contexts(1).arrow())
        query = "SELECT * FROM features ORDER BY feature_id"
        assert db.sql(query).fetchall() == here.sql(query).fetchall()


def test_a_web_server_will_do(object_store: ObjectStore, folder: Path) -> None:
    object_store.copy(folder, "web.fdb")
    url = f"{object_store.endpoint}/shelf/web.fdb"
    with featuredb.open(url) as db, featuredb.open(folder) as here:
        assert db.fires_in(1).arrow().equals(here.fires_in(1).arrow())
        assert db.near(1, k=60).arrow().equals(here.near(1, k=60).arrow())
        assert db.sql("FROM top_contexts(1)").fetchall() == (
            here.sql("FROM top_contexts(1)").fetchall()
        )
        object_store.remove("web.fdb", db.snapshot.segments[0].feature_files[0].file.path)
    with featuredb.open(url) as db, pytest.raises(CorruptDatabaseError, match="fm"):
        db.top_contexts(1, k=60)


def test_a_web_server_without_ranges_is_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WHOLE", "WHOLE_SHARED"):
        monkeypatch.setattr(remote, name, 0)
    monkeypatch.setattr(remote, "BLOCK", 64)
    monkeypatch.setattr(remote, "_TAIL_LEAST", 64)
    handler = partial(Quiet, directory=str(folder.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            db = featuredb.open(f"http://127.0.0.1:{server.server_address[1]}/my.fdb")
            assert isinstance(db.location, RemoteFiles)
            path = db.snapshot.derived.features.path
            with pytest.raises(RemoteError, match="does not serve ranges"):
                db.location.read(path, 0, 10)
        finally:
            server.shutdown()
            thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return None


def test_a_file_that_is_gone_is_one_clear_error_in_python_and_sql(
    memory: Any, folder: Path
) -> None:
    _copy(memory, folder, "/my.fdb")
    with featuredb.open("memory://my.fdb") as db:
        memory.rm(f"/my.fdb/{db.snapshot.derived.features.path}")
        with pytest.raises(CorruptDatabaseError, match=r"memory://my.fdb/derived/.*features"):
            db.near(1)
        with pytest.raises(CorruptDatabaseError, match=r"memory://my.fdb/derived/.*features"):
            db.search("bank")


def test_sql_cannot_write_into_the_database(memory: Any, folder: Path) -> None:
    _copy(memory, folder, "/my.fdb")
    with featuredb.open("memory://my.fdb") as db, pytest.raises(FeatureDBError, match="reading"):
        db.sql("COPY (SELECT 1) TO 'memory://my.fdb/x.parquet'")
    assert not memory.exists("/my.fdb/x.parquet")


def test_sql_reads_and_writes_elsewhere(memory: Any, folder: Path) -> None:
    _copy(memory, folder, "/my.fdb")
    with featuredb.open("memory://my.fdb") as db:
        db.sql("COPY (SELECT 7 AS seven) TO 'memory://answers/x.parquet'")
        assert db.sql("FROM read_parquet('memory://answers/*.parquet')").fetchall() == [(7,)]


def test_nothing_there(object_store: ObjectStore, memory: Any) -> None:
    with pytest.raises(DatabaseNotFoundError, match="there is no featuredb database at s3://shelf"):
        featuredb.open(object_store.url("none.fdb"))
    with pytest.raises(DatabaseNotFoundError, match="bucket does not exist"):
        featuredb.open("s3://no-such-bucket/none.fdb")
    with pytest.raises(DatabaseNotFoundError, match="memory://none"):
        featuredb.open("memory://none.fdb")
    memory.pipe_file("/page/CURRENT", b"<!doctype html>")
    with pytest.raises(DatabaseNotFoundError, match="not a featuredb database"):
        featuredb.open("memory://page")


def test_a_push_under_way(memory: Any) -> None:
    memory.pipe_file(f"/half/{PUSHING}", b"{}")
    with pytest.raises(DatabaseNotReadyError, match="still being pushed"):
        featuredb.open("memory://half")


def test_no_credentials(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    object_store.forget()
    with pytest.raises(RemoteError, match=r"no credentials for s3://.*AWS_ACCESS_KEY_ID"):
        featuredb.open(object_store.url("my.fdb"))
    object_store.forget()


def test_no_right_to_read(object_store: ObjectStore, folder: Path) -> None:
    object_store.copy(folder, "private.fdb", access="private")
    with pytest.raises(RemoteError, match="refuses access"):
        featuredb.open(f"{object_store.endpoint}/shelf/private.fdb")


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "a", "secret": "b"}
    with pytest.raises(RemoteError, match="cannot be reached"):
        featuredb.open("s3://shelf/my.fdb", storage_options=options)


@pytest.mark.parametrize(
    ("url", "module", "message"),
    [
        ("s3://shelf/my.fdb", "s3fs", r"pip install 'featuredb\[s3\]'"),
        ("gs://shelf/my.fdb", "gcsfs", "gcsfs"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    # fsspec keeps the classes it has imported.
    registry: Any = sys.modules["fsspec.registry"]
    monkeypatch.delitem(registry._registry, url.partition("://")[0], raising=False)
    with pytest.raises(MissingExtraError, match=message):
        featuredb.open(url)


def test_an_unknown_scheme() -> None:
    with pytest.raises(RemoteError, match="fsspec knows no nosuch://"):
        featuredb.open("nosuch://x/my.fdb")


@pytest.mark.parametrize("verb", ["compact", "verify", "ingest", "plan"])
def test_writing_needs_a_folder(verb: str) -> None:
    needed = {"corpus": "c", "model": "m", "saes": ["s"]} if verb in ("ingest", "plan") else {}
    with pytest.raises(StorageError, match=r"s3://b/my.fdb is a URL, .*featuredb push"):
        getattr(featuredb, verb)("s3://b/my.fdb", **needed)


def test_a_path_of_a_url() -> None:
    with pytest.raises(StorageError, match="is a URL"):
        local_folder("s3://b/my.fdb", "its path")


def test_the_command_line_reads_urls_and_says_one_line(
    object_store: ObjectStore, folder: Path
) -> None:
    url = object_store.copy(folder, "my.fdb")
    for arguments in (
        ["info", url],
        ["top", url, "1"],
        ["feature", url, "1"],
        # Behind a URL its heading has no median, which costs requests.
        ["near", url, "1", "--format", "csv"],
        ["fires", url, "--context", "0"],
        ["search", url, "bank"],
        ["sql", url, "SELECT count(*) FROM features"],
    ):
        # Wide enough that no path is broken, which are of different lengths.
        runner = CliRunner(env={"COLUMNS": "300"})
        there = runner.invoke(main, arguments, catch_exceptions=False)
        here = runner.invoke(main, [str(folder) if a == url else a for a in arguments])
        assert there.exit_code == 0
        assert there.stdout.replace(url, "") == here.stdout.replace(str(folder), "")
    failed = CliRunner().invoke(main, ["info", "s3://no-such-bucket/my.fdb"])
    assert failed.exit_code == DatabaseNotFoundError.exit_code
    assert failed.stderr.startswith("featuredb: s3://no-such-bucket/my.fdb")
    assert failed.stderr.count("\n") == 1


def test_sizes_come_from_the_snapshot(memory: Any, folder: Path) -> None:
    _copy(memory, folder, "/my.fdb")
    found = RemoteFiles("memory://my.fdb")
    snapshot = read_remote_snapshot(found)
    assert isinstance(snapshot, Snapshot)
    assert found.size(snapshot.vocabulary.path) == snapshot.vocabulary.bytes
    assert not found.knows("CURRENT")
