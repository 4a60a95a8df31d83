"""The features that are active together with one: on its tokens, or in its documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from featuredb.render.view import Column, Heading, View
from featuredb.store.names import NO_SAE, parse_feature, sae_named, sae_names
from featuredb.store.recorded import CommonTokens
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.statistics import SUMMARY_COLUMNS
from queries import plots
from queries.answers import Answer, of_feature, titled
from queries.arguments import check_choice, check_k
from queries.association import (
    COUNTS,
    MEASURES,
    ORDER_DECIMALS,
    SQL_COUNTS,
    SQL_MEASURES,
    nullable,
    p_values,
    q_values,
    table_columns,
)
from queries.catalog import literals
from queries.catalog.summaries import LABELS, SUMMARY, summaries
from queries.coactive_sql import MACROS, NUMBER, SAE, UNITS, call
from queries.connection import Reader
from queries.partners import Counts
from queries.question import Macro, Question
from queries.show import (
    counted,
    feature_name,
    feature_sizes,
    feature_table,
    number_column,
    score_column,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDERS = ("npmi", "jaccard", "count")
MIN_BOTH = 5

_BAD_SUPPORT = "min_both must be a whole number, at least 1, not {min_both!r}"


@dataclass(frozen=True, repr=False)
class Coactive(Answer):
    """Features active together with `feature`, A, by `by` descending, ties by SAE and feature id.

    Every other feature of the SAE, B, was counted over the `n` tokens, or documents (`unit`), that
    the SAEs of both recorded. Shown are those active together with A at least `min_both` times.

    Columns: of_sae string, of_feature_id i64 (A), rank i32, sae string, feature_id i64 (B), both
    i64, a_only i64, b_only i64, neither
    i64, and f64 p_b_given_a, p_a_given_b, jaccard, npmi, phi, g2 (`queries.association.measures`,
    null where undefined), q; then density f64, max_activation f32, top_tokens list<string>,
    promoted_tokens list<string>. q is the p-value of g2, adjusted by Benjamini and Hochberg over
    all features of the SAE that are active at all. It is null for tokens, since those of one
    document are not drawn independently.
    """

    kind: ClassVar[str] = "coactive"

    of_sae: str
    of_feature_id: int
    unit: str
    by: str
    min_both: int
    n: int
    label: str | None = field(default=None, kw_only=True)

    @property
    def feature(self) -> str:
        """A as `sae/1234`, as every question takes it."""
        return f"{self.of_sae}/{self.of_feature_id}"

    def view(self) -> View:
        """The features under a heading that says over what they were counted."""
        where = "on the same tokens" if self.unit == "token" else "in the same documents"
        after = f" {where} · {counted(len(self), 'feature')}, each at least {self.min_both} times"
        after += f" of {numbers.plural(self.n, self.unit)}"
        heading = [Heading("active with ", titled(self.feature, self.label), after)]
        return View([heading, [self.features()]] if len(self) else [heading])

    def plot(self, ax: Axes | None = None) -> Axes:
        """A bar of `by` per feature. Raises `MissingExtraError` without matplotlib.

        Args:
            ax: Axes to draw into. Default: those of a new figure.

        Returns:
            The axes. Nothing is shown: a notebook does that by itself.
        """
        rows = list(self)
        names = plots.feature_names([feature_name(r) for r in rows], [r.top_tokens for r in rows])
        values = [row["both" if self.by == "count" else self.by] for row in rows]
        title, what = f"active with {self.feature}", f"{self.by} ({self.unit}s)"
        return plots.ranked(plots.axes(ax), names, values, title, what)

    def features(self) -> Any:
        """Only the features, for a card."""
        rows = list(self)
        both = Column("both", [numbers.count(row.both) for row in rows], right=True)
        columns = [
            *(() if self.by == "count" else [score_column(self.by, rows, self.by)]),
            both if self.by != "count" else replace(both, style="bold"),
            number_column("P(B|A)", rows, "p_b_given_a"),
            number_column("P(A|B)", rows, "p_a_given_b"),
            feature_sizes(rows)[0],
        ]
        return feature_table(rows, columns)


def coactive(
    reader: Reader,
    feature: int | str,
    k: int = 20,
    unit: str = "token",
    by: str = "npmi",
    *,
    sae: str | None = None,
    min_both: int = MIN_BOTH,
) -> Coactive:
    """See `featuredb.Database.coactive`."""
    store = reader.store
    own, number = parse_feature(store.snapshot, feature)
    k = check_k(k)
    check_choice("unit", unit, UNITS)
    check_choice("by", by, ORDERS)
    min_both = _check_support(min_both)
    other = sae_named(store.snapshot, sae) if sae is not None else own
    common = CommonTokens(store, own, other)
    counts = Counts(store, own, number, other, common, unit)
    partner = counts.both >= min_both
    if other == own:
        partner[number] = False
    chosen = np.flatnonzero(partner)
    columns = table_columns(*counts.of(chosen))
    score = columns["both" if by == "count" else by].to_numpy(zero_copy_only=False)
    score = np.where(np.isnan(score), -np.inf, np.round(score, ORDER_DECIMALS))
    best = np.lexsort((chosen, -score))[:k]
    q = np.full(len(chosen), np.nan)
    if unit == "document":
        active = counts.b > 0
        if other == own:
            active[number] = False
        every = np.full(other.d_sae, np.nan)
        g2 = table_columns(*counts.of(np.flatnonzero(active)))["g2"]
        every[active] = q_values(p_values(g2.to_numpy(zero_copy_only=False)))
        q = every[chosen]
    columns["q"] = nullable(q)
    rows = [store.features.row(other, int(i)) for i in chosen[best]]
    about = store.features.summaries(rows)
    asked = of_feature(own.name, number, len(best))
    named_columns: dict[str, Any] = {
        "of_sae": asked[0],
        "of_feature_id": asked[1],
        "rank": pa.array(range(1, len(best) + 1), pa.int32()),
        "sae": pa.array([other.name] * len(best), pa.string()),
        "feature_id": pa.array(chosen[best], pa.int64()),
    }
    for name in (*COUNTS, *MEASURES, "q"):
        named_columns[name] = columns[name].take(pa.array(best))
    for name in SUMMARY_COLUMNS:
        named_columns[name] = about.column(name)
    return Coactive(
        pa.table(named_columns),
        of_sae=own.name,
        of_feature_id=number,
        unit=unit,
        by=by,
        min_both=min_both,
        n=counts.n,
        label=store.labels.preferred(own, number),
    )


def pair_options(
    reader: Reader, unit: str, sae: str | None, min_both: int
) -> tuple[list[Sae], int]:
    """The SAEs and the least support of `Database.coactive_pairs`, checked."""
    check_choice("unit", unit, UNITS)
    store = reader.store
    saes = list(store.snapshot.saes) if sae is None else [sae_named(store.snapshot, sae)]
    return saes, _check_support(min_both)


def _check_support(min_both: object) -> int:
    if not isinstance(min_both, int | np.integer) or isinstance(min_both, bool) or min_both < 1:
        raise QueryError(_BAD_SUPPORT.format(min_both=min_both))
    return int(min_both)


def _refused(name: str, choices: Sequence[str]) -> str:
    template = f"{name} must be one of {', '.join(choices)}, not '{{value}}'"
    return f"error({literals.message(template, value=literals.name(name))})"


def _coactive(snapshot: Snapshot) -> str:
    own = f"other_sae IS NULL OR CAST(other_sae AS VARCHAR) = {SAE}"
    names = ", ".join(literals.text(sae.name) for sae in snapshot.saes)
    unknown = literals.message(NO_SAE, name="other_sae", names=literals.text(sae_names(snapshot)))
    calls = " ".join(
        [f"WHEN other_sae NOT IN ({names}) THEN error({unknown})"]
        + [f"WHEN unit = '{unit}' AND ({own}) THEN {call(unit)}" for unit in UNITS]
        + [f"WHEN unit = '{unit}' THEN {call(unit, 'other_sae')}" for unit in UNITS]
    )
    scores = " ".join(
        f"WHEN '{by}' THEN " + ('CAST("both" AS DOUBLE)' if by == "count" else by) for by in ORDERS
    )
    support = literals.message(_BAD_SUPPORT.replace("!r", ""), min_both="min_both")
    partner = f"coalesce(CAST(other_sae AS VARCHAR), {SAE})"
    columns = ", ".join(f'm."{name}"' for name in (*COUNTS, *MEASURES))
    return f"""
