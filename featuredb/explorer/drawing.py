"""Views drawn for pages: classes instead of inline styles, links, charts as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from featuredb.explorer.asked import address, feature_url
from featuredb.render import numbers
from featuredb.render.characters import label, neutralize
from featuredb.render.html import Drawing, harmless
from featuredb.render.view import Passages, View

_WIDTH, _HEIGHT = 400, 96


def section_of(view: View) -> Markup:
    """Every part of a view, its sections apart."""
    drawing = Drawing("featuredb.explorer", "templates/parts.html", _helpers())
    drawn = []
    for section in view:
        kind = "passaged" if any(isinstance(part, Passages) for part in section) else ""
        parts = Markup("").join(drawing.part(part) for part in section)
        drawn.append(drawing.draw("section", parts, kind))
    return Markup("").join(drawn)


def _helpers() -> tuple[tuple[str, Callable[..., Any]], ...]:
    return ("address", address), ("feature_url", feature_url), ("histogram", histogram)


def histogram(counts: Sequence[int], low: str, high: str) -> list[tuple[str, str, str, str, str]]:
    """(x, y, width, height, what it is) of each bar, heights on a logarithmic scale."""
    top = math.log1p(max(counts, default=0)) or 1.0
    width = _WIDTH / max(1, len(counts))
    first, last = _float(low), _float(high)
    drawn = []
    for i, n in enumerate(counts):
        height = max(2.0, _HEIGHT * math.log1p(n) / top) if n else 0.0
        ends = [first + (last - first) * (i + j) / len(counts) for j in (0, 1)]
        about = f"{numbers.number(ends[0])} to {numbers.number(ends[1])}: {n:,}"
        drawn.append(
            (
                f"{i * width:.1f}",
                f"{_HEIGHT - height:.1f}",
                f"{max(width - 1.5, 1):.1f}",
                f"{height:.1f}",
                about,
            )
        )
    return drawn


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def verbatim(text: str) -> Markup:
    """A text of several lines as it is, but harmless."""
    return Markup("\n").join(escape(neutralize(line)) for line in text.split("\n"))


@cache
def environment() -> jinja2.Environment:
    """The templates of pages."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("featuredb.explorer", "templates"),
        autoescape=True,
        finalize=harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"feature_url": feature_url, "address": address, "label": label}
    made.filters["verbatim"] = verbatim
    return made


def render(template: str, **values: Any) -> str:
    """A page."""
    return environment().get_template(template).render(**values)
