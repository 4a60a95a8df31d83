"""Write the derived tables of a snapshot, reusing what has not changed since the previous one.

Written as the folder ``derived/<number>/``. Unchanged tables are not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.corpora import Texts
from featuredb.store.files.atomic import folder_in_place, remove_tree
from featuredb.store.files.memory import return_freed_memory
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.snapshot import (
    Derived,
    Draft,
    FeatureFile,
    File,
    Sae,
    SaeTables,
    Segment,
    Snapshot,
    VectorIndex,
)
from featuredb.store.statistics import summaries_of
from featuredb.store.vectors.directions import (
    DirectionRows,
    Directions,
    comparable,
    length,
    table_of,
)
from ingest.derive import index
from ingest.derive.coactivation import coactivation
from ingest.derive.index import write_indexes
from ingest.derive.neighbors import neighbors
from ingest.derive.profiles import Profiles
from ingest.derive.windows import windows, write_windows

EXAMPLES_ROW_GROUP = 2_048
FEATURES_ROW_GROUP = 512
NEIGHBORS_ROW_GROUP = 5_000
"""The neighbors of a hundred features. A lookup decodes one row group."""

_ENCODINGS = {
    "rank": "DELTA_BINARY_PACKED",
    "context_id": "DELTA_BINARY_PACKED",
    "neighbor_id": "DELTA_BINARY_PACKED",
    "score": "BYTE_STREAM_SPLIT",
    "token_indexes.list.element": "BYTE_STREAM_SPLIT",
}
"""For columns of numbers that are small, close to each other or alike in their first bytes."""

_ROWS = 4_096


@dataclass(frozen=True)
class Content:
    """Inputs of the derived tables.

    segments: all live ones by SAE name. profiles: of the SAEs whose activations are not those of
    `base`. logits: rows of LOGITS in feature order, of the SAEs that `base` lacks. base: the
    previous snapshot. memory: bytes to work in.
    """

    draft: Draft
    segments: Mapping[str, Sequence[Segment]]
    profiles: Mapping[str, Profiles]
    logits: Mapping[str, pa.Table]
    base: Snapshot | None
    memory: int

    @property
    def names(self) -> list[str]:
        """Names of the SAEs, in order."""
        return [sae.name for sae in self.draft.saes]

    @property
    def unchanged(self) -> bool:
        """Whether every SAE's activations are those of `base`, and it has no other SAE."""
        return self.same_saes and not self.profiles

    @property
    def same_saes(self) -> bool:
        """Whether `base` has the same SAEs, in the same order."""
        return self.base is not None and self.names == [sae.name for sae in self.base.saes]

    def values(self, sae: str) -> str:
        """What an SAE's examples and windows are stored in: float16 where all segments are."""
        half = all(segment.values == "float16" for segment in self.segments[sae])
        return "float16" if half else "float32"

    def directions(self, layout: Layout, sae: str, kind: str) -> DirectionRows:
        """An SAE's directions, read a few at a time."""
        vectors = next(v for v in self.draft.vectors if v.sae == sae)
        return DirectionRows(layout, [vectors], kind)


def write_derived(layout: Layout, content: Content) -> Derived:
    """Write ``derived/<number>/``."""
    base = content.base
    if content.unchanged and base is not None:
        return base.derived
    number = content.draft.number
    final = layout.derived_of(number)
    remove_tree(final)
    with folder_in_place(final) as folder:

        def write(table: pa.Table, name: str, row_group: int) -> File:
            path = folder / name
            write_parquet(table, path, row_group)
            return_freed_memory()
            return file_entry(layout, path, folder, final, table.num_rows)

        tables = []
        for sae in content.draft.saes:
            if sae.name not in content.profiles:
                tables.append(_tables_before(base, sae))
                continue
            examples = content.profiles[sae.name].examples
            stem = f"examples.{table_of(sae.name)}"
            stored = examples.cast(schemas.examples(content.values(sae.name)))
            file = write(stored, f"{stem}.parquet", EXAMPLES_ROW_GROUP)
            rows = np.bincount(examples.column("feature_id").to_numpy(), minlength=sae.d_sae)
            directory = folder / f"{stem}.npy"
            np.save(directory, np.concatenate(([0], np.cumsum(rows))).astype(np.uint64))
            entry = file_entry(layout, directory, folder, final, sae.d_sae + 1)
            tables.append(
                SaeTables(sae.name, file, entry, _windows(layout, content, sae, folder, final))
            )
        table = _features(layout, content)
        features = write(table, "features.parquet", FEATURES_ROW_GROUP)
        summaries = write(summaries_of(table), "summaries.parquet", FEATURES_ROW_GROUP)
        together = write(
            _coactivation(layout, content), "coactivation.parquet", NEIGHBORS_ROW_GROUP
        )
        graphs: dict[str, File] = {}
        indexes: list[VectorIndex] = []
        for kind in Directions._fields:
            if content.same_saes and base is not None:
                graphs[kind] = getattr(base.derived, f"neighbors_{kind}")
                indexes += [i for i in base.derived.indexes if i.kind == kind]
                continue
            graphs[kind] = write(
                _graph(layout, content, kind), f"neighbors.{kind}.parquet", NEIGHBORS_ROW_GROUP
            )
            indexes += write_indexes(
                layout,
                folder,
                final,
                content.draft.saes,
                content.draft.vectors,
                kind,
                beyond=index.INDEX_BEYOND,
                memory=content.memory // 2,
            )
        return Derived(
            features=features,
            neighbors_decoder=graphs["decoder"],
            neighbors_encoder=graphs["encoder"],
            coactivation=together,
            saes=tuple(tables),
            indexes=tuple(indexes),
            summaries=summaries,
        )


