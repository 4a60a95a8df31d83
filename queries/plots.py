"""Charts of answers, drawn by matplotlib into axes that the caller shows or saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featuredb.errors import MissingExtraError
from featuredb.render.characters import label
from featuredb.render.shading import BARS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes(given: Axes | None) -> Axes:
    """The given axes, else those of a new figure. Nothing is ever shown.

    Raises `MissingExtraError` where matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is not installed: pip install 'featuredb[plots]'"
        ) from error
    return plt.subplots(layout="constrained")[1] if given is None else given


def histogram(ax: Axes, counts: Sequence[int], low: float, high: float, name: str) -> Axes:
    """Counts of equal bins from `low` to `high`, on a logarithmic scale."""
    width = (high - low) / max(1, len(counts))
    edges = [low + i * width for i in range(len(counts))]
    ax.bar(edges, counts, width, align="edge", color=BARS, edgecolor="white", linewidth=0.5)
    ax.set_yscale("symlog", linthresh=1)
    ax.set(title=_plain(f"feature {name}"), xlabel="activation", ylabel="activations per bin")
    return ax


def ranked(ax: Axes, names: Sequence[str], values: Sequence[float], title: str, what: str) -> Axes:
    """A bar per row, the first row at the top."""
    ax.barh(range(len(names)), values, color=BARS)
    ax.set_yticks(range(len(names)), [_plain(name) for name in names])
    ax.invert_yaxis()
    ax.set(title=_plain(title), xlabel=what)
    return ax


def points(
    ax: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float], sure: Sequence[bool]
) -> Axes:
    """A point per row: a disk where it is `sure`, else a cross. Names beside the first `_NAMED`."""
    for marker, wanted in (("o", True), ("x", False)):
        chosen = [i for i, value in enumerate(sure) if value == wanted]
        if chosen:
            label = "q < 0.05" if wanted else "q ≥ 0.05"
            xs, ys = [x[i] for i in chosen], [y[i] for i in chosen]
            ax.scatter(xs, ys, marker=marker, color=BARS, label=label)
    for i, name in enumerate(names[:_NAMED]):
        ax.annotate(_plain(name), (x[i], y[i]), (5, 4), textcoords="offset points", fontsize=8)
    if names:
        ax.legend(frameon=False)
    return ax


_NAMED = 8


def feature_names(features: Sequence[str], tokens: Sequence[Sequence[str] | None]) -> list[str]:
    """Each feature with the token it fires on most."""
    pairs = zip(features, tokens, strict=True)
    return [f"{name}  {label(of[0])}" if of else name for name, of in pairs]


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
