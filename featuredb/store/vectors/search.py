"""The directions of a snapshot, ready to be searched: indexes are made once and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from featuredb.errors import QueryError
from featuredb.store.files.location import Root, load_array, location_of
from featuredb.store.layout import Layout
from featuredb.store.names import NO_DIRECTIONS
from featuredb.store.snapshot import File, Sae, Snapshot, VectorIndex, Vectors
from featuredb.store.vectors.directions import (
    DirectionRows,
    Float32Matrix,
    HalfMatrix,
    comparable,
    half_rows,
    read_directions,
)
from featuredb.store.vectors.exact import ExactSearch
from featuredb.store.vectors.ivf import InvertedLists

T = TypeVar("T")
_Key = tuple[tuple[str, ...], str]
"""The names of the SAEs of a group, and the kind."""


class HeldRows:
    """The float32 directions of some SAEs, one SAE after another, in memory."""

    def __init__(self, matrices: Sequence[Float32Matrix]) -> None:
        self._rows = np.concatenate(matrices)

    def take(self, rows: npt.NDArray[np.int64]) -> Float32Matrix:
        """Rows float32 [n, d], in the requested order."""
        return self._rows[rows]

    def __getitem__(self, rows: slice) -> Float32Matrix:
        """Consecutive rows float32 [n, d]."""
        return self._rows[rows]


class DirectionSearch:
    """Search among the directions that may be compared with those of an SAE.

    kind is ``decoder`` or ``encoder`` throughout. Rows count through the SAEs of `group`, in its
    order. alone: only those of the SAE itself.
    """

    def __init__(self, root: Root, snapshot: Snapshot) -> None:
        self._root = root
        self._location = location_of(root)
        self._snapshot = snapshot
        self._rows: dict[_Key, DirectionRows | HeldRows] = {}
        self._exact: dict[_Key, ExactSearch] = {}
        self._lists: dict[_Key, InvertedLists] = {}
        self._lock = threading.RLock()

    def group(self, sae: Sae, kind: str, *, alone: bool = False) -> list[Sae]:
        """The SAEs with directions comparable with those of `sae`, including itself."""
        return [sae] if alone else comparable(self._snapshot.saes, sae, kind)

    def rows(self, sae: Sae, kind: str, *, alone: bool = False) -> DirectionRows | HeldRows:
        """The float32 directions of `group`: read as they are needed, from afar all at once."""
        group = self.group(sae, kind, alone=alone)
        return self._kept(self._rows, group, kind, lambda: self._directions(group, kind))

    def exact(self, sae: Sae, kind: str, *, alone: bool = False) -> ExactSearch:
        """Exact search over `group`."""
        group = self.group(sae, kind, alone=alone)
        rows = self.rows(sae, kind, alone=alone)
        return self._kept(
            self._exact,
            group,
            kind,
            lambda: ExactSearch(self._halves(group, kind, rows), rows.take),
        )

    def index(self, sae: Sae, kind: str) -> VectorIndex | None:
        """What the snapshot has of an approximate index over `group`: None where it is small."""
        names = tuple(s.name for s in self.group(sae, kind))
        matches = (i for i in self._snapshot.derived.indexes if (i.kind, i.saes) == (kind, names))
        return next(matches, None)

    def approximate(self, sae: Sae, kind: str, index: VectorIndex) -> InvertedLists:
        """Search through that index."""
        group, rows = self.group(sae, kind), self.rows(sae, kind)
        return self._kept(
            self._lists,
            group,
            kind,
            lambda: InvertedLists(
                self._array(index.centroids),
                self._array(index.lists),
                self._halves(group, kind, rows),
                rows.take,
                index.probes,
            ),
        )

    def _directions(self, group: Sequence[Sae], kind: str) -> DirectionRows | HeldRows:
        vectors = self._vectors(group)
        if self._location.folder is not None:
            return DirectionRows(Layout(self._location.folder), vectors, kind)
        matrices = []
        for one in vectors:
            # All of it is needed, so a copy costs no more than reading it in place.
            with self._location.copied(f"vectors.lance/{one.table}.lance", one.files) as folder:
                matrices.append(getattr(read_directions(Layout(folder), one), kind))
        return HeldRows(matrices)

    def _halves(
        self, group: Sequence[Sae], kind: str, rows: DirectionRows | HeldRows
    ) -> list[HalfMatrix]:
        halves, first = [], 0
        for vectors in self._vectors(group):
            column = vectors.column(kind)
            if column.unit is not None:
                halves.append(self._array(column.unit))
            else:
                halves.append(half_rows(rows.take(np.arange(first, first + column.rows))))
            first += column.rows
        return halves

    def _vectors(self, group: Sequence[Sae]) -> list[Vectors]:
        if not group[0].d_in:
            raise QueryError(NO_DIRECTIONS.format(sae=group[0].name))
        known = {v.sae: v for v in self._snapshot.vectors}
        return [known[sae.name] for sae in group]

    def _array(self, file: File) -> npt.NDArray[Any]:
        return load_array(self._root, file.path, whole=True)

    def _kept(
        self, cache: dict[_Key, T], group: Sequence[Sae], kind: str, make: Callable[[], T]
    ) -> T:
        """What was made for the group before, else made now."""
        key = tuple(sae.name for sae in group), kind
        with self._lock:
            if key not in cache:
                cache[key] = make()
            return cache[key]
