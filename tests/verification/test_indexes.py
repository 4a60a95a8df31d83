"""Verification detects an index that does not match its directions, even with valid checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from featuredb.store.history import file_entry, write_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot, VectorIndex
from featuredb.verification import verify
from ingest.derive.index import write_indexes
from queries.catalog_file import built_catalog
from tests.directions import a_world, made_directions
from tests.make_store import make_store

Lists = npt.NDArray[Any]


def published(path: Path, change: Callable[[Lists, int], Lists] | None = None) -> VectorIndex:
    """A store with an index over two SAEs, its lists changed before they are published."""
    saes = {"one": made_directions(500, 16), "two": made_directions(400, 16, seed=1)}
    snapshot = make_store(path, a_world(saes))
    layout = Layout(path)
    folder = layout.derived_of(snapshot.number)
    [index] = write_indexes(
        layout, folder, folder, snapshot.saes, snapshot.vectors, "decoder", beyond=800
    )
    if change is not None:
        lists = path / index.lists.path
        np.save(lists, change(np.load(lists), index.centroids.rows + 1))
        entry = file_entry(layout, lists, folder, folder, index.lists.rows)
        index = msgspec.structs.replace(index, lists=entry)
    derived = msgspec.structs.replace(snapshot.derived, indexes=(index,))
    fresh: Snapshot = msgspec.structs.replace(snapshot, derived=derived, number=2)
    with built_catalog(layout, fresh) as catalog:
        write_snapshot(layout, fresh, catalog)
    return index


def test_a_sound_index(tmp_path: Path) -> None:
    published(tmp_path / "s.fdb")
    assert verify(tmp_path / "s.fdb").ok


def twice(lists: Lists, first: int) -> Lists:
    lists[first] = lists[first + 1]
    return lists


def swapped(lists: Lists, first: int) -> Lists:
    """A row of the first list in the last, and the reverse."""
    low, high = lists[first : first + lists[1]], lists[first + lists[first - 2] :]
    low[0], high[0] = high[0], low[0]
    low.sort()
    high.sort()
    return lists


def cut(lists: Lists, first: int) -> Lists:
    return lists[:-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (twice, "does not have every direction once, in order"),
        (swapped, "in a list it is far from"),
        (cut, "does not have 900 directions in its lists"),
    ],
)
def test_damage_is_told(tmp_path: Path, change: Callable[[Lists, int], Lists], said: str) -> None:
    index = published(tmp_path / "s.fdb", change)
    [problem] = verify(tmp_path / "s.fdb").problems
    assert problem.where == index.lists.path
    assert said in problem.what
