"""The features active together with one, against sets of tokens and documents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featuredb
from featuredb.errors import QueryError, SQLError, UnknownFeatureError
from ingest.derive.pairs import reader_of_pairs
from queries import partners
from queries.association import COUNTS, MEASURES
from queries.coactive import ORDERS
from queries.coactive_sql import UNITS
from tests.make_store import World, make_store
from tests.oracle import Oracle, Row
from tests.queries.test_against_oracle import few, name_of, opened, same_type
from tests.queries.test_questions import small_world
from tests.queries.together import Together, chi_squared_tail, close, uneven_worlds
from tests.queries.worlds import worlds


def expected(
    world: World, own: str, feature: int, other: str, unit: str, by: str, min_both: int
) -> tuple[list[Row], int]:
    """Every row, in order, and n."""
    together = Together(world, own, other)
    a = together.active(own, feature, unit)
    d_sae = next(len(s.decoder) for s in world.saes if s.name == other)
    rows, tails = [], []
    for partner in range(d_sae):
        b = together.active(other, partner, unit)
        if not b or (other, partner) == (own, feature):
            continue
        row = {"sae": other, "feature_id": partner, **together.measured(a, b, unit)}
        tails.append(math.erfc(math.sqrt(max(0.0, row["g2"]) / 2)))
        rows.append(row)
    for row, tail in zip(rows, tails, strict=True):
        q = [x * len(tails) / sum(y <= x * (1 + 1e-9) for y in tails) for x in tails]
        least = min(y for x, y in zip(tails, q, strict=True) if x >= tail * (1 - 1e-9))
        row["q"] = min(1.0, least) if unit == "document" else None
    rows = [row for row in rows if row["both"] >= min_both]

    def order(row: Row) -> Any:
        score = row["both" if by == "count" else by]
        return (math.inf if score is None else -round(score, 9), row["feature_id"])

    return sorted(rows, key=order), together.n(unit)


@given(uneven_worlds(), st.data())
@few
def test_partners(world: World, data: st.DataObject) -> None:
    min_both, k = data.draw(st.sampled_from([1, 2, 5])), data.draw(st.sampled_from([1, 3, 500]))
    unit, by = data.draw(st.sampled_from(UNITS)), data.draw(st.sampled_from(ORDERS))
    with opened(world) as (db, client, _):
        own, other = (data.draw(st.sampled_from(world.saes)).name for _ in range(2))
        feature = data.draw(st.integers(0, len(Oracle(world).sae(own).decoder) - 1))
        name = name_of(world, own, feature)
        answer = db.coactive(name, k, unit, by, sae=other, min_both=min_both)
        wanted, n = expected(world, own, feature, other, unit, by, min_both)
        assert answer.n == n
        known = ("density", "max_activation", "top_tokens", "promoted_tokens", "label")
        for rank, (row, want) in enumerate(zip(answer, wanted[:k], strict=True), 1):
            assert {m: v for m, v in dict(row).items() if m not in known} == {
                "of_sae": own,
                "of_feature_id": feature,
                "rank": rank,
                **close(want, 1e-8),
            }
            card = db.feature(name_of(world, other, row.feature_id)).statistics
            assert (row.density, row.max_activation) == (card.density, card.max_activation)
        statement = 'FROM coactive(?, k := ?, unit := ?, "by" := ?, min_both := ?, other_sae := ?)'
        given = [name, k, unit, by, min_both, other]
        for run in (db.sql, lambda q, p: client.sql(q, params=p)):
            table = run(statement, given).to_arrow_table()
            assert table.column_names == answer.table.column_names
            for ours, theirs in zip(answer.table.schema, table.schema, strict=True):
                assert same_type(ours.type, theirs.type), ours.name
            for mine, want in zip(table.to_pylist(), answer.table.to_pylist(), strict=True):
                assert mine == close(want)


def test_documents_are_counted_once_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document in two files, in several row groups, in a table of one document at a time."""
    world = small_world(("a", "b/c"))
    make_store(tmp_path / "s.fdb", world)
    monkeypatch.setattr(partners, "_FLAGS", 1)
    with featuredb.open(tmp_path / "s.fdb") as db:
        for feature in range(5):
            answer = db.coactive(f"a/{feature}", unit="document", min_both=1)
            wanted, _ = expected(world, "a", feature, "a", "document", "npmi", 1)
            assert [(r.feature_id, r.both) for r in answer] == [
                (r["feature_id"], r["both"]) for r in wanted
            ]


def test_bad_arguments(tmp_path: Path) -> None:
    make_store(tmp_path / "s.fdb", small_world(("a",)))
    with featuredb.open(tmp_path / "s.fdb") as db:
        cases: list[tuple[str, dict[str, Any], str]] = [
            ("unit := 'word'", {"unit": "word"}, "unit must be one of token, document, not 'word'"),
            ("\"by\" := 'x'", {"by": "x"}, "by must be one of npmi, jaccard, count, not 'x'"),
            ("min_both := 0", {"min_both": 0}, "min_both must be a whole number, at least 1, not"),
        ]
        for sql, arguments, message in cases:
            with pytest.raises(QueryError, match=message):
                db.coactive(1, **arguments)
            with pytest.raises((duckdb.Error, SQLError), match=message):
                db.sql(f"FROM coactive(1, {sql})").fetchall()
        unknown = "there is no SAE b: this database has a"
        with pytest.raises(UnknownFeatureError, match=unknown):
            db.coactive(1, sae="b")
        with pytest.raises(SQLError, match=unknown):
            db.sql("FROM coactive(1, other_sae := 'b')").fetchall()
        with pytest.raises(UnknownFeatureError, match="there is no feature 9"):
            db.coactive(9)


def test_a_feature_that_never_fires_has_no_partners(tmp_path: Path) -> None:
    make_store(tmp_path / "s.fdb", small_world(("a",)))
    with featuredb.open(tmp_path / "s.fdb") as db:
        for unit in UNITS:
            answer = db.coactive(4, unit=unit, min_both=1)
            assert len(answer) == 0
            assert "no features" in str(answer)


def test_p_is_of_chi_squared() -> None:
    assert math.erfc(math.sqrt(7.5 / 2)) == pytest.approx(chi_squared_tail(7.5), rel=1e-6)
    assert np.isfinite(chi_squared_tail(0.0))


@given(worlds(max_saes=2), st.data())
@few
def test_every_pair(world: World, data: st.DataObject) -> None:
    """The whole matrix, in one block or in many, has what a question about each feature has."""
    unit, min_both = data.draw(st.sampled_from(UNITS)), data.draw(st.sampled_from([1, 3]))
    sae = data.draw(st.sampled_from(world.saes)).name
    with opened(world) as (db, _, _oracle):
        table = db.coactive_pairs(unit, sae=sae, min_both=min_both).read_all()
        wanted = []
        for feature in range(len(Oracle(world).sae(sae).decoder)):
            name = name_of(world, sae, feature)
            rows = db.coactive(name, 10**6, unit, min_both=min_both).table.to_pylist()
            for row in sorted(rows, key=lambda r: int(r["feature_id"])):
                if row["feature_id"] > feature:
                    pair = {"sae": sae, "feature_id": feature, "other_sae": sae}
                    counted = {m: row[m] for m in (*COUNTS, *MEASURES)}
                    wanted.append(pair | {"other_id": row["feature_id"]} | counted)
        assert table.to_pylist() == wanted
        saes = [db.snapshot.sae(sae)]
        # Too little memory for more than one row of the table of counts at a time.
        small = reader_of_pairs(db._store, saes, unit, min_both, 4)
        assert small.read_all().to_pylist() == wanted
