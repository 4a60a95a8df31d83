"""What users call: `open` a database and ask it; `ingest` and what changes one afterwards."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from featuredb.errors import MissingExtraError, QueryError
from featuredb.remote import Remote
from featuredb.sizes import size_of
from featuredb.snapshot import Sae, Snapshot
from featuredb.store import Store
from featuredb.urls import local_folder

if TYPE_CHECKING:
    import duckdb
    import numpy.typing as npt

    from featuredb.results import (
        Activations,
        FeatureCard,
        Firing,
        Info,
        Neighbors,
        Rows,
        SearchHits,
        TopContexts,
    )
    from featuredb.transfer import Transfer
    from featuredb.verification import Report
    from ingest.pipeline import Outcome
    from ingest.recompact import Compacted
    from ingest.sae import Sae as LoadedSae
    from ingest.vacuum import Vacuumed

__all__ = [
    "Database",
    "add_saes",
    "append",
    "compact",
    "drop",
    "ingest",
    "load_sae",
    "open",
    "plan",
    "pull",
    "push",
    "snapshots",
    "vacuum",
    "verify",
]

Feature = int | str
"""A number where the database has one SAE, else ``"sae_name/1234"``."""


class Database:
    """A database opened read-only, pinned to the snapshot it had when it was opened.

    Usable as a context manager; pickles as its path and snapshot. The columns of an answer, with
    their types, are in the docstring of its class (`featuredb.results`); an answer without rows
    has them all. Every question raises `QueryError` for what cannot be answered as asked, a bad k
    among it, and `CorruptDatabaseError` when a file is damaged.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def path(self) -> Path:
        """The database's folder, absolute. Raises `StorageError` for one behind a URL."""
        root = self._store.root
        return root if isinstance(root, Path) else local_folder(root.url, "its path")

    @property
    def location(self) -> Path | Remote:
        """Where the database is: its folder, or what stands for its URL, which `str` gives."""
        return self._store.root

    @property
    def snapshot(self) -> Snapshot:
        """Everything this database is pinned to: provenance, corpora, SAEs, files."""
        return self._store.snapshot

    @property
    def saes(self) -> tuple[Sae, ...]:
        """The SAEs, in the order that breaks ties between them."""
        return self._store.snapshot.saes

    def top_contexts(
        self,
        feature: Feature,
        k: int = 20,
        window: int = 16,
        where: str | None = None,
        min_activation: float | None = None,
        max_activation: float | None = None,
    ) -> TopContexts:
        """The k contexts in which a feature is most active, with the tokens around each peak.

        window: tokens shown either side of the first token that reaches the context's maximum.
        where: a SQL condition on columns of documents and contexts, as in
        ``"topic = 'History'"``. min_activation and max_activation: bounds on the context's
        maximum, both inclusive.

        One row per context, by maximum descending, ties by context id. Raises
        `UnknownFeatureError`, and `SQLError` for a condition that DuckDB refuses.
        """
        from queries.top_contexts import top_contexts

        return top_contexts(self._store, feature, k, window, where, min_activation, max_activation)

    def activations(self, feature: Feature) -> Activations:
        """Every stored activation of a feature: context_id, token_index and activation.

        By context id, then token index; no rows for a feature that never fires. All of them are
        in memory at once, 16 bytes each and as much again while they are read: a part of a
        dense feature's is had by `sql`, from the macro ``feature_activations``. Raises
        `UnknownFeatureError`.
        """
        from queries.feature_contexts import activations

        return activations(self._store, feature)

    def near(
        self, feature: Feature, k: int = 20, by: str = "decoder", *, exact: bool = False
    ) -> Neighbors:
        """The k features nearest to one, by ``decoder``, ``encoder`` or ``coactivation``.

        The score is a cosine; of co-activation the Jaccard index of the sets of active tokens, of
        which the 50 highest are kept. More than 50 by direction are searched for, through an
        approximate index where the database is large enough to have one, unless `exact`: the
        answer's `method` says how. By score descending, ties by SAE and feature id; the feature
        itself is not among them. Raises `UnknownFeatureError`.
        """
        from queries.near import near

        return near(self._store, feature, k, by, exact=exact)

    def near_vector(
        self,
        vector: Sequence[float] | npt.NDArray[Any],
        k: int = 20,
        by: str = "decoder",
        sae: str | None = None,
        *,
        exact: bool = False,
    ) -> Neighbors:
        """The k features whose ``decoder`` or ``encoder`` directions are nearest to a vector.

        vector: as many numbers as a direction has. sae: whose directions, and those of all SAEs
        that read and write the same hooks; needed where the database has directions of that length
        at several. exact, the score and the order are those of `near`. Raises
        `UnknownFeatureError` for an unknown SAE, `QueryError` for a vector of another length, with
        values that are not finite, or of zeros only.
        """
        from queries.near import near_vector

        return near_vector(self._store, vector, k, by, sae, exact=exact)

    def fires_on(self, text: str, k: int = 20) -> Firing:
        """The k most specific features on a text.

        A text that is a stored document's is answered from the store; any other goes through the
        model and the SAEs, which needs the extra ``featuredb[ingest]``. token_index counts the
        text's tokens, BOS not among them. By specificity (`queries.firing`) descending, ties by
        SAE and feature id.

        Raises `MissingExtraError` without the extra, `ModelError` and `SaeError` where the model
        or an SAE is gone or has changed since the ingest.
        """
        from queries.checks import check_k, check_text
        from queries.fires import fires_in_document, stored_document
        from queries.firing import Active, rank_firing

        k = check_k(k)
        check_text(text, "what fires_on is given")
        document = stored_document(self._store, text)
        if document is not None:
            return fires_in_document(self._store, document, k)
        live = _needs("ingest.live", "reading new text")
        found = live.encode_text(self.snapshot, text, self._store.texts.token_texts)
        active = [Active(self.snapshot.sae(e.sae), *e[1:]) for e in found.encoded]
        return rank_firing(self._store, active, found.tokens, k)

    def fires_in(self, context_id: int, k: int = 20) -> Firing:
        """The k most specific features in a stored context.

        As `fires_on`, but token_index counts the context's tokens, BOS included. Raises
        `UnknownContextError`.
        """
        from queries.fires import fires_in

        return fires_in(self._store, context_id, k)

    def feature(self, feature: Feature) -> FeatureCard:
        """A feature's statistics, its first 5 top contexts and 10 nearest neighbours by decoder.

        Raises `UnknownFeatureError`.
        """
        from queries.feature import feature_card

        return feature_card(self._store, feature)

    def search(self, query: str, k: int = 20) -> SearchHits:
        """The k features that fire on, or promote, tokens equal to a word of the query.

        Case and the spaces around a token do not matter. By score (`featuredb.catalog.searching`)
        descending, ties by SAE and feature id.
        """
        from queries.search import search

        return search(self._store, query, k)

    def sql(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> duckdb.DuckDBPyRelation:
        """Any SQL over the views and macros, as a lazy DuckDB relation.

        params: values for ``?``, or for ``$name``. Here the macro ``fires_on`` also takes new
        text. Raises `SQLError` with DuckDB's message; what only running the statement can find
        wrong is DuckDB's own exception, when the rows are fetched.
        """
        from queries.sql import sql

        return sql(self._connected, query, params)

    def info(self) -> Info:
        """What the database holds, where it comes from, and how large it is."""
        from queries.info import info

        return info(self._store)

    def close(self) -> None:
        """Close files and connections; relations from `sql` stop working."""
        self._store.close()
        self.__dict__.pop("_connected", None)

    @cached_property
    def _connected(self) -> Store:
        """The store, its DuckDB told how to answer ``fires_on`` for new text."""
        from queries.live import register_fires_on

        root, number, memory = self._store.root, self.snapshot.number, self._store.memory
        again: list[Database] = []

        def answer(text: str, k: int) -> Firing:
            # A handle of its own: DuckDB would keep this one, and with it the connection that
            # keeps the function, alive for ever.
            if not again:
                again.append(Database(Store.open(root, number, memory=memory)))
            return again[0].fires_on(text, k)

        register_fires_on(self._store, answer)
        return self._store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return Database, (self._store,)

    def __repr__(self) -> str:
        saes = ", ".join(sae.name for sae in self.saes)
        return f"<featuredb {self.location}: {saes}; snapshot {self.snapshot.number}>"


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
    bound = None if memory is None else size_of(memory)
    return Database(Store.open(path, snapshot, storage_options, bound))


def ingest(path: str | os.PathLike[str], **options: Any) -> Outcome:
    """Make the database at `path`, or continue making it where it was interrupted.

    corpus: a path, glob, ``hf:`` data set or Arrow table; model: a folder or hub name; saes: a
    list of folders or references. The other options, with their defaults, are those of
    `ingest.options.IngestOptions` and of ``featuredb ingest --help``.

    Returns the published snapshot, and whether there was anything left to do. Raises
    `MissingExtraError` without the extra ``featuredb[ingest]``, and `IngestError`.
    """
    settings = _needs("ingest.options", "ingesting")
    pipeline = _needs("ingest.pipeline", "ingesting")
    folder = local_folder(path, "ingesting")
    outcome: Outcome = pipeline.ingest(folder, settings.IngestOptions(**options))
    return outcome


def plan(path: str | os.PathLike[str], **options: Any) -> Info:
    """What `ingest` with the same arguments would make, and how long it would take.

    The corpus is tokenised, and the model runs over a sample of it; nothing is left at `path`.
    Raises `MissingExtraError` without the extra ``featuredb[ingest]``, and `IngestError`.
    """
    settings = _needs("ingest.options", "planning an ingest")
    estimate = _needs("ingest.estimate", "planning an ingest")
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
    added = _needs("ingest.append", "ingesting")
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
    added = _needs("ingest.append", "ingesting")
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
    dropping = _needs("ingest.drop", "dropping")
    note = partial(_needs("ingest.progress", "dropping").say, show=progress)
    dropped: Snapshot = (
        dropping.drop_sae(folder, sae, memory=memory, note=note)
        if sae is not None
        else dropping.drop_corpus(folder, corpus, memory=memory, note=note)
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
    note = partial(_needs("ingest.progress", "compacting").say, show=progress)
    compacting = _needs("ingest.recompact", "compacting")
    done: Compacted = compacting.compact(folder, memory=memory, note=note)
    return done


def vacuum(
    path: str | os.PathLike[str], *, grace: timedelta | None = None, unfinished: bool = False
) -> Vacuumed:
    """Remove older snapshots, and the files that only they name.

    grace: a snapshot goes this long after a newer one took its place, an hour by default, so that
    readers who have it open can finish. unfinished: also give up an ingest that was begun and not
    finished. Raises `MissingExtraError` without the extra ``featuredb[ingest]``, `DatabaseError`.
    """
    vacuuming = _needs("ingest.vacuum", "vacuuming")
    folder = local_folder(path, "vacuuming")
    wait = vacuuming.GRACE if grace is None else grace
    removed: Vacuumed = vacuuming.vacuum(folder, grace=wait, unfinished=unfinished)
    return removed


def snapshots(path: str | os.PathLike[str]) -> Rows:
    """The snapshots that the database at `path` keeps, oldest first, a row each.

    Columns snapshot, created, operation, live, corpora, saes, activations, and bytes, of all files
    it names, of which it may share many with others. Raises `DatabaseError`.
    """
    from featuredb.history import list_snapshots

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

    folder = local_folder(path, "verifying")
    again = _needs("ingest.recomputation", "comparing with the model") if source else None
    report = verify_database(
        folder, memory=size_of(memory), all_snapshots=all_snapshots, progress=progress
    )
    if again is not None and report.ok:
        report = again.compare(folder, report, source)
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
    from featuredb.transfer import push as push_database

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
    from featuredb.transfer import pull as pull_database

    folder = local_folder(path, "pulling into it")
    return pull_database(Remote(url, storage_options), folder, report)


def load_sae(reference: str | os.PathLike[str], **options: Any) -> LoadedSae:
    """Load an SAE from a folder, file or reference; see `ingest.sae.load_sae`.

    Raises `MissingExtraError` without the extra ``featuredb[ingest]``, and `SaeError`.
    """
    sae: LoadedSae = _needs("ingest.sae", "loading an SAE").load_sae(reference, **options)
    return sae


def _needs(module: str, purpose: str) -> Any:
    """Import a module of the extra ``featuredb[ingest]``."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("featuredb", "ingest", "queries", ""):
            raise
        raise MissingExtraError(
            f"{purpose} needs {missing}, which is not installed: pip install 'featuredb[ingest]'"
        ) from error
