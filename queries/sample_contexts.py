"""Contexts drawn over the whole range of a feature's activations, not only its top."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from featuredb.render.view import Heading, Part, View
from featuredb.store.names import BAD_BINS, BAD_BINS_BY, parse_feature
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.store import Store
from queries import plots
from queries.activations import FeatureContexts, feature_contexts
from queries.answers import of_feature
from queries.arguments import check_k, check_seed, check_window, is_whole
from queries.catalog import literals
from queries.catalog.draws import keyed
from queries.catalog.windows import windows
from queries.connection import Reader
from queries.draws import keys, turns
from queries.peaks import peak_columns
from queries.question import Macro, Question
from queries.show import counted
from queries.top_contexts import TopContexts, peak_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("width", "quantile")
BINS = 10
"""Unless there are fewer contexts, or the question says."""


@dataclass(frozen=True, repr=False)
class SampledContexts(TopContexts):
    """Contexts of a feature from bins of their maximum, by maximum descending, ties by context id.

    Columns: those of `TopContexts`, and after the rank bin i32 (1 holds the weakest), bin_low and
    bin_high f32 (its edges, or for quantile bins its least and greatest maximum), bin_contexts i64
    (contexts of the feature in the bin) and bin_weight f64.

    bin_weight: how many of the feature's contexts a row stands for, bin_contexts over those drawn
    from the bin. A sum over rows with these weights estimates that over all contexts without bias
    (Horvitz and Thompson, 1952): the sum of the weights is the feature's number of contexts.
    """

    kind: ClassVar[str] = "sampled_contexts"

    by: str
    seed: int

    def view(self) -> View:
        """The contexts bin by bin, the strongest first."""
        name = "range" if self.by == "width" else "quantiles"
        after = f" · {counted(len(self), 'context')} over the {name} of its activations"
        sections: list[list[Part]] = [[Heading("feature ", self.titled, after)]]
        return View([*sections, *self.bins()])

    def plot(self, ax: Axes | None = None) -> Axes:
        """A bar per bin that has contexts: how many of the feature's contexts are in it.

        Raises `MissingExtraError` without matplotlib.

        Args:
            ax: Axes to draw into. Default: those of a new figure.

        Returns:
            The axes. Nothing is shown: a notebook does that by itself.
        """
        rows = [next(group) for _, group in groupby(self, lambda row: row.bin)]
        names = [f"{numbers.number(r.bin_low)} to {numbers.number(r.bin_high)}" for r in rows]
        values, title = [row.bin_contexts for row in rows], f"feature {self.feature}"
        return plots.ranked(plots.axes(ax), names, values, title, "contexts")

    def bins(self) -> Iterator[list[Part]]:
        """Each bin's range, how many of its contexts these are, and the contexts."""
        rows = list(self)
        start = 0
        for _, group in groupby(rows, lambda row: row.bin):
            n = len(list(group))
            row = rows[start]
            ends = f"{numbers.number(row.bin_low)} to {numbers.number(row.bin_high)}"
            held = numbers.plural(row.bin_contexts, "context")
            yield [Heading(ends, after=f" · {n} of {held}"), self[start : start + n].passages()]
            start += n


def sample_contexts(
    reader: Reader,
    feature: int | str,
    k: int = 20,
    bins: int | None = None,
    seed: int = 0,
    by: str = "width",
    window: int = 16,
) -> SampledContexts:
    """See `featuredb.Database.sample_contexts`."""
    sae, number = parse_feature(reader.snapshot, feature)
    k, window, seed = check_k(k), check_window(window), check_seed(seed)
    if by not in KINDS:
        raise QueryError(BAD_BINS_BY.format(by=by))
    bins = min(BINS, k) if bins is None else bins
    if not is_whole(bins) or not 1 <= bins <= k:
        raise QueryError(BAD_BINS.format(bins=bins, k=k))
    contexts = feature_contexts(reader.store, sae, number)
    return drawn(reader.store, sae, number, contexts, k, bins, seed, by, window)


def drawn(
    store: Store,
    sae: Sae,
    number: int,
    contexts: FeatureContexts,
    k: int,
    bins: int,
    seed: int = 0,
    by: str = "width",
    window: int = 16,
) -> SampledContexts:
    """`sample_contexts` of all contexts of a feature: what the SQL gives, in less time.

    docs/design.md has both times.
    """
    name = f"{sae.name}/{number}"
    peak = contexts.peak.astype(np.float64)
    low, high = (float(peak.min()), float(peak.max())) if len(peak) else (0.0, 0.0)
    width = by == "width" and high > low
    if by == "quantile":
        place = np.empty(len(peak), np.int64)
        place[np.lexsort((contexts.context_id, peak))] = np.arange(len(peak))
        bin_ = 1 + place * bins // max(1, len(peak))
    elif width:
        bin_ = np.minimum(bins, 1 + np.floor((peak - low) / (high - low) * bins).astype(np.int64))
    else:
        bin_ = np.full(len(peak), bins)
    turn = turns(bin_, keys(contexts.context_id, seed, name))
    rows = np.lexsort((-bin_, turn))[:k]
    rows = rows[np.lexsort((contexts.context_id[rows], -peak[rows]))]
    in_bin = np.bincount(bin_, minlength=bins + 1)[bin_[rows]]
    of_bin = bin_[rows]
    if width:
        edges = [low + (high - low) * (of_bin - 1) / bins, low + (high - low) * of_bin / bins]
    else:
        least, most = np.full(bins + 1, np.inf), np.full(bins + 1, -np.inf)
        np.minimum.at(least, bin_, peak)
        np.maximum.at(most, bin_, peak)
        edges = [least[of_bin], most[of_bin]]
    columns = dict(zip(("sae", "feature_id"), of_feature(sae.name, number, len(rows)), strict=True))
    peaks = [peak_of(contexts, contexts, int(row)) for row in rows]
    shown = peak_columns(store, peaks, window, 0)
    columns |= {
        "rank": shown.pop("rank"),
        "bin": pa.array(of_bin, pa.int32()),
        "bin_low": pa.array(edges[0].astype(np.float32)),
        "bin_high": pa.array(edges[1].astype(np.float32)),
        "bin_contexts": pa.array(in_bin, pa.int64()),
        "bin_weight": pa.array(in_bin / np.bincount(of_bin, minlength=bins + 1)[of_bin]),
        **shown,
    }
    return SampledContexts(
        pa.table(columns),
        sae=sae.name,
        feature_id=number,
        max_activation=float(store.features.max_activation(sae)[number]),
        special=store.texts.special,
        label=store.labels.preferred(sae, number),
        by=by,
        seed=seed,
    )


