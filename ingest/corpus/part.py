"""Parts of a corpus: a file, a data set or a table in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Record = tuple[int, dict[str, Any]]
"""A row's number and its values by column."""

BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20
CHATS = {b"documents": b"chats"}
"""Metadata of the field of a column of chats."""


@dataclass(frozen=True)
class DocumentColumn:
    """The column that holds the documents, and their kind.

    `role` is also the column's name in the corpus: ``text`` (string), ``tokens`` (list of
    int32) or ``messages`` (list of messages as JSON).
    """

    name: str
    role: Literal["text", "tokens", "messages"]


@dataclass(frozen=True)
class Scan:
    """Result of a first look at a part.

    `schema` has the part's columns. `rows` counts the rows seen, and `documents` those whose
    document is not null. Each is None where only a full read would tell.
    """

    schema: Any
    rows: int | None
    documents: int | None = None


class PartRows(NamedTuple):
    """Consecutive rows of a part: 0-based row or line numbers (int64) and a record batch."""

    offsets: Any
    batch: Any


class CorpusPart(Protocol):
    """A source of rows. Every read gives the same rows in the same order."""

    @property
    def name(self) -> str:
        """Value of the column ``source``."""
        ...

    @property
    def kind(self) -> str:
        """Display name of the format: "Parquet", "JSON Lines"."""
        ...

    def scan(self, limit: int | None) -> Scan:
        """Scan the rows up to the `limit`-th document (all if None), with cheap checks.

        Raises:
            CorpusError: the part cannot be read.
        """
        ...

    def rows(self, schema: Any) -> Iterator[PartRows]:
        """Yield all rows in order, with those columns of `schema` that the part has.

        Raises:
            CorpusError: a row cannot be read or does not fit `schema`.
        """
        ...

    def digest(self) -> bytes:
        """Return 32 bytes that change whenever the content does."""
        ...

    def size(self) -> int:
        """Size in bytes as stored. 0 if unknown."""
        ...
