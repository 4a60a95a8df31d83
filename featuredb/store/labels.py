"""Labels of features, read for answers that show them. Only the row groups that may have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.snapshot import Sae, Snapshot

_Key = tuple[str, str, int]

_CACHED_GROUPS = 512


class StoredLabels:
    """The labels of one snapshot. Without DuckDB and pyarrow.compute, which start slowly."""

    def __init__(self, snapshot: Snapshot, files: ParquetFiles) -> None:
        listed = (data.file.path for data in snapshot.user_data if data.table == "labels")
        self._path = next(listed, None)
        self._saes = {sae.name: sae for sae in snapshot.saes}
        self._files = files
        self._ends: list[tuple[_Key, _Key]] | None = None
        self._groups: dict[int, dict[_Key, list[dict[str, Any]]]] = {}

    def preferred(self, sae: Sae, feature: int) -> str | None:
        """The label that answers show, if there is any."""
        return next((row["text"] for row in self.of(sae, feature) if row["preferred"]), None)

    def named(self, features: Iterable[tuple[Sae, int]]) -> dict[str, str]:
        """The preferred labels of some features, by `sae/1234`. Only of those that have one."""
        return {
            f"{sae.name}/{number}": label
            for sae, number in features
            if (label := self.preferred(sae, number)) is not None
        }

    def column(self, saes: Sequence[str | None], features: Sequence[int | None]) -> pa.Array:
        """The preferred label of each row's feature, string, null where it has none."""
        if self._path is None:
            return pa.nulls(len(saes), pa.string())
        pairs = list(zip(saes, features, strict=True))
        found: dict[tuple[str | None, int | None], str | None] = {
            (sae, number): self.preferred(self._saes[sae], number)
            for sae, number in set(pairs)
            if sae is not None and number is not None
        }
        return pa.array([found.get(pair) for pair in pairs], pa.string())

    def every(self) -> dict[_Key, str]:
        """All preferred labels, by the SAE's hash and hook and the feature's number."""
        if self._path is None:
            return {}
        names = ["sae_sha256", "hook", "feature_id", "text", "preferred"]
        columns = self._files.read(self._path, columns=names).to_pydict().values()
        rows = zip(*columns, strict=True)
        return {(sha, hook, number): text for sha, hook, number, text, shown in rows if shown}

    def of(self, sae: Sae, feature: int) -> Sequence[dict[str, Any]]:
        """The rows about a feature, as in `schemas.LABELS`: the preferred one, then by id."""
        if self._path is None:
            return ()
        key = (sae.sha256, sae.hook, feature)
        rows = [
            row
            for group, (first, last) in enumerate(self._bounds(self._path))
            if first <= key <= last
            for row in self._rows(self._path, group).get(key, ())
        ]
        return sorted(rows, key=lambda row: not row["preferred"])

    def _bounds(self, path: str) -> list[tuple[_Key, _Key]]:
        """The least and the greatest key that each row group may have."""
        if self._ends is None:
            metadata = self._files.metadata(path)
            self._ends = []
            for group in range(metadata.num_row_groups):
                keys = [metadata.row_group(group).column(i).statistics for i in range(3)]
                # A group that has several SAEs has any feature.
                if any(keys[i].min != keys[i].max for i in range(2)):
                    last = (keys[0].max, keys[1].max, 2**63)
                    self._ends.append(((keys[0].min, keys[1].min, -1), last))
                else:
                    ends = [tuple(getattr(k, end) for k in keys) for end in ("min", "max")]
                    self._ends.append((ends[0], ends[1]))
        return self._ends

    def _rows(self, path: str, group: int) -> dict[_Key, list[dict[str, Any]]]:
        rows = self._groups.get(group)
        if rows is None:
            rows = {}
            for row in self._files.read(path, [group]).to_pylist():
                key = (row["sae_sha256"], row["hook"], row["feature_id"])
                rows.setdefault(key, []).append(row)
            if len(self._groups) >= _CACHED_GROUPS:
                self._groups.pop(next(iter(self._groups)))
            self._groups[group] = rows
        return rows
