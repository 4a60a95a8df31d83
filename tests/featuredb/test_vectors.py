"""What the tables of directions are called."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featuredb.vectors import table_of

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=100)


@pytest.mark.parametrize("name", ["layer13", "layer_13-TopK.v2", "0", "a" * 80])
def test_a_plain_name_is_its_own(name: str) -> None:
    assert table_of(name) == name


@given(NAMES, NAMES)
def test_two_names_never_share_a_table(one: str, other: str) -> None:
    assert (table_of(one) == table_of(other)) == (one == other)


@given(NAMES)
def test_a_table_is_a_file_s_name_anywhere(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,96}", table_of(name))


def test_names_that_differ_late_or_only_where_they_are_made_plain() -> None:
    names = ["abcd x", "abcd/x", "abcd_x", "größe", "..", ".", "a" * 200, "a" * 201]
    assert len({table_of(name) for name in names}) == len(names)