WITH counted AS (FROM query(CASE {calls} ELSE {_refused("unit", UNITS)} END)),
measured AS (SELECT feature_id, {SQL_COUNTS}, {SQL_MEASURES} FROM counted),
tested AS (
    SELECT *, CASE WHEN unit = 'document' THEN featuredb_p_value(g2) END AS p,
        round(CASE "by" {scores} ELSE {_refused("by", ORDERS)} END,
            {ORDER_DECIMALS}) AS score
    FROM measured
),
adjusted AS (
    SELECT *, CASE WHEN unit = 'document'
        THEN least(1, min(p * tests / place) OVER (ORDER BY p DESC)) END AS q
    FROM (SELECT *, count(*) OVER () AS tests, count(*) OVER (ORDER BY p) AS place FROM tested)
),
best AS (
    SELECT *, CAST(row_number() OVER (ORDER BY score DESC NULLS LAST, feature_id) AS INTEGER)
        AS rank
    FROM adjusted WHERE "both" >= CASE WHEN min_both >= 1 THEN min_both ELSE error({support}) END
)
SELECT {SAE} AS of_sae, {NUMBER} AS of_feature_id, m.rank, {partner} AS sae, m.feature_id,
    {columns}, m.q, {SUMMARY}
FROM best AS m JOIN {summaries(snapshot)} AS f
    ON f.sae = {partner} AND f.feature_id = m.feature_id {LABELS}
WHERE m.rank <= featuredb_k(k) ORDER BY m.rank"""


QUESTION = Question(
    "coactive",
    Coactive,
    "coactive",
    (
        *MACROS,
        Macro(
            "coactive(feature, k := 20, unit := 'token', \"by\" := 'npmi', "
            f"min_both := {MIN_BOTH}, other_sae := NULL)",
            _coactive,
            about="features of the same SAE, or of other_sae, that fire on the same tokens "
            '(unit: or in the same documents), with all counts and measures. Quote "by" and "both"',
        ),
    ),
)
