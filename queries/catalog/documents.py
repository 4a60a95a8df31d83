"""The columns of a document in answers: its source and its metadata."""

from __future__ import annotations

from featuredb.store import names
from featuredb.store.snapshot import Snapshot
from queries.catalog.literals import name


def metadata(snapshot: Snapshot, table: str) -> str:
    """The document's source and metadata as columns of an answer, each after a comma."""
    columns = names.document_columns(snapshot)
    called = zip(columns, names.metadata_columns(columns), strict=True)
    return "".join(f", {table}.{name(column)} AS {name(new)}" for column, new in called)
