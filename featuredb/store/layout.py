"""Paths inside a database folder (the tree of docs/format.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths of one database. Does not access the disk."""

    root: Path

    @property
    def current(self) -> Path:
        """Pointer to the live snapshot. Replaced only by an atomic rename."""
        return self.root / "CURRENT"

    @property
    def lock(self) -> Path:
        """Lock file of the writer."""
        return self.root / "LOCK"

    @property
    def catalog(self) -> Path:
        """DuckDB file with the views and macros, for any DuckDB client."""
        return self.root / "catalog.duckdb"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    def snapshot(self, number: int) -> Path:
        return self.snapshots / f"{number:06d}.json"

    @property
    def corpora(self) -> Path:
        return self.root / "corpus"

    def corpus(self, corpus_id: str) -> Path:
        return self.corpora / corpus_id

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    def segment(self, segment_id: str) -> Path:
        return self.segments / segment_id

    @property
    def derived(self) -> Path:
        return self.root / "derived"

    def derived_of(self, number: int) -> Path:
        return self.derived / f"{number:06d}"

    def mark(self, number: int, unique: str) -> Path:
        """A file whose folder only one publication of the snapshot has."""
        return self.derived_of(number) / f"id-{unique}" / "id"

    @property
    def vectors(self) -> Path:
        """LanceDB: decoder and encoder directions."""
        return self.root / "vectors.lance"

    @property
    def matrices(self) -> Path:
        """Memory-mapped float16 copies of the directions, for exact search."""
        return self.root / "matrices"

    @property
    def saes(self) -> Path:
        """What each SAE computes with besides its directions."""
        return self.root / "saes"

    @property
    def orders(self) -> Path:
        """Each SAE's features by frequency, the order that by-token files use."""
        return self.root / "orders"

    def feature_order(self, table: str, number: int) -> Path:
        return self.orders / f"{table}.{number:06d}.parquet"

    @property
    def user_data(self) -> Path:
        """What people write of the features."""
        return self.root / "user"

    @property
    def staging(self) -> Path:
        """An ingest in progress: its plan and finished partitions."""
        return self.root / "staging"

    def relative(self, path: Path) -> str:
        """`path` as the snapshot records it."""
        return path.relative_to(self.root).as_posix()
