"""User data: tables that people write and change often, beside the activations, which never change.

Each table is one Parquet file that the snapshot names. A write makes a new file and a new snapshot
that shares every other file with the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from featuredb.store import schemas
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.snapshot import Sae, Snapshot


@dataclass(frozen=True)
class UserTable:
    """A kind of user data. key: the columns that tell rows apart, by which they are sorted."""

    name: str
    schema: pa.Schema
    key: tuple[str, ...] = ("sae_sha256", "hook", "feature_id")


MEASURED = UserTable("measured", schemas.MEASURED)
ABLATED = UserTable("ablated", schemas.ABLATED)
_LABEL = (*MEASURED.key, "label_id")
MAP = UserTable("map", schemas.MAP)
LABELS = UserTable("labels", schemas.LABELS, _LABEL)
SCORES = UserTable("scores", schemas.SCORES, (*_LABEL, "scorer", "model"))

MONITORS = UserTable("monitors", schemas.MONITORS, ("monitor", "version"))

USER_TABLES = {table.name: table for table in (MEASURED, ABLATED, MAP, LABELS, SCORES, MONITORS)}
"""By name. A snapshot may have others, of newer versions, which are carried along unread."""


def user_rows(files: ParquetFiles, snapshot: Snapshot, table: UserTable) -> pa.Table:
    """All rows of a table, also those of SAEs that the snapshot does not have.

    Raises `CorruptDatabaseError`.
    """
    listed = {data.table: data.file for data in snapshot.user_data}
    if table.name not in listed:
        return table.schema.empty_table()
    return files.read(listed[table.name].path).cast(table.schema)


def user_row(
    files: ParquetFiles, snapshot: Snapshot, table: UserTable, sae: Sae, feature: int
) -> pa.Table:
    """The row about one feature, or none. Reads only the row group that may have it.

    Raises `CorruptDatabaseError`.
    """
    path = next((d.file.path for d in snapshot.user_data if d.table == table.name), None)
    if path is None:
        return table.schema.empty_table()
    metadata = files.metadata(path)
    groups = []
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(i).statistics for i in (0, 2))
        hashes, features = columns
        if hashes.min <= sae.sha256 <= hashes.max and features.min <= feature <= features.max:
            groups.append(group)
    rows = rows_of_sae(files.read(path, groups).cast(table.schema), sae)
    return rows.filter(pc.equal(rows.column("feature_id"), feature))


def rows_of_sae(rows: pa.Table, sae: Sae) -> pa.Table:
    """The rows about features of one SAE, by feature."""
    same = pc.and_(
        pc.equal(rows.column("sae_sha256"), sae.sha256), pc.equal(rows.column("hook"), sae.hook)
    )
    return rows.filter(same)


def replaced(rows: pa.Table, written: pa.Table, table: UserTable) -> pa.Table:
    """`rows` with those of the same key as one of `written` replaced, sorted by the key."""
    old, new = (row_keys(part, table.key) for part in (rows, written))
    kept = rows.filter(pc.invert(pc.is_in(old, value_set=new)))
    return in_order(pa.concat_tables([kept, written]), table)


def in_order(rows: pa.Table, table: UserTable) -> pa.Table:
    """The rows sorted by the table's key."""
    return rows.sort_by([(name, "ascending") for name in table.key])


def row_keys(rows: pa.Table, names: Sequence[str]) -> pa.Array:
    """One text per row that no other key has."""
    columns = [rows.column(name).cast(pa.string()).combine_chunks() for name in names]
    return pc.binary_join_element_wise(*columns, "\0", null_handling="replace")
