"""All of a feature's activations, by context, against the dense worlds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import featuredb
from queries.activations import feature_activations, feature_contexts
from tests.make_store import MadeSae, World, make_store, stored


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 16, 30).tolist()
    documents = [[rng.integers(1, 5, n).tolist()] for n in lengths]
    # Few values, so that several tokens of a context share its maximum.
    dense = [rng.integers(-1, 3, (n, 4)).clip(0).astype(np.float32) for n in lengths]
    for values in dense:
        values[:, 3] = 0
    dense[7][:, 0] = 0
    directions = rng.normal(size=(4, 3)).astype(np.float32)
    sae = MadeSae("made", dense, directions, directions)
    words = [f" w{i}" for i in range(5)]
    return World(documents, {}, words, [sae], bos=None, partitions=3)


@pytest.fixture(scope="module")
def path(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contexts") / "made.fdb"
    make_store(path, world)
    return path


@pytest.mark.parametrize("feature", range(4))
def test_against_the_dense_world(world: World, path: Path, feature: int) -> None:
    kept = [values[:, feature] for values in stored(world, world.saes[0])]
    with featuredb.open(path) as db:
        found = feature_contexts(db._store, db.saes[0], feature)
        context, token, activation = feature_activations(db._store, db.saes[0], feature)
        rows = db.sql(f"FROM feature_activations({feature}) ORDER BY ALL").fetchall()
        answer = db.activations(f"made/{feature}")
    firing = [i for i, values in enumerate(kept) if values.any()]
    assert found.context_id.tolist() == firing
    assert found.peak.tolist() == [kept[i].max() for i in firing]
    assert len(found.offsets) == len(firing) + 1
    for row, i in enumerate(firing):
        own = np.flatnonzero(kept[i])
        indexes, values = found.tokens(row)
        assert indexes.tolist() == own.tolist()
        assert values.tolist() == kept[i][own].tolist()
    expected = [(i, int(t), float(kept[i][t])) for i in firing for t in np.flatnonzero(kept[i])]
    named = [("made", feature, *row) for row in expected]
    assert list(zip(context.tolist(), token.tolist(), activation.tolist(), strict=True)) == expected
    assert rows == [tuple(row) for row in answer] == named
    columns = ["sae", "feature_id", "context_id", "token_index", "activation"]
    assert answer.table.column_names == columns
    assert [str(t) for t in answer.table.schema.types[1:]] == ["int64", "int64", "int32", "float"]
    assert (answer.feature, answer.kind) == (f"made/{feature}", "activations")
    # The heading says of which feature, the rows need not.
    assert str(answer).startswith(f"feature made/{feature} · ")
    assert "feature_id" not in str(answer)


def test_the_token_shown_is_the_first_to_reach_the_maximum(world: World, path: Path) -> None:
    kept = [values[:, 0] for values in stored(world, world.saes[0])]
    with featuredb.open(path) as db:
        # More than are stored: computed from all activations.
        answer = db.top_contexts(0, k=100).arrow().to_pylist()
    assert len(answer) > 20
    assert {row["context_id"]: row["token_index"] for row in answer} == {
        i: int(np.argmax(values)) for i, values in enumerate(kept) if values.any()
    }
    assert sum(list(kept[row["context_id"]]).count(row["activation"]) > 1 for row in answer) > 5
