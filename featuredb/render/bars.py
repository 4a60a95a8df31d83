"""Bars made of block characters: histograms, bars of a column, and sparklines."""

from __future__ import annotations

import math
from collections.abc import Sequence

_HISTOGRAM_ROWS = 6
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LEFT = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_LINE_CELLS = 16
_BAR_CELLS = 8


def heights(counts: Sequence[int]) -> list[float]:
    """The share of the largest count on a logarithmic scale, 0 to 1: activations are skewed."""
    top = math.log1p(max(counts, default=0))
    return [math.log1p(n) / top if n else 0.0 for n in counts]


def histogram_rows(counts: Sequence[int], height: int = _HISTOGRAM_ROWS) -> list[str]:
    """Bars of eighth blocks, top line first, as high as `heights`.

    A bin that holds anything is at least one eighth high.
    """
    eighths = [math.ceil(8 * height * share) for share in heights(counts)]
    return [
        "".join(_EIGHTHS[min(8, max(0, e - 8 * row))] for e in eighths)
        for row in reversed(range(height))
    ]


def bar(share: float, width: int = _BAR_CELLS) -> str:
    """A bar from the left, in eighths of a cell. Anything above 0 shows at least one."""
    eighths = math.ceil(8 * width * min(1.0, share)) if share > 0 else 0
    return "█" * (eighths // 8) + _LEFT[eighths % 8]


def sparkline(activations: Sequence[float]) -> str:
    """Activation over a text, at most 16 cells. A long text shows the maximum of each part."""
    n = len(activations)
    cells = min(n, _LINE_CELLS)
    stretches = [
        max((abs(v) for v in activations[i * n // cells : (i + 1) * n // cells]), default=0.0)
        for i in range(cells)
    ]
    top = max(stretches, default=0.0)
    # The lowest bar means inactive. Every active token has a higher one.
    return "".join(_EIGHTHS[1 + max(1, round(7 * v / top))] if v else "▁" for v in stretches)
