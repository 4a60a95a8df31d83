"""What a contrast is answered with, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Column, Facts, Heading, Part, Passages, View
from queries import plots
from queries.answers import FOR_DISPLAY, Answer, Row
from queries.peaks import passages
from queries.show import counted, feature_name, feature_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Contrast(Answer):
    """Features that tell A from B, the strongest evidence first.

    Columns: rank i32, sae string, feature_id i64, share_a and share_b f64 (of units it is active
    in), difference f64 (the first less the second), log_odds and log_odds_low f64 (of being active,
    and its bound on the side of 0), auroc, auroc_low and auroc_high f64 (of the pooled activation,
    above 1/2 where A has more; null bounds where a set has one unit), p and q f64, top_tokens
    list<string>. With `each`, value string and n i64, its units, come first, and A is the units of
    that value. With a target: rank, sae, feature_id, share, spearman, t, separation, p, q f64,
    top_tokens. q is of no smaller p than the data can have, and p the test's own.

    a, b: what was compared. n_a, n_b: units of each. unit, pool: as asked. null: the null
    hypothesis of p. tested: features within the coverage bounds, which q is adjusted over. found:
    those of them with q < 0.05. notes: what a reader should know. probe: see
    `queries.contrasts.probe`. contexts: the strongest context of each side, of the first 20 rows
    (`queries.contrasts.contexts_of_sides`).
    """

    kind: ClassVar[str] = "contrast"

    a: str
    b: str
    n_a: int
    n_b: int
    unit: str
    pool: str
    null: str
    tested: int
    found: int
    notes: tuple[str, ...]
    probe: dict[str, Any] | None
    contexts: pa.Table
    special: frozenset[str] = field(default=frozenset(), kw_only=True, metadata=FOR_DISPLAY)

    def view(self) -> View:
        """What was compared and how, the features, and a context of each side."""
        rows = list(self)
        sections: list[list[Part]] = [[self._heading()], [Facts(self._facts())]]
        if rows:
            sections.append([feature_table(rows, self._columns(rows))])
        if self.probe is not None:
            sections.append([Facts({"probe": self.probe["about"]})])
        if len(self.contexts):
            sections.append([Heading("strongest contexts in A and in B"), self._passages()])
        return View(sections)

    def attributes(self) -> dict[str, Any]:
        """What it says besides its rows. The contexts as rows of their own."""
        return super().attributes() | {"contexts": self.contexts.to_pylist()}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Its features by their shares in A and in B, or by correlation with the target.

        Args:
            ax: Axes to draw into. Default: those of a new figure.

        Returns:
            The axes. Nothing is shown: a notebook does that by itself.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        rows = list(self)
        drawn = plots.axes(ax)
        names = [feature_name(row) for row in rows]
        sure = [row.q is not None and row.q < 0.05 for row in rows]
        if self.b:
            drawn.axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0)
            drawn.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            drawn.set(xlabel="share of B", ylabel="share of A", title=f"{self.a} / {self.b}")
            x, y = [row.share_b for row in rows], [row.share_a for row in rows]
        else:
            drawn.axhline(0, color="0.7", linewidth=1, zorder=0)
            drawn.set(xlabel="share active", ylabel="Spearman's correlation", title=self.a)
            x, y = [row.share for row in rows], [row.spearman for row in rows]
        return plots.points(drawn, names, x, y, sure)

    def _heading(self) -> Heading:
        if not self.found:
            why = "no feature has q < 0.05" if self.tested else "no feature was tested"
            return Heading("contrast ", "nothing", f" · {why}")
        return Heading("contrast ", self.a, f" against {self.b}" if self.b else "")

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"A": f"{self.a} · {counted(self.n_a, self.unit)}"}
        if self.b:
            count = f" · {counted(self.n_b, self.unit)}" if self.n_b else ""
            facts["B"] = f"{self.b}{count}"
        facts["null"] = self.null
        significant = numbers.count(self.found)
        by_value = "value" in self.table.column_names
        tested = counted(self.tested, "feature")
        if by_value:
            tested = f"{counted(self.tested, 'test')}, of a feature at a value"
        facts["tested"] = f"{tested} · {significant} with q < 0.05"
        for i, note in enumerate(self.notes):
            facts["note" if i == 0 else f"note {i + 1}"] = note
        return facts

    def _columns(self, rows: Sequence[Row]) -> list[Column]:
        columns = []
        if "value" in self.table.column_names:
            columns.append(Column("value", [f"{r['value']} · {numbers.count(r.n)}" for r in rows]))
        if "spearman" in self.table.column_names:
            columns.append(Column("share", [_share(r.share) for r in rows], right=True))
            columns.append(Column("Spearman", [_signed(r.spearman) for r in rows], right=True))
            columns.append(Column("t", [_signed(r.t) for r in rows], right=True))
        else:
            columns.append(Column("in A", [_share(r.share_a) for r in rows], right=True))
            columns.append(Column("in B", [_share(r.share_b) for r in rows], right=True))
            cells = [_interval(r) for r in rows]
            columns.append(Column("AUROC", cells, right=True, style="bold"))
        return [*columns, Column("q", [_small(r.q) for r in rows], right=True)]

    def _passages(self) -> Passages:
        """The contexts by rank and side, shaded relative to the larger of a feature's two."""
        # What `passages` would take for metadata is said by the rank, `1 A`.
        shown = list(Answer(self.contexts))
        plain = Answer(self.contexts.drop_columns(["side", "text_index"]))
        largest: dict[int, float] = {}
        for row in shown:
            largest[row.rank] = max(largest.get(row.rank, 0.0), abs(row.activation)) or 1.0
        items = []
        for row, item in zip(shown, passages(plain, 1.0, self.special).items, strict=True):
            shades = [value / largest[row.rank] for value in item.activations]
            item = replace(item, rank=f"{row.rank} {row.side}", activations=shades)
            if row.context_id is None:
                about = f"text {row.text_index} token {row.token_index}"
                item = replace(item, title=about, about=about)
            items.append(item)
        return Passages(items)


def _share(value: float) -> str:
    return f"{100 * value:.1f}%" if value else "0"


def _signed(value: float | None) -> str:
    return numbers.MISSING if value is None else f"{value:+.2f}"


def _small(value: float | None) -> str:
    return numbers.MISSING if value is None else f"{value:.2g}" if value < 0.01 else f"{value:.2f}"


def _interval(row: Row) -> str:
    if row.auroc_low is None:
        return f"{row.auroc:.2f}"
    half = max(row.auroc_high - row.auroc, row.auroc - row.auroc_low)
    return f"{row.auroc:.2f} ±{half:.2f}"