def _checked_bins() -> str:
    message = literals.message(BAD_BINS, bins="bins", k="k")
    return (
        "CASE WHEN bins BETWEEN 1 AND k AND TRY_CAST(bins AS BIGINT) = bins "
        f"THEN CAST(bins AS BIGINT) ELSE error({message}) END"
    )


_PEAKS = """
    SELECT context_id, max(activation) AS activation FROM feature_activations(feature)
    GROUP BY context_id"""

_WIDTH = """least(bin_count,
        1 + CAST(floor((CAST(activation AS DOUBLE) - low) / (high - low) * bin_count) AS BIGINT))"""


def _drawn() -> str:
    """The contexts that are drawn, of each bin in turn, the strongest bin first."""
    refused = literals.message(BAD_BINS_BY, by="bins_by")
    return f"""
WITH binned AS (
    SELECT *, CASE WHEN bins_by = 'width' THEN CASE WHEN high = low THEN bin_count ELSE {_WIDTH} END
            WHEN bins_by = 'quantile'
            THEN 1 + (row_number() OVER (ORDER BY activation, context_id) - 1) * bin_count // total
            ELSE error({refused}) END AS bin
    FROM (
        SELECT *, CAST(min(activation) OVER () AS DOUBLE) AS low,
            CAST(max(activation) OVER () AS DOUBLE) AS high, count(*) OVER () AS total,
            featuredb_bins(bins, featuredb_k(k)) AS bin_count
        FROM ({keyed(_PEAKS)})
    )
),
placed AS (
    SELECT *, row_number() OVER (PARTITION BY bin ORDER BY key) AS turn,
        count(*) OVER (PARTITION BY bin) AS bin_contexts,
        CASE WHEN bins_by = 'width' AND high > low THEN low + (high - low) * (bin - 1) / bin_count
            ELSE min(activation) OVER (PARTITION BY bin) END AS bin_low,
        CASE WHEN bins_by = 'width' AND high > low THEN low + (high - low) * bin / bin_count
            ELSE max(activation) OVER (PARTITION BY bin) END AS bin_high
    FROM binned
)
SELECT CAST(row_number() OVER (ORDER BY activation DESC, context_id) AS INTEGER) AS rank,
    context_id, CAST(bin AS INTEGER) AS bin, CAST(bin_low AS FLOAT) AS bin_low,
    CAST(bin_high AS FLOAT) AS bin_high, bin_contexts,
    bin_contexts / count(*) OVER (PARTITION BY bin) AS bin_weight
FROM (SELECT * FROM placed QUALIFY row_number() OVER (ORDER BY turn, bin DESC) <= k)"""


def _sampled(snapshot: Snapshot) -> str:
    # The lists are made of the drawn contexts alone.
    best = """
    SELECT any_value(sae) AS sae, any_value(feature_id) AS feature_id, any_value(d.rank) AS rank,
        context_id, max(a.activation) AS activation,
        arg_min(token_index, (-a.activation, token_index)) AS token_index,
        list(token_index ORDER BY token_index) AS token_indexes,
        list(a.activation ORDER BY token_index) AS activations
    FROM feature_activations(feature) AS a JOIN drawn AS d USING (context_id)
    GROUP BY context_id"""
    return f"""
WITH drawn AS MATERIALIZED ({_drawn()}
)
SELECT w.sae, w.feature_id, w.rank, d.bin, d.bin_low, d.bin_high, d.bin_contexts, d.bin_weight,
    w.* EXCLUDE (sae, feature_id, rank)
FROM ({windows(best, snapshot)}) AS w JOIN drawn AS d USING (rank)
ORDER BY w.rank"""


QUESTION = Question(
    "sample_contexts",
    SampledContexts,
    "sample",
    (
        Macro("featuredb_bins(bins, k)", _checked_bins(), table=False),
        Macro("featuredb_sampled(feature, k, bins, seed, bins_by, size)", _sampled),
        Macro(
            "sample_contexts(feature, k := 20, bins := NULL, seed := 0, bins_by := 'width', "
            "window_size := 16)",
            f"FROM featuredb_sampled(feature, k, coalesce(bins, least({BINS}, k)), seed, bins_by, "
            "featuredb_window(window_size))",
            about="contexts drawn from bins of their maximum, bins_by width or quantile, and how "
            f"many contexts each stands for. bins NULL: {BINS}, or k if less",
        ),
    ),
)
