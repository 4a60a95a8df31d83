"""Sets of features, distances and orders against loops over every token, in Python and in SQL."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featuredb
from featuredb.errors import FeatureDBError, QueryError
from tests.make_store import MadeSae, World, make_store
from tests.oracle import Oracle
from tests.queries.test_against_oracle import few, opened
from tests.queries.worlds import worlds

Spot = tuple[int, int]
"""A context and a token in it."""


class Loops:
    """What a world answers, token by token."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.spots = [
            (c, t) for c, tokens in enumerate(oracle.contexts) for t in range(len(tokens))
        ]

    def value(self, name: str, spot: Spot, above: float = 0) -> float:
        sae, _, number = name.rpartition("/")
        value = float(self.oracle.dense[sae][spot[0]][spot[1], int(number)])
        return value if value > above else 0.0

    def maximum(self, name: str) -> float:
        return max(self.value(name, spot) for spot in self.spots) or 1.0

    def unit(self, spot: Spot, unit: str) -> Any:
        context, _ = spot
        return {"token": spot, "context": context, "document": self.oracle.document_of[context]}[
            unit
        ]

    def in_reach(self, spot: Spot, unit: str, within: int | None) -> list[Spot]:
        if within is not None:
            return [s for s in self.spots if s[0] == spot[0] and abs(s[1] - spot[1]) <= within]
        return [s for s in self.spots if self.unit(s, unit) == self.unit(spot, unit)]

    def chain(self, names: list[str], spot: Spot, reach: list[Spot]) -> list[float]:
        """The activations of the first after the first after …, from `spot` on. Empty if none."""
        values, at = [self.value(names[0], spot)], spot
        for name in names[1:]:
            later = [s for s in reach if s > at and self.value(name, s)]
            if not later:
                return []
            at = later[0]
            values.append(self.value(name, at))
        return values

    def find(
        self,
        every: list[str],
        some: list[str],
        none: list[str],
        unit: str,
        within: int | None,
        ordered: bool,
        least: int,
    ) -> dict[Any, tuple[float, Spot]]:
        """Strength and place of every unit that matches."""
        scale = {name: np.float32(self.maximum(name)) for name in (*every, *some)}
        best: dict[Any, tuple[float, Spot]] = {}
        # Whole units have one place, others as many as there are tokens of the first.
        whole = within is None and not ordered
        for spot in self.spots:
            leading = every[:1] or some
            if not any(self.value(name, spot) for name in leading):
                continue
            reach_unit = "context" if ordered and unit == "token" else unit
            reach = self.in_reach(spot, reach_unit, within)
            largest = {
                name: max(self.value(name, s) for s in reach) for name in (*every, *some, *none)
            }
            values = [largest[name] for name in every]
            if every and not whole:
                values[0] = self.value(every[0], spot)
            if ordered:
                values = self.chain(every, spot, reach)
            met = sum(largest[name] > 0 for name in some)
            if not all(values) or (every and not values) or any(largest[n] for n in none):
                continue
            if some and met < least:
                continue
            shares = [np.float32(v) / scale[n] for v, n in zip(values, every, strict=True)]
            others = [np.float32(largest[name]) / scale[name] for name in some]
            strength = float(min(shares) if every else max(others))
            key = self.unit(spot, unit)
            if whole:
                first = next(name for name in leading if largest[name])
                if self.value(first, spot) != largest[first]:
                    continue
            if key not in best or strength > best[key][0]:
                best[key] = (strength, spot)
        return best


def some_names(world: World, data: st.DataObject) -> list[str]:
    every = [f"{s.name}/{i}" for s in world.saes for i in range(len(s.decoder))]
    return data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=4, unique=True))


