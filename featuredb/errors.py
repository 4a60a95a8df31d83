"""Every error featuredb raises on purpose.

::

    FeatureDBError
    ├── DatabaseError             problem with the database folder
    │   ├── DatabaseNotFoundError     no featuredb database at the path
    │   ├── DatabaseNotReadyError     an ingest has started and not yet published
    │   ├── DatabaseLockedError       another process is writing
    │   ├── UnfinishedError           an unfinished ingest blocks the operation
    │   ├── FormatVersionError        written by a newer featuredb
    │   └── CorruptDatabaseError      a file is missing, damaged or contradicts the snapshot
    ├── QueryError                invalid query
    │   ├── UnknownFeatureError       no such feature id or SAE name
    │   ├── UnknownContextError       no such context id
    │   ├── RuleError                 the rule of a monitor cannot be read
    │   ├── ClosedError               the handle is closed
    │   ├── LabelError                labels that cannot be read or stored
    │   └── SQLError                  DuckDB refused the statement
    ├── OptionError               invalid option
    ├── IngestError               an ingest that cannot start or resume
    │   ├── CorpusError               the corpus cannot be read
    │   ├── ModelError                the language model cannot be loaded or run
    │   ├── SaeError                  the SAE cannot be loaded or its files are inconsistent
    │   ├── HookError                 no such hook in the model
    │   ├── PlanMismatchError         the command differs from the one that started this ingest
    │   ├── LoadCheckError            the SAE does not explain the model's activations
    │   └── FetchError                a pinned download is missing or fails its check
    ├── StorageError              file system error (full, read-only, no permission)
    │   └── RemoteError               a remote server cannot be reached or refuses
    └── MissingExtraError         an optional dependency is not installed

A message is one line: what was wrong, then what to do about it. Each class sets the exit code of
the command line.
"""

from __future__ import annotations

from typing import ClassVar


class FeatureDBError(Exception):
    """Base of every error raised on purpose. `exit_code` is the command line's exit status."""

    exit_code: ClassVar[int] = 1


class DatabaseError(FeatureDBError):
    """Base of errors about the database folder."""

    exit_code = 3


class DatabaseNotFoundError(DatabaseError):
    """There is no featuredb database at that path."""


class DatabaseNotReadyError(DatabaseError):
    """An ingest has started and has not published a snapshot yet."""


class DatabaseLockedError(DatabaseError):
    """Another process holds the write lock."""


class UnfinishedError(DatabaseError):
    """The database has an unfinished ingest, to be resumed or abandoned."""


class FormatVersionError(DatabaseError):
    """The database was written by a newer featuredb than this one."""


class CorruptDatabaseError(DatabaseError):
    """A file of the database is missing, damaged, or contradicts the snapshot."""


class QueryError(FeatureDBError):
    """A query that is invalid or cannot be answered."""

    exit_code = 4


class UnknownFeatureError(QueryError):
    """No feature or SAE has that name."""


class UnknownContextError(QueryError):
    """No context has that id."""


class RuleError(QueryError):
    """A rule that cannot be read. position: of the character it is about, from 0."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


class ClosedError(QueryError):
    """The handle was closed."""


class LabelError(QueryError):
    """Labels that cannot be read or stored: of another SAE, of no feature, empty, too long."""


class SQLError(QueryError):
    """DuckDB rejected the statement or ran out of memory. The message is DuckDB's except in the
    latter case."""


class OptionError(FeatureDBError):
    """Invalid option of a Python call. Click rejects those of the command line."""

    exit_code = 2


class IngestError(FeatureDBError):
    """An ingest that cannot start or resume."""

    exit_code = 5


class CorpusError(IngestError):
    """The corpus is missing, empty or in another format than its name says."""


class ModelError(IngestError):
    """The language model cannot be loaded or run."""


class SaeError(IngestError):
    """The SAE cannot be loaded, or its files are inconsistent."""


class HookError(IngestError):
    """The model has no hook of that name, or the SAE does not fit it."""


class PlanMismatchError(IngestError):
    """The inputs differ from the ones the ingest was started with."""


class LoadCheckError(IngestError):
    """The SAE, read at this hook, does not explain the model's activations."""


class FetchError(IngestError):
    """A pinned download failed or does not match its checksum."""


class StorageError(FeatureDBError):
    """File system error: full, read-only or no permission."""

    exit_code = 6


class RemoteError(StorageError):
    """The server behind a URL cannot be reached, or refuses."""


class MissingExtraError(FeatureDBError):
    """A required optional dependency is not installed."""

    exit_code = 7


def one_line(error: BaseException | str) -> str:
    """An error of featuredb on one line, without the statement that DuckDB shows below its own."""
    message = str(error).partition("\n\nLINE ")[0]
    return " ".join(part.strip() for part in message.splitlines() if part.strip())


def shortened(text: str, most: int = 100) -> str:
    """A text that a message quotes, cut where it is long."""
    return text if len(text) <= most else f"{text[:most]}…"


def first_line(error: BaseException | str) -> str:
    """First line of another library's error without its period, or the class if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
