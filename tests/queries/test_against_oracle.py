"""Python, SQL in `db.sql`, a plain DuckDB client and the dense oracle give the same answers."""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import featuredb
from featuredb.database import Database
from tests.make_store import World, make_store
from tests.oracle import Oracle, Row
from tests.queries.worlds import worlds

few = settings(
    max_examples=12,
    # Worlds come from a pool, so there is nothing to shrink.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


Opened = tuple[Database, duckdb.DuckDBPyConnection, Oracle]


@contextmanager
def opened(world: World) -> Iterator[Opened]:
    """The world as a database, its catalog in a plain client, and its oracle. Only to be read."""
    yield _opened(_store(world), world)


def _opened(path: Path, world: World) -> Opened:
    """Opened once: examples come back to few worlds. `_MOST` stay open, the last that were used."""
    if path not in _open:
        client = duckdb.connect(str(path / "catalog.duckdb"), read_only=True)
        _open[path] = featuredb.open(path), client, Oracle(world)
    _open[path] = _open.pop(path)
    if len(_open) > _MOST:
        db, client, _ = _open.pop(next(iter(_open)))
        db.close()
        client.close()
    return _open[path]


_open: dict[Path, Opened] = {}
_MOST = 16
_stores: dict[int, tuple[World, Path]] = {}


def _store(world: World) -> Path:
    """The world's store, made once. The world is kept, so that its id stays its own."""
    if id(world) not in _stores:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder)
        make_store(Path(folder) / "made.fdb", world)
        _stores[id(world)] = world, Path(folder) / "made.fdb"
    return _stores[id(world)][1]


def name_of(world: World, sae: str, feature: int) -> int | str:
    return feature if len(world.saes) == 1 else f"{sae}/{feature}"


def everywhere(
    db: Database, client: duckdb.DuckDBPyConnection, python: Any, query: str, params: list[Any]
) -> list[Row]:
    """The answer's rows, checked to be the same from Python and from both DuckDBs."""
    rows: list[Row] = python.table.to_pylist()
    for relation in (db.sql(query, params), client.sql(query, params=params)):
        table = relation.to_arrow_table()
        assert table.column_names == python.table.column_names
        assert table.to_pylist() == rows
        for ours, theirs in zip(python.table.schema, table.schema, strict=True):
            assert same_type(ours.type, theirs.type), (ours, theirs)
    return rows


def same_type(one: Any, other: Any) -> bool:
    """Equal, with any names for the elements of a list."""
    if hasattr(one, "value_type") and hasattr(other, "value_type"):
        return same_type(one.value_type, other.value_type)
    return bool(one == other)


def some_features(world: World, data: st.DataObject) -> Iterator[tuple[str, int]]:
    for sae in world.saes:
        d_sae = len(sae.decoder)
        for feature in {0, d_sae - 1, data.draw(st.integers(0, d_sae - 1))}:
            yield sae.name, feature


@given(worlds(), st.data())
@few
def test_top_contexts(world: World, data: st.DataObject) -> None:
    k = data.draw(st.sampled_from([1, 3, 50, 51, 200]))
    window = data.draw(st.sampled_from([0, 1, 16]))
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            name = name_of(world, sae, feature)
            rows = everywhere(
                db,
                client,
                db.top_contexts(name, k=k, window=window),
                "FROM top_contexts(?, k := ?, window_size := ?)",
                [name, k, window],
            )
            expected = oracle.top_contexts(sae, feature, k, window)
            assert rows == expected


@given(worlds())
@few
def test_top_contexts_of_all_features_at_once(world: World) -> None:
    """By a list in Python, and by the view ``windows``, which joins as any table does."""
    of_features = (
        "SELECT w.* FROM windows AS w JOIN saes USING (sae) WHERE w.rank <= 3 "
        "ORDER BY sae_index, feature_id, rank"
    )
    with opened(world) as (db, client, oracle):
        named = [(s.name, f) for s in world.saes for f in range(len(s.decoder))]
        expected = [row for sae, f in named for row in oracle.top_contexts(sae, f, 3, 16)]
        answer = db.top_contexts([f"{sae}/{f}" for sae, f in named], k=3)
        assert answer.table.to_pylist() == expected
        view = client.sql("FROM windows LIMIT 0").columns
        for run in (db.sql, client.sql):
            rows = run(of_features).to_arrow_table().to_pylist()
            assert rows == [{name: row[name] for name in view} for row in expected]


@given(worlds(max_saes=1), st.data())
@few
def test_filters(world: World, data: st.DataObject) -> None:
    low = data.draw(st.sampled_from([None, 0.5, 1.0, 3.0]))
    high = data.draw(st.sampled_from([None, 1.0, 2.0]))
    where = data.draw(st.sampled_from([None, "topic = 'art' -- comment", "topic IS NULL"]))
    wanted = {None: lambda m: True, "topic IS NULL": lambda m: m["topic"] is None}
    keep = wanted.get(where, lambda m: m["topic"] == "art")
    with opened(world) as (db, _, oracle):
        for sae, feature in some_features(world, data):
            got = db.top_contexts(
                feature, k=4, where=where, min_activation=low, max_activation=high
            )
            expected = oracle.top_contexts(
                sae,
                feature,
                4,
                16,
                keep,
                -math.inf if low is None else low,
                math.inf if high is None else high,
            )
            assert got.table.to_pylist() == expected


