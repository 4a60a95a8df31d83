"""The handle of an open database: every question that can be asked of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from featuredb.errors import ClosedError, QueryError
from featuredb.extras import extra, ingest_extra
from featuredb.store.files.memory import Budget
from featuredb.store.files.remote import RemoteFiles, local_folder
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.store import Store
from queries.connection import Reader, confine

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from featuredb.monitors.guard import GenerationGuard
    from featuredb.monitors.listed import Monitors
    from featuredb.monitors.new_alarms import NewAlarms
    from featuredb.steering.attribution import Attribution
    from featuredb.steering.edits import Edits
    from featuredb.steering.effects import Ablated
    from featuredb.steering.prompts import Prompts
    from featuredb.steering.removal import Removal
    from featuredb.steering.steered import Steered
    from featuredb.steering.sweep import Strengths
    from featuredb.steering.swept import Swept
    from queries.about import About
    from queries.activations import Activations
    from queries.answers import Answer
    from queries.calibrate import Calibration
    from queries.coactivation import Coactivation
    from queries.coactive import Coactive
    from queries.compare import Comparison
    from queries.contrasts.contrasted import Contrast
    from queries.document import WholeDocument
    from queries.document_features import DocumentFeatures
    from queries.encode import Encoded
    from queries.families import Families
    from queries.feature import FeatureCard
    from queries.find import Matches
    from queries.fires import Firing
    from queries.info import DatabaseInfo
    from queries.labels import Labels
    from queries.near import Neighbors
    from queries.replay import Alarms
    from queries.sample_contexts import SampledContexts
    from queries.schema import Schema
    from queries.search import SearchHits
    from queries.silent_contexts import SilentContexts
    from queries.specificity import ActiveText
    from queries.top_contexts import TopContexts
    from queries.top_contexts_of_many import TopContextsOfMany

_Texts = Iterable[str] | Iterable[tuple[str | None, str]] | Mapping[str, str]
_Pool = Literal["max", "sum", "mean"]

Feature = int | str
"""A number where the database has one SAE, else ``"sae_name/1234"``."""


class Database:
    """An open database, read-only and pinned to the snapshot it had when it was opened.

    A context manager. Pickles as its path and snapshot. The class of each answer documents its
    columns, and an answer without rows has them all. Every question raises `QueryError` where its
    arguments are invalid, and `CorruptDatabaseError` where a file is damaged.
    """

    def __init__(self, store: Store, model: str | None = None, *, confined: bool = False) -> None:
        """confined: conditions and SQL read no files but the database's, and reach no network."""
        self._store = store
        self._model = model
        self._confined = confined
        # Not a function of `self`: DuckDB keeps it, and the handle keeps DuckDB.
        self._open_reader: Reader | None = Reader(store, partial(_prepare, model, confined))

    @property
    def _reader(self) -> Reader:
        """What questions are asked of. Raises `ClosedError`."""
        if self._open_reader is None:
            raise self._closed()
        return self._open_reader

    def _closed(self) -> ClosedError:
        return ClosedError(f"{self!r} is closed: open it again with featuredb.open")

    @property
    def path(self) -> Path:
        """The database's folder, absolute. Raises `StorageError` for one behind a URL."""
        return _local(self._store.root, "its path")

    @property
    def location(self) -> Path | RemoteFiles:
        """Where the database is: its folder, or an object whose `str` is its URL."""
        return self._store.root

    @property
    def snapshot(self) -> Snapshot:
        """Everything this database is pinned to: provenance, corpora, SAEs, files."""
        return self._store.snapshot

    @property
    def saes(self) -> tuple[Sae, ...]:
        """The SAEs, in the order that breaks ties between them."""
        return self._store.snapshot.saes

    @overload
    def top_contexts(  # type: ignore[overload-overlap]  # a text is an iterable of texts
        self,
        feature: Feature,
        k: int = ...,
        window: int = ...,
        where: str | None = ...,
        min_activation: float | None = ...,
        max_activation: float | None = ...,
        *,
        offset: int = ...,
        per_document: bool = ...,
        distinct: bool = ...,
    ) -> TopContexts: ...
    @overload
    def top_contexts(
        self,
        feature: Iterable[Feature],
        k: int = ...,
        window: int = ...,
        where: str | None = ...,
        min_activation: float | None = ...,
        max_activation: float | None = ...,
        *,
        offset: int = ...,
        per_document: bool = ...,
        distinct: bool = ...,
    ) -> TopContextsOfMany: ...
    def top_contexts(
        self,
        feature: Feature | Iterable[Feature],
        k: int = 20,
        window: int = 16,
        where: str | None = None,
        min_activation: float | None = None,
        max_activation: float | None = None,
        *,
        offset: int = 0,
        per_document: bool = False,
        distinct: bool = False,
    ) -> TopContexts | TopContextsOfMany:
        """The contexts in which a feature is most active.

        Args:
            feature: A number where the database has one SAE, else ``"sae_name/1234"``. Or several:
                a list, an array, a column of a frame.
            k: Number of contexts, of each feature.
            window: Tokens shown on each side of the first token that reaches the maximum.
            where: A SQL condition on columns of documents, contexts and tokens, such as
                ``"topic = 'History'"``. Where it names role, token, token_id or token_index of
                tokens, as ``"role = 'assistant'"`` does, only the activations of the tokens that
                it holds for count for a context's maximum. All are shown.
            min_activation: Lower bound on the context's maximum, inclusive.
            max_activation: Upper bound on the context's maximum, inclusive.
            offset: Contexts passed over before the first: the page after `k` begins at `k`.
            per_document: Show no document twice, only its first context by this order.
            distinct: Show no text twice. Of contexts whose tokens are all equal, only the first.

        Returns:
            One row per context, by maximum activation descending, ties by context id. Ranks go on
            from `offset`. The first columns, sae and feature_id, name the feature. Of several
            features those of one after the other, a repeated name once.

        Raises:
            UnknownFeatureError: There is no such feature.
            SQLError: DuckDB refuses the condition.
        """
        from queries.top_contexts_of_many import top_contexts_of

        return top_contexts_of(
            self._reader,
            feature,
            k,
            window,
            where,
            min_activation,
            max_activation,
            offset=offset,
            per_document=per_document,
            distinct=distinct,
        )

    def sample_contexts(
        self,
        feature: Feature,
        k: int = 20,
        bins: int | None = None,
        seed: int = 0,
        *,
        by: str = "width",
        window: int = 16,
    ) -> SampledContexts:
        """Contexts drawn over the whole range of a feature's activations.

        The contexts are binned by their maximum. One is drawn from each bin in turn, the strongest
        bin first, until there are `k`. Each stands for `bin_weight` contexts.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            k: Number of contexts, at least `bins`.
            bins: Number of bins. Those without a context are passed over. Default: 10, or `k`
                where that is less.
            seed: The same seed draws the same contexts.
            by: ``"width"``, bins of one width from the least maximum to the greatest, or
                ``"quantile"``, bins of equally many contexts.
            window: Tokens shown on each side of the first token that reaches the maximum.

        Returns:
            One row per context, by maximum activation descending, ties by context id.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.sample_contexts import sample_contexts

        return sample_contexts(self._reader, feature, k, bins, seed, by, window)

    def silent_contexts(
        self,
        feature: Feature,
        k: int = 20,
        like: str = "tokens",
        seed: int = 0,
        *,
        window: int = 16,
    ) -> SilentContexts:
        """Contexts in which a feature never fires: negatives that are certain.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            k: Number of contexts.
            like: What the contexts have in common with those where it fires. ``"tokens"``: one of
                the tokens it fires on most, each as often in proportion as it fires on it.
                ``"neighbors"``: one of its 10 nearest features by decoder fires. ``"random"``:
                nothing.
            seed: The same seed draws the same contexts.
            window: Tokens shown on each side of the token that matched.

        Returns:
            One row per context, in the order in which they were drawn.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.silent_contexts import silent_contexts

        return silent_contexts(self._reader, feature, k, like, seed, window)

    def find(
        self,
        all: Sequence[Feature] = (),
        any: Sequence[Feature] = (),
        none: Sequence[Feature] = (),
        unit: str = "token",
        within: int | None = None,
        ordered: bool = False,
        at_least: int | None = None,
        where: str | None = None,
        k: int = 20,
        *,
        token: str | None = None,
        window: int = 16,
    ) -> Matches:
        """Where several features fire: tokens, contexts or documents.

        A condition is a feature, ``1234`` or ``"sae_name/1234"``, with bounds on its activation if
        wanted: ``"1234 > 5"``, ``"1234 >= 0.5x < q0.99"``. ``0.5x`` is half the feature's stored
        maximum and ``q0.99`` a quantile of its stored activations.

        Args:
            all: Conditions that all hold.
            any: Conditions of which at least one, or `at_least` of them, hold.
            none: Conditions of which none holds.
            unit: Where they hold together, and what a row is: ``"token"``, ``"context"`` or
                ``"document"``.
            within: They hold within so many tokens of one at which the first of `all` holds, or
                any of `any` where `all` is empty, in the same context.
            ordered: Those of `all` hold one after another, each after the one before: within
                `within` tokens of the first, else anywhere in the context, or in the document.
            at_least: How many of `any` have to hold.
            where: A SQL condition as of `top_contexts`. Nothing else is looked at.
            k: Number of rows.
            token: The token at which the first of `all`, or each of `any`, holds: exactly
                ``" bridge"``, as a beginning ``" bri*"``, or as a regular expression ``"/brid/"``.
            window: Tokens shown on each side of a place.

        Returns:
            One row per token, context or document, by strength descending, ties by position.

        Raises:
            UnknownFeatureError: There is no such feature.
            SQLError: DuckDB refuses the condition.
        """
        from queries.find import find

        return find(
            self._reader, all, any, none, unit, within, ordered, at_least, where, token, k, window
        )

    def document(
        self,
        document_id: int | None = None,
        feature: Feature | None = None,
        *,
        context_id: int | None = None,
    ) -> WholeDocument:
        """A whole document: its text, its metadata, and where each of its tokens lies in the text.

        Args:
            document_id: The document.
            feature: A number, or ``"sae_name/1234"``: its activation on each token.
            context_id: A context of the document, instead of its id.

        Returns:
            One row per token in order, each once, without BOS, with its characters [start, end).
            They are exact for byte-level and metaspace tokenizers, and null where they are not
            known (`queries.token_spans`).

        Raises:
            QueryError: There is no such document.
            UnknownContextError: There is no such context.
            UnknownFeatureError: There is no such feature.
        """
        from queries.document import document

        return document(self._reader, document_id, feature, context_id=context_id)

    def activations(self, feature: Feature) -> Activations:
        """Every stored activation of a feature.

        All of them are in memory at once, 25 bytes each and as much again while they are read. For
        a part of a dense feature's, ask `sql` for the macro ``feature_activations``.

        Args:
            feature: A number, or ``"sae_name/1234"``.

        Returns:
            sae, feature_id, context_id, token_index and activation, by context id, then token
            index.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.activations import activations

        return activations(self._reader, feature)

    def contrast(
        self,
        a: Any = None,
        b: Any = None,
        paired: str | None = None,
        target: str | None = None,
        unit: str = "document",
        pool: _Pool = "max",
        k: int = 20,
        *,
        each: str | None = None,
        sae: str | None = None,
        min_share: float | None = None,
        max_share: float = 1.0,
        covariate: str | Sequence[str] = (),
        holdout: float | None = None,
        probe: int | None = None,
        seed: int = 0,
        on: Feature | None = None,
    ) -> Contrast:
        """What tells some texts from others, feature by feature, and how sure that is.

        A set is a SQL condition on documents, such as ``"topic = 'History'"``; a list of ids; a
        list of new texts, which go through the model; ``"@file"`` of new texts (as `featuredb
        fires --file` reads them); or ``"all"``.

        Args:
            a: The set asked about.
            b: What it is compared with. Default, or ``"rest"``: all other stored units.
            paired: A column whose value a unit of A shares with one of B. Wilcoxon's test.
            target: A numeric column, or ``"length"``. Spearman's correlation, over A or all.
            unit: ``"document"``, ``"context"`` or ``"turn"`` of a chat. Conditions may name columns
                of contexts, or role and turn_index of turns, besides.
            pool: A unit's ``"max"``, ``"sum"`` or ``"mean"`` over its recorded tokens.
            k: Number of features.
            each: A column, each of whose values is compared with the rest. k features of each.
            sae: Only features of this SAE.
            min_share: Only features active in at least this share of the units of both sets.
                Default: in 5 units and in as many as 1 % of the smaller set.
            max_share: Only features active in at most this share.
            covariate: Columns of documents, or ``"length"``. Units are compared only with units
                alike in these.
            holdout: Share of each set that is kept apart. Features are chosen on the rest, all
                figures are of this share.
            probe: Fit a classifier of at most so many features, and measure it on the held-out
                share, 0.3 by default, beside a bag of words. Needs ``featuredb[probes]``.
            seed: What the split depends on.
            on: Only tokens on which this feature fires: which features fire with it more in A than
                in B. Units without such a token are left out, and length counts such tokens.

        Returns:
            One row per feature, by evidence descending, ties by SAE and feature id. The answer says
            what A and B are, the unit, the null hypothesis and what was tested.

        Raises:
            QueryError: A set is empty, a column does not pair or is no number.
            SQLError: DuckDB refuses a condition.
            MissingExtraError: An extra is not installed.
        """
        from queries.contrast import contrast
        from queries.contrasts.asked import Asked

        one = isinstance(covariate, str) or not isinstance(covariate, Iterable)
        covariates: Any = dict.fromkeys((covariate,) if one else covariate)
        asked = Asked(
            a, b, paired, target, unit, pool, k, each, sae, min_share, max_share, tuple(covariates),
            holdout, probe, seed, on,
        )  # fmt: skip
        return contrast(self._reader, asked, partial(_encode, self._store, self._model))

    def document_features(self, feature: Feature, unit: str = "document") -> DocumentFeatures:
        """A feature's activations pooled per document, per context or per turn of a chat.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            unit: ``"document"``, ``"context"``, or ``"turn"``: a run of tokens of one role.

        Returns:
            One row per unit that the feature is active in, by id: max_activation, sum_activation
            and n_tokens. The views ``document_features`` and ``context_features`` have those of
            every feature.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.document_features import document_features

        return document_features(self._reader, feature, unit)

    def near(
        self,
        feature: Feature,
        k: int = 20,
        by: str = "decoder",
        *,
        exact: bool = False,
        sae: str | None = None,
        opposite: bool = False,
        unit: str = "token",
    ) -> Neighbors:
        """The features nearest to one.

        Up to 50 come from a stored graph. More, and those of one SAE, are searched for, through an
        approximate index where the database is large enough to have one: the answer's `method` says
        how, and its `chance` what to hold the scores against.

        Args:
            feature: A number, or ``"sae_name/1234"``. It is not among its own neighbors.
            k: Number of neighbors.
            by: ``"decoder"`` or ``"encoder"`` for the cosine of the directions, among all SAEs
                that read and write the same hooks. ``"coactivation"`` for the Jaccard index of the
                sets of active tokens in one SAE, of which the 50 highest are stored.
            exact: Search everything, even where there is an index.
            sae: Only the features of this SAE, which may read another hook. Its directions must
                have the same length. Coactivation is counted over the tokens that both recorded.
            opposite: The most negative cosines instead, always exactly.
            unit: With ``"document"``, coactivation is that of sets of documents, counted anew.

        Returns:
            One row per neighbor, by score descending, ties by SAE in the snapshot's order, then
            feature id. The first columns, of_sae and of_feature_id, name the feature asked about.

        Raises:
            UnknownFeatureError: There is no such feature or SAE.
            QueryError: The directions of the two SAEs differ in length.
        """
        from queries.near import near

        return near(
            self._reader, feature, k, by, exact=exact, sae=sae, opposite=opposite, unit=unit
        )

    def compare(self, feature: Feature, other: Feature, k: int = 3) -> Comparison:
        """Two features side by side, of one SAE or of two.

        Args:
            feature: A, a number, or ``"sae_name/1234"``.
            other: B.
            k: Number of contexts of each kind: both, only A, only B.

        Returns:
            One row: the cosines of the directions, the correlation where both fire, all counts and
            measures of `coactivation`, the tokens of both and of each alone; and contexts.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.compare import compare

        return compare(self._reader, feature, other, k)

    def direction(self, feature: Feature, by: str = "decoder") -> npt.NDArray[np.float32]:
        """A feature's direction, float32 [d], as the SAE has it: not scaled.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            by: ``"decoder"``: its row of W_dec. ``"encoder"``: its column of W_enc.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.directions import direction

        return direction(self._reader, feature, by)

    def near_vector(
        self,
        vector: Sequence[float] | npt.NDArray[Any],
        k: int = 20,
        by: str = "decoder",
        sae: str | None = None,
        *,
        exact: bool = False,
        opposite: bool = False,
    ) -> Neighbors:
        """The features whose directions are nearest to a vector.

        Args:
            vector: As many finite numbers as a direction has. Its length does not matter.
            k: Number of features.
            by: ``"decoder"`` or ``"encoder"``.
            sae: An SAE whose directions the vector is compared with, and with them those of all
                SAEs that read and write the same hooks. Needed where the database has directions
                of that length at several.
            exact: Search everything, even where there is an index.
            opposite: The most negative cosines instead, always exactly.

        Returns:
            One row per feature, scored and ordered as by `near`.

        Raises:
            UnknownFeatureError: There is no such SAE.
            QueryError: The vector has another length, values that are not finite, or only zeros.
        """
        from queries.near import near_vector

        return near_vector(self._reader, vector, k, by, sae, exact=exact, opposite=opposite)

    def near_token(
        self,
        token: str | int,
        k: int = 20,
        by: str = "decoder",
        matrix: str = "unembedding",
        sae: str | None = None,
        *,
        exact: bool = False,
        opposite: bool = False,
    ) -> Neighbors:
        """The features whose directions are nearest to a token's row of the model's matrices.

        By decoder and unembedding these are the features that promote the token most, for their
        length: what the logit lens shows, from the token's side. By encoder and embedding they are
        those that read the token itself. The model is loaded for its matrices, from where it was at
        the ingest unless `featuredb.open` was told where it is now. That needs the extra
        ``featuredb[ingest]``.

        Args:
            token: One token of the model's vocabulary, as ``" bridge"``, or its id.
            k: Number of features.
            by: ``"decoder"`` or ``"encoder"``.
            matrix: ``"unembedding"``, scaled and centered as the model's last norm does (see the
                logit lens), or ``"embedding"``.
            sae: Only the features of this SAE. Default: all of one hook, and needed where the
                database has SAEs of that width at several.
            exact: Search everything, even where there is an index.
            opposite: The most negative cosines instead, always exactly.

        Returns:
            One row per feature, scored and ordered as by `near`.

        Raises:
            QueryError: There is no such token, or no directions as long as the model is wide.
            UnknownFeatureError: There is no such SAE.
            MissingExtraError: The extra is not installed.
            ModelError: The model is gone, is another than at the ingest, or has no such matrix.
        """
        from queries.near import near_token

        direction = partial(_token_direction, self._store, self._model)
        return near_token(
            self._reader.store,
            token,
            k,
            by,
            matrix,
            sae,
            exact=exact,
            opposite=opposite,
            direction=direction,
        )

    def families(
        self,
        feature: Feature | None = None,
        k: int | None = None,
        *,
        min_coverage: float = 0.8,
        min_gain: float = 0.1,
        min_count: int = 10,
    ) -> Families:
        """The parents, children and duplicates of a feature, or of all features.

        B is a parent of A where it is active on almost all of A's tokens, beyond chance, and on
        others, and where its direction carries part of what A writes (`queries.families` defines
        coverage and gain). Within each SAE and between the SAEs of one hook, among each feature's
        50 nearest by decoder. Exact, of every stored activation.

        Args:
            feature: A number, or ``"sae_name/1234"``. Default: all, each pair once.
            k: Number of rows. Default: all.
            min_coverage: The least share of a child's tokens that its parent has.
            min_gain: The least share of a child's contribution that its parent's explains.
            min_count: The least number of tokens that a child is active on.

        Returns:
            One row per relative, by feature, then parents, children, duplicates, each by gain
            descending, ties by SAE and feature id.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.families import families

        return families(
            self._reader.store,
            feature,
            k,
            min_coverage=min_coverage,
            min_gain=min_gain,
            min_count=min_count,
        )

    def coactive(
        self,
        feature: Feature,
        k: int = 20,
        unit: str = "token",
        by: str = "npmi",
        *,
        sae: str | None = None,
        min_both: int = 5,
    ) -> Coactive:
        """The features that are active together with one, counted exactly.

        Ranked by how strong the association is, not by how certain.

        Args:
            feature: A number, or ``"sae_name/1234"``. It is not among its own partners.
            k: Number of features.
            unit: ``"token"``: active on the same token. ``"document"``: anywhere in the same
                document.
            by: ``"npmi"``, normalized pointwise mutual information; ``"jaccard"``, the overlap of
                the two sets; ``"count"``, how often both are active.
            sae: The SAE whose features are counted. Default: the feature's own.
            min_both: Leave out features that are active together with it less often.

        Returns:
            One row per feature, by that measure descending, ties by feature id: the four counts and
            all measures (`queries.association`), for documents with q-values.

        Raises:
            UnknownFeatureError: There is no such feature or SAE.
        """
        from queries.coactive import coactive

        return coactive(self._reader, feature, k, unit, by, sae=sae, min_both=min_both)

    def coactive_pairs(
        self,
        unit: str = "token",
        *,
        sae: str | None = None,
        min_both: int = 5,
        memory: str = "1GB",
    ) -> pa.RecordBatchReader:
        """Every pair of features of an SAE that are active together: the whole sparse matrix.

        Counted anew, exactly, which needs the extra ``featuredb[ingest]``. Millions of rows, batch
        by batch: ``pyarrow.dataset.write_dataset`` takes the reader as it is.

        Args:
            unit: ``"token"`` or ``"document"``, as for `coactive`.
            sae: The SAE. Default: each in turn.
            min_both: Leave out pairs that are active together less often.
            memory: Memory limit, such as ``"1GB"``, not counting the caller's batches.

        Returns:
            sae, feature_id (A), other_sae, other_id (B, the higher number of the two), the four
            counts and all measures (`queries.association`), by SAE, A and B.

        Raises:
            UnknownFeatureError: There is no such SAE.
            OptionError: `memory` is not a size.
            MissingExtraError: The extra is not installed.
        """
        from queries.coactive import pair_options

        saes, min_both = pair_options(self._reader, unit, sae, min_both)
        budget = Budget.parse(memory)
        with ingest_extra("counting all pairs"):
            from ingest.derive.pairs import reader_of_pairs
        return reader_of_pairs(self._store, saes, unit, min_both, budget.bytes)

    def coactivation(self, feature: Feature, other: Feature) -> Coactivation:
        """How often two features are active together: on the same tokens, in the same documents.

        Exact, of every stored activation. The features may be of different SAEs. Only tokens that
        both SAEs recorded count: no BOS, no sink of either, no context that only one has read.

        Args:
            feature: A, a number, or ``"sae_name/1234"``.
            other: B.

        Returns:
            Two rows, for tokens and for documents: the four counts, both conditional probabilities,
            Jaccard, NPMI, phi and G² (`queries.association`), for documents with its p-value.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.coactivation import coactivation

        return coactivation(self._reader, feature, other)

    def fires_on(
        self,
        text: str,
        k: int = 20,
        by: str = "specificity",
        min_density: float | None = None,
        max_density: float | None = None,
    ) -> Firing:
        """The features that fire on a text, the most specific first.

        A text that is a stored document's is answered from the store. Any other goes through the
        model, which is where it was at the ingest unless `featuredb.open` was told where it is now,
        and the SAEs. That needs the extra ``featuredb[ingest]``.

        Args:
            text: Any text.
            k: Number of features.
            by: ``"specificity"`` (`queries.specificity`), ``"activation"`` for the maximum over
                the text, or ``"mass"`` for the sum over it.
            min_density: Only features that fire on at least this share of tokens in the database.
            max_density: Only features that fire on at most this share.

        Returns:
            One row per feature, by that descending, ties by SAE and feature id. token_index counts
            the text's tokens, without BOS. Its `by_token` has the features of each token.

        Raises:
            MissingExtraError: The extra is not installed.
            ModelError: The model is gone, or is another than at the ingest.
            SaeError: The database was made before SAEs were kept in it, and an SAE is gone or has
                changed.
        """

        from queries.fires import Choice, fires_on

        choice = Choice(k, by, min_density, max_density)
        return fires_on(
            self._reader.store, text, choice, partial(_encode, self._store, self._model)
        )

    def encode(self, texts: _Texts, pool: _Pool | None = None, k: int | None = None) -> Encoded:
        """The activations of many texts at once.

        Stored texts are answered from the store. The others go through the model in batches over
        several texts. All of the answer is in memory: see `encode_batches` for more.

        Args:
            texts: Any number of texts, or of (id, text) pairs, or a mapping from ids to texts.
            pool: None for one row per active feature and token. ``"max"``, ``"sum"`` or
                ``"mean"`` (over all of the text's tokens) for one row per active feature and text.
            k: Only the k highest activations of each token, or of each text with `pool`. Default:
                all.

        Returns:
            Rows by text, token, SAE and feature id.

        Raises:
            Error: As `fires_on`.
        """
        from queries.encode import encode

        return encode(
            self._reader.store, texts, pool, k, partial(_encode, self._store, self._model)
        )

    def encode_batches(
        self, texts: _Texts, pool: _Pool | None = None, k: int | None = None
    ) -> Iterator[Encoded]:
        """As `encode`, in pieces of some hundred texts, as they are read.

        Args:
            texts: As of `encode`. An iterator is read as far as it is needed.
            pool: As of `encode`.
            k: As of `encode`.

        Returns:
            Answers whose rows, one after another, are those of `encode`.

        Raises:
            Error: As `fires_on`.
        """
        from queries.encode import encode_batches

        encode = partial(_encode, self._store, self._model)
        return encode_batches(self._reader.store, texts, pool, k, encode)

    def has_text(self, text: str) -> bool:
        """Whether a stored document has exactly this text.

        Args:
            text: Any text.
        """
        from queries.fires import stored_document

        return stored_document(self._store, text) is not None

    def fires_in(
        self,
        context_id: int,
        k: int = 20,
        by: str = "specificity",
        min_density: float | None = None,
        max_density: float | None = None,
    ) -> Firing:
        """The features that fire in a stored context, the most specific first.

        Args:
            context_id: The context.
            k: Number of features.
            by: As of `fires_on`.
            min_density: As of `fires_on`.
            max_density: As of `fires_on`.

        Returns:
            As of `fires_on`, but token_index counts the context's tokens, BOS included.

        Raises:
            UnknownContextError: There is no such context.
        """
        from queries.fires import Choice, fires_in

        return fires_in(self._reader, context_id, Choice(k, by, min_density, max_density))

    def feature(self, feature: Feature, k: int | None = None) -> FeatureCard:
        """A feature's statistics, top contexts and nearest neighbors by decoder.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            k: Number of contexts and of neighbors. Default: 5 and 10.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.feature import feature_card

        return feature_card(self._reader, feature, k)

    def search(
        self, query: str, k: int = 20, by: str | None = None, *, encoder: str | None = None
    ) -> SearchHits:
        """The features whose labels have the words of the query, or that fire on or promote them.

        Args:
            query: Words. Case and punctuation do not matter. ``music*`` is every word that begins
                so. Common words count little beside rare ones. Or a feature, ``1234`` or
                ``"sae_name/1234"``.
            k: Number of features.
            by: ``"tokens"``, which features fire on, and labels. ``"meaning"``: labels that mean
                nearly what the query says, which needs the extra ``featuredb[labels]``.
                ``"evidence"``: features whose top contexts
                have the words more than other documents do (`queries.evidence`), which finds
                words of several tokens, phrases, and ``/expressions/``. Default: by tokens, and by
                evidence where that finds nothing, or for an expression.
            encoder: With meaning, a sentence encoder: a folder or a hub name. Default:
                all-MiniLM-L6-v2.

        Returns:
            One row per feature, by score (`queries.search`) descending, ties by SAE and feature id.
            Its ``suggestions`` name similar words for those that no feature mostly fires on.

        Raises:
            MissingExtraError: By meaning, and the extra is not installed.
            ModelError: The encoder cannot be loaded.
        """
        from queries.search import search

        nearest = None
        if encoder is not None and by != "meaning":
            raise QueryError("encoder is of a search by meaning: say by='meaning', or leave it out")
        if by == "meaning":
            with extra("labels", "searching by meaning"):
                from featuredb.steering.meaning import closeness
            nearest = partial(closeness, encoder)
        return search(self._reader, query, k, by, nearest)

    def about(self, text: str, k: int = 20, by: str = "both") -> About:
        """The features that a phrase is about. No labels are needed.

        Args:
            text: A phrase, such as ``"suspension bridges"``.
            k: Number of features.
            by: ``"firing"``: what fires on the phrase within a sentence, through the model and the
                SAEs, which needs the extra ``featuredb[ingest]``. ``"evidence"``: features whose
                top contexts have the phrase or its words, from the store. ``"both"``.

        Returns:
            One row per feature, by score (`queries.about`) descending, ties by SAE and feature id.

        Raises:
            MissingExtraError: The extra is not installed.
            ModelError: The model is gone, or has changed since the ingest.
        """
        from queries.about import about

        return about(self._reader, text, k, by, partial(_encode, self._store, self._model))

    def sql(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        tables: Mapping[str, Any] | None = None,
    ) -> duckdb.DuckDBPyRelation:
        """Any SQL over the views and macros, as a lazy DuckDB relation.

        Every relation has its own connection. Several can be read at once, by any threads, but not
        joined to one another. Later statements see what a statement creates, and none changes the
        database's own views and macros. Temporary tables,
        variables and session settings belong to a connection and exist only for statements in the
        same text. The macros ``fires_on`` of new text, ``families``, ``cosine`` and ``near_token``
        are answered here, in Python.

        Args:
            query: One or more statements.
            params: Values for ``?`` in order, or for ``$name`` by name.
            tables: Your own tables by the name that the statement calls them: pandas, polars,
                Arrow, or another answer.

        Raises:
            SQLError: DuckDB refuses the statement. An error that only running it can find is
                DuckDB's own exception, raised when the rows are fetched.
        """
        from queries.sql import sql

        return sql(self._reader, query, params, tables)

    def schema(self, name: str | None = None) -> Schema:
        """The views, tables and macros of `sql`, and what they and their columns are.

        Args:
            name: Only this one. Case does not matter.

        Returns:
            One row per view, table, column of these, and macro: kind, name, column, type, about.

        Raises:
            QueryError: There is no view or macro of that name.
        """
        from queries.schema import schema

        return schema(self._reader, name)

    def intervene(
        self,
        edits: Edits,
        *,
        method: str = "code",
        push_out: bool = False,
        other_model: bool = False,
    ) -> AbstractContextManager[Any]:
        """Steer the model, for as long as a ``with`` block lasts.

        >>> with db.intervene(["1927=10x", "3722=0 @ prompt"]) as model:  # doctest: +SKIP
        ...     inputs = db.tokenizer("I am", return_tensors="pt").to(model.device)
        ...     model.generate(**inputs, max_new_tokens=20)

        Every forward pass in the block is edited: `generate`, calls of the model, of its base
        model, with or without a cache, by any thread. SAEs act in the order of their hooks, so a
        later one sees what an earlier one changed. At one hook they act in the database's order.
        What only reads, as `fires_on` does, sees the unedited model.

        Args:
            edits: One edit or several, as `Edit` or spelled: ``"F=10x"`` clamps, ``"F+=2"`` adds,
                ``"F*=0.5"`` scales, ``"F=0"`` ablates, each with ``@ WHERE`` if wanted
                (`featuredb.steering.where`).
            method: Of edits that are spelled: ``"code"``, ``"direction"`` or ``"project"``.
            push_out: A feature that is forced into the code of a top-k SAE pushes the weakest out.
                Default: the code may have more than k.
            other_model: Allow a model that is not the one of the ingest, such as a fine-tuned one.

        Returns:
            A context manager that gives the Hugging Face model itself. Afterwards nothing is left
            in it.

        Raises:
            QueryError: An edit is invalid or can never apply, or the model is steered already.
            ModelError: The model is gone, or is another than at the ingest.
            SaeError: An SAE has no decoder, or cannot be loaded.
        """
        steering = self._steering("steering")
        options = steering.SteeringOptions(method, push_out, other_model)
        block: AbstractContextManager[Any] = steering.intervene(
            self._reader.store, edits, self._model, options
        )
        return block

    def steer(
        self,
        prompt: Prompts,
        edits: Edits,
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        method: str = "code",
        push_out: bool = False,
        effect: bool = True,
        controls: bool = True,
        other_model: bool = False,
        stream: Callable[[str], None] | None = None,
        watch: Callable[[str, str], None] | None = None,
    ) -> Steered:
        """Let the model go on from prompts, unsteered and steered, and measure what changed.

        Args:
            prompt: A text, several, a chat (a list of messages such as ``{"role": "user",
                "content": …}``, put through the model's chat template), or several chats.
            edits: As of `intervene`.
            max_new_tokens: Most tokens that are generated.
            temperature: 0 for the most likely token each time, else tokens are drawn.
            top_p: Draw from the most likely tokens that together have this probability.
            seed: The same seed draws the same tokens and the same controls.
            method: As of `intervene`.
            push_out: As of `intervene`.
            effect: Measure the effect, which takes as long again.
            controls: Also run the edits with their sign flipped, on a random feature of like
                density and norm, and as noise of the same norm.
            other_model: As of `intervene`.
            stream: Called with each piece of the steered text. Of one prompt only.
            watch: Called with "unsteered" or "steered" and each piece of that text, instead. What
                it raises ends the generation.

        Returns:
            One row per prompt and variant: the text and its measures. `effects` has means over
            prompts with intervals, `next_tokens` the probabilities of the first new token, `moved`
            the features that moved most, and `edited` how many tokens each edit acted on.

        Raises:
            QueryError: A prompt or an edit is invalid, or an edit can never apply.
            Error: As `intervene`.
        """
        opened = self._steering("steering")
        from featuredb.steering.generation import Sampling
        from featuredb.steering.steer import steer, steered_only

        if watch is None and stream is not None:
            watch = steered_only(stream)
        return steer(
            self._reader.store,
            prompt,
            edits,
            self._model,
            opened.SteeringOptions(method, push_out, other_model),
            Sampling(max_new_tokens, temperature, top_p, seed),
            effect=effect,
            controls=controls,
            watch=watch,
        )

    def sweep(
        self,
        prompt: Prompts,
        edits: Edits,
        strengths: Strengths,
        *,
        max_new_tokens: int = 40,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        method: str = "code",
        push_out: bool = False,
        other_model: bool = False,
        encoder: str | None = None,
        judge: str | None = None,
        judge_model: str | None = None,
    ) -> Swept:
        """Steer at several strengths, and say which works (`featuredb.steering.sweep`).

        Args:
            prompt: As of `steer`. Several, since the strength is chosen on every other one.
            edits: As of `steer`. Each strength takes the place of their values.
            strengths: Such as ``"0,1,2,5,10x"``: those without a unit have that of the last.
            max_new_tokens: As of `steer`.
            temperature: As of `steer`.
            top_p: As of `steer`.
            seed: As of `steer`.
            method: As of `intervene`.
            push_out: As of `intervene`.
            other_model: As of `intervene`.
            encoder: A sentence encoder, a folder or a hub name, for closeness. Default:
                all-MiniLM-L6-v2 where it is in the hub's cache.
            judge: An OpenAI-compatible endpoint, such as ``http://localhost:8000/v1``, that rates
                the texts instead. Its key is taken from ``OPENAI_API_KEY``.
            judge_model: The judge's model.

        Returns:
            One row per strength: concept, fluency, closeness, their harmonic mean, the best and
            the working range. `texts` has every text, `plot` draws them.

        Raises:
            QueryError: As `steer`, or the judge does not answer.
            Error: As `steer`.
        """
        opened = self._steering("steering")
        from featuredb.steering.generation import Sampling
        from featuredb.steering.sweep import SweepOptions, sweep

        return sweep(
            self._reader.store,
            prompt,
            edits,
            strengths,
            self._model,
            opened.SteeringOptions(method, push_out, other_model),
            Sampling(max_new_tokens, temperature, top_p, seed),
            SweepOptions(encoder, judge, judge_model),
        )

    def export_edits(
        self, edits: Edits, path: str | os.PathLike[str], *, method: str = "code"
    ) -> None:
        """Write edits to a file that other programs steer with (`featuredb.steering.exports`).

        Args:
            edits: As of `intervene`, at all tokens. Only what adds is exact. Setting is taken as
                adding the value.
            path: Its ending says what for: ``.safetensors``; ``.gguf``, a control vector of
                llama.cpp; ``.pt``, a steering file of lm-evaluation-harness.
            method: As of `intervene`. In a ``.pt`` file ``"project"`` clamps.

        Raises:
            QueryError: The program cannot make such an edit.
            StorageError: The file cannot be written.
            Error: As `intervene`.
        """
        opened = self._steering("exporting edits")
        from featuredb.steering.exports import export_edits

        options = opened.SteeringOptions(method)
        export_edits(self._reader.store, edits, Path(path), self._model, options)

    def effect(
        self,
        features: Feature | Sequence[Feature],
        k: int = 10,
        *,
        sample: bool = False,
        seed: int = 0,
        save: bool = True,
    ) -> Ablated:
        """Whether features are causal: ablate each where it fires, and see what the loss does.

        Each feature is ablated at its active tokens of k contexts, up to 16 tokens after its peak,
        and the loss of the token after each is compared. The control takes as much away at a
        matched token of k contexts in which it is silent.

        Args:
            features: One or several. Their sign tests are corrected together.
            k: Contexts of each kind, of different documents where there are as many.
            sample: Contexts from the whole range of its maxima. Default: its top contexts.
            seed: Draw other contexts.
            save: Store the answer in the view ``effects``, as a new snapshot.

        Returns:
            One row per feature: the change of the loss with its 95 % interval over documents, the
            control, the sign test's p and q, and the tokens that lose most probability.

        Raises:
            UnknownFeatureError: There is no such feature.
            QueryError: A feature never fires.
            StorageError: The database can only be read, and `save` is true.
            Error: As `fires_on`.
        """
        self._steering("ablating")
        from featuredb.steering.ablation import effect
        from queries.arguments import one_or_several

        given = one_or_several(features)
        return effect(self._reader, given, k, sample, seed, self._model, save=save)

    def attribute(self, text: str, token: str | int) -> Attribution:
        """What features contribute to the logit of a token after a text.

        Directly: with the final norm's scale held fixed, the features at the last token, the SAE's
        bias, its error and all that comes after the hook add up to the logit. Through later layers
        and from other tokens: activation × gradient, per feature and token.

        Args:
            text: Any text, at most as long as the model takes.
            token: The token whose logit it is, by its text, such as ``" Paris"``, or its id.

        Returns:
            One row per active feature and token, and rows for bias, error and what comes after.

        Raises:
            QueryError: No token reads so, or an SAE writes to several layers.
            ModelError: The model's logits are no linear map of its stream.
            Error: As `fires_on`.
        """
        self._steering("attributing")
        from featuredb.steering.attribution import attribute

        return attribute(self._reader.store, text, token, self._model)

    def ablate(
        self,
        features: Feature | Sequence[Feature] | Answer | duckdb.DuckDBPyRelation,
        target: str | Iterable[str],
        control: str | Iterable[str] | None = None,
        doses: Sequence[float] = (0.5, 1.0),
    ) -> Removal:
        """Take features away over texts, and see what the model loses there and elsewhere.

        Everywhere but at BOS and sinks, where the database records nothing.

        Args:
            features: A list, or rows with columns sae and feature_id: an answer, such as that of
                `about`, or a relation from `sql`.
            target: Texts that should suffer.
            control: Texts that should not.
            doses: Shares of each activation to take away, up to 1 for all of it.

        Returns:
            Per set of texts and dose, 0 too, the loss of the next token and its change with a 95 %
            interval over texts.

        Raises:
            UnknownFeatureError: There is no such feature.
            QueryError: There is no feature or no token, or a dose is not above 0 and at most 1.
            Error: As `intervene`.
        """
        self._steering("ablating")
        from featuredb.steering.removal import remove_features

        store = self._reader.store
        return remove_features(store, features, target, control, doses, self._model)

    @property
    def monitors(self) -> Monitors:
        """The monitors: rules over features, by name (`featuredb.add_monitor`)."""
        from featuredb.monitors.listed import list_monitors

        return list_monitors(self._reader)

    def monitor(self, name: str) -> Monitors:
        """Every version of a monitor, the last first. Raises `QueryError` where there is none."""
        from featuredb.monitors.listed import list_monitors

        return list_monitors(self._reader, name)

    def replay(
        self, rule: str, *, where: str | None = None, window: int = 8, k: int | None = None
    ) -> Alarms:
        """The alarms of a monitor, or of any rule, on everything that is stored.

        An alarm is a run of tokens of one document at which the rule holds, through its contexts.

        Args:
            rule: A monitor's name, or a rule such as ``"f12 > 5"`` (`docs/guide/monitoring.md`).
            where: A SQL condition on documents and contexts: alarms that begin there.
            window: Tokens shown on each side.
            k: The first k alarms alone. Default: all.

        Returns:
            One row per alarm, in the order of the texts. `total` counts them, with those beyond k.

        Raises:
            RuleError: The rule cannot be read, can never fire, or always does.
            UnknownFeatureError: There is no such feature.
            QueryError: There is no such monitor, or it reads an SAE that the database lacks.
            SQLError: DuckDB refuses the condition.
        """
        from queries.replay import replay

        return replay(self._reader, rule, where, window, k)

    def watch(self, name: str | Sequence[str] | None, texts: Any, *, window: int = 8) -> NewAlarms:
        """The alarms of monitors on new texts. Replaying texts that are stored gives the same.

        Only the features that they watch are encoded, where the SAE allows it.

        Args:
            name: A monitor, several, or None for all that are enabled.
            texts: Texts; pairs of an id and a text; a mapping of ids to texts; or chats, lists of
                messages such as ``{"role": "user", "content": …}``.
            window: Tokens shown on each side.

        Returns:
            One row per alarm, text by text.

        Raises:
            QueryError: There is no such monitor, or what is given is no text.
            Error: As `fires_on`.
        """
        import pyarrow as pa

        from featuredb.monitors.new_alarms import SCHEMA, NewAlarms

        found = list(self.watch_batches(name, texts, window=window))
        tables = [each.table for each in found] or [SCHEMA.empty_table()]
        return NewAlarms(
            pa.concat_tables(tables),
            n_texts=sum(each.n_texts for each in found),
            n_tokens=sum(each.n_tokens for each in found),
        )

    def watch_batches(
        self,
        name: str | Sequence[str] | None,
        texts: Any,
        *,
        batch: int = 256,
        window: int = 8,
        first: int = 0,
    ) -> Iterator[NewAlarms]:
        """As `watch`, an answer for each batch of texts, as they are read.

        Args:
            name: As of `watch`.
            texts: As of `watch`, any iterable.
            batch: Texts that go through the model together.
            window: As of `watch`.
            first: The number of the first text.

        Raises:
            Error: As `watch`.
        """
        self._steering("monitoring")
        from featuredb.monitors.readers import new_texts
        from featuredb.monitors.watching import watch
        from queries.rules.stored import listed

        store = self._reader.store
        monitors = listed(name, store)
        yield from watch(store, monitors, new_texts(texts), self._model, batch, window, first)

    def guard(
        self,
        name: str | Sequence[str] | None,
        *,
        abort: bool = False,
        then: Edits | None = None,
    ) -> AbstractContextManager[GenerationGuard]:
        """Watch what the model generates, and stop or steer it when a monitor fires.

        ::

            with db.guard("bank", abort=True) as guard:
                inputs = db.tokenizer("I am", return_tensors="pt").to(guard.model.device)
                guard.model.generate(**inputs)
            guard.fired

        Every token is read as soon as the model has read it: the prompt at once, then each new
        one. One text at a time.

        Args:
            name: As of `watch`.
            abort: Stop at the token after the alarm.
            then: Edits, as of `intervene`, that act from the token after the first alarm on.

        Returns:
            A context manager that gives the guard: `model`, the Hugging Face model itself, and
            after a generation `fired` and `alarms`.

        Raises:
            QueryError: There is no such monitor, or an edit is invalid.
            Error: As `intervene`.
        """
        self._steering("monitoring")
        from featuredb.monitors.guard import guard
        from queries.rules.stored import listed

        store = self._reader.store
        return guard(store, listed(name, store), self._model, abort=abort, then=then)

    def calibrate(
        self,
        rule: str,
        *,
        by: str | None = None,
        rate: str | None = None,
        where: str | None = None,
    ) -> Calibration:
        """How often a monitor, or any rule, fires on what is stored, with documents as the unit.

        Args:
            rule: As of `replay`. With `rate`, a rule with ``?`` for a number, as ``"f12 > ?"``.
            by: A column of documents that groups them, such as ``"topic"``.
            rate: At most so many alarms per token, ``"5/M"``, ``"1/k"`` or ``"1/200000"``: the
                smallest number for ``?`` at which, and at every larger one, the rule keeps it.
            where: A SQL condition on documents and contexts. Only these count.

        Returns:
            Alarms per million tokens and the share of documents with any, over all and by group,
            each with a 95 % interval. `rule` has the number that was found.

        Raises:
            RuleError: As of `replay`, or `rate` finds not one ``?`` behind a ``>``.
            QueryError: As of `replay`, or there is no such column or rate.
        """
        from queries.calibrate import calibrate

        return calibrate(self._reader, rule, by, rate, where)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the database's model. Raises as `fires_on`."""
        opened = self._steering("the tokenizer")
        return opened.recorded_model(self._reader.store.snapshot.model, self._model).tokenizer

    def _steering(self, purpose: str) -> ModuleType:
        """What stands on the model. Raises `MissingExtraError`."""
        with ingest_extra(purpose):
            from featuredb.steering import opened
            from ingest.operations.given import check_paths

            check_paths(model=self._model)
        return opened

    def labels(self, feature: Feature | Sequence[Feature] | None = None) -> Labels:
        """The labels of a feature, of several, or of all.

        Args:
            feature: One or several. Default: all that have labels.

        Returns:
            One row per label, by SAE and feature id. Of one feature the preferred label first,
            then those with most votes, then the newest.

        Raises:
            UnknownFeatureError: There is no such feature.
        """
        from queries.labels import labels

        return labels(self._reader, feature)

    def label(
        self, feature: Feature, text: str, *, method: str = "human", model: str | None = None
    ) -> Labels:
        """Label a feature: write what it means, and prefer that to its other labels.

        Stored as a new snapshot on top of the newest, which this handle then answers from.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            text: At most 10,000 characters.
            method: How the label was made.
            model: The model that wrote it, if one did.

        Returns:
            The feature's labels.

        Raises:
            UnknownFeatureError: There is no such feature.
            LabelError: The text is empty or too long.
            DatabaseError: Another process is writing.
            StorageError: The database can only be read.
        """
        from featuredb.labels.write import write_label

        self._move_on(write_label(self._writable("labeling"), feature, text, method, model))
        return self.labels(feature)

    def prefer_label(self, feature: Feature, label: str) -> Labels:
        """Make a label the one that answers show.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            label: Its text, or its id or the beginning of it.

        Returns:
            The feature's labels.

        Raises:
            LabelError: There is no such label, or several.
            Error: As `label`.
        """
        from featuredb.labels.write import prefer_label

        self._move_on(prefer_label(self._writable("labeling"), feature, label))
        return self.labels(feature)

    def vote_for_label(self, feature: Feature, label: str, votes: int = 1) -> Labels:
        """Add votes to a label, or take some away.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            label: As of `prefer_label`.
            votes: How many. Negative ones are against it.

        Returns:
            The feature's labels.

        Raises:
            Error: As `prefer_label`.
        """
        from featuredb.labels.write import vote_for_label

        self._move_on(vote_for_label(self._writable("labeling"), feature, label, votes))
        return self.labels(feature)

    def remove_label(self, feature: Feature, label: str) -> Labels:
        """Remove a label and its scores. If it was preferred, another one is then.

        Args:
            feature: A number, or ``"sae_name/1234"``.
            label: As of `prefer_label`.

        Returns:
            The feature's labels.

        Raises:
            Error: As `prefer_label`.
        """
        from featuredb.labels.write import remove_label

        self._move_on(remove_label(self._writable("labeling"), feature, label))
        return self.labels(feature)

    def _writable(self, purpose: str) -> Path:
        """The folder. Raises `ClosedError`, `StorageError` for a database behind a URL."""
        return _local(self._reader.store.root, purpose)

    def _move_on(self, written: Snapshot) -> None:
        """Answer from a snapshot that this handle wrote, whatever others wrote before it."""
        if written.number != self.snapshot.number:
            # What other threads are asking, and relations from `sql`, keep the reader before.
            self._store = Store(self._store.root, written, self._store.memory)
            prepare = partial(_prepare, self._model, self._confined)
            self._open_reader = Reader(self._store, prepare)

    def info(self) -> DatabaseInfo:
        """What the database holds, where it comes from, and how large it is."""
        from queries.info import info

        return info(self._reader)

    def close(self) -> None:
        """Close files and connections. Afterwards nothing answers, nor do relations from `sql`."""
        if self._open_reader is not None:
            self._open_reader.close()
            self._open_reader = None

    def __enter__(self) -> Self:
        if self._open_reader is None:
            raise self._closed()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return partial(Database, confined=self._confined), (self._store, self._model)

    def _repr_html_(self) -> str:
        from featuredb.render.html import to_html
        from queries.info import overview

        return to_html(overview(self._reader))

    def __repr__(self) -> str:
        saes = ", ".join(sae.name for sae in self.saes)
        return f"<featuredb {self.location}: {saes}; snapshot {self.snapshot.number}>"


def _local(root: Path | RemoteFiles, purpose: str) -> Path:
    return root if isinstance(root, Path) else local_folder(root.url, purpose)


def _encode(store: Store, model: str | None, texts: Sequence[str]) -> list[ActiveText]:
    """What is active on new texts, from the model and the SAEs."""
    from queries.specificity import Active, ActiveText

    with ingest_extra("reading new text"):
        from ingest.operations.given import check_paths

        check_paths(model=model)
        from ingest.extract.new_text import encode_texts

    return [
        ActiveText([Active(store.snapshot.sae(e.sae), *e[1:]) for e in one.encoded], one.tokens)
        for one in encode_texts(store, texts, model)
    ]


def _token_direction(
    store: Store, model: str | None, token_id: int, matrix: str
) -> npt.NDArray[np.float32]:
    """A token's row of a matrix of the model."""
    with ingest_extra("reading a token's direction"):
        from ingest.operations.given import check_paths

        check_paths(model=model)
        from ingest.extract.recorded import recorded_model
        from ingest.model.load import token_direction

    return token_direction(recorded_model(store.snapshot.model, model), token_id, matrix)


def _prepare(
    model: str | None, confined: bool, reader: Reader, connection: duckdb.DuckDBPyConnection
) -> None:
    """What a handle adds to its DuckDB: the macros that Python answers, and its limits."""
    from queries import compare, contrast, families, fires, near

    store = reader.store
    contrast.IN_PYTHON.register(connection, partial(contrast.contrast_in_sql, reader))
    encode = partial(_encode, store, model)
    fires.IN_PYTHON.register(connection, partial(fires.fires_on_in_sql, store, encode))
    families.IN_PYTHON.register(connection, partial(families.families_in_sql, store))
    compare.IN_PYTHON.register(connection, partial(compare.cosine_in_sql, store))
    direction = partial(_token_direction, store, model)
    near.IN_PYTHON.register(connection, partial(near.near_token_in_sql, store, direction))
    if confined:
        confine(connection, store.location)
