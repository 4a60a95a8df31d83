"""Numbers as a person reads them. A missing number is `-`. Nothing is rounded to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "-"


def count(value: int | None) -> str:
    """12,345"""
    return MISSING if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """Four significant digits: 14.23, 0.0123, 2.1e-06."""
    if value is None:
        return MISSING
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    rounded = float(f"{value:.4g}")  # first, or 0.99999 would count as a number below one
    return f"{rounded:.{_decimals(rounded)}f}"


def short(value: float, digits: int = 3) -> str:
    """Three significant digits, of thousands all before the point: 0.0123, 746, 17,405."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.{digits}g}"


def aligned(values: Sequence[float | None]) -> list[str]:
    """Numbers of one column, all with the decimals that suit the largest."""
    finite = [abs(v) for v in values if v is not None and math.isfinite(v)]
    largest = max(finite, default=0.0)
    if largest == 0 or not 1e-4 <= largest < 1e6:
        return [number(v) for v in values]
    decimals = _decimals(largest)
    if largest >= 1e-2:
        decimals = min(decimals, 2 if largest >= 1 else 3)
    floor = 0.5 * 10**-decimals
    return [
        number(v)
        if v is None or not math.isfinite(v) or 0 < abs(v) < floor
        else f"{v:.{decimals}f}"
        for v in values
    ]


def density(value: float | None) -> str:
    """3.1%, or `1 in 2,345` where a percentage would be mostly zeros."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return f"{value:g}"
    if value <= 0:
        return "0"
    return f"{100 * value:.1f}%" if value >= 0.01 else f"1 in {round(1 / value):,}"


def size(n_bytes: int) -> str:
    """2.6 GB, in powers of a thousand."""
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{n_bytes} bytes" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def plural(n: int, noun: str, many: str | None = None) -> str:
    """1 context, 12 contexts"""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def _decimals(value: float) -> int:
    return max(0, 3 - math.floor(math.log10(abs(value))))