@given(worlds(), st.data())
@few
def test_conditions_on_tokens(world: World, data: st.DataObject) -> None:
    where, keep, counts = data.draw(
        st.sampled_from(
            [
                ("token = ' a'", _any_document, lambda token, index: token == " a"),
                (
                    "(tokens.token_index < 2 OR token = 'b') AND topic = 'art' -- comment",
                    lambda metadata: metadata["topic"] == "art",
                    lambda token, index: index < 2 or token == "b",
                ),
                ("role IS NULL", _any_document, lambda token, index: True),
                ("token = 'nowhere'", _any_document, lambda token, index: False),
            ]
        )
    )
    k, low = data.draw(st.sampled_from([1, 3, 60])), data.draw(st.sampled_from([None, 1.0]))
    query = 'FROM top_contexts(?, k := ?, window_size := 2, "where" := ?)'
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            name = name_of(world, sae, feature)
            expected = oracle.top_contexts(sae, feature, k, 2, keep, counts=counts)
            answer = db.top_contexts(name, k, 2, where)
            assert everywhere(db, client, answer, query, [name, k, where]) == expected
            bounded = db.top_contexts(name, k, 2, where, min_activation=low)
            floor = -math.inf if low is None else low
            above = oracle.top_contexts(sae, feature, k, 2, keep, low=floor, counts=counts)
            assert bounded.table.to_pylist() == above


def _any_document(metadata: Row) -> bool:
    return True


@given(worlds(), st.data(), st.sampled_from(["decoder", "encoder", "coactivation"]))
@few
def test_near(world: World, data: st.DataObject, by: str) -> None:
    macro = "near" if by == "decoder" else f"near_{by}"
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            name = name_of(world, sae, feature)
            for k in (1, 50, 120):
                answer = db.near(name, k=k, by=by)
                rows = answer.table.to_pylist()
                if by == "coactivation":
                    assert rows == oracle.coactive(sae, feature, min(k, 50))
                else:
                    assert_nearest(rows, oracle.near(sae, feature, 10_000, by), k)
                if k <= 50:
                    everywhere(db, client, answer, f"FROM {macro}(?, k := ?)", [name, k])


def assert_nearest(rows: list[Row], everything: list[Row], k: int) -> None:
    """The k best of `everything`, where scores that differ by rounding may change places."""
    assert [r["rank"] for r in rows] == list(range(1, min(k, len(everything)) + 1))
    assert [r["score"] for r in rows] == pytest.approx(
        [r["score"] for r in everything[:k]], abs=1e-7
    )
    assert len({(r["sae"], r["feature_id"]) for r in rows}) == len(rows)
    known = {(r["sae"], r["feature_id"]): r for r in everything}
    for row in rows:
        expected = known[row["sae"], row["feature_id"]]
        score = pytest.approx(expected["score"], abs=1e-7)
        assert row == expected | {"rank": row["rank"], "score": score}


@given(worlds(), st.data())
@few
def test_fires_in(world: World, data: st.DataObject) -> None:
    if not world.contexts:
        return
    k = data.draw(st.sampled_from([1, 5, 500]))
    with opened(world) as (db, client, oracle):
        for context in {0, data.draw(st.integers(0, len(world.contexts) - 1))}:
            answer = db.fires_in(context, k=k)
            rows = everywhere(db, client, answer, "FROM fires_in(?, k := ?)", [context, k])
            assert rows == [in_order(row, rows) for row in oracle.fires_in(context, k)]
            assert answer.tokens == [world.vocabulary[t] for t in world.contexts[context]]


@given(worlds(), st.data())
@few
def test_fires_on_a_stored_text(world: World, data: st.DataObject) -> None:
    world = replace(world, texts=[f"document {i}" for i in range(len(world.documents))])
    with opened(world) as (db, client, oracle):
        for document in {0, data.draw(st.integers(0, len(world.documents) - 1))}:
            text = world.texts[document]
            answer = db.fires_on(text, k=7)
            rows = everywhere(db, client, answer, "FROM fires_on(?, k := ?)", [text, 7])
            assert rows == [in_order(r, rows) for r in oracle.fires_in_document(document, 7)]


def in_order(row: Row, like: list[Row]) -> Row:
    """The oracle's row with the answer's column order. Equality of dicts ignores it."""
    return {name: row[name] for name in (like[0] if like else row)}


@given(worlds())
@few
def test_statistics(world: World) -> None:
    with opened(world) as (db, client, oracle):
        for sae in world.saes:
            for feature in range(len(sae.decoder)):
                row = db.feature(name_of(world, sae.name, feature)).table.to_pylist()[0]
                for name, expected in oracle.statistics(sae.name, feature).items():
                    if name in ("mean_activation", "std_activation"):
                        assert (row[name] is None) == (expected is None)
                        if expected is not None:
                            assert row[name] == pytest.approx(expected, rel=1e-9, abs=1e-12), name
                    elif name == "top_tokens":
                        assert row[name] == [approximate(t) for t in expected], name
                    else:
                        assert row[name] == expected, name
        everything = sum(
            len(oracle.activations(s.name, f)) for s in world.saes for f in range(len(s.decoder))
        )
        assert client.sql("SELECT count(*) FROM activations").fetchall() == [(everything,)]


def approximate(token: Row) -> Row:
    return token | {"mean_activation": pytest.approx(token["mean_activation"], rel=1e-6)}


@given(worlds(), st.data())
@few
def test_activations(world: World, data: st.DataObject) -> None:
    query = (
        "SELECT context_id, token_index, activation FROM feature_activations(?) "
        "ORDER BY context_id, token_index"
    )
    view = (
        "SELECT context_id, token_index, activation FROM activations "
        "WHERE sae = ? AND feature_id = ? ORDER BY context_id, token_index"
    )
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            expected = oracle.activations(sae, feature)
            for run in (db.sql, lambda q, p: client.sql(q, params=p)):
                assert run(query, [name_of(world, sae, feature)]).fetchall() == expected
                assert run(view, [sae, feature]).fetchall() == expected
