"""What a sweep over strengths is answered with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Column, Heading, Part, Table, View
from featuredb.steering.intervals import Interval
from queries import plots
from queries.answers import Answer
from queries.show import label_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRENGTHS = pa.schema(
    [
        ("strength", pa.string()),
        ("concept", pa.float64()),
        ("fluency", pa.float64()),
        ("closeness", pa.float64()),
        ("score", pa.float64()),
        ("score_low", pa.float64()),
        ("score_high", pa.float64()),
        ("choosing_score", pa.float64()),
        ("held_out_score", pa.float64()),
        ("held_out_low", pa.float64()),
        ("held_out_high", pa.float64()),
        ("best", pa.bool_()),
        ("works", pa.bool_()),
    ]
)
SWEPT_TEXTS = pa.schema(
    [
        ("prompt_index", pa.int32()),
        ("prompt", pa.string()),
        ("held_out", pa.bool_()),
        ("strength", pa.string()),
        ("text", pa.string()),
        ("concept", pa.float64()),
        ("fluency", pa.float64()),
        ("closeness", pa.float64()),
        ("score", pa.float64()),
        ("perplexity", pa.float64()),
        ("repetition", pa.float64()),
        ("target", pa.float64()),
        ("hits", pa.float64()),
    ]
)
_AXES = ("concept", "fluency", "closeness")
_COLORS = {"concept": "#4477aa", "fluency": "#228833", "closeness": "#ccbb44"}


@dataclass(frozen=True, repr=False)
class Swept(Answer):
    """How well each strength steers, see `featuredb.steering.sweep`. In the order given.

    Columns: strength string, concept, fluency, closeness, score f64 (means over all prompts, the
    score with its 95 % interval score_low, score_high), choosing_score f64 (over every other
    prompt), held_out_score, held_out_low, held_out_high f64 (over the rest), best bool (the highest
    choosing_score), works bool (in the working range around it).
    """

    kind: ClassVar[str] = "swept"

    texts: pa.Table
    """Every text: prompt_index, prompt, held_out, strength, text, axes, score and measures."""
    features: str
    judged: bool = False
    """Whether the axes are a judge's."""
    has_closeness: bool = False
    """Whether there is an axis of closeness."""
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Of the features that have one, by name."""

    def attributes(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "judged": self.judged,
            "best": self.best,
            "working_range": self.working_range,
            "labels": dict(self.labels),
            "texts": self.texts.to_pylist(),
        }

    @property
    def best(self) -> str | None:
        """The strength that was chosen. None where none works at all."""
        return next((row.strength for row in self if row.best), None)

    @property
    def working_range(self) -> list[str]:
        """Strengths around the best whose score is at least 0.8 of its."""
        return [row.strength for row in self if row.works]

    def view(self) -> View:
        """A row per strength, and what is suggested."""
        rows = list(self)
        columns = [Column("strength", [row.strength for row in rows], right=True, style="bold")]
        axes = _AXES if self.has_closeness else _AXES[:2]
        for axis in axes:
            columns.append(Column(axis, [_two(row[axis]) for row in rows], right=True))
        scores = [
            "-" if row.score is None else _interval(row.score, row.score_low, row.score_high)
            for row in rows
        ]
        columns.append(Column("score", scores, right=True))
        marks = ["best" if row.best else "works" if row.works else "" for row in rows]
        columns.append(Column("", marks))
        prompts = len(set(self.texts.column("prompt_index").to_pylist()))
        by = "by a judge" if self.judged else "measured"
        heading = Heading(
            "sweep of ", self.features, f" · {numbers.plural(prompts, 'prompt')}, {by}"
        )
        parts: list[list[Part]] = [[heading, Table(columns)]]
        if self.labels:
            parts = [[heading, *label_table(self.labels)], [Table(columns)]]
        return View([*parts, [Heading(self._suggestion())], self._examples()])

    def _suggestion(self) -> str:
        best = next((row for row in self if row.best), None)
        if best is None:
            return "no strength works: the concept never shows, or the text falls apart"
        works = self.working_range
        suggested = f"works from {works[0]} to {works[-1]}" if len(works) > 1 else "alone"
        held_out = "held out: no prompts"
        if best.held_out_score is not None:
            held_out = "held out " + _interval(
                best.held_out_score, best.held_out_low, best.held_out_high
            )
        missing = "" if self.has_closeness else " · no sentence encoder, so no closeness"
        return f"best {best.strength} ({suggested}) · {held_out}{missing}"

    def _examples(self) -> list[Part]:
        rows = [row for row in self.texts.to_pylist() if row["prompt_index"] == 0]
        if not rows:
            return []
        texts = [" ↵ ".join(row["text"].split("\n")) for row in rows]
        columns = [
            Column("strength", [row["strength"] for row in rows], right=True),
            Column(
                "text",
                [text if len(text) <= 300 else text[:299] + "…" for text in texts],
                wrap=True,
            ),
        ]
        return [Heading("prompt ", rows[0]["prompt"]), Table(columns)]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The axes over the strengths. Raises `MissingExtraError` without matplotlib.

        Args:
            ax: Axes to draw into. Default: those of a new figure.

        Returns:
            The axes. Nothing is shown: a notebook does that by itself.
        """
        ax = plots.axes(ax)
        rows, places = list(self), range(len(self))
        for name in _AXES if self.has_closeness else _AXES[:2]:
            values = [row[name] for row in rows]
            ax.plot(places, values, marker="o", color=_COLORS[name], label=name, lw=1.2)
        scores = [row.score for row in rows]
        ax.plot(places, scores, marker="o", color="black", label="score", lw=2)
        if all(row.score_low is not None for row in rows):
            low = [max(row.score_low, 0.0) for row in rows]
            high = [min(row.score_high, 1.0) for row in rows]
            ax.fill_between(places, low, high, color="black", alpha=0.12, lw=0)
        works = [place for place, row in zip(places, rows, strict=True) if row.works]
        if works:
            ax.axvspan(works[0] - 0.3, works[-1] + 0.3, color="#66ccee", alpha=0.2, lw=0)
        ax.set_xticks(list(places), [row.strength for row in rows])
        ax.set(ylim=(-0.03, 1.03), xlabel="strength", title=f"steering {self.features}")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        return ax


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(mean: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return _two(mean)
    interval = Interval(mean, max(low, 0.0), min(high, 1.0), 0)
    return f"{_two(interval.mean)} ({_two(interval.low)} to {_two(interval.high)})"