def _windows(
    layout: Layout, content: Content, sae: Sae, folder: Path, final: Path
) -> tuple[FeatureFile, ...]:
    """Write the windows of one SAE below `folder`."""
    draft = content.draft
    texts = Texts(layout.root, draft, ParquetFiles(layout.root))
    written = []
    parts = windows(texts, draft.corpora, content.profiles[sae.name].examples, sae.d_sae)
    for number, part in enumerate(parts):
        path = folder / f"windows.{table_of(sae.name)}.{number:04d}.parquet"
        write_windows(part.tables, path, content.values(sae.name))
        return_freed_memory()
        entry = file_entry(layout, path, folder, final, part.rows)
        written.append(FeatureFile(entry, part.first_feature, part.end_feature, part.first_row, 0))
    return tuple(written)


def write_parquet(table: pa.Table, path: Path, row_group: int) -> None:
    """Write one derived table.

    Numbers that seldom repeat have no dictionary, which would take more than they do. Data pages of
    version 1: those of version 2 leave the lengths of lists uncompressed.
    """
    leaves = [leaf for field in table.schema for leaf in _leaves(field.name, field.type)]
    encodings = {path: _ENCODINGS[path] for path, _ in leaves if path in _ENCODINGS}
    repeating = [p for p, kind in leaves if p not in encodings and not pa.types.is_floating(kind)]
    pq.write_table(
        table,
        path,
        row_group_size=row_group,
        compression="zstd",
        compression_level=9,
        use_dictionary=repeating or False,
        column_encoding=encodings or None,
        data_page_version="1.0",
    )


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Parquet's columns of an Arrow column, by path, with their types."""
    if pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    else:
        yield path, kind


def _features(layout: Layout, content: Content) -> pa.Table:
    """Rows of FEATURES. Some columns depend on activations, the others on weights."""
    tables = []
    for sae in content.draft.saes:
        before = _rows_before(layout, content, sae, "features")
        profiles = content.profiles.get(sae.name)
        if profiles is None:
            assert before is not None
            tables.append(before)
            continue
        table = profiles.statistics
        table = table.append_column("sae", pa.array([sae.name] * len(table), pa.string()))
        if before is None:
            table = table.append_column("decoder_norm", _norms(content, layout, sae))
            before = content.logits[sae.name]
        else:
            table = table.append_column("decoder_norm", before.column("decoder_norm"))
        for name in ("promoted_tokens", "suppressed_tokens"):
            table = table.append_column(name, before.column(name))
        tables.append(table.select(schemas.FEATURES.names).cast(schemas.FEATURES))
    return pa.concat_tables(tables)


def _norms(content: Content, layout: Layout, sae: Sae) -> pa.Array:
    """Lengths of the decoder directions. NaN where there are none."""
    if not sae.d_out:
        return pa.array(np.full(sae.d_sae, np.nan, np.float32))
    rows = content.directions(layout, sae.name, "decoder")
    norms = [
        np.linalg.norm(rows[start : start + _ROWS], axis=1).astype(np.float32)
        for start in range(0, sae.d_sae, _ROWS)
    ]
    return pa.array(np.concatenate(norms), pa.float32())


def _coactivation(layout: Layout, content: Content) -> pa.Table:
    tables = []
    for sae in content.draft.saes:
        before = _rows_before(layout, content, sae, "coactivation")
        if sae.name in content.profiles or before is None:
            before = coactivation(
                layout,
                sae.name,
                sae.d_sae,
                content.segments[sae.name],
                content.draft.position_bits,
                # The rest is for the results of merging, which are held until written.
                content.memory * 3 // 5,
            )
        tables.append(before)
    return pa.concat_tables(tables)


def _graph(layout: Layout, content: Content, kind: str) -> pa.Table:
    """Rows of NEIGHBORS by direction, reused for SAEs with unchanged comparable SAEs."""
    group = _comparable(content.draft.saes, kind)
    before = {} if content.base is None else _comparable(content.base.saes, kind)
    known = [s for s in content.draft.saes if length(s, kind)]
    changed = [s for s in known if group[s.name] != before.get(s.name)]
    rows = {s.name: content.directions(layout, s.name, kind) for s in changed}
    fresh = schemas.NEIGHBORS.empty_table()
    if changed:
        fresh = neighbors(changed, rows, memory=content.memory // 2)
    tables = []
    for sae in known:
        if sae in changed:
            tables.append(fresh.filter(pc.equal(fresh.column("sae"), sae.name)))
        else:
            table = _rows_before(layout, content, sae, f"neighbors_{kind}")
            assert table is not None
            tables.append(table)
    return pa.concat_tables([schemas.NEIGHBORS.empty_table(), *tables])


def _comparable(saes: Sequence[Sae], kind: str) -> dict[str, list[str]]:
    """By SAE, the SAEs comparable with it in one kind of direction, including itself."""
    return {sae.name: [s.name for s in comparable(saes, sae, kind)] for sae in saes}


def _rows_before(layout: Layout, content: Content, sae: Sae, table: str) -> pa.Table | None:
    """An SAE's rows of a table of `base`, or None if it has no such SAE."""
    base = content.base
    if base is None or sae.name not in {s.name for s in base.saes}:
        return None
    file: File = getattr(base.derived, table)
    schema = schemas.FEATURES if table == "features" else schemas.NEIGHBORS
    # Not pushed down: a filter on a file of one string value is all or nothing anyway.
    rows = pq.read_table(layout.root / file.path)
    return rows.filter(pc.equal(rows.column("sae"), sae.name)).cast(schema)


def _tables_before(base: Snapshot | None, sae: Sae) -> SaeTables:
    assert base is not None
    return next(tables for tables in base.derived.saes if tables.sae == sae.name)
