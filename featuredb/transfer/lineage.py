"""Check that one state of a database is an ancestor of another before copying over it.

Copies of one database that diverge use the same snapshot numbers and file names for different
contents.
"""

from __future__ import annotations

from typing import NamedTuple

from featuredb.errors import DatabaseError
from featuredb.store.snapshot import Snapshot


class State(NamedTuple):
    """A snapshot, and the SHA-256 of its file in hexadecimal."""

    snapshot: Snapshot
    sha256: str


def refuse_another_line(ours: State, live: State, origin: str, target: str) -> None:
    """Raises `DatabaseError` unless `live`, the target's state, is `ours` or an ancestor of it.

    origin, target: the two locations, for the message.
    """
    older, newer = sorted((live, ours), key=lambda state: state.snapshot.number)
    why = _what_differs(older, newer)
    if why is not None:
        raise DatabaseError(
            f"{target} holds another database than {origin}, or one that was changed apart from "
            f"it ({why}): copy to another place, or delete that one first"
        )
    if live.snapshot.number > ours.snapshot.number:
        raise DatabaseError(
            f"{target} has snapshot {live.snapshot.number}, which is newer than "
            f"{ours.snapshot.number} in {origin}: copy the other way"
        )


def file_that_differs(one: Snapshot, other: Snapshot) -> str | None:
    """The first path, by name, with different contents in the two snapshots."""
    checksums = {file.path: file.sha256 for file in one.files()}
    return min(
        (f.path for f in other.files() if checksums.get(f.path, f.sha256) != f.sha256), default=None
    )


def _what_differs(older: State, newer: State) -> str | None:
    """Why `newer` cannot descend from `older`, or None."""
    number, ingests = older.snapshot.number, older.snapshot.ingests
    if newer.snapshot.ingests[: len(ingests)] != ingests:
        return "their ingests differ"
    path_of_older = f"snapshots/{number:06d}.json"
    known = {file.sha256 for file in newer.snapshot.older if file.path == path_of_older}
    if number == newer.snapshot.number:
        known = {newer.sha256}
    if known - {older.sha256}:
        return f"their snapshots {number} differ"
    path = file_that_differs(older.snapshot, newer.snapshot)
    return None if path is None else f"{path} differs"
