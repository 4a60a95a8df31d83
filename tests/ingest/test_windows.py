"""Stored windows of top contexts: several files, and the same answers as without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import featuredb
from featuredb.store import schemas
from featuredb.store.snapshot import Snapshot
from ingest.derive import windows
from tests.make_store import MadeSae, World, make_store

LONG = 80
WIDTHS = [0, 3, schemas.WINDOW, schemas.WINDOW + 1, LONG]


def world() -> World:
    """Contexts of 1 to 80 tokens. Feature 6 never fires."""
    rng = np.random.default_rng(0)
    lengths = [LONG, 40, 1, 12, LONG, 33, 17, LONG]
    documents = [[rng.integers(1, 9, n).tolist()] for n in lengths]
    dense = []
    for n in lengths:
        values = rng.integers(-30, 6, (n, 7)).astype(np.float32)
        values[values < 0] = 0
        values[:, 6] = 0
        dense.append(values)
    directions = rng.normal(size=(7, 3)).astype(np.float32)
    topics = [f"t{i}" for i in range(len(documents))]
    return World(
        documents=documents,
        metadata={"topic": topics},
        vocabulary=[f" w{i}" for i in range(9)],
        saes=[MadeSae(name, dense, directions, directions) for name in ("a", "b")],
        bos=None,
        context_size=LONG,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Snapshot]:
    path = tmp_path_factory.mktemp("windows") / "made.fdb"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(windows, "ROWS_PER_FILE", 11)
        return path, make_store(path, world())


def test_files_cover_all_features_once(store: tuple[Path, Snapshot]) -> None:
    _, snapshot = store
    for tables in snapshot.derived.saes:
        assert len(tables.windows) > 2
        ends = [w.end_feature for w in tables.windows]
        assert [w.first_feature for w in tables.windows] == [0, *ends[:-1]]
        assert ends[-1] == 7
        rows = [w.file.rows for w in tables.windows]
        assert [w.first_row for w in tables.windows] == np.cumsum([0, *rows[:-1]]).tolist()


@pytest.mark.parametrize("size", WIDTHS)
def test_any_width_gives_what_python_gives(store: tuple[Path, Snapshot], size: int) -> None:
    with featuredb.open(store[0]) as db:
        for feature in ("a/0", "b/5", "b/6"):
            for k in (2, 50):
                ours = db.top_contexts(feature, k=k, window=size).arrow().to_pylist()
                query = "FROM top_contexts(?, k := ?, window_size := ?)"
                assert db.sql(query, [feature, k, size]).to_arrow_table().to_pylist() == ours
                assert (len(ours) == 0) == (feature == "b/6")
