"""Every error featuredb raises on purpose.

::

    FeatureDBError
    ├── DatabaseError             the folder given as a database
    │   ├── DatabaseNotFoundError     nothing there, or not a featuredb database
    │   ├── DatabaseNotReadyError     an ingest has started and not yet published
    │   ├── DatabaseLockedError       another process is writing
    │   ├── UnfinishedError           an ingest into it waits to be finished
    │   ├── FormatVersionError        written by a newer featuredb
    │   └── CorruptDatabaseError      a file is missing, damaged or contradicts the snapshot
    ├── QueryError                a question that cannot be answered as asked
    │   ├── UnknownFeatureError       no such feature id or SAE name
    │   ├── UnknownContextError       no such context id
    │   └── SQLError                  DuckDB refused the statement
    ├── OptionError               a setting that makes no sense
    ├── IngestError               an ingest that cannot start or go on
    │   ├── CorpusError               the corpus cannot be read
    │   ├── ModelError                the language model cannot be loaded or run
    │   ├── SaeError                  the SAE cannot be loaded or is not what it says
    │   ├── HookError                 no such place in the model
    │   ├── PlanMismatchError         the command differs from the one that started this ingest
    │   ├── LoadCheckError            the SAE does not explain the model's activations
    │   └── FetchError                a pinned download is missing or not what it should be
    ├── StorageError              the file system said no (full, read-only, no permission)
    │   └── RemoteError               a URL's server cannot be reached or refuses
    └── MissingExtraError         an optional dependency is not installed

A message is one line: what was wrong, then what to do about it. The class carries the exit code
the command line ends with.
"""

from __future__ import annotations

from typing import ClassVar


class FeatureDBError(Exception):
    """Base of every error raised on purpose. `exit_code` is the command line's exit status."""

    exit_code: ClassVar[int] = 1


class DatabaseError(FeatureDBError):
    """Something about the database folder itself."""

    exit_code = 3


class DatabaseNotFoundError(DatabaseError):
    """There is no featuredb database at that path."""


class DatabaseNotReadyError(DatabaseError):
    """An ingest has begun here and has not published a snapshot yet."""


class DatabaseLockedError(DatabaseError):
    """Another process holds the write lock."""


class UnfinishedError(DatabaseError):
    """An ingest into the database has begun and waits to be finished or given up."""


class FormatVersionError(DatabaseError):
    """The database was written by a newer featuredb than this one."""


class CorruptDatabaseError(DatabaseError):
    """A file of the database is missing, damaged, or contradicts the snapshot."""


class QueryError(FeatureDBError):
    """A question that cannot be answered as it was asked."""

    exit_code = 4


class UnknownFeatureError(QueryError):
    """No feature, or no SAE, of that name."""


class UnknownContextError(QueryError):
    """No context of that id."""


class SQLError(QueryError):
    """DuckDB refused the statement, or had too little memory for it; the message is DuckDB's own
    but for the latter."""


class OptionError(FeatureDBError):
    """A setting that makes no sense; the command line's own are refused by click."""

    exit_code = 2


class IngestError(FeatureDBError):
    """An ingest that cannot start or go on."""

    exit_code = 5


class CorpusError(IngestError):
    """The corpus is missing, empty, or not what its name says."""


class ModelError(IngestError):
    """The language model cannot be loaded or run."""


class SaeError(IngestError):
    """The SAE cannot be loaded, or is not what its files claim."""


class HookError(IngestError):
    """The model has no hook of that name, or the SAE does not fit it."""


class PlanMismatchError(IngestError):
    """The database was started with other inputs than the ones given now."""


class LoadCheckError(IngestError):
    """The SAE, read at this hook, does not explain the model's activations."""


class FetchError(IngestError):
    """A pinned download could not be had, or is not the file it should be."""


class StorageError(FeatureDBError):
    """The file system refused: full, read-only, or no permission."""

    exit_code = 6


class RemoteError(StorageError):
    """The server behind a URL cannot be reached, or refuses."""


class MissingExtraError(FeatureDBError):
    """An optional dependency that this needs is not installed."""

    exit_code = 7


def first_line(error: BaseException | str) -> str:
    """First line of another library's error, without its full stop: the class if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
