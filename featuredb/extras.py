"""Optional dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from featuredb.errors import MissingExtraError


def ingest_extra(purpose: str) -> AbstractContextManager[None]:
    """As `extra`, of ``featuredb[ingest]``."""
    return extra("ingest", purpose)


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Imports in this block need the extra of that name. `purpose` begins the error.

    Raises:
        MissingExtraError: A package they need is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("featuredb", "ingest", "queries", ""):
            raise
        raise MissingExtraError(
            f"{purpose} needs {missing}, which is not installed: pip install 'featuredb[{name}]'"
        ) from error
