"""A contrast as a chart: how often each feature is active in A and in B."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from queries.contrast import Contrast

_NAMED = 8


def draw(axes: Axes, answer: Contrast) -> Axes:
    """The answer's rows: two sets by share, a target by correlation."""
    rows = list(answer)
    if answer.b:
        x, y = [row.share_b for row in rows], [row.share_a for row in rows]
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
        axes.set_xlabel(f"share of B: {_short(answer.b)}")
        axes.set_ylabel(f"share of A: {_short(answer.a)}")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    else:
        x, y = [row.share for row in rows], [row.spearman for row in rows]
        axes.axhline(0, color="0.7", linewidth=1, zorder=0)
        axes.set_xlabel("share active")
        axes.set_ylabel("Spearman's correlation")
    sure = [row.q is not None and row.q < 0.05 for row in rows]
    for marker, wanted, name in (("o", True, "q < 0.05"), ("x", False, "q ≥ 0.05")):
        chosen = [i for i, value in enumerate(sure) if value == wanted]
        if chosen:
            axes.scatter(
                [x[i] for i in chosen],
                [y[i] for i in chosen],
                marker=marker,
                color="C0",
                label=name,
            )
    for i, row in enumerate(rows[:_NAMED]):
        axes.annotate(
            f"{row.feature_id}", (x[i], y[i]), textcoords="offset points", xytext=(5, 4), fontsize=8
        )
    if rows:
        axes.legend(frameon=False)
    axes.set_title(f"{answer.found:,} of {answer.tested:,} features with q < 0.05", fontsize=10)
    return axes


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
