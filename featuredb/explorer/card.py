"""Features in one file: no script, nothing fetched, for a mail or a paper's appendix."""

from __future__ import annotations

from collections.abc import Sequence

from featuredb.database import Database
from featuredb.errors import OptionError
from featuredb.explorer.drawing import render, section_of
from featuredb.explorer.parts_of_card import nearest, passaged, statistics
from featuredb.store.names import parse_feature
from queries.arguments import one_or_several


def card(database: Database, features: Sequence[int | str]) -> str:
    """The HTML of a file with a card for each feature, in that order.

    Raises `OptionError` where none is given, `UnknownFeatureError`.
    """
    given = one_or_several(features)
    if not given:
        raise OptionError("give at least one feature")
    cards = []
    for feature in given:
        sae, number = parse_feature(database.snapshot, feature)
        answer = database.feature(feature)
        top = [entry["token"] for entry in (answer.statistics.top_tokens or [])[:4]]
        view = answer.view()
        views = passaged(view), statistics(view), nearest(view)
        drawn = [section_of(each, linked=False) for each in views]
        cards.append((sae.name, number, top, *drawn))
    about = f"{database.snapshot.model.id} · snapshot {database.snapshot.number}"
    title = ", ".join(f"{sae}/{number}" for sae, number, *_ in cards)
    return render("card.html", cards=cards, about=about, title=title)
