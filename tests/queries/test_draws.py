"""Contexts drawn over a feature's range, and where it is silent, against slow definitions."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featuredb
from featuredb.errors import QueryError, SQLError
from queries import silent_contexts
from tests.make_store import MadeSae, World, make_store
from tests.oracle import Oracle, Row
from tests.queries.test_against_oracle import everywhere, few, name_of, opened, some_features
from tests.queries.together import uneven_worlds
from tests.queries.worlds import worlds

SAMPLE = "FROM sample_contexts(?, k := ?, bins := ?, seed := ?, bins_by := ?, window_size := ?)"
SILENT = "FROM silent_contexts(?, k := ?, matched_by := ?, seed := ?, window_size := ?)"
_PRIME = 2**31 - 1


def key(context_id: int, seed: int, sae: str, feature: int) -> int:
    digest = hashlib.md5(f"{seed}/{sae}/{feature}".encode()).digest()
    start = int.from_bytes(digest[8:], "little") % _PRIME
    return pow(context_id * 48271 + start, 5, _PRIME)


def sampled(
    oracle: Oracle, sae: str, feature: int, k: int, bins: int, seed: int, by: str, window: int
) -> list[Row]:
    every = oracle.top_contexts(sae, feature, 10**6, window)
    peaks = [row["activation"] for row in every]
    edges: dict[int, tuple[float, float]] = {}
    held: dict[int, list[Row]] = {}
    rising = sorted(every, key=lambda row: (row["activation"], row["context_id"]))
    for place, row in enumerate(rising):
        low, high = peaks[-1], peaks[0]
        if by == "quantile":
            number = 1 + place * bins // len(rising)
        elif low == high:
            number = bins
        else:
            number = min(bins, 1 + math.floor((row["activation"] - low) / (high - low) * bins))
        held.setdefault(number, []).append(row)
    for number, rows in held.items():
        found = [row["activation"] for row in rows]
        edges[number] = (min(found), max(found))
        if by == "width" and peaks[0] > peaks[-1]:
            width = peaks[0] - peaks[-1]
            ends = [peaks[-1] + width * i / bins for i in (number - 1, number)]
            edges[number] = (float(np.float32(ends[0])), float(np.float32(ends[1])))
        rows.sort(key=lambda row: key(row["context_id"], seed, sae, feature))
    chosen: list[tuple[Row, int]] = []
    for turn in range(max(map(len, held.values()), default=0)):
        for number in sorted(held, reverse=True):
            if turn < len(held[number]):
                chosen.append((held[number][turn], number))
    chosen = chosen[:k]
    drawn = Counter(number for _, number in chosen)
    chosen.sort(key=lambda pair: (-pair[0]["activation"], pair[0]["context_id"]))
    return [
        {
            **row,
            "rank": rank,
            "bin": number,
            "bin_low": edges[number][0],
            "bin_high": edges[number][1],
            "bin_contexts": len(held[number]),
            "bin_weight": len(held[number]) / drawn[number],
        }
        for rank, (row, number) in enumerate(chosen, 1)
    ]


@given(worlds(), st.data())
@few
def test_samples(world: World, data: st.DataObject) -> None:
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            bins = data.draw(st.sampled_from([1, 2, 3, 10]))
            k = data.draw(st.sampled_from([bins, bins + 1, 50]))
            seed, window = data.draw(st.sampled_from([0, 1, 2**62])), data.draw(st.integers(0, 3))
            by = data.draw(st.sampled_from(["width", "quantile"]))
            name = name_of(world, sae, feature)
            answer = db.sample_contexts(name, k, bins, seed, by=by, window=window)
            rows = everywhere(db, client, answer, SAMPLE, [name, k, bins, seed, by, window])
            assert rows == sampled(oracle, sae, feature, k, bins, seed, by, window)


def silent(
    oracle: Oracle, sae: str, feature: int, like: str, seed: int
) -> list[tuple[int, str | None, int]]:
    """(context, matched, token_index) of every candidate, in the order of the draw."""
    end = oracle.sae(sae).end
    read = oracle.dense[sae] if end is None else oracle.dense[sae][:end]
    quiet = [c for c, dense in enumerate(read) if not dense[:, feature].any()]
    found: list[tuple[int, str | None, int, float]] = []
    if like == "tokens":
        top = oracle.statistics(sae, feature)["top_tokens"]
        for c in quiet:
            words = [oracle.world.vocabulary[t] for t in oracle.contexts[c]]
            for entry in top:
                if entry["token"] in words:
                    at = words.index(entry["token"])
                    found.append((c, entry["token"], at, entry["count"]))
                    break
    elif like == "random":
        for c in quiet:
            at = key(c, seed, sae, feature) % len(oracle.contexts[c])
            found.append((c, None, at, 1))
    found.sort(key=lambda entry: key(entry[0], seed, sae, feature))
    turns: Counter[str | None] = Counter()
    order = []
    for entry in found:
        turns[entry[1]] += 1
        order.append((turns[entry[1]] / entry[3], key(entry[0], seed, sae, feature), entry))
    return [entry[:3] for _, _, entry in sorted(order)]


@given(uneven_worlds(), st.data())
@few
def test_silence(world: World, data: st.DataObject) -> None:
    with opened(world) as (db, client, oracle):
        for sae, feature in some_features(world, data):
            k, seed = data.draw(st.sampled_from([1, 3, 50])), data.draw(st.integers(0, 9))
            like = data.draw(st.sampled_from(["tokens", "random"]))
            name = name_of(world, sae, feature)
            # However few contexts are looked at first.
            first = data.draw(st.sampled_from([1, 3, 1024]))
            with patch.multiple(silent_contexts, _FIRST=first, _FASTER=1):
                answer = db.silent_contexts(name, k, like, seed, window=1)
            rows = everywhere(db, client, answer, SILENT, [name, k, like, seed, 1])
            got = [(r["context_id"], r["matched"], r["token_index"]) for r in rows]
            assert got == silent(oracle, sae, feature, like, seed)[:k]
            for row in rows:
                tokens = [world.vocabulary[t] for t in oracle.contexts[row["context_id"]]]
                assert row["token"] == tokens[row["token_index"]]
                assert row["activations"] == [0.0] * len(row["tokens"])


@given(worlds(max_saes=1), st.data())
@few
def test_silence_beside_neighbors(world: World, data: st.DataObject) -> None:
    with opened(world) as (db, _, oracle):
        for sae, feature in some_features(world, data):
            dense = oracle.dense[sae]
            nearest = [row["feature_id"] for row in oracle.near(sae, feature, 10, "decoder")]
            for row in db.silent_contexts(feature, 50, "neighbors"):
                neighbor = int(row.matched.rpartition("/")[2])
                values = dense[row.context_id][:, neighbor]
                assert neighbor in nearest
                assert not dense[row.context_id][:, feature].any()
                assert values[row.token_index] == values.max() != 0


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    """400 contexts of one token, on most of which a feature fires, seldom strongly."""
    rng = np.random.default_rng(3)
    values = np.where(rng.random(400) < 0.7, rng.lognormal(0, 1, 400), 0).astype(np.float32)
    documents = [[[0, 1 + int(rng.integers(0, 2))]] for _ in range(400)]
    dense = [np.array([[0.0], [v]], np.float32) for v in values]
    rows = np.eye(1, 4, dtype=np.float32)
    world = World(documents, {}, ["<s>", " a", " b"], [MadeSae("s", dense, rows, rows)])
    path = tmp_path_factory.mktemp("draws") / "many.fdb"
    make_store(path, world)
    return path, Oracle(world)


@pytest.mark.parametrize("by", ["width", "quantile"])
def test_weights_estimate_without_bias(many: tuple[Path, Oracle], by: str) -> None:
    """The mean over seeds of the estimated share of " a" is the share, within 4 errors."""
    path, oracle = many
    truth = [row["token"] == " a" for row in oracle.top_contexts("s", 0, 10**6, 0)]
    estimates = []
    with featuredb.open(path) as db:
        for seed in range(150):
            table: Any = db.sample_contexts(0, 30, 10, seed, by=by).pandas()
            assert table.bin_weight.sum() == pytest.approx(len(truth))
            estimates.append(table.bin_weight[table.token == " a"].sum() / len(truth))
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - np.mean(truth)) < 4 * error
    assert len(set(estimates)) > 20


def test_fewer_contexts_than_bins_have_a_bin_each(many: tuple[Path, Oracle]) -> None:
    with featuredb.open(many[0]) as db:
        answer = db.sample_contexts(0, 2)
        assert answer.arrow() == db.sample_contexts(0, 2, 2).arrow()
        asked = "SELECT context_id FROM sample_contexts(0, k := 2)"
        assert [row.context_id for row in answer] == [i for (i,) in db.sql(asked).fetchall()]


def test_bad_draws(many: tuple[Path, Oracle]) -> None:
    with featuredb.open(many[0]) as db:
        for options, message in (
            ({"k": 5, "bins": 10}, "bins must be a whole number from 1 to k, which is 5, not 10"),
            ({"bins": 0}, "bins must be a whole number from 1 to k, which is 20, not 0"),
            ({"seed": -1}, "seed must be a whole number"),
            ({"by": "depth"}, "bins are made by width or quantile, not depth"),
        ):
            with pytest.raises(QueryError, match=message):
                db.sample_contexts(0, **options)
            arguments = ", ".join(
                f"{name.replace('by', 'bins_by')} := {value!r}" for name, value in options.items()
            )
            with pytest.raises((SQLError, duckdb.Error), match=message):
                db.sql(f"FROM sample_contexts(0, {arguments})").fetchall()
        with pytest.raises(QueryError, match="like tokens, neighbors or random, not depth"):
            db.silent_contexts(0, like="depth")
        with pytest.raises(duckdb.Error, match="like tokens, neighbors or random, not depth"):
            db.sql("FROM silent_contexts(0, matched_by := 'depth')").fetchall()
