"""Errors of queries, and the guarantees of an open database."""

from __future__ import annotations

import inspect
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace as replace_struct

import featuredb
from featuredb.database import Database
from featuredb.errors import (
    CorruptDatabaseError,
    QueryError,
    SQLError,
    UnknownContextError,
    UnknownFeatureError,
)
from featuredb.store.corpora import Texts, _rows_of
from featuredb.store.files.location import LocalFiles
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.store import Store
from queries.catalog.naming import naming_macros
from queries.fires import stored_document
from queries.sql import duckdb_errors
from tests.make_store import MadeSae, World, make_store

ERRORS = [e for _, e in inspect.getmembers(duckdb, inspect.isclass) if issubclass(e, duckdb.Error)]


def small_world(names: tuple[str, ...]) -> World:
    rng = np.random.default_rng(0)
    documents = [[[0, 1, 2, 3]], [[0, 3, 2, 1], [0, 1]], [[0, 2]]]
    lengths = [len(c) for d in documents for c in d]
    saes = []
    for name in names:
        dense = [rng.integers(0, 3, (n, 5)).astype(np.float32) for n in lengths]
        for context in dense:
            context[:, 4] = 0
        directions = rng.normal(size=(5, 3)).astype(np.float32)
        saes.append(MadeSae(name, dense, directions, directions))
    words = ["<bos>", " Bank", " of", " bank"]
    return World(documents, {"topic": ["art", "war", "art"]}, words, saes, context_size=4)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A handle that many tests ask. Those that change the files have `mine`."""
    path = tmp_path_factory.mktemp("one") / "one.fdb"
    make_store(path, small_world(("demo",)))
    with featuredb.open(path) as db:
        yield db


@pytest.fixture
def mine(one: Database, tmp_path: Path) -> Database:
    return featuredb.open(shutil.copytree(one.path, tmp_path / "mine.fdb"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = tmp_path_factory.mktemp("two") / "two.fdb"
    make_store(path, small_world(("a", "b/c")))
    with featuredb.open(path) as db:
        yield db


@pytest.mark.parametrize("feature", [5, -1, "5", "demo/5", "x/1", "banana", "", 1.5, True, "1/"])
def test_unknown_feature_says_the_same_in_python_and_sql(one: Database, feature: object) -> None:
    with pytest.raises(UnknownFeatureError) as python:
        one.top_contexts(feature)  # type: ignore[call-overload]
    assert "\n" not in str(python.value)
    for macro in ("top_contexts", "near", "feature_activations"):
        with pytest.raises((duckdb.Error, SQLError)) as sql:
            one.sql(f"FROM {macro}(?)", [feature]).fetchall()
        if not isinstance(feature, bool):
            assert str(python.value) in str(sql.value)


def test_a_name_is_read_while_planning_only_as_it_is_shown(one: Database, two: Database) -> None:
    spelled = {
        one: {
            "3": 3,
            "demo/3": 3,
            "demo/03": None,
            "demo/3.0": None,
            "demo/": None,
            "demo/5": None,
        },
        two: {
            "3": None,
            "a/3": 3,
            "b/c/3": 8,
            "b/c/+3": None,
            "c/3": None,
            "a/": None,
            "a/5": None,
        },
    }
    for database, rows in spelled.items():
        for feature, row in rows.items():
            (found,) = database.sql("SELECT featuredb_plain_row(?)", [feature]).fetchall()
            assert found == (row,), feature


def test_a_range_and_the_names_are_told(one: Database, two: Database) -> None:
    with pytest.raises(UnknownFeatureError, match=r"no feature 5: demo has features 0 to 4"):
        one.near(5)
    with pytest.raises(UnknownFeatureError, match=r"no SAE z: this database has a, b/c"):
        two.near("z/1")
    with pytest.raises(UnknownFeatureError, match=r"does not say of which SAE"):
        two.near(1)
    assert two.near("b/c/1").feature == "b/c/1"
    assert one.near("demo/1").feature == one.near(int(np.int64(1))).feature == "demo/1"


@pytest.mark.parametrize(
    "ask",
    [
        lambda db: db.top_contexts(1, k=0),
        lambda db: db.top_contexts(1, k=2.5),
        lambda db: db.top_contexts(1, window=-1),
        lambda db: db.near(1, k=-3),
        lambda db: db.near(1, by="smell"),
        lambda db: db.fires_in(0, k=0),
        lambda db: db.fires_on(7),
        lambda db: db.search("x", k=0),
        lambda db: db.search(None),
        lambda db: db.search("caf\udce9"),
        lambda db: db.fires_on("caf\udce9"),
        lambda db: db.sql("SELECT 'caf\udce9'"),
        lambda db: db.sql("-- nothing but a comment"),
        lambda db: db.sql(" ; "),
        lambda db: db.top_contexts(1, where="  "),
        lambda db: db.top_contexts(1, where="topic = '\udce9'"),
        lambda db: db.top_contexts(1, min_activation=float("nan")),
        lambda db: db.top_contexts(1, max_activation=float("nan")),
        lambda db: db.top_contexts(1, min_activation=10**400),
        lambda db: db.schema(5),
        lambda db: db.top_contexts(1, min_activation="x"),
        lambda db: db.top_contexts(1, k=2**63),
        lambda db: db.top_contexts(1, window=2**64),
        lambda db: db.near(1, k=2**63, by="coactivation"),
        lambda db: db.search("bank", k=10**19),
    ],
)
def test_bad_arguments(one: Database, ask: Callable[[Database], object]) -> None:
    with pytest.raises(QueryError) as error:
        ask(one)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("context", [4, -1])
def test_unknown_context(one: Database, context: int) -> None:
    message = f"there is no context {context}: this database has contexts 0 to 3"
    with pytest.raises(UnknownContextError, match=message):
        one.fires_in(context)
    with pytest.raises((duckdb.Error, SQLError), match=message):
        one.sql("FROM fires_in(?)", [context]).fetchall()


def test_a_context_of_a_corpus_that_was_dropped_is_unknown(one: Database) -> None:
    (corpus,) = one.snapshot.corpora
    parts = [(0, 2), (2, 1), (5, 2), (9, 1)]  # 3, 4, 7 and 8 were dropped
    corpora = tuple(replace_struct(corpus, first_context=f, n_contexts=n) for f, n in parts)
    snapshot = replace_struct(one.snapshot, corpora=corpora)
    texts = Texts(one.path, snapshot, ParquetFiles(one.path))
    with duckdb.connect() as client:
        for macro in naming_macros(snapshot):
            client.execute(macro.statement(snapshot))
        for context in range(-1, 12):
            if context in {0, 1, 2, 5, 6, 9}:
                texts.locate(context)
                found = client.execute("SELECT featuredb_context(?)", [context]).fetchall()
                assert found == [(context,)]
                continue
            said = f"no context {context}: this database has contexts 0 to 2 and 5 to 6 and 9 to 9"
            with pytest.raises(UnknownContextError, match=said):
                texts.locate(context)
            with pytest.raises(duckdb.Error, match=said):
                client.execute("SELECT featuredb_context(?)", [context]).fetchall()


MACROS = [
    "top_contexts(1, {})",
    "near_coactivation(1, {})",
    "coactive(1, min_both := 1, {})",
    "fires_in(1, {})",
    "search('bank', {})",
]


@pytest.mark.parametrize("macro", MACROS)
@pytest.mark.parametrize("k", ["2.5", "0", "-1", str(2**63), "10::HUGEINT ** 30"])
def test_a_bad_k_in_sql(one: Database, macro: str, k: str) -> None:
    with pytest.raises((duckdb.Error, SQLError), match="k must be a whole number, at least 1"):
        one.sql("FROM " + macro.format(f"k := {k}")).fetchall()


def test_as_many_as_there_are(one: Database) -> None:
    most = 2**63 - 1
    for macro in MACROS:
        assert len(one.sql("FROM " + macro.format(f"k := {most}")).fetchall())
    for k in (3, 60, most):
        widest = one.sql(f"FROM top_contexts(1, k := {k}, window_size := {most})").to_arrow_table()
        assert widest == one.top_contexts(1, k=k, window=most).arrow()
    for window in ("2.5", "-1", str(2**63)):
        with pytest.raises(SQLError, match="window must be a whole number, at least 0"):
            one.sql(f"FROM top_contexts(1, window_size := {window})")


def test_metadata_named_as_a_column_of_contexts(tmp_path: Path) -> None:
    world = small_world(("demo",))
    make_store(tmp_path / "s.fdb", replace(world, metadata={"context_id": ["a", "b", "a"]}))
    with featuredb.open(tmp_path / "s.fdb") as db:
        found = db.top_contexts(1, where="documents.context_id = 'b'")
        assert {row.document_id for row in found} == {1}
        assert len(db.top_contexts(1, where="document_id < 3")) == len(db.top_contexts(1))


def test_the_maximum_of_a_feature_that_is_never_positive(tmp_path: Path) -> None:
    world = small_world(("demo",))
    world.saes[0].dense[:] = [-context for context in world.saes[0].dense]
    make_store(tmp_path / "s.fdb", world)
    with featuredb.open(tmp_path / "s.fdb") as db:
        for options in ({}, {"k": 60}, {"where": "true"}, {"max_activation": -1.5}):
            assert db.top_contexts(1, **options).max_activation == -1


def test_a_condition_duckdb_refuses(one: Database) -> None:
    with pytest.raises(SQLError, match="color"):
        one.top_contexts(1, where="color = 'red'")
    with pytest.raises(SQLError):
        one.sql("SELEC 1")


def test_names_are_names_whatever_is_in_them(tmp_path: Path) -> None:
    """Quotes, keywords, blanks and SQL in the names of SAEs and of metadata columns."""
    saes = ('o\'x "q" a', 'o\'x "q"_a', "größe;{}\\ --", "..")
    columns = ['my "col"', "select", "a b", "it's", "); --", "token", "document_token", "größe"]
    world = replace(small_world(saes), metadata={c: [f"{c}!", "'", "%"] for c in columns})
    make_store(tmp_path / 'o\'d "d".fdb', world)
    db = featuredb.open(tmp_path / 'o\'d "d".fdb')
    assert featuredb.verify(db.path).ok
    for sae in saes:
        top = db.top_contexts(f"{sae}/0").arrow()
        assert len(top)
        assert top.equals(db.sql("FROM top_contexts(?)", [f"{sae}/0"]).to_arrow_table())
        called = [c.replace("token", "document_document_token") if c == "token" else c
                  for c in columns]  # fmt: skip
        assert top.column_names[-len(columns) :] == called
        near = db.near(f"{sae}/0").arrow()
        assert near.equals(db.sql("FROM near(?)", [f"{sae}/0"]).to_arrow_table())
        # More than the graph keeps: from the directions, each SAE's own.
        assert db.near(f"{sae}/0", k=99).arrow().equals(near)
        assert db.feature(f"{sae}/0").statistics.sae == sae
    for column in columns:
        quoted = column.replace('"', '""')
        found = db.top_contexts(f"{saes[0]}/0", where=f"documents.\"{quoted}\" = '%'")
        assert {row.document_id for row in found} <= {2}
    fires = db.fires_in(0).arrow()
    assert fires.equals(db.sql("FROM fires_in(0)").to_arrow_table())
    assert db.search("'; DROP VIEW features; --").arrow().num_rows == 0


@pytest.mark.parametrize("error", ERRORS)
def test_every_duckdb_exception_is_ours(error: type[Exception]) -> None:
    here = LocalFiles(Path("/nowhere"))
    with pytest.raises(SQLError, match="its own words"), duckdb_errors(here):
        raise error("its own words")


def test_there_are_duckdb_exceptions() -> None:
    assert duckdb.CatalogException in ERRORS


def test_a_missing_file_is_named(mine: Database) -> None:
    path = mine.snapshot.derived.saes[0].examples.path
    (mine.path / path).unlink()
    with pytest.raises(CorruptDatabaseError, match="is missing or damaged"):
        mine.top_contexts(1)
    with pytest.raises(CorruptDatabaseError):
        mine.sql("FROM feature_activations(1)")


def test_moved_folder(mine: Database, tmp_path: Path) -> None:
    expected = mine.top_contexts(1).table.to_pylist()
    mine.close()
    moved = tmp_path / "else where.fdb"
    shutil.move(mine.path, moved)
    with featuredb.open(moved) as db:
        assert db.sql("FROM top_contexts(1)").to_arrow_table().to_pylist() == expected
    with duckdb.connect(str(moved / "catalog.duckdb"), read_only=True) as client:
        client.execute(f"SET VARIABLE featuredb_root = '{moved}'")
        assert client.sql("FROM top_contexts(1)").to_arrow_table().to_pylist() == expected


def test_pickles_as_path_and_snapshot(one: Database) -> None:
    again = pickle.loads(pickle.dumps(one))
    assert again.snapshot == one.snapshot
    assert again.near(1).table == one.near(1).table
    assert isinstance(pickle.loads(pickle.dumps(Store.open(one.path))), Store)


def test_never_firing_feature(one: Database) -> None:
    answer = one.top_contexts(4)
    assert len(answer) == 0
    assert answer.max_activation == 0
    assert answer.table.schema == one.top_contexts(1).table.schema
    assert one.near(4, by="coactivation").table.num_rows == 0
    assert one.feature(4).table.to_pylist()[0]["max_activation"] is None


def test_search_ignores_case_and_spaces(one: Database) -> None:
    hits = one.search("BANK", k=10)
    assert {row.matched.strip().lower() for row in hits} == {"bank"}
    assert one.search("of bank").table.num_rows >= len(hits)
    assert one.search("  ").table.num_rows == 0
    assert one.sql("FROM search('bank')").to_arrow_table() == one.search("bank").table


def test_a_stored_text_is_found_by_its_hash(one: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = one.sql("SELECT document_id, text FROM documents ORDER BY 1").fetchall()
    first = {text: number for number, text in reversed(rows)}
    asked = [*first, "no such text", "", rows[0][1] + " "]
    assert [stored_document(one._store, text) for text in asked] == [*first.values()] + [None] * 3
    # All hashes collide: only the texts differ.
    monkeypatch.setattr(
        "featuredb.store.corpora._rows_of", lambda hashes, _: sorted(hashes[:, 1].tolist())
    )
    assert [stored_document(one._store, text) for text in asked] == [*first.values()] + [None] * 3


@pytest.mark.parametrize("n", [1, 5, 3_000])
def test_rows_of_a_hash_are_found_wherever_they_stand(n: int) -> None:
    rng = np.random.default_rng(n)
    drawn = rng.integers(0, 2**64, n, np.uint64)
    # Clustered in one place, unlike hashes, with a run longer than the first read.
    drawn[: n // 2] = rng.integers(7, 2**20, n // 2, np.uint64)
    drawn[: n // 3] = 2**63
    hashes = np.stack([np.sort(drawn), rng.permutation(n).astype(np.uint64)], axis=1)
    hashes = hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))]
    for wanted in {*hashes[:, 0].tolist(), 0, 1, 2**63 - 1, 2**64 - 1}:
        expected = hashes[hashes[:, 0] == np.uint64(wanted), 1].tolist()
        assert _rows_of(hashes, wanted) == expected


def test_fires_on_stored_text_in_sql_is_the_python_answer(two: Database) -> None:
    text = two.sql("SELECT text FROM documents WHERE document_id = 1").fetchall()[0][0]
    rows = two.sql("FROM fires_on(?, k := 3)", [text]).to_arrow_table().to_pylist()
    assert rows == two.fires_on(text, k=3).table.to_pylist()


def test_info_is_from_the_snapshot(two: Database) -> None:
    info = two.info()
    assert info["documents"] == 3
    assert [sae["name"] for sae in info["saes"]] == ["a", "b/c"]
    assert info["activations"] == two.sql("SELECT count(*) FROM activations").fetchall()[0][0]
    assert (info["values"], info["largest_relative_error"]) == ("float16", 2.0**-11)


def test_info_accounts_for_every_byte(two: Database) -> None:
    info = two.info()
    assert sum(info["size"].values()) == info["bytes"]
    segments = ("by_feature", "by_token", "directory", "sinks")
    of_saes = sum(sae["size"][f"{part}_bytes"] for sae in info["saes"] for part in segments)
    assert of_saes == info["size"]["segments_bytes"]
    for sae in info["saes"]:
        each = sae["size_per_activation"]
        assert sae["bytes_per_activation"] == each["by_feature"] + each["by_token"]
        for part, size in each.items():
            assert size * sae["activations"] == pytest.approx(sae["size"][f"{part}_bytes"])


def test_many_features_are_shown_one_after_the_other(one: Database) -> None:
    several = one.top_contexts(np.array([1, 4, 1]), k=2)
    shown = [str(one.top_contexts(f, k=2)) for f in (1, 4)]
    assert str(several) == "\n\n".join(shown)
    assert list(several.max_activations) == ["demo/1", "demo/4"]
    assert one.top_contexts(pa.array([1]), k=2).table == one.top_contexts(1, k=2).table
    with pytest.raises(QueryError, match="no feature is named"):
        one.top_contexts([])
    with pytest.raises(UnknownFeatureError, match="no feature 99"):
        one.top_contexts(f for f in (1, 99))


def test_a_database_shows_itself(one: Database, two: Database) -> None:
    assert repr(one.saes) == "(<SAE demo: 5 features at blocks.0.hook_resid_post>,)"
    for db, asked in ((one, "db.feature(4)"), (two, "db.feature(&#34;a/4&#34;)")):
        shown = db._repr_html_()
        assert asked in shown
        assert all(sae.name in shown for sae in db.saes)
    text = str(one.info())
    assert len(text.splitlines()) < 20
    assert all(word in text for word in ("one.fdb", "3 documents", "demo", "topic"))
    # The data and every format have all.
    assert one.info()["saes"][0]["sha256"] in str(one.info().arrow().to_pylist())
