"""What a corpus is made of: parts, each one file, data set or table in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20


@dataclass(frozen=True)
class DocumentColumn:
    """The column that documents come from, and what it holds.

    `role` is also the column's name in the corpus: ``text`` (string), ``tokens`` (list of
    int32) or ``messages`` (list of {role, content}).
    """

    name: str
    role: Literal["text", "tokens", "messages"]


@dataclass(frozen=True)
class Scan:
    """What a first look at a part found.

    `schema` has the part's own columns; `rows` is the number of rows seen and `documents` that
    of the rows whose document is not null, each None where it takes reading everything to know.
    """

    schema: Any
    rows: int | None
    documents: int | None = None


class PartRows(NamedTuple):
    """Consecutive rows of a part: 0-based row or line numbers (int64) and a record batch."""

    offsets: Any
    batch: Any


class CorpusPart(Protocol):
    """One place that rows come from; reading it again gives the same rows in the same order."""

    @property
    def name(self) -> str:
        """What the column ``source`` says."""
        ...

    @property
    def kind(self) -> str:
        """The shape, for people: "Parquet", "JSON Lines"."""
        ...

    def scan(self, limit: int | None) -> Scan:
        """Look at the rows up to the `limit`-th document (all if None), checking what is cheap.

        Raises:
            CorpusError: they cannot.
        """
        ...

    def rows(self, schema: Any) -> Iterator[PartRows]:
        """All rows in order, with the columns of `schema` that the part has, so typed.

        Raises:
            CorpusError: a row cannot be read or does not fit `schema`.
        """
        ...

    def digest(self) -> bytes:
        """32 bytes that change whenever the content does."""
        ...

    def size(self) -> int:
        """Bytes, as stored; 0 if unknown."""
        ...
