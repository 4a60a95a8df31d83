"""Activations pooled per unit, against the dense oracle; turns in tests/ingest/test_roles.py."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featuredb.database import Database
from featuredb.errors import QueryError
from queries.pooled import Pooled
from queries.units import units_of
from tests.make_store import World
from tests.oracle import Oracle, Row
from tests.queries.test_against_oracle import few, name_of, opened, some_features
from tests.queries.worlds import worlds


def pooled(oracle: Oracle, sae: str, feature: int, unit: str) -> list[Row]:
    values: defaultdict[int, list[float]] = defaultdict(list)
    for context, dense in enumerate(oracle.dense[sae]):
        place = context if unit == "context" else oracle.document_of[context]
        values[place] += [float(v) for v in dense[:, feature] if v != 0]
    return [
        {
            f"{unit}_id": place,
            "max_activation": max(some),
            "sum_activation": sum(some),
            "n_tokens": len(some),
        }
        for place, some in sorted(values.items())
        if some
    ]


@given(worlds(), st.data())
@few
def test_a_feature_per_unit(world: World, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(["document", "context"]))
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            wanted = [
                {"sae": sae, "feature_id": feature, **r} for r in pooled(oracle, sae, feature, unit)
            ]
            answer = db.document_features(name_of(world, sae, feature), unit)
            assert answer.table.to_pylist() == wanted
            statement = f"FROM {unit}_features WHERE sae = ? AND feature_id = ? ORDER BY {unit}_id"
            for run in (db.sql, lambda q, p: client.sql(q, params=p)):
                table = run(statement, [sae, feature]).to_arrow_table()
                assert table.to_pylist() == wanted
                assert table.column_names == answer.table.column_names


@given(worlds(max_saes=1), st.sampled_from(["max", "sum", "mean", "count"]))
@few
def test_every_pair(world: World, pool: str) -> None:
    """What questions over all features read, at first and from what is kept."""
    with opened(world) as (db, _, oracle):
        sae = world.saes[0]
        store = db._store
        units = units_of(store, "document")
        length = units.lengths(store.snapshot.saes[0])
        recorded = np.zeros(len(world.documents))
        for context, document in enumerate(oracle.document_of):
            recorded[document] += len(world.recorded(sae, context))
        assert length.tolist() == recorded.tolist()
        for _ in range(2):
            pieces = list(Pooled(store, store.snapshot.saes[0], units, pool).map(lambda p: p))
            found = [
                (p.first + int(f), int(u), float(v))
                for p in pieces
                for f, u, v in zip(p.feature, p.unit, p.value, strict=True)
            ]
            wanted = [
                (f, r["document_id"], float(np.float32(_value(r, pool, length))))
                for f in range(len(sae.decoder))
                for r in pooled(oracle, sae.name, f, "document")
            ]
            assert found == sorted(wanted, key=lambda each: (each[0], each[2], each[1]))


def _value(row: Row, pool: str, length: np.ndarray) -> float:
    if pool == "mean":
        return float(row["sum_activation"] / length[row["document_id"]])
    of = {"max": "max_activation", "sum": "sum_activation", "count": "n_tokens"}[pool]
    return float(row[of])


@given(worlds(max_saes=1))
@few
def test_what_there_is_not(world: World) -> None:
    with opened(world) as (db, _, _oracle):
        _refuses(db, "turn", "no corpus here has turns")
        _refuses(db, "token", "unit must be one of document, context, turn")


def _refuses(db: Database, unit: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        db.document_features(0, unit)
