"""What users call: `open` a database, `ingest` one, and what changes, checks or copies it.

The names that belong to the package are listed once, in `featuredb.__all__`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from featuredb.database import Database
from featuredb.errors import QueryError
from featuredb.extras import needs
from featuredb.render.progress import shown
from featuredb.store.files.memory import Budget
from featuredb.store.files.remote import Remote
from featuredb.store.files.urls import local_folder
from featuredb.store.snapshot import Snapshot
from featuredb.store.store import Store

if TYPE_CHECKING:
    from featuredb.transfer.push_pull import Transfer
    from featuredb.verification import Report
    from ingest.operations.compact import Compacted
    from ingest.operations.ingest import Outcome
    from ingest.operations.vacuum import Vacuumed
    from ingest.sae import LoadedSae
    from queries.answers import Info, Rows


def open(
    path: str | os.PathLike[str],
    *,
    snapshot: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory: str | None = None,
) -> Database:
    """Open the database at `path`, read-only and pinned to its newest snapshot.

    snapshot: an older one by its number, see `snapshots`; there until a `vacuum`.

    path: a folder, or a URL that fsspec reads, as ``s3://bucket/my.fdb``; it is read in place, by
    ranges. storage_options: for fsspec, beyond what its configuration and the environment say.

    memory: a size such as ``2GB`` for SQL to work in, what it answers not counted; what does not
    fit goes to a temporary folder. By default DuckDB takes up to 80 % of the machine's.

    Raises `OptionError` for a memory that is no size or less than 100MB,
    `DatabaseNotFoundError`, `DatabaseNotReadyError` while its first ingest is unfinished,
    `FormatVersionError` for a newer format, `CorruptDatabaseError`; for a URL also
    `MissingExtraError` without the package for its scheme, and `RemoteError` when its server
    cannot be reached or refuses.
    """
    bound = None if memory is None else Budget.parse(memory).bytes
    return Database(Store.open(path, snapshot, storage_options, bound))


def ingest(path: str | os.PathLike[str], **options: Any) -> Outcome:
    """Make the database at `path`, or continue making it where it was interrupted.

    corpus: a path, glob, ``hf:`` data set or Arrow table; model: a folder or hub name; saes: a
    list of folders or references. The other options, with their defaults, are those of
    `ingest.options.IngestOptions` and of ``featuredb ingest --help``.

    Returns the published snapshot, and whether there was anything left to do. Raises
    `MissingExtraError` without the extra ``featuredb[ingest]``, and `IngestError`.
    """
    settings = needs("ingest.options", "ingesting")
    pipeline = needs("ingest.operations.ingest", "ingesting")
    folder = local_folder(path, "ingesting")
    outcome: Outcome = pipeline.ingest(folder, settings.IngestOptions(**options))
    return outcome


def plan(path: str | os.PathLike[str], **options: Any) -> Info:
    """What `ingest` with the same arguments would make, and how long it would take.

    The corpus is tokenised, and the model runs over a sample of it; nothing is left at `path`.
    Raises `MissingExtraError` without the extra ``featuredb[ingest]``, and `IngestError`.
    """
    settings = needs("ingest.options", "planning an ingest")
    estimate = needs("ingest.operations.plan", "planning an ingest")
    folder = local_folder(path, "planning an ingest")
    planned: Info = estimate.estimate(folder, settings.IngestOptions(**options))
    return planned


def append(path: str | os.PathLike[str], corpus: Any, **options: Any) -> Outcome:
    """Add a corpus to the database at `path`, or continue adding it: all its SAEs over all of it.

    The model and the SAEs are the database's own, where they were at the ingest unless model and
    saes say where they are now. The other options are those of `ingest` that are about the corpus
    (text_column, max_tokens, …) or about how to compute (device, batch_tokens, engine, …).
    Raises as `ingest`.
    """
    added = needs("ingest.operations.append", "ingesting")
    outcome: Outcome = added.append(local_folder(path, "appending"), corpus, **options)
    return outcome


def add_saes(
    path: str | os.PathLike[str],
    saes: Sequence[str],
    names: Sequence[str] | None = None,
    **options: Any,
) -> Outcome:
    """Run more SAEs over the corpora that the database at `path` has, or continue doing so.

    The corpora's files are not needed: their tokens are stored. names: one per SAE, else taken
    from the files. The other options are those of `ingest` that are about SAEs (hook, hook_out,
    check) or about how to compute; model says where the model is now. Raises as `ingest`.
    """
    added = needs("ingest.operations.append", "ingesting")
    folder = local_folder(path, "adding an SAE")
    outcome: Outcome = added.add_saes(folder, saes, names, **options)
    return outcome


def drop(
    path: str | os.PathLike[str],
    *,
    sae: str | None = None,
    corpus: str | None = None,
    memory: str = "4GB",
    progress: bool = False,
) -> Snapshot:
    """Publish the database without an SAE, given by name, or without a corpus, given by id.

    Space is freed by `vacuum`. Ids of what is left stay as they are. progress: say on standard
    error what is being done. Returns the new snapshot.
    Raises `MissingExtraError` without the extra ``featuredb[ingest]``, `UnknownFeatureError` for
    no such SAE, `DatabaseError` for no such corpus, or for the last of either, `QueryError` unless
    just one of the two is given.
    """
    if (sae is None) == (corpus is None):
        raise QueryError("drop either an SAE or a corpus: give sae= or corpus=")
    folder = local_folder(path, "dropping")
    dropping = needs("ingest.operations.drop", "dropping")
    with shown(progress):
        dropped: Snapshot = (
            dropping.drop_sae(folder, sae, memory=memory)
            if sae is not None
            else dropping.drop_corpus(folder, corpus, memory=memory)
        )
    return dropped


def compact(
    path: str | os.PathLike[str], *, memory: str = "4GB", progress: bool = False
) -> Compacted:
    """Merge a database's segments, so that queries open fewer files; answers do not change.

    memory: to work in. progress: say on standard error what is being done. Raises
    `MissingExtraError` without the extra ``featuredb[ingest]``, and `DatabaseError`.
    """
    folder = local_folder(path, "compacting")
    compacting = needs("ingest.operations.compact", "compacting")
    with shown(progress):
        done: Compacted = compacting.compact(folder, memory=memory)
    return done


def vacuum(
    path: str | os.PathLike[str], *, grace: timedelta | None = None, unfinished: bool = False
) -> Vacuumed:
    """Remove older snapshots, and the files that only they name.

    grace: a snapshot goes this long after a newer one took its place, an hour by default, so that
    readers who have it open can finish. unfinished: also give up an ingest that was begun and not
    finished. Raises `MissingExtraError` without the extra ``featuredb[ingest]``, `DatabaseError`.
    """
    vacuuming = needs("ingest.operations.vacuum", "vacuuming")
    folder = local_folder(path, "vacuuming")
    wait = vacuuming.GRACE if grace is None else grace
    removed: Vacuumed = vacuuming.vacuum(folder, grace=wait, unfinished=unfinished)
    return removed


def snapshots(path: str | os.PathLike[str]) -> Rows:
    """The snapshots that the database at `path` keeps, oldest first, a row each.

    Columns snapshot, created, operation, live, corpora, saes, activations, and bytes, of all files
    it names, of which it may share many with others. Raises `DatabaseError`.
    """
    from queries.snapshots import list_snapshots

    return list_snapshots(local_folder(path, "listing snapshots"))


def verify(
    path: str | os.PathLike[str],
    *,
    memory: str = "1GB",
    all_snapshots: bool = False,
    source: int = 0,
    progress: bool = False,
) -> Report:
    """Read every file of a database again: is it all there, unchanged, and does it agree?

    memory: host memory to work in. all_snapshots: check the older snapshots that are kept too.
    source: so many contexts, taken at random, are run through the model and the SAEs again, and
    what comes out is compared with what is stored; this needs the extra ``featuredb[ingest]``.
    progress: show a bar on standard error where that is a terminal.

    Damage is in the report, not an exception. Raises `DatabaseError` where there is no database,
    or a newer one; `OptionError` for a memory that is no size; with `source` also
    `MissingExtraError`, and `ModelError` and `SaeError` where the model or an SAE is gone or is
    not the one of the ingest.
    """
    from featuredb.verification import verify as verify_database
    from featuredb.verification.source import compare

    folder = local_folder(path, "verifying")
    again = needs("ingest.extract.new_text", "comparing with the model") if source else None
    report = verify_database(
        folder, memory=Budget.parse(memory).bytes, all_snapshots=all_snapshots, progress=progress
    )
    if again is not None and report.ok:
        report = compare(folder, report, source, again.encode_contexts)
    return report


def push(
    path: str | os.PathLike[str],
    url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Copy the live snapshot of the database at `path` to a URL, but for what is there already.

    Readers of the URL see the old snapshot or the new one, never a mixture; interrupted and run
    again, it goes on. storage_options: as of `open`. report: called with (bytes done, bytes to
    copy) as files arrive.

    Raises `DatabaseError` where there is nothing to copy, or the URL holds another database or a
    newer snapshot; `MissingExtraError`, `RemoteError`.
    """
    from featuredb.transfer.push_pull import push as push_database

    folder = local_folder(path, "pushing from it")
    return push_database(folder, Remote(url, storage_options), report)


def pull(
    url: str,
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Copy the live snapshot of the database at a URL to `path`, but for what is there already.

    The other way of `push`, with its arguments. Every file is checked against its SHA-256.
    Raises what `push` raises, `StorageError` when the disk refuses, and `DatabaseLockedError`.
    """
    from featuredb.transfer.push_pull import pull as pull_database

    folder = local_folder(path, "pulling into it")
    return pull_database(Remote(url, storage_options), folder, report)


def load_sae(reference: str | os.PathLike[str], **options: Any) -> LoadedSae:
    """Load an SAE from a folder, file or reference; see `ingest.sae.load_sae`.

    Raises `MissingExtraError` without the extra ``featuredb[ingest]``, and `SaeError`.
    """
    sae: LoadedSae = needs("ingest.sae", "loading an SAE").load_sae(reference, **options)
    return sae
