"""Replayed alarms, calibration and the evaluator, against an oracle that goes token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featuredb
from featuredb.database import Database
from featuredb.errors import QueryError, RuleError
from queries.rules.alarms_sql import alarms_sql
from queries.rules.evaluate import Tokens, holds
from queries.rules.rule import FeatureRule
from tests.make_store import MadeSae, World, make_store, stored
from tests.monitors.rules import Text, Truth, numbers, rules
from tests.queries.test_against_oracle import few as more
from tests.queries.test_against_oracle import opened
from tests.queries.worlds import worlds

few = settings(more, max_examples=6)


def texts(world: World, names: list[str]) -> list[tuple[Text, list[tuple[int, int]]]]:
    """Each document's tokens without BOS: their activations, and their contexts and indexes."""
    made: list[tuple[Text, list[tuple[int, int]]]] = []
    context, bos = 0, int(world.bos is not None)
    dense = {sae.name: stored(world, sae) for sae in world.saes}
    for document in world.documents:
        text: list[dict[str, float]] = []
        places = []
        for piece in document:
            for index in range(bos, len(piece)):
                active = {}
                for name in names:
                    sae, _, number = name.rpartition("/")
                    if value := dense[sae][context][index, int(number)]:
                        active[name] = float(value)
                text.append(active)
                places.append((context, index))
            context += 1
        made.append((text, places))
    return made


def expected(world: World, names: list[str], rule: Truth) -> list[tuple[int, int, int]]:
    """(context, token, tokens) of each alarm."""
    alarms = []
    for text, places in texts(world, names):
        held = [rule[1](text, t) for t in range(len(text))]
        for t, now in enumerate(held):
            if now and (t == 0 or not held[t - 1]):
                end = next((s for s in range(t, len(held)) if not held[s]), len(held))
                alarms.append((*places[t], end - t))
    return alarms


def _names(world: World, data: st.DataObject) -> list[str]:
    every = [f"{s.name}/{f}" for s in world.saes for f in range(len(s.decoder))]
    return data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=3, unique=True))


@given(worlds(), st.data())
@few
def test_replay_is_the_rule_token_by_token(world: World, data: st.DataObject) -> None:
    names = _names(world, data)
    with opened(world) as (db, _, _):
        for _ in range(4):
            rule = data.draw(rules(names))
            try:
                alarms = db.replay(rule[0])
            except RuleError as error:
                _check_decided(world, names, rule, str(error))
                continue
            found = [(r.context_id, r.token_index, r.n_tokens) for r in alarms]
            assert found == expected(world, names, rule), rule[0]
            assert db.calibrate(rule[0])[0].alarms == len(found) == alarms.total
            first = db.replay(rule[0], k=2)
            assert (first.table.to_pylist(), first.total) == (
                alarms[:2].table.to_pylist(),
                len(found),
            )
            sql = alarms_sql(FeatureRule.parse(db._store, rule[0]), db.snapshot, rule[0], "8")
            assert db.sql(sql).to_arrow_table().equals(alarms.table)
            _check_strengths(world, [n for n in names if f'"{n}"' in rule[0]], alarms)
            _check_evaluator(db, world, names, rule)


def _check_decided(world: World, names: list[str], rule: Truth, message: str) -> None:
    """A rule is refused where it holds nowhere, or everywhere."""
    tokens = sum(len(text) for text, _ in texts(world, names))
    held = sum(n for *_, n in expected(world, names, rule))
    assert held == (0 if "can never fire" in message else tokens), message


def _check_strengths(world: World, names: list[str], alarms: Any) -> None:
    """The strongest feature of each alarm relative to its maximum, and its quantile."""
    every = texts(world, names)
    values = {
        name: sorted(t[name] for text, _ in every for t in text if name in t) for name in names
    }
    at = {place: (text, i) for text, places in every for i, place in enumerate(places)}
    for row in alarms:
        text, start = at[row.context_id, row.token_index]
        inside = [t for t in text[start : start + row.n_tokens]]
        best = max((t[n] / values[n][-1] for t in inside for n in t), default=0.0)
        if row.sae is None:
            assert best == 0
            continue
        own = values[f"{row.sae}/{row.feature_id}"]
        assert row.strength / own[-1] == best
        assert row.quantile == sum(v <= row.strength for v in own) / len(own)


def _check_evaluator(db: Database, world: World, names: list[str], rule: Truth) -> None:
    made = FeatureRule.parse(db._reader.store, rule[0])
    features = [f"{sae}/{number}" for sae, number in made.features]
    every = [text for text, _ in texts(world, names)]
    flat = [token for text in every for token in text]
    columns = np.array([[t.get(name, 0.0) for t in flat] for name in features])
    first = np.repeat(np.cumsum([0, *map(len, every)])[:-1], list(map(len, every)))
    held = holds(made.tree, Tokens(columns.reshape(len(features), -1), first))
    assert held.tolist() == [rule[1](text, t) for text in every for t in range(len(text))]


