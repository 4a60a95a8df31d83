"""How often two features are active together: against sets of tokens and documents."""

from __future__ import annotations

import math

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featuredb
from featuredb.errors import SQLError, UnknownFeatureError
from queries.association import SQL_P_VALUE, measures, p_values, q_values
from tests.make_store import World
from tests.queries.test_against_oracle import few, name_of, opened, same_type
from tests.queries.together import Together, chi_squared_tail, close, uneven_worlds


@given(uneven_worlds(), st.data())
@few
def test_a_pair(world: World, data: st.DataObject) -> None:
    with opened(world) as (db, client, _):
        for _ in range(2):
            one, two = (data.draw(st.sampled_from(world.saes)) for _ in range(2))
            a, b = (data.draw(st.integers(0, len(sae.decoder) - 1)) for sae in (one, two))
            names = [name_of(world, one.name, a), name_of(world, two.name, b)]
            answer = db.coactivation(*names)
            rows = answer.table.to_pylist()
            together = Together(world, one.name, two.name)
            for row, unit in zip(rows, ("token", "document"), strict=True):
                active = together.active(one.name, a, unit), together.active(two.name, b, unit)
                expected = {
                    "sae": one.name,
                    "feature_id": a,
                    "other_sae": two.name,
                    "other_id": b,
                    "unit": unit,
                    "n": together.n(unit),
                    **close(together.measured(*active, unit)),
                }
                p = row.pop("p")
                assert row == expected
                if unit == "token":
                    assert p is None
                else:
                    assert p == pytest.approx(chi_squared_tail(row["g2"]), rel=1e-5)
            for run in (db.sql, lambda q, p: client.sql(q, params=p)):
                table = run("FROM coactivation(?, ?)", names).to_arrow_table()
                assert table.column_names == answer.table.column_names
                for ours, theirs in zip(answer.table.schema, table.schema, strict=True):
                    assert same_type(ours.type, theirs.type)
                for mine, expected in zip(table.to_pylist(), answer.table.to_pylist(), strict=True):
                    assert mine == close(expected)


def test_bad_names_are_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.make_store import make_store
    from tests.queries.test_questions import small_world

    path = tmp_path_factory.mktemp("pair") / "two.fdb"
    make_store(path, small_world(("a", "b/c")))
    with featuredb.open(path) as db:
        for names in (("a/9", "a/1"), ("a/1", "b/c/9"), ("a/1", "1"), ("x/1", "a/1")):
            with pytest.raises(UnknownFeatureError) as python:
                db.coactivation(*names)
            with pytest.raises((duckdb.Error, SQLError)) as sql:
                db.sql("FROM coactivation(?, ?)", list(names)).fetchall()
            assert str(python.value) in str(sql.value)


def test_measures_at_the_edges() -> None:
    """Never, always and independently together, and what no measure is defined for."""
    both = np.array([0, 10, 4, 0, 100, 0])
    a = np.array([10, 10, 20, 0, 100, 0])
    b = np.array([20, 10, 20, 5, 100, 0])
    found = measures(both, a, b, np.array([100, 100, 100, 100, 100, 0]))
    assert found["npmi"][:3].tolist() == pytest.approx([-1, 1, 0])
    assert np.isnan(found["npmi"][3:]).all()
    assert found["phi"][1:3].tolist() == pytest.approx([1, 0])
    assert np.isnan(found["phi"][3:]).all()
    assert found["jaccard"][:5].tolist() == pytest.approx([0, 1, 4 / 36, 0, 1])
    assert found["g2"][2:].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_q_values(p: list[float]) -> None:
    """By their definition: the least of p_j m / j over all p_j that are no smaller."""
    ordered = sorted(p)
    expected = [
        min(1.0, *(x * len(p) / (ordered.index(x) + ordered.count(x)) for x in p if x >= mine), 1.0)
        for mine in p
    ]
    assert q_values(np.array(p)).tolist() == pytest.approx(expected)


def test_p_values() -> None:
    """Against the integral, tabulated critical values, and the series that SQL sums."""
    g2 = np.concatenate((np.linspace(0, 40, 41), [3.841458821, 6.634896601, 12.4999, 12.5, 1400]))
    p = p_values(g2)
    assert p[:41].tolist() == pytest.approx([chi_squared_tail(x) for x in g2[:41]], rel=1e-5)
    assert p[41:43].tolist() == pytest.approx([0.05, 0.01])
    assert math.isnan(p_values(np.array([np.nan]))[0])
    with duckdb.connect() as client:
        client.execute(f"CREATE MACRO p_value(g2) AS {SQL_P_VALUE}")
        client.register("given", pa.table({"g2": g2}))
        found = [row[0] for row in client.sql("SELECT p_value(g2) FROM given").fetchall()]
    assert found == pytest.approx(p.tolist(), rel=1e-10)