@given(worlds(max_saes=2), st.data())
@few
def test_find(world: World, data: st.DataObject) -> None:
    with opened(world) as (db, _, oracle):
        loops = Loops(oracle)
        for _ in range(6):
            names = some_names(world, data)
            cut = data.draw(st.integers(0, len(names)))
            every, rest = names[:cut], names[cut:]
            split = data.draw(st.integers(0 if every else 1, len(rest)))
            some, none = rest[:split], rest[split:]
            unit = data.draw(st.sampled_from(["token", "context", "document"]))
            within = data.draw(st.sampled_from([None, 0, 1, 3, 2**50]))
            ordered = len(every) > 1 and data.draw(st.booleans())
            least = data.draw(st.integers(1, len(some))) if some else None
            want = loops.find(every, some, none, unit, within, ordered, least or 1)
            answer = db.find(every, some, none, unit, within, ordered, least, k=10**6, window=1)
            got = {}
            for row in answer:
                spot = (row.context_id, row.token_index)
                got[loops.unit(spot, unit)] = (row.strength, spot)
                words = [world.vocabulary[t] for t in oracle.contexts[spot[0]]]
                assert row.token == words[spot[1]]
                assert row.document_id == oracle.document_of[spot[0]]
            assert got == want
            assert answer.total == len(want)
            order = [(-row.strength, row.context_id, row.token_index) for row in answer]
            assert order == sorted(order)


@given(worlds(max_saes=2), st.data())
@few
def test_sets_in_sql(world: World, data: st.DataObject) -> None:
    """The macros give the units that `find` gives, in both DuckDBs."""
    with opened(world) as (db, client, _):
        every = [f"{s.name}/{i}" for s in world.saes for i in range(len(s.decoder))]
        a, b = (data.draw(st.sampled_from(every)) for _ in range(2))
        unit = data.draw(st.sampled_from(["token", "context", "document"]))
        within, ordered = data.draw(st.integers(0, 4)), data.draw(st.booleans())
        asked: list[tuple[str, list[Any], Any]] = [
            ('"both"(?, ?, unit := ?)', [a, b, unit], db.find([a, b], unit=unit, k=10**6)),
            ("without(?, ?, unit := ?)", [a, b, unit], db.find([a], none=[b], unit=unit, k=10**6)),
            (
                "within(?, ?, ?, in_order := ?)",
                [a, b, within, ordered],
                db.find([a, b], within=within, ordered=ordered, k=10**6),
            ),
            (
                "at_least(?, 2, unit := ?)",
                [[a, b], unit],
                db.find(any=[a, b], at_least=2, unit=unit, k=10**6),
            ),
        ]
        for macro, params, answer in asked:
            if a == b and "at_least" in macro:
                continue
            keys = {"context": ["context_id"], "document": ["document_id"]}.get(
                "token" if "within" in macro else unit, ["context_id", "token_index"]
            )
            want = sorted(tuple(row[key] for key in keys) for row in answer)
            for connection in (db, client):
                relation = connection.sql(f"SELECT {', '.join(keys)} FROM {macro}", params=params)
                assert relation.fetchall() == want, macro


