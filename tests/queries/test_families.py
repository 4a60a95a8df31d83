"""Families against all pairs by loops, and on hierarchies that were planted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featuredb
from featuredb.errors import QueryError
from featuredb.store.schemas import NEIGHBORS_KEPT
from tests.directions import cosines_of_all
from tests.make_store import MadeSae, World, make_store
from tests.queries.test_against_oracle import few, name_of, opened
from tests.queries.together import Together, uneven_worlds

Float64 = npt.NDArray[np.float64]


def expected(world: World, share: float, gain: float, count: int) -> dict[tuple[Any, ...], Any]:
    """(A, relation, B): gain and shares, of all ordered pairs, by sets of tokens."""
    found: dict[tuple[Any, ...], Any] = {}
    names = [(sae, i) for sae in world.saes for i in range(len(sae.decoder))]
    near = set()
    for hook in {sae.hook for sae in world.saes}:
        here = [i for i, (sae, _) in enumerate(names) if sae.hook == hook]
        rows = np.stack([names[i][0].decoder[names[i][1]] for i in here])
        scores = cosines_of_all(rows)
        np.fill_diagonal(scores, -np.inf)
        for i, own in enumerate(scores):
            best = np.lexsort((np.arange(len(own)), -own))[: min(NEIGHBORS_KEPT, len(own) - 1)]
            near |= {frozenset((here[i], here[j])) for j in best if own[j] ** 2 >= gain}
    known: dict[tuple[str, str], Together] = {}

    @cache
    def active(saes: tuple[str, str], name: str, feature: int) -> dict[Any, float]:
        dense = known[saes].dense[name]
        return {
            (c, t): float(dense[c][t, feature])
            for c, t in known[saes].active(name, feature, "token")
        }

    for pair in near:
        a, b = sorted(pair)
        (one, i), (other, j) = names[a], names[b]
        both_saes = one.name, other.name
        if both_saes not in known:
            known[both_saes] = Together(world, *both_saes)
        together = known[both_saes]
        x, y = (active(both_saes, names[row][0].name, names[row][1]) for row in (a, b))
        if not x or not y:
            continue
        n, both = len(together.tokens), set(x) & set(y)
        # The directions, again in float64: the stored cosine is rounded to seven decimals.
        d, e = one.decoder[i].astype(float), other.decoder[j].astype(float)
        cosine = float(d @ e / (np.linalg.norm(d) * np.linalg.norm(e)))

        def explained(child: dict[Any, float], parent: dict[Any, float], cosine: float) -> float:
            written = np.array([[v, parent.get(k, 0.0)] for k, v in child.items()])
            product = cosine * (written[:, 0] @ written[:, 1])
            if product <= 0:
                return 0.0
            return float(product**2 / np.prod((written**2).sum(axis=0)))

        covered = [
            len(both) / len(own) >= share * (1 - len(its) / n) + len(its) / n and len(its) < n
            for own, its in ((x, y), (y, x))
        ]
        gains = explained(x, y, cosine), explained(y, x, cosine)
        shares = len(both) / len(x), len(both) / len(y)
        sizes = len(x), len(y)
        first, second = (one.name, i), (other.name, j)
        if all(covered):
            kept, relation = min(gains) >= gain and min(sizes) >= count, "duplicate"
            value = min(gains)
        else:
            kept = any(covered) and gains[covered[1]] >= gain and sizes[covered[1]] >= count
            relation = "parent" if covered[0] else "child"
            value = gains[covered[1]]
        if kept:
            mirrored = {"parent": "child", "child": "parent", "duplicate": "duplicate"}[relation]
            found[first, relation, second] = (value, *shares)
            found[second, mirrored, first] = (value, *shares[::-1])
    return found


def of(answer: featuredb.Families) -> dict[tuple[Any, ...], Any]:
    return {
        ((r.of_sae, r.of_feature_id), r.relation, (r.sae, r.feature_id)): (
            r.gain,
            r.p_b_given_a,
            r.p_a_given_b,
        )
        for r in answer
    }


@given(uneven_worlds(), st.data())
@settings(few, max_examples=6)
def test_against_all_pairs(world: World, data: st.DataObject) -> None:
    # Bounds that no share of small counts equals, so that no rounding decides.
    share = data.draw(st.sampled_from([0.0137, 0.317, 0.613]))
    gain = data.draw(st.sampled_from([1e-6, 0.0471]))
    count = data.draw(st.sampled_from([1, 3]))
    wanted = expected(world, share, gain, count)
    options: dict[str, Any] = {"min_coverage": share, "min_gain": gain, "min_count": count}
    with opened(world) as (db, client, _oracle):
        saes = [sae.name for sae in world.saes]
        everything = db.families(**options)
        statement = "FROM families(NULL, NULL, min_coverage := ?, min_gain := ?, min_count := ?)"
        table = db.sql(statement, [share, gain, count]).to_arrow_table()
        assert table.to_pylist() == everything.table.to_pylist()
        with pytest.raises(duckdb.InvalidInputException, match=r"needs more than .*Database\.sql"):
            client.sql(statement, params=[share, gain, count]).fetchall()
        once = {
            key: value
            for key, value in wanted.items()
            if key[1] == "parent"
            or (key[1] == "duplicate" and _row(saes, key[0]) < _row(saes, key[2]))
        }
        assert of(everything) == {k: pytest.approx(v, rel=1e-5) for k, v in once.items()}
        order = [
            (_row(saes, (r.of_sae, r.of_feature_id)), r.relation == "duplicate", r.rank)
            for r in everything
        ]
        assert order == sorted(order)
        for sae in world.saes:
            for feature in range(min(3, len(sae.decoder))):
                answer = db.families(name_of(world, sae.name, feature), **options)
                own = {k: v for k, v in wanted.items() if k[0] == (sae.name, feature)}
                assert of(answer) == {k: pytest.approx(v, rel=1e-5) for k, v in own.items()}
                assert len(db.families(name_of(world, sae.name, feature), 1, **options)) <= 1


def _row(saes: list[str], name: tuple[str, int]) -> tuple[int, int]:
    return saes.index(name[0]), name[1]


PARENTS, CHILDREN, WIDTH = 12, 3, 64


def planted(seed: int) -> tuple[World, dict[frozenset[tuple[str, int]], str]]:
    """Two SAEs of one hook with hierarchies, and features that look like parents.

    wide: parents, each with children that fire on parts of its tokens and write a part of what it
    writes; features that cover the children of two parents and write something else; features that
    write what a parent writes on other tokens; one that is active nearly everywhere; noise. narrow:
    the parents again.
    """
    rng = np.random.default_rng(seed)
    contexts, size = 240, 16
    n = contexts * (size - 1)

    def unit(*rows: Float64) -> Float64:
        total = np.sum(rows, axis=0)
        result: Float64 = total / np.linalg.norm(total)
        return result

    def noise() -> Float64:
        return unit(rng.standard_normal(WIDTH))

    def about(values: Float64, lost: float, added: float) -> Float64:
        """The same activations but for some that are missing and some that are new."""
        found = np.where(rng.random(n) < lost, 0, values) * rng.uniform(0.7, 1.3, n)
        extra = rng.random(n) < added
        return np.where(extra & (found == 0), rng.uniform(0.5, 2, n), found)

    true: dict[frozenset[tuple[str, int]], str] = {}
    wide: list[tuple[Float64, Float64]] = []
    narrow: list[tuple[Float64, Float64]] = []
    covering: list[Float64] = []
    for parent in range(PARENTS):
        direction = noise()
        active = np.where(rng.random(n) < 0.06, rng.uniform(1, 5, n), 0)
        row = len(wide)
        wide.append((direction, active))
        narrow.append((unit(direction, 0.2 * noise()), about(active, 0.02, 0.0005)))
        true[frozenset({("wide", row), ("narrow", parent)})] = "duplicate"
        which = rng.integers(0, CHILDREN + 1, n)
        for child in range(CHILDREN):
            own = np.where(which == child, active, 0)
            covering.append(own)
            wide.append((unit(0.6 * direction, 0.8 * noise()), about(own, 0.05, 0.0003)))
            true[frozenset({("wide", len(wide) - 1), ("wide", row)})] = "child"
            true[frozenset({("wide", len(wide) - 1), ("narrow", parent)})] = "child"
        elsewhere = np.where((rng.random(n) < 0.05) & (active == 0), rng.uniform(1, 5, n), 0)
        wide.append((unit(direction, 0.5 * noise()), elsewhere))
    for first, second in rng.choice(len(covering), (PARENTS, 2)):
        wide.append((noise(), about(np.maximum(covering[first], covering[second]), 0.02, 0.01)))
    everywhere = unit(*(wide[i][0] for i in range(0, 10, 5)))
    wide.append((everywhere, np.where(rng.random(n) < 0.95, rng.uniform(1, 5, n), 0)))
    wide += [(noise(), np.where(rng.random(n) < 0.05, 1.0, 0)) for _ in range(20)]

    def made(name: str, features: list[tuple[Float64, Float64]]) -> MadeSae:
        rows = np.array([direction for direction, _ in features], np.float32)
        values = np.stack([active for _, active in features], axis=1).astype(np.float32)
        dense = np.zeros((contexts, size, len(features)), np.float32)
        dense[:, 1:] = values.reshape(contexts, size - 1, len(features))
        return MadeSae(name, list(dense), rows, rows)

    documents = [[[0, *[1] * (size - 1)]] for _ in range(contexts)]
    saes = [made("wide", wide), made("narrow", narrow)]
    return World(documents, {}, ["<s>", " a"], saes), true


def test_planted_hierarchies(tmp_path: Path) -> None:
    world, true = planted(0)
    make_store(tmp_path / "s.fdb", world)
    with featuredb.open(tmp_path / "s.fdb") as db:
        answer = db.families()
        by_coverage = db.families(min_gain=1e-9)
    pairs = {_pair(row): "duplicate" if row.relation == "duplicate" else "child" for row in answer}
    assert len(pairs) == len(answer)
    right = sum(true.get(pair) == relation for pair, relation in pairs.items())
    assert right / len(pairs) >= 0.95
    assert right / len(true) >= 0.95
    # The parents of rank 1 within an SAE: the forest.
    first = [r for r in answer if (r.relation, r.rank, r.sae) == ("parent", 1, "wide")]
    assert first
    assert all(_pair(row) in true for row in first)
    # Coverage alone gives false parents.
    false = [row for row in by_coverage if _pair(row) not in true]
    assert len(false) > 0.05 * len(by_coverage)


def _pair(row: Any) -> frozenset[tuple[str, int]]:
    return frozenset({(row.of_sae, row.of_feature_id), (row.sae, row.feature_id)})


def test_bad_bounds_and_an_empty_answer(tmp_path: Path) -> None:
    rows = np.eye(2, 4, dtype=np.float32)
    dense = np.array([[0, 0], [1, 0], [0, 2]], np.float32)
    make_store(
        tmp_path / "s.fdb",
        World([[[0, 1, 1]]], {}, ["<s>", "a"], [MadeSae("s", [dense], rows, rows)]),
    )
    with featuredb.open(tmp_path / "s.fdb") as db:
        for options, message in (
            ({"min_coverage": 0.0}, "min_coverage must be above 0 and at most 1, not 0.0"),
            ({"min_gain": 1.5}, "min_gain must be above 0 and at most 1, not 1.5"),
            ({"min_gain": float("nan")}, "min_gain must be above 0 and at most 1, not nan"),
            ({"min_count": 0}, "min_count must be a whole number, at least 1, not 0"),
        ):
            with pytest.raises(QueryError) as refused:
                db.families(0, **options)
            assert str(refused.value) == message
        empty = db.families(0)
        assert len(empty) == 0
        assert str(empty).strip() == "families of s/0 · no relatives · coverage 0.8, gain 0.1"
        assert len(empty.arrow().column_names) == 16
