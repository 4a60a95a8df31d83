"""Exit codes of the command line. Error classes carry the numbers (`featuredb.errors`)."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DATABASE = 3
    QUERY = 4
    INGEST = 5
    STORAGE = 6
    MISSING_EXTRA = 7
    ALARM = 10
    INTERRUPTED = 130
    BROKEN_PIPE = 141

    @property
    def meaning(self) -> str:
        """Its line in ``featuredb --help``."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.ERROR: "other error",
    ExitCode.USAGE: "usage error",
    ExitCode.DATABASE: "database missing, unfinished, locked, too new or damaged",
    ExitCode.QUERY: "invalid query: unknown feature or context, SQL error",
    ExitCode.INGEST: "invalid corpus, model or SAE",
    ExitCode.STORAGE: "disk or server error: full, read-only, no permission, unreachable",
    ExitCode.MISSING_EXTRA: "missing optional dependency",
    ExitCode.ALARM: "a monitor fired (monitor run --fail)",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.BROKEN_PIPE: "output closed",
}
