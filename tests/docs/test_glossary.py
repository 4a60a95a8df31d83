"""docs/glossary.md: the code has the six nouns where the page says."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.pages import ROOT, section, table

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
PORTIONS = table(section(GLOSSARY, "Portions"))


def test_there_are_six_nouns() -> None:
    nouns = [row[0] for row in PORTIONS]
    assert nouns == ["partition", "segment", "bucket", "row group", "batch", "chunk"]


@pytest.mark.parametrize(("noun", "place"), [(row[0], row[2]) for row in PORTIONS])
def test_a_noun_is_where_the_page_says(noun: str, place: str) -> None:
    module, _, attribute = place.rpartition(".")
    try:
        found = importlib.import_module(place)
    except ModuleNotFoundError:
        found = importlib.import_module(module)
        assert hasattr(found, attribute)
    source = ROOT.joinpath(*found.__name__.split(".")).with_suffix(".py")
    assert re.search(noun.replace(" ", "[ _]"), source.read_text(encoding="utf-8"), re.IGNORECASE)
