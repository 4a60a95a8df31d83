"""Answers as HTML: escaped, self-contained, shaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from queries.answers import Answer, Info
from tests.cli import answers

_KINDS = pytest.mark.parametrize("answer", answers.every_answer(), ids=lambda a: a.kind)
_ALLOWED = {"div", "span", "table", "tr", "td", "th", "pre"}


class _Tags(HTMLParser):
    """Checks nesting, and collects the tags and attributes used."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@_KINDS
def test_nothing_from_the_corpus_becomes_markup(answer: Answer | Info) -> None:
    parser = _Tags()
    parser.feed(answer._repr_html_())
    assert parser.open == []
    assert parser.tags <= _ALLOWED
    assert parser.attributes <= {"style", "title", "colspan"}


@_KINDS
def test_hostile_text_is_shown_harmless(answer: Answer | Info) -> None:
    html = answer._repr_html_()
    assert "&lt;" in html  # a long token is cut before its markup
    assert "<script" not in html
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)


def test_tokens_are_shaded_by_activation_and_say_it() -> None:
    html = answers.top_contexts()._repr_html_()
    shades = re.findall(r"rgba\([\d,]+,([\d.]+)\)[^>]*title=\"([\d.]+)\">(\w+)<", html)
    assert [(word, value) for _, value, word in shades] == [
        ("battle", "2.500"),
        ("Hastings", "7.500"),
    ]
    assert float(shades[0][0]) < float(shades[1][0])
    assert "underline" in html


def test_tokens_in_a_column_are_monospaced() -> None:
    html = answers.feature_card()._repr_html_()
    for token in ("·w0", "·w1"):
        assert re.search(rf'<span style="font-family:[^"]*monospace[^"]*">{token}</span>', html)


def test_a_firing_shows_the_text_as_each_feature_sees_it() -> None:
    html = answers.firing()._repr_html_()
    assert html.count("colspan") == 2
    assert html.count(">war</span>") == 2
