"""What the server refuses: by token, Host, Origin, size, pace, path, and statement."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.responses import Response

from featuredb.cli import main
from featuredb.database import Database
from featuredb.errors import OptionError, SQLError
from featuredb.explorer import guard, server
from featuredb.explorer.cache import PageCache
from featuredb.explorer.console import Console
from featuredb.explorer.drawing import section_of
from featuredb.render.formats import FORMATS, to_bytes
from featuredb.store.store import Store
from tests.explorer.conftest import Running


def test_the_token_becomes_a_cookie_after_one_redirect(running: Running) -> None:
    path = f"/feature/a/sae/5?k=3&token={running.token}"
    status, _, headers = running.get(path, headers={"Cookie": ""})
    assert (status, headers["location"]) == (303, "/feature/a/sae/5?k=3")
    assert headers["set-cookie"].startswith(f"featuredb-{running.port}={running.token};")
    assert "HttpOnly" in headers["set-cookie"]


def test_a_redirect_stays_on_this_server(running: Running) -> None:
    for path in ("//evil.example/", "/\\evil.example/", "\\\\evil.example/", "/\\/evil.example/"):
        headers = running.get(f"{path}?token={running.token}", headers={"Cookie": ""})[2]
        assert headers.get("location", "/evil.example/") == "/evil.example/", path


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"Cookie": ""}, 403),
        ("/", {"Cookie": "featuredb-{port}=wrong"}, 403),
        ("/", {"Cookie": "featuredb-1={token}"}, 403),
        ("/?token=wrong", {}, 403),
        ("/assets/explorer.js", {"Cookie": ""}, 403),
        ("/", {"Host": "evil.example:{port}"}, 421),
        ("/", {"Host": "127.0.0.1:1"}, 421),
        ("/", {"Host": "127.0.0.1.evil.example:{port}"}, 421),
        ("/", {"Origin": "http://evil.example"}, 403),
        ("/", {"Origin": "null"}, 403),
        ("/", {"Origin": "http://127.0.0.1:1"}, 403),
        ("/", {"Origin": "http://127.0.0.1:{port}"}, 200),
        ("/?q=" + "a" * 20_000, {}, 414),
        ("/assets/../app.py", {}, 404),
        ("/assets/..%2Fapp.py", {}, 404),
        ("/assets/%2e%2e/%2e%2e/pyproject.toml", {}, 404),
        ("/feature/../../../../etc/passwd", {}, 404),
        ("/feature/%00/1", {}, 404),
        ("/nothing", {}, 404),
    ],
)
def test_requests_that_are_refused(
    running: Running, path: str, headers: dict[str, str], status: int
) -> None:
    filled = {k: v.format(port=running.port, token=running.token) for k, v in headers.items()}
    got, body, _ = running.get(path, headers=filled)
    assert got == status
    assert b"Traceback" not in body


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_methods_that_change_are_refused(running: Running, method: str) -> None:
    assert running.get("/", method)[0] == 405


def test_a_body_that_is_too_large_is_refused(running: Running) -> None:
    assert running.get("/text", "POST", b"a", {"Content-Length": str(10**9)})[0] == 413
    assert running.get("/text", "POST", b"text=" + b"a" * 90_000)[0] == 200


def test_headers_without_end_are_refused(running: Running) -> None:
    assert running.get("/", headers={"X-Long": "a" * 100_000})[0] in (400, 431)


def test_slow_clients_are_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SLOWEST", 0.3)
    monkeypatch.setattr(guard, "SLOWEST", 0.3)
    head = f"POST /text HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
    cookie = f"Cookie: featuredb-{running.port}={running.token}\r\nContent-Length: 50\r\n\r\n"
    for sent in (head, head + cookie + "text="):
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as slow:
            slow.sendall(sent.encode())
            started = time.monotonic()
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - started < 5


def test_a_port_that_is_taken_is_one_line(running: Running) -> None:
    with pytest.raises(OptionError, match="give another --port"):
        server._listen("127.0.0.1", running.port)


@pytest.fixture(scope="module")
def console(database: Path) -> Console:
    return Console(Store.open(database))


@pytest.mark.parametrize(
    "query",
    [
        "FROM read_text('/etc/passwd')",
        "FROM glob('/etc/*')",
        "FROM '/etc/passwd'",
        "FROM read_csv('http://127.0.0.1/')",
        "COPY features TO '{root}/x.csv'",
        "WITH a AS (COPY (SELECT 1) TO '{root}/x.csv') FROM a",
        "SELECT 1) TO '{root}/x.csv'; COPY (SELECT 1",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{root}/x.csv'",
        "EXPORT DATABASE '{root}/x'",
        "ATTACH '{root}/x.db'",
        "CREATE TABLE x AS SELECT 1",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "PRAGMA database_list",
        "SELECT 1; SELECT 2",
        "",
        "-- a remark",
    ],
)
def test_the_console_only_reads_the_database(console: Console, database: Path, query: str) -> None:
    before = sorted(p.relative_to(database) for p in database.rglob("*"))
    with pytest.raises(SQLError):
        console.ask(query.format(root=str(database).replace("'", "''")))
    assert sorted(p.relative_to(database) for p in database.rglob("*")) == before


def test_the_console_has_limits(console: Console) -> None:
    rows = console.ask("FROM range(5000)")
    assert (len(rows), rows.more) == (1_000, True)
    with pytest.raises(SQLError, match="stopped after"):
        console.ask("SELECT count(*) FROM range(1000000000000) a, range(1000) b", 0.2)
    assert console.ask("SELECT 1 -- a comment").arrow().to_pydict() == {"1": [1]}
    assert len(console.ask("FROM features ORDER BY feature_id DESC;")) == 52


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("DATE 'infinity'", "infinity"),
        ("TIMESTAMP '200000-01-01'", "200000-01-01 00:00:00"),
        ("TIMESTAMPTZ '-infinity'", "-infinity"),
        ("[TIMESTAMP 'infinity']", "[infinity]"),
        ("INTERVAL 3 MONTH", "3 months"),
        ("{'i': INTERVAL 1 DAY}", "{'i': 1 day}"),
        ("BIT '0101'", "0101"),
        ("union_value(a := 1)", "1"),
        ("DATE '1999-01-02'", "1999-01-02"),
    ],
)
def test_what_python_or_parquet_cannot_hold_is_text(
    console: Console, database: Path, value: str, shown: str
) -> None:
    statement = f"SELECT {value} AS x, 1 AS y"
    rows = console.ask(statement)
    for form in FORMATS:
        assert to_bytes(rows, form)
    assert json.loads(to_bytes(rows, "json"))["rows"] == [{"x": shown, "y": 1}]
    assert shown in str(rows)
    assert section_of(rows.view())
    result = CliRunner().invoke(main, ["sql", str(database), statement, "--format", "jsonl"])
    assert json.loads(result.stdout) == {"x": shown, "y": 1}


def test_a_condition_of_a_page_is_confined(running: Running) -> None:
    for where in (
        "topic+IN+(SELECT+content+FROM+read_text('/etc/passwd'))",
        "1=1);COPY+(SELECT+1)+TO+'/tmp/x.csv';SELECT+(1",
    ):
        for path in (
            f"/feature/a/sae/5?where={where}",
            f"/contrast?a={where}",
            f"/find?any=1&where={where}",
        ):
            assert b'role="alert"' in running.get(path)[1]
    assert not Path("/tmp/x.csv").exists()


def test_pages_are_kept_up_to_a_bound() -> None:
    cache = PageCache(most=25)
    for name in "abc":
        cache.put(name, Response(b"0123456789"))
        cache.get("a")
    assert [name for name in "abc" if cache.get(name)] == ["a", "c"]
    cache.put("long", Response(b"0" * 100))
    assert cache.get("long") is None


def test_what_is_sent_is_not_held_back(database: Path) -> None:
    """asyncio asks TCP so where the socket names its protocol. Else each page takes 40 ms more."""
    store = Store.open(database)
    with (
        Database(store) as handle,
        server.prepare(handle, store, "127.0.0.1", 0).listening as listening,
    ):
        assert listening.proto == socket.IPPROTO_TCP
