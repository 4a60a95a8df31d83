"""Charts of answers: what is drawn, into which axes, and what is said without matplotlib."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from featuredb.errors import MissingExtraError
from queries.near import Neighbors
from tests.cli import answers


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    mpl.use("agg")
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def widths(ax: Axes) -> list[float]:
    """Of the horizontal bars, from the top."""
    return [bar.get_bbox().width for bar in cast("list[Rectangle]", ax.patches)]


def test_a_card_draws_its_histogram_into_given_axes() -> None:
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2)
    card = answers.feature_card()
    assert card.plot(left) is left
    bars = [bar.get_bbox() for bar in cast("list[Rectangle]", left.patches)]
    assert [bar.height for bar in bars] == card.statistics.histogram
    assert (bars[0].x0, bars[-1].x1) == (0, pytest.approx(card.statistics.max_activation))
    assert (left.get_title(), right.get_title()) == ("feature sae/1234", "")


def test_neighbors_and_samples_are_drawn_in_order_of_their_rows() -> None:
    near = answers.neighbors().plot()
    assert widths(near) == pytest.approx([0.9, 0.9])
    assert [text.get_text().split()[0] for text in near.get_yticklabels()] == ["sae/5", "sae/17"]
    assert near.get_xlabel() == "cosine"
    together = answers.coactive().plot()
    by = answers.coactive().by
    assert widths(together) == [r[by] for r in answers.coactive()]
    sample = answers.sampled_contexts()
    held = {row.bin: row.bin_contexts for row in sample}
    assert widths(sample.plot()) == list(held.values())
    assert near is not together


@pytest.mark.parametrize("empty", [answers.neighbors()[:0], answers.sampled_contexts()[:0]])
def test_an_empty_answer_draws_empty_axes(empty: Neighbors) -> None:
    assert list(empty.plot().patches) == []


def test_a_token_is_no_mathematics() -> None:
    row = {**answers.neighbors().table.to_pylist()[0], "top_tokens": ["$x_1$"]}
    table = type(answers.neighbors().table).from_pylist([row], answers.neighbors().table.schema)
    ax = replace(answers.neighbors(), table=table).plot()
    ax.get_figure(root=True).canvas.draw()  # type: ignore[union-attr]
    assert ax.get_yticklabels()[0].get_text().endswith(r"\$x_1\$")


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featuredb\[plots\]'$"):
        answers.feature_card().plot()
