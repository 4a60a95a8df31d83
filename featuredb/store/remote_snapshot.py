"""The snapshot of a remote database: what its ``CURRENT`` names, or an older one that is kept."""

from __future__ import annotations

from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    FeatureDBError,
    RemoteError,
)
from featuredb.store.current import Pointer
from featuredb.store.files.remote import Remote
from featuredb.store.snapshot import Snapshot, decode_snapshot

PUSHING = "staging/push.json"
"""The snapshot that is being copied to the URL, as long as it is."""


def read_remote_snapshot(remote: Remote, number: int | None = None) -> Snapshot:
    """As `snapshot_files.read_snapshot`; the remote learns the sizes of its files. Two requests.

    Raises `RemoteError` besides, when the other side cannot be reached or refuses.
    """
    snapshot = read_remote_raw(remote, number)[2]
    remote.learn(snapshot)
    return snapshot


def read_remote_raw(remote: Remote, number: int | None = None) -> tuple[Pointer, bytes, Snapshot]:
    """A snapshot's name and checksum, its bytes, and these decoded.

    Raises as `read_remote_snapshot`.
    """
    try:
        pointer = _pointer(remote)
    except FileNotFoundError as error:
        raise _not_found(remote, error) from None
    try:
        live = _raw(remote, pointer)
    except CorruptDatabaseError as error:
        # Where the URL is a folder in use, it may have been vacuumed since it was named.
        if not isinstance(error.__cause__, FileNotFoundError) or _pointer(remote) == pointer:
            raise
        return read_remote_raw(remote, number)
    if number is None or live[2].number == number:
        return live
    name = f"{number:06d}"
    told = {file.path: file.sha256 for file in live[2].older}
    try:
        return _raw(remote, Pointer(name, told.get(_snapshot_path(name))))
    except CorruptDatabaseError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise DatabaseNotFoundError(
            f"{remote} has no snapshot {number}; its newest is {live[2].number}"
        ) from error


def _raw(remote: Remote, pointer: Pointer) -> tuple[Pointer, bytes, Snapshot]:
    path = _snapshot_path(pointer.name)
    try:
        raw = remote.get_small(path, 1 << 30)
    except FileNotFoundError as error:
        raise CorruptDatabaseError(
            f"the snapshot {remote / path} is not there: `featuredb push` the database again"
        ) from error
    return pointer, raw, decode_snapshot(raw, pointer, remote / path, remote.url)


def _snapshot_path(name: str) -> str:
    return f"snapshots/{name}.json"


def _pointer(remote: Remote) -> Pointer:
    """What the other side's ``CURRENT`` says. Raises FileNotFoundError."""
    try:
        return Pointer.parse(remote.get_small("CURRENT", 256))
    except ValueError as error:
        # A server of web pages answers everything with something.
        raise DatabaseNotFoundError(
            f"{remote} is not a featuredb database (its CURRENT file cannot be read: {error}): "
            "check the URL"
        ) from error


def _not_found(remote: Remote, error: FileNotFoundError) -> FeatureDBError:
    if "bucket" in str(error):
        return DatabaseNotFoundError(f"{remote}: {error}: check the URL, and the endpoint if any")
    try:
        remote.get_small(PUSHING, 1)
    except (FileNotFoundError, RemoteError):
        return DatabaseNotFoundError(
            f"there is no featuredb database at {remote} (it has no CURRENT file): check the URL, "
            "or copy one there with `featuredb push`"
        )
    return DatabaseNotReadyError(
        f"{remote} is still being pushed and has nothing to read yet: wait for it, or run the "
        "same `featuredb push` again to continue it"
    )
