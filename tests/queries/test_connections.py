"""One handle, used from several threads and while results are being read."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pytest

import featuredb
from featuredb.errors import ClosedError, SQLError
from queries.answers import Rows
from tests.make_store import make_store
from tests.queries.test_questions import small_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.fdb"
    make_store(path, small_world(("demo",)))
    return path


@pytest.fixture
def db(folder: Path) -> Iterator[featuredb.Database]:
    with featuredb.open(folder) as opened:
        yield opened


def test_threads_ask_one_handle_all_at_once(db: featuredb.Database) -> None:
    """Also for the first question, which creates the catalog."""
    ask: list[Callable[[], object]] = [
        lambda: db.sql("FROM top_contexts(1)").fetchall(),
        lambda: db.sql("SELECT count(*) FROM activations").fetchall(),
        lambda: db.search("bank").arrow().to_pylist(),
        lambda: db.top_contexts(1, where="document_id < 2").arrow().to_pylist(),
    ]
    together = threading.Barrier(8)

    def work(i: int) -> list[object]:
        together.wait()
        return [ask[(i + j) % len(ask)]() for j in range(4 * len(ask))]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    expected = [question() for question in ask]
    for i, answers in enumerate(found):
        assert answers == [expected[(i + j) % len(ask)] for j in range(4 * len(ask))]


def test_a_question_while_another_s_rows_are_read(db: featuredb.Database) -> None:
    made = db.sql("SELECT 1")
    reader = db.sql("FROM range(100_000)").to_arrow_reader(1_000)
    gc.collect()
    rows = len(reader.read_next_batch())
    assert made.fetchall() == db.sql("SELECT 1").fetchall() == [(1,)]
    assert len(db.search("bank"))
    assert rows + sum(len(batch) for batch in reader) == 100_000


def test_a_relation_is_fetched_by_another_thread(db: featuredb.Database) -> None:
    relations = [db.sql("SELECT ? + count(*) FROM range(100_000)", [i]) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda relation: relation.fetchall(), relations))
    assert found == [[(100_000 + i,)] for i in range(8)]


def test_what_one_statement_makes_the_next_one_sees(db: featuredb.Database) -> None:
    db.sql("CREATE TABLE mine AS SELECT feature_id FROM features WHERE count > 0")
    db.sql("CREATE VIEW few AS FROM mine LIMIT 2")
    db.sql("CREATE MACRO twice(x) AS 2 * x")
    assert db.sql("SELECT twice(count(*)) FROM few").fetchall() == [(4,)]
    db.sql("SET threads = 1")
    assert db.sql("SELECT current_setting('threads')").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE mine AS SELECT 1",
        "create or replace temporary view v AS SELECT 1;",
        " SET VARIABLE x = 1",
        "BEGIN",
        "PREPARE p AS SELECT 1",
    ],
)
def test_what_would_be_over_with_its_connection_is_refused(
    db: featuredb.Database, statement: str
) -> None:
    with pytest.raises(SQLError, match="would be over before the next statement") as error:
        db.sql(statement)
    assert "\n" not in str(error.value)


def test_but_not_where_the_text_goes_on_to_use_it(db: featuredb.Database) -> None:
    text = "CREATE TEMP TABLE mine AS SELECT 7 AS x; SET VARIABLE y = 8; "
    assert db.sql(text + "SELECT x, getvariable('y') FROM mine").fetchall() == [(7, 8)]


def test_every_connection_keeps_the_footers_it_parsed(db: featuredb.Database) -> None:
    kept = db.sql("SELECT current_setting('parquet_metadata_cache')").fetchall()
    assert kept == [(True,)]


def test_relations_stop_working_when_the_handle_is_closed(db: featuredb.Database) -> None:
    relation = db.sql("FROM features")
    db.close()
    with pytest.raises(duckdb.ConnectionException):
        relation.fetchall()


@pytest.mark.parametrize(
    "ask",
    [
        lambda db: db.top_contexts(1),
        lambda db: db.near(1),
        lambda db: db.sql("FROM features"),
        lambda db: db.info(),
        lambda db: db.fires_in(0),
    ],
)
def test_a_closed_handle_answers_nothing(
    db: featuredb.Database, ask: Callable[[featuredb.Database], Any]
) -> None:
    ask(db)
    db.close()
    db.close()
    with pytest.raises(ClosedError, match="open it again"):
        ask(db)


@pytest.mark.parametrize(
    "write",
    [
        lambda db: db.label(5, "x"),
        lambda db: db.prefer_label(5, "x"),
        lambda db: db.vote_for_label(5, "x"),
        lambda db: db.remove_label(5, "x"),
        lambda db: db.__enter__(),
    ],
    ids=["label", "prefer", "vote", "remove", "with"],
)
def test_a_closed_handle_writes_nothing(
    db: featuredb.Database, write: Callable[[featuredb.Database], Any]
) -> None:
    db.close()
    with pytest.raises(ClosedError, match="open it again"):
        write(db)
    with featuredb.open(db.path) as again:
        assert again.snapshot.number == db.snapshot.number


@pytest.mark.parametrize(
    "statement",
    [
        "drop view features",
        'DROP VIEW IF EXISTS main."Features"',
        "create or replace view features as select 1",
        "alter view features rename to mine",
        "/* mine */ drop macro table top_contexts; select 1",
        "drop macro featuredb_k",
        "create or replace macro search(words) as table select words",
    ],
)
def test_what_the_database_has_stays(db: featuredb.Database, statement: str) -> None:
    with pytest.raises(SQLError, match="is the database's own and stays as it is"):
        db.sql(statement)
    assert db.sql("FROM features JOIN top_contexts(1, k := 1) USING (sae)").fetchall()


def test_what_a_user_makes_may_go(db: featuredb.Database) -> None:
    db.sql("create view features_of_mine as select 1 as a")
    db.sql("create or replace view features_of_mine as select 'drop view features' as a")
    assert db.sql("from features_of_mine").fetchall() == [("drop view features",)]
    db.sql("drop view features_of_mine")
    with pytest.raises(SQLError):
        db.sql("from features_of_mine")


@pytest.mark.parametrize("named", ["k", "window_size"])
def test_a_null_is_named(db: featuredb.Database, named: str) -> None:
    with pytest.raises(SQLError, match=r"must be a whole number.*not NULL"):
        db.sql(f"FROM top_contexts(1, {named} := NULL)").fetchall()


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "an answer"])
def test_sql_sees_the_tables_of_the_user(db: featuredb.Database, kind: str) -> None:
    table = pa.table({"feature_id": [1, 3], "label": ["river", "king"]})
    mine: Any = {
        "pandas": table.to_pandas,
        "polars": lambda: polars.from_arrow(table),
        "arrow": lambda: table,
        "an answer": lambda: Rows(table),
    }[kind]()
    query = "SELECT feature_id, label FROM mine JOIN features USING (feature_id) ORDER BY 1"
    assert db.sql(query, tables={"mine": mine}).fetchall() == [(1, "river"), (3, "king")]
    with pytest.raises(SQLError, match="mine"):
        db.sql(query)


def test_tables_that_cannot_be_had(db: featuredb.Database) -> None:
    table = pa.table({"x": [1]})
    for taken in ("features", "saes"):
        with pytest.raises(SQLError, match=f"the database has '{taken}' itself"):
            db.sql("SELECT 1", tables={taken: table})
    with pytest.raises(SQLError, match="'mine' is int: give a pandas"):
        db.sql("SELECT 1", tables={"mine": 7})


def test_an_sql_error_is_one_exception(db: featuredb.Database) -> None:
    with pytest.raises(SQLError) as caught:
        db.sql("SELECT nothing FROM nowhere")
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


_IN_JUPYTER = """
import sys, types

ipython = types.ModuleType("IPython")
ipython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules |= {"IPython": ipython, "ipywidgets": None}
import duckdb
import featuredb

try:
    duckdb.connect().execute("SET enable_progress_bar = false")
except duckdb.InvalidInputException:
    print("refused")
with featuredb.open(sys.argv[1]) as db:
    print(db.sql("SELECT 1 AS one").fetchall())
"""


def test_sql_in_jupyter_without_ipywidgets(folder: Path) -> None:
    """DuckDB looks for a kernel when it is imported, so this runs in a new process."""
    command = [sys.executable, "-c", _IN_JUPYTER, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["refused", "[(1,)]"], run.stderr
