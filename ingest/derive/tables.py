"""Everything derived for a snapshot, written as its folder ``derived/<number>/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb import schemas
from featuredb.files import folder_in_place, remove_tree
from featuredb.layout import Layout
from featuredb.snapshot import Derived, File, Sae, SaeTables, Segment
from featuredb.vectors import Directions, table_of
from ingest.compact import Merged
from ingest.derive.coactivation import coactivation
from ingest.derive.neighbors import neighbors
from ingest.runs import file_entry

EXAMPLES_ROW_GROUP = 2_048
FEATURES_ROW_GROUP = 512
NEIGHBORS_ROW_GROUP = 5_000
"""A hundred features' neighbours: what a lookup decodes."""


@dataclass(frozen=True)
class SaeStatistics:
    """One SAE's statistics and examples, from its buckets in feature order."""

    sae: Sae
    buckets: Sequence[Merged]

    def features(self, norms: npt.NDArray[np.float32], logits: pa.Table) -> pa.Table:
        """Rows of FEATURES. norms: float32 [d_sae]; logits: rows of LOGITS in feature order."""
        table = pa.concat_tables([bucket.statistics for bucket in self.buckets])
        table = table.append_column("sae", pa.array([self.sae.name] * len(table), pa.string()))
        table = table.append_column("decoder_norm", pa.array(norms, pa.float32()))
        for name in ("promoted_tokens", "suppressed_tokens"):
            table = table.append_column(name, logits.column(name))
        return table.select(schemas.FEATURES.names).cast(schemas.FEATURES)

    def examples(self) -> pa.Table:
        """Rows of EXAMPLES."""
        return pa.concat_tables([bucket.examples for bucket in self.buckets])


def write_derived(
    layout: Layout,
    number: int,
    statistics: Sequence[SaeStatistics],
    segments: Mapping[str, Sequence[Segment]],
    directions: Mapping[str, Directions],
    logits: Mapping[str, pa.Table],
    bits: int,
) -> Derived:
    """Write ``derived/<number>/``; mappings are by SAE name, order is that of `statistics`."""
    final = layout.derived_of(number)
    remove_tree(final)
    saes = [s.sae for s in statistics]
    with folder_in_place(final) as folder:

        def write(table: pa.Table, name: str, row_group: int) -> File:
            path = folder / name
            write_parquet(table, path, row_group)
            return file_entry(layout, path, folder, final, table.num_rows)

        norms = {
            name: np.linalg.norm(d.decoder, axis=1).astype(np.float32)
            for name, d in directions.items()
        }
        features = pa.concat_tables(
            [s.features(norms[s.sae.name], logits[s.sae.name]) for s in statistics]
        )
        together = pa.concat_tables(
            [coactivation(layout, sae.name, sae.d_sae, segments[sae.name], bits) for sae in saes]
        )
        graphs = {
            kind: neighbors(saes, {n: getattr(d, kind) for n, d in directions.items()})
            for kind in Directions._fields
        }
        tables = []
        for collected in statistics:
            sae = collected.sae
            examples = collected.examples()
            stem = f"examples.{table_of(sae.name)}"
            file = write(examples, f"{stem}.parquet", EXAMPLES_ROW_GROUP)
            rows = np.bincount(examples.column("feature_id").to_numpy(), minlength=sae.d_sae)
            directory = folder / f"{stem}.npy"
            np.save(directory, np.concatenate(([0], np.cumsum(rows))).astype(np.uint64))
            entry = file_entry(layout, directory, folder, final, sae.d_sae + 1)
            tables.append(SaeTables(sae.name, file, entry))
        return Derived(
            features=write(features, "features.parquet", FEATURES_ROW_GROUP),
            neighbors_decoder=write(
                graphs["decoder"], "neighbors.decoder.parquet", NEIGHBORS_ROW_GROUP
            ),
            neighbors_encoder=write(
                graphs["encoder"], "neighbors.encoder.parquet", NEIGHBORS_ROW_GROUP
            ),
            coactivation=write(together, "coactivation.parquet", NEIGHBORS_ROW_GROUP),
            saes=tuple(tables),
        )


def write_parquet(table: pa.Table, path: Path, row_group: int) -> None:
    """One derived table; zstd, and page format 2 so that DuckDB and pyarrow agree."""
    pq.write_table(
        table, path, row_group_size=row_group, compression="zstd", data_page_version="2.0"
    )