@given(worlds(1), st.data())
@few
def test_a_rate_sets_the_smallest_number_that_keeps_it(world: World, data: st.DataObject) -> None:
    names = _names(world, data)
    spelled, value = data.draw(numbers(names))
    made = texts(world, names)
    tokens = sum(len(text) for text, _ in made)
    allowed = data.draw(st.sampled_from([1, 2, 5]))

    def count(c: float) -> int:
        return len(expected(world, names, (spelled, lambda text, t: value(text, t) > c)))

    with opened(world) as (db, _, _):
        found = db.calibrate(f"{spelled} > ?", rate=f"{allowed}/{tokens}")
    number = float(found.rule.rpartition(" > ")[2])
    assert found[0].alarms == count(number) <= allowed
    # The count changes at values alone.
    levels = sorted({value(text, t) for text, _ in made for t in range(len(text))})
    assert all(count(c) <= allowed for c in levels if c >= number)
    below = [c for c in levels if c < number]
    assert not below or count(below[-1]) > allowed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, World]]:
    """400 documents, 8 features that come in bursts, more in half of the documents."""
    rng = np.random.default_rng(0)
    documents, dense = [], []
    for d in range(400):
        tokens = [0, *rng.integers(1, 3, 30).tolist()]
        documents.append([tokens])
        rate = 0.3 if d % 2 else 0.05
        burst = np.repeat(rng.random((8, 8)) < rate, 4, axis=0)[: len(tokens)]
        dense.append((burst * rng.gamma(2, 2, burst.shape)).astype(np.float32))
    rows = np.eye(8, dtype=np.float32)
    kind = ["odd" if d % 2 else "even" for d in range(400)]
    world = World(documents, {"kind": kind}, ["<s>", " a", " b"], [MadeSae("s", dense, rows, rows)])
    path = tmp_path_factory.mktemp("bursts") / "b.fdb"
    make_store(path, world)
    with featuredb.open(path) as db:
        yield db, world


def test_counts_by_group_are_those_of_the_alarms(made: tuple[Database, World]) -> None:
    db, world = made
    rates = db.calibrate("f1 > 6 or mean(f2, 3) > 4", by="kind")
    alarms = db.replay("f1 > 6 or mean(f2, 3) > 4")
    by_document = Counter(alarms.table.column("document_id").to_pylist())
    kinds = Counter(world.metadata["kind"][d] for d in by_document.elements())
    assert {r.group: r.alarms for r in rates} == {None: len(alarms), **kinds}
    assert rates[0].tokens == 400 * 30
    assert rates[0].per_million == pytest.approx(1e6 * len(alarms) / 12_000)
    assert rates[0].alarmed_documents == len(by_document)
    assert [r.group for r in rates] == [None, "odd", "even"]
    assert all(r.per_million_low < r.per_million < r.per_million_high for r in rates)
    with pytest.raises(QueryError, match="no column sort: there are"):
        db.calibrate("f1 > 6", by="sort")


def test_a_threshold_keeps_its_rate_on_documents_held_out(made: tuple[Database, World]) -> None:
    """Intervals of the fitted half hold the held-out count, about as often as they say."""
    db, _ = made
    inside = 0
    for seed in range(8):
        one = f"hash(document_id + {100 * seed}) % 2 = 0"
        fitted = db.calibrate(f"f{seed % 8} > ?", rate="3/k", where=one)
        held = db.calibrate(fitted.rule, where=f"NOT ({one})")
        assert fitted[0].per_million <= 3_000
        # Both counts vary: their intervals overlap unless something is wrong.
        inside += held[0].per_million_low <= fitted[0].per_million_high
        inside += fitted[0].per_million_low <= held[0].per_million_high
    assert inside >= 15


def test_intervals_cover_as_they_say() -> None:
    """Of many draws of clustered documents, the true rate is in about 95 %."""
    from queries.calibrate import AlarmRate

    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        tokens = rng.integers(20, 400, 300)
        # Each document has its own rate: 1 of 10 documents have 10 times the others'.
        rate = np.where(rng.random(300) < 0.1, 0.002, 0.0002)
        found = AlarmRate.of(rng.poisson(rate * tokens), tokens)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1e6 * (0.1 * 0.002 + 0.9 * 0.0002) <= found.high
    assert 0.92 <= covered / 400 <= 0.99
    none = AlarmRate.of(np.zeros(10, np.int64), np.full(10, 100))
    # The exact end of the interval of a Poisson mean of which none was seen is 3.689.
    assert none.low == 0
    assert none.high == pytest.approx(3_689, rel=0.01)
