"""Nearest to a feature beyond the graph, and to any vector, exactly and through an index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import featuredb
from featuredb.errors import QueryError, UnknownFeatureError
from featuredb.store.history import read_snapshot, write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from featuredb.store.vectors.directions import Directions
from ingest.derive.index import RECALL, write_indexes
from tests.directions import a_world, clustered, cosines_of_all, made_directions
from tests.logs import logged
from tests.make_store import make_store

SAES = {"one": made_directions(2_000, 16), "two": made_directions(1_500, 16, seed=1)}
ROWS = np.concatenate([s.decoder for s in SAES.values()])
NAMES = [(name, i) for name, s in SAES.items() for i in range(len(s.decoder))]
APART = Directions(clustered(5, 16), clustered(5, 16))
WIDE = Directions(clustered(60, 24), clustered(60, 24))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two comparable SAEs, one of the same width at another hook, one of another width."""
    path = tmp_path_factory.mktemp("near") / "s.fdb"
    hooks = {"apart": "blocks.1.hook_resid_post"}
    make_store(path, a_world({**SAES, "apart": APART, "wide": WIDE}, hooks))
    return path


@pytest.fixture(scope="module")
def db(root: Path) -> Iterator[featuredb.Database]:
    with featuredb.open(root) as opened:
        yield opened


def pairs(answer: featuredb.Neighbors) -> list[tuple[str, int]]:
    return [(row.sae, row.feature_id) for row in answer]


def expected(query: np.ndarray, k: int) -> list[tuple[str, int]]:
    [scores] = cosines_of_all(np.concatenate([query[None], ROWS]), [0])
    order = np.lexsort((np.arange(len(ROWS)), -scores[1:]))[:k]
    return [NAMES[i] for i in order]


@pytest.mark.parametrize("k", [1, 20, 200, 5_000])
def test_a_vector(db: featuredb.Database, k: int) -> None:
    vector = clustered(1, 16, seed=7)[0]
    answer = db.near_vector(vector, k=k, sae="two")
    assert pairs(answer) == expected(vector, k)
    assert (answer.feature, answer.method, answer.recall) == ("vector", "exact", 1.0)
    assert db.near_vector((vector * 2.0**90).tolist(), k=k, sae="one").arrow() == answer.arrow()


def test_a_feature_s_own_direction_and_the_feature(db: featuredb.Database) -> None:
    graph, searched = db.near("two/7", k=50), db.near("two/7", k=60)
    assert (graph.method, searched.method) == ("graph", "exact")
    assert pairs(searched)[:50] == pairs(graph)
    answer = db.near_vector(SAES["two"].decoder[7], k=61, sae="two")
    assert pairs(answer) == [("two", 7), *pairs(searched)]
    assert answer.arrow().column("score").to_pylist()[1:] == [row.score for row in searched]


def test_the_only_saes_of_that_width_need_no_name(db: featuredb.Database) -> None:
    assert {name for name, _ in pairs(db.near_vector(WIDE.encoder[3], by="encoder"))} == {"wide"}
    assert {name for name, _ in pairs(db.near_vector(APART.decoder[3], sae="apart"))} == {"apart"}


@pytest.mark.parametrize(
    ("vector", "options", "words"),
    [
        (np.ones(5), {}, "the vector has 5 values, decoder directions here have 16, 24"),
        (np.ones(24), {"sae": "one"}, "has 24 values, decoder directions of one have 16"),
        (np.ones(16), {}, "several hooks: say which with sae, as one of one, two, apart"),
        (np.zeros(16), {"sae": "one"}, "all zeros"),
        ([1.0, float("nan"), *[0.0] * 14], {"sae": "one"}, "value 1 is nan"),
        ([float("inf"), *[0.0] * 15], {"sae": "one"}, "value 0 is inf"),
        (np.ones((2, 16)), {"sae": "one"}, "one dimension, not 2"),
        (["a"] * 16, {"sae": "one"}, "must be numbers"),
        (np.ones(16), {"by": "coactivation"}, "by must be decoder or encoder"),
        (np.ones(16), {"sae": "one", "k": 0}, "k must be a whole number, at least 1"),
    ],
)
def test_vectors_that_cannot_be_asked_about(
    db: featuredb.Database, vector: object, options: dict[str, object], words: str
) -> None:
    with pytest.raises(QueryError, match=words):
        db.near_vector(vector, **options)  # type: ignore[arg-type]


def test_an_unknown_sae(db: featuredb.Database) -> None:
    with pytest.raises(UnknownFeatureError, match="there is no SAE three"):
        db.near_vector(np.ones(16), sae="three")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Snapshot, list[str]]:
    """A store with comparable SAEs large enough for an index, with a lowered limit."""
    path = tmp_path_factory.mktemp("indexed") / "s.fdb"
    snapshot = make_store(path, a_world({**SAES, "wide": WIDE}))
    layout = Layout(path)
    folder = layout.derived_of(snapshot.number)
    with logged() as messages:
        indexes = write_indexes(
            layout, folder, folder, snapshot.saes, snapshot.vectors, "decoder", beyond=3_000
        )
    derived = msgspec.structs.replace(snapshot.derived, indexes=indexes)
    number = snapshot.number + 1
    write_snapshot(layout, msgspec.structs.replace(snapshot, derived=derived, number=number))
    return path, read_snapshot(layout), messages


def test_an_index_is_made_beyond_a_size_and_says_its_recall(
    indexed: tuple[Path, Snapshot, list[str]],
) -> None:
    path, snapshot, messages = indexed
    [index] = snapshot.derived.indexes
    assert (index.kind, index.saes, index.sample) == ("decoder", ("one", "two"), 256)
    assert RECALL <= index.recall <= 1
    [line] = messages
    assert f"recall@10 {index.recall:.3f} against exact" in line
    listed = {f.path: f for f in snapshot.files()}
    for file in (index.centroids, index.lists):
        assert listed[file.path].bytes == (path / file.path).stat().st_size
    lists = np.load(path / index.lists.path)
    begins, rows = lists[: index.centroids.rows + 1], lists[index.centroids.rows + 1 :]
    assert (begins[0], begins[-1]) == (0, len(ROWS))
    assert np.array_equal(np.sort(rows), np.arange(len(ROWS)))


def test_an_index_is_used_and_scores_exactly(indexed: tuple[Path, Snapshot, list[str]]) -> None:
    path, snapshot, _ = indexed
    [index] = snapshot.derived.indexes
    hits = 0
    with featuredb.open(path) as db:
        for feature in range(0, 1_500, 30):
            found = db.near(f"two/{feature}", k=60)
            exact = db.near(f"two/{feature}", k=60, exact=True)
            assert (found.method, found.recall) == ("ivf", index.recall)
            assert (exact.method, exact.recall) == ("exact", 1.0)
            assert len(found) == 60
            scores = {p: row.score for p, row in zip(pairs(exact), exact, strict=True)}
            for pair, row in zip(pairs(found), found, strict=True):
                assert scores.get(pair, row.score) == row.score
            hits += len(set(pairs(found)[:10]) & set(pairs(exact)[:10]))
        assert hits >= 0.95 * 500
        everything = db.near_vector(ROWS[0], k=5_000, sae="one")
        assert pairs(everything) == expected(ROWS[0], 5_000)
        assert db.near_vector(WIDE.decoder[0]).method == "exact"
        assert db.near("one/1", k=60, by="encoder").method == "exact"
