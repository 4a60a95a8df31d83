"""Views drawn for pages: classes instead of inline styles, links, charts as SVG."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from featuredb.explorer.address import address, feature_url
from featuredb.render.characters import label, neutralize
from featuredb.render.html import Drawing, harmless
from featuredb.render.view import Passages, View

Links = tuple[tuple[str, Callable[..., Any]], ...]


def _nowhere(*_: Any) -> str:
    return ""


_LINKED: Links = (("address", address), ("feature_url", feature_url))
_ALONE: Links = (("address", _nowhere), ("feature_url", _nowhere))


def section_of(view: View, *, linked: bool = True, links: Links | None = None) -> Markup:
    """Every part of a view, its sections apart. linked: to pages of features and contexts.

    links: the addresses of those, where they are not the server's.
    """
    links = links or (_LINKED if linked else _ALONE)
    drawing = Drawing("featuredb.explorer", "templates/parts.html", links)
    drawn = []
    for section in view:
        kind = "passaged" if any(isinstance(part, Passages) for part in section) else ""
        parts = Markup("").join(drawing.part(part) for part in section)
        drawn.append(drawing.draw("section", parts, kind))
    return Markup("").join(drawn)


def verbatim(text: str) -> Markup:
    """A text of several lines as it is, tabs too, but harmless."""
    pieces = re.split("([\n\t])", text)
    return Markup("").join(
        escape(neutralize(each) if each not in "\n\t" else each) for each in pieces
    )


def as_given(text: str) -> Markup:
    """A text in a form's field, which sends it again: only escaped, as nothing there is markup."""
    return Markup(escape(text.replace("\0", "\ufffd")))  # as a browser reads it


@cache
def style() -> Markup:
    """The sheet of all pages. Ours, and inside <style>, where nothing is escaped."""
    sheet = files("featuredb.explorer").joinpath("assets", "explorer.css")
    return Markup(sheet.read_text(encoding="utf-8"))


@cache
def style_source() -> str:
    """What a content security policy calls `style`."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return f"'sha256-{digest}'"


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
    made.globals["style"] = style
    made.filters |= {"verbatim": verbatim, "as_given": as_given}
    return made


def render(template: str, **values: Any) -> str:
    """A page."""
    return environment().get_template(template).render(**values)


def generate(template: str, **values: Any) -> Iterator[str]:
    """A page, piece by piece as it is drawn."""
    return environment().get_template(template).generate(**values)
