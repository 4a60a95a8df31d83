"""What every check works with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from featuredb.errors import CorruptDatabaseError, first_line
from featuredb.render.progress import Progress
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Snapshot
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem

_UNREADABLE = (
    CorruptDatabaseError, OSError, ValueError, IndexError, KeyError, pa.ArrowException,
    duckdb.Error,
)  # fmt: skip
"""What reading a file raises that is not what its name says."""


@dataclass
class Scope:
    """One snapshot under verification.

    memory: bytes to work in. damaged: paths already known to be wrong, with content that is not
    checked again.
    """

    layout: Layout
    snapshot: Snapshot
    files: ParquetFiles
    memory: int
    bar: Progress
    damaged: set[str] = field(default_factory=set)

    def guarded(
        self, where: str, check: Callable[[], Iterator[Problem]], *needs: File
    ) -> Iterator[Problem]:
        """A check's problems. A file that cannot be read is one more, `where`.

        Nothing is checked where one of the files it `needs` is damaged.
        """
        if self.damaged & {file.path for file in needs}:
            return
        try:
            yield from check()
        except _UNREADABLE as error:
            yield Problem(where, f"cannot be read ({first_line(error)})", remedy(where))
