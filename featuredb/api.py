"""What users call: `open` a database and ask it; `ingest`, `compact`, `verify`, `load_sae`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from featuredb.errors import MissingExtraError
from featuredb.snapshot import Sae, Snapshot
from featuredb.store import Store

if TYPE_CHECKING:
    import duckdb

    from featuredb.results import (
        FeatureCard,
        Firing,
        Info,
        Neighbors,
        SearchHits,
        TopContexts,
    )
    from featuredb.verification import Report
    from ingest.pipeline import Outcome
    from ingest.recompact import Compacted
    from ingest.sae import Sae as LoadedSae

__all__ = ["Database", "compact", "ingest", "load_sae", "open", "plan", "verify"]

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
        """The database's folder."""
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

    def near(self, feature: Feature, k: int = 20, by: str = "decoder") -> Neighbors:
        """The k features nearest to one, by ``decoder``, ``encoder`` or ``coactivation``.

        The score is a cosine; of co-activation the Jaccard index of the sets of active tokens, of
        which the 50 highest are kept. By score descending, ties by SAE and feature id; the feature
        itself is not among them. Raises `UnknownFeatureError`.
        """
        from queries.near import near

        return near(self._store, feature, k, by)

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

        root, number = self._store.root, self.snapshot.number
        again: list[Database] = []

        def answer(text: str, k: int) -> Firing:
            # A handle of its own: DuckDB would keep this one, and with it the connection that
            # keeps the function, alive for ever.
            if not again:
                again.append(Database(Store.open(root, number)))
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
        return f"<featuredb {self.path}: {saes}; snapshot {self.snapshot.number}>"


def open(path: str | os.PathLike[str]) -> Database:
    """Open the database at `path`, read-only and pinned to its newest snapshot.

    Raises `DatabaseNotFoundError`, `DatabaseNotReadyError` while its first ingest is unfinished,
    `FormatVersionError` for a newer format, `CorruptDatabaseError`.
    """
    return Database(Store.open(path))


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
    outcome: Outcome = pipeline.ingest(Path(path), settings.IngestOptions(**options))
    return outcome


def plan(path: str | os.PathLike[str], **options: Any) -> Info:
    """What `ingest` with the same arguments would make, and how long it would take.

    The corpus is tokenised, and the model runs over a sample of it; nothing is left at `path`.
    Raises `MissingExtraError` without the extra ``featuredb[ingest]``, and `IngestError`.
    """
    settings = _needs("ingest.options", "planning an ingest")
    estimate = _needs("ingest.estimate", "planning an ingest")
    planned: Info = estimate.estimate(Path(path), settings.IngestOptions(**options))
    return planned


def compact(path: str | os.PathLike[str]) -> Compacted:
    """Merge a database's segments, so that queries open fewer files; answers do not change.

    Raises `MissingExtraError` without the extra ``featuredb[ingest]``, and `DatabaseError`.
    """
    done: Compacted = _needs("ingest.recompact", "compacting").compact(Path(path))
    return done


def verify(path: str | os.PathLike[str]) -> Report:
    """Read every file of a database again and compare it with the snapshot.

    Damage is in the report, not an exception. Raises `DatabaseError` where there is no snapshot.
    """
    from featuredb.verification import verify as verify_database

    return verify_database(Path(path))


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
