"""What the command line ends with. The errors' classes carry the codes; this names them."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses; `meaning` is the line in ``featuredb --help``."""

    OK = 0
    ERROR = 1
    USAGE = 2
    DATABASE = 3
    QUERY = 4
    INGEST = 5
    STORAGE = 6
    MISSING_EXTRA = 7
    INTERRUPTED = 130
    BROKEN_PIPE = 141

    @property
    def meaning(self) -> str:
        """One line."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "it worked",
    ExitCode.ERROR: "something else went wrong",
    ExitCode.USAGE: "the command line makes no sense",
    ExitCode.DATABASE: "the database is missing, unfinished, locked, too new or damaged",
    ExitCode.QUERY: "the question has no answer: no such feature, context, or a SQL error",
    ExitCode.INGEST: "the corpus, the model or the SAE does not do",
    ExitCode.STORAGE: "the disk or a server refuses: full, read-only, no permission, no answer",
    ExitCode.MISSING_EXTRA: "an optional dependency is not installed",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.BROKEN_PIPE: "the reader of the output went away",
}
