"""Bytes per activation of a database, part by part, beside their entropy.

    python -m benchmarks.space my.fdb

The floor is the entropy of the same activations. *Position given feature*: each feature fires on
each recorded token independently, with its own density p, so it costs H(p)/p bits an activation.
That ignores that features come in bursts, which real encodings use. *Value*: the entropy of the
stored values over all features together. *Value given feature* is lower, but counted from the
values themselves it is too low, as a feature of n activations cannot show more than log2(n) bits:
it is printed and not used. Both copies hold the same activations, so one floor is that of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from featuredb.store.by_feature import FeatureRows, SegmentByFeature
from featuredb.store.snapshot import File, Segment
from featuredb.store.store import Store

_ROWS = 1 << 22


class Floor(NamedTuple):
    """Bits per activation."""

    position: float
    value: float
    value_given_feature: float

    @property
    def bytes(self) -> float:
        """The floor of one copy: position given feature, and value."""
        return (self.position + self.value) / 8


def floor_of(pieces: Iterable[FeatureRows], recorded_tokens: int) -> Floor:
    """The floor of one SAE's activations, in pieces sorted by feature.

    A feature cut by two pieces counts as two for the value given the feature.
    """
    counts: Counter[int] = Counter()
    values: Counter[int] = Counter()
    given = 0.0
    for rows in pieces:
        kind = np.dtype(f"u{rows.activation.dtype.itemsize}")
        value = rows.activation.view(kind).astype(np.uint64)
        for found, counter in ((rows.feature_id, counts), (value, values)):
            counter.update(dict(zip(*(a.tolist() for a in _counted(found)), strict=True)))
        _, of_feature = _counted(rows.feature_id)
        _, of_both = _counted((rows.feature_id.astype(np.uint64) << np.uint64(32)) | value)
        given += _nats(of_feature) - _nats(of_both)
    each = np.array(list(counts.values()), np.float64)
    n = each.sum()
    density = each / recorded_tokens
    silent = np.where(density < 1, 1 - density, 1.0)
    occupied = -density * np.log2(density) - (1 - density) * np.log2(silent)
    pooled = np.array(list(values.values()), np.float64)
    return Floor(
        float(recorded_tokens * occupied.sum() / n),
        float((_nats(np.array([n])) - _nats(pooled)) / n / np.log(2)),
        float(given / n / np.log(2)),
    )


def _counted(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    return np.unique(values, return_counts=True)


def _nats(counts: npt.NDArray[Any]) -> float:
    """Σ n ln n."""
    return float((counts * np.log(counts)).sum())


def _pieces(store: Store, segments: Iterable[Segment]) -> Iterator[FeatureRows]:
    for segment in segments:
        reader = SegmentByFeature(store.root, segment, store.files)
        for start in range(0, segment.rows, _ROWS):
            yield reader.rows(start, min(segment.rows, start + _ROWS))


def _columns(root: Path, files: Iterable[File]) -> dict[str, int]:
    """Compressed bytes by column, and what is left of the files: footers and lengths."""
    sizes: Counter[str] = Counter()
    for file in files:
        metadata = pq.read_metadata(root / file.path)
        left = file.bytes
        for group in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(group).column(place)
                sizes[column.path_in_schema.partition(".")[0]] += column.total_compressed_size
                left -= column.total_compressed_size
        sizes["footers"] += left
    return dict(sizes)


def _report(store: Store, sae: str) -> Table:
    snapshot = store.snapshot
    segments = snapshot.segments_of(sae)
    n = snapshot.rows(sae)
    floor = floor_of(_pieces(store, segments), snapshot.recorded_tokens(sae))
    table = Table("part", "bytes per activation", "floor", "ratio", title=f"{sae}: {n:,}")
    for name, files in (
        ("by-feature", [f.file for s in segments for f in s.feature_files]),
        ("by-token", [f.file for s in segments for f in s.token_files]),
    ):
        size = sum(f.bytes for f in files) / n
        ratio = f"{size / floor.bytes:.3f}"
        table.add_row(name, f"{size:.3f}", f"{floor.bytes:.3f}", ratio, style="bold")
        for column, part in _columns(Path(str(store.root)), files).items():
            least = {"position": floor.position, "activation": floor.value}.get(column)
            told = f"{least / 8:.3f}" if least is not None and name == "by-feature" else ""
            table.add_row(f"  {column}", f"{part / n:.3f}", told, "")
    rest = [s.directory for s in segments] + [s.sinks for s in segments]
    table.add_row("directories and sinks", f"{sum(f.bytes for f in rest) / n:.3f}", "", "")
    tables = next(t for t in snapshot.derived.saes if t.sae == sae)
    examples = tables.examples.bytes + tables.examples_directory.bytes
    table.add_row("examples", f"{examples / n:.3f}", "", "")
    table.caption = (
        f"floor in bits: position given feature {floor.position:.2f}, value {floor.value:.2f} "
        f"(given feature at least {floor.value_given_feature:.2f})"
    )
    return table


@click.command()
@click.argument("db", type=click.Path(exists=True))
def main(db: str) -> None:
    """Print, for each SAE, bytes per activation of each part and the entropy floor."""
    store = Store.open(db)
    out = Console(width=100)
    for sae in store.snapshot.saes:
        if store.snapshot.rows(sae.name):
            out.print(_report(store, sae.name))


if __name__ == "__main__":
    main()