@pytest.fixture(scope="module")
def bridges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents of few words and three features with known activations."""
    vocabulary = ["<s>", " the", " bridge", " bridges", " bay", "bridge"]
    documents = [[[0, 1, 2, 4]], [[0, 3, 1, 1, 4]], [[0, 5, 1, 4], [0, 2, 2, 2]]]
    active = {
        (0, 2): {0: 4.0, 1: 1.0},
        (0, 3): {2: 2.0},
        (1, 1): {0: 2.0},
        (1, 4): {2: 1.0},
        (2, 1): {0: 1.0},
        (3, 3): {1: 2.0},
    }
    dense = []
    for c, tokens in enumerate(itertools.chain(*documents)):
        values = np.zeros((len(tokens), 3), np.float32)
        for t in range(len(tokens)):
            for feature, value in active.get((c, t), {}).items():
                values[t, feature] = value
        dense.append(values)
    rows = np.eye(3, 4, dtype=np.float32)
    topics = {"topic": ["sea", "sea", "land"]}
    path = tmp_path_factory.mktemp("find") / "bridges.fdb"
    make_store(path, World(documents, topics, vocabulary, [MadeSae("s", dense, rows, rows)]))
    return path


@pytest.mark.parametrize(
    ("options", "spots"),
    [
        ({"all": ["0 > 1"]}, [(0, 2), (1, 1)]),
        ({"all": ["0 >= 0.5x"]}, [(0, 2), (1, 1)]),
        ({"all": ["0 > 0.5x"]}, [(0, 2)]),
        ({"all": ["s/0 > 0.9 <= q0.5"]}, [(1, 1), (2, 1)]),
        ({"all": [0], "token": " bridge"}, [(0, 2)]),
        ({"all": [0], "token": " bri*"}, [(0, 2), (1, 1)]),
        ({"all": [0], "token": "/^.?bridges?$/"}, [(0, 2), (1, 1), (2, 1)]),
        ({"all": [0], "where": "topic = 'land'"}, [(2, 1)]),
        ({"all": [0, 2], "within": 1}, [(0, 2)]),
        ({"all": [0, 2], "within": 3, "ordered": True}, [(0, 2), (1, 1)]),
        ({"all": [2, 0], "within": 3, "ordered": True}, []),
        ({"all": [0, 1], "unit": "document"}, [(0, 2), (2, 1)]),
        ({"all": [0, 1], "unit": "document", "ordered": True}, [(2, 1)]),
        ({"any": [1, 2], "none": ["0"], "unit": "context"}, [(3, 3)]),
        ({"any": [0, 1, 2], "at_least": 2}, [(0, 2)]),
        ({"all": 0, "k": 1}, [(0, 2)]),
    ],
    ids=str,
)
def test_by_hand(bridges: Path, options: dict[str, Any], spots: list[Spot]) -> None:
    with featuredb.open(bridges) as db:
        answer = db.find(**options)
        assert [(row.context_id, row.token_index) for row in answer] == spots


def test_strength_is_that_of_the_weakest(bridges: Path) -> None:
    with featuredb.open(bridges) as db:
        answer = db.find([0, 1])
    assert answer.table.column("strength").to_pylist() == [0.5]
    assert answer.table.column("features").to_pylist() == [["s/0", "s/1"]]
    assert answer.table.column("feature_activations").to_pylist() == [[4.0, 1.0]]
    assert answer.table.column("activations").to_pylist() == [[0.0, 0.0, 1.0, 0.0]]
    assert "find s/0 and s/1 · 1 token" in str(answer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give at least one feature that fires"),
        ({"none": [0]}, "give at least one feature that fires"),
        ({"all": [0], "unit": "page"}, "unit must be token, context or document, not page"),
        ({"all": [0], "within": -1}, "within must be a whole number of tokens"),
        ({"all": [0], "within": 1.5}, "within must be a whole number of tokens"),
        ({"all": [0], "ordered": True}, "an order takes two features or more"),
        (
            {"any": [0], "at_least": 2},
            "at_least must be from 1 to the number of feat",
        ),
        (
            {"all": [0], "at_least": 1},
            "the number of features, which is 0, not 1",
        ),
        ({"all": [7]}, "there is no feature 7"),
        ({"all": ["0 > much"]}, "'much' is no activation: give a number"),
        ({"all": ["0 > q2"]}, "a quantile is from q0 to q1, not q2"),
        ({"all": ["0 > 1e999"]}, "1e999 is too large a number"),
        ({"all": ["0 >"]}, "'' is no activation"),
        ({"all": [0], "token": "bay"}, "no token is 'bay': mind the space before a word"),
        ({"all": [0], "token": "/(/"}, "is no regular expression"),
        ({"all": [0], "where": " "}, "where is empty"),
        ({"all": {0: 1}}, "all must be a list of features, not dict"),
    ],
    ids=str,
)
def test_bad_questions(bridges: Path, options: dict[str, Any], message: str) -> None:
    with featuredb.open(bridges) as db, pytest.raises(FeatureDBError) as error:
        db.find(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_questions_in_sql(bridges: Path) -> None:
    with featuredb.open(bridges) as db:
        for call, message in (
            ("\"both\"(0, 1, unit := 'page')", "unit must be token, context or document"),
            ("within(0, 1, -1)", "within must be a whole number of tokens"),
            (
                "at_least([0, 1], 3)",
                "at_least must be from 1 to the number of features, which is 2",
            ),
            ("without(0, 9)", "there is no feature 9"),
        ):
            with pytest.raises((QueryError, FeatureDBError, duckdb.Error), match=message):
                db.sql(f"FROM {call}").fetchall()
