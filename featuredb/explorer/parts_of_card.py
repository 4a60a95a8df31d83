"""What a feature's card shows, taken apart: pages lay the pieces out their own way."""

from __future__ import annotations

from collections.abc import Sequence

from featuredb.render.view import Group, Heading, Part, Passages, View

TOP = "top contexts"


def statistics(card: View) -> View:
    """What the card has besides contexts and neighbors."""
    # The page has the name above.
    (_, *facts), *rest = card
    return View([facts, *(s for s in rest if not (_passaged(s) or _of_neighbors(s)))])


def examples(card: View) -> View:
    """Its contexts but the top ones, which have a panel of their own."""
    shown = [section for section in card if _passaged(section)]
    top = bool(shown) and isinstance(shown[0][0], Heading) and shown[0][0].subject == TOP
    return View(shown[top:])


def passaged(card: View) -> View:
    """All of its contexts."""
    return View([section for section in card if _passaged(section)])


def nearest(card: View) -> View:
    """Its neighbors, by each way of being near."""
    return View([section for section in card if _of_neighbors(section)])


def _passaged(section: Sequence[Part]) -> bool:
    return any(isinstance(part, Passages) for part in section)


def _of_neighbors(section: Sequence[Part]) -> bool:
    """Blocks of neighbors, each under a heading."""
    first = section[0]
    return isinstance(first, Group) and isinstance(first.blocks[0][0], Heading)
