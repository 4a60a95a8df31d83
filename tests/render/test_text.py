"""Answers as text: what is shown, what is escaped, and that nothing is lost."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from featuredb.render import numbers
from featuredb.render.bars import histogram_rows, sparkline
from featuredb.render.characters import label, neutralize
from featuredb.render.layout import wrap
from featuredb.render.page import Page, page_for
from featuredb.render.shading import LEVELS, Ramp, background, css, level, shade
from featuredb.render.text import to_text
from queries.answers import Answer, Info, Rows
from tests.cli import answers

_DANGEROUS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_KINDS = pytest.mark.parametrize("answer", answers.every_answer(), ids=lambda a: a.kind)
_RAMPS = [Ramp(b, c) for b in ("dark", "light") for c in ("truecolor", "256", "standard")]


@_KINDS
def test_plain_text_has_no_control_characters(answer: Answer | Info) -> None:
    assert not _DANGEROUS.search(str(answer))


@_KINDS
@pytest.mark.parametrize("ramp", _RAMPS, ids=str)
def test_colored_text_has_no_sequences_but_our_colors(answer: Answer | Info, ramp: Ramp) -> None:
    text = to_text(answer, Page(160, ramp))
    assert not _DANGEROUS.search(_COLORS.sub("", text))
    assert "[31m" in _COLORS.sub("", text)  # the corpus's escape, made harmless


@_KINDS
@pytest.mark.parametrize("width", [40, 61, 80, 100, 140])
def test_no_line_is_wider_than_the_page(answer: Answer | Info, width: int) -> None:
    assert max(map(cell_len, to_text(answer, Page(width)).splitlines())) <= width


@_KINDS
def test_colors_change_no_words(answer: Answer | Info) -> None:
    def words(page: Page) -> str:
        return re.sub(r"[‹›«»\s]|\x1b\[[0-9;]*m", "", to_text(answer, page))

    assert words(Page(90, Ramp())) == words(Page(90))


def test_top_contexts_read_as_blocks() -> None:
    assert str(answers.top_contexts()) == (
        "feature sae/1234 · 2 contexts · maximum 10.00 in the store\n"
        "\n"
        "1  7.50  Battle · context 101 token 3 · topic History\n"
        "         The ‹battle› of «Hastings»\n"
        "2  0.10  ␛[31mred␇␍⏎⇥<U+009B>2J<U+202E>evil<script>& · context 102 token 10\n"
        "         … a«␛[31mred␇␍⏎⇥<U+009B>2J<U+202E>evil<script>&»東京"
    )


def test_neighbors_read_as_columns() -> None:
    quiet = answers.neighbors()
    lines = str(quiet).splitlines()
    assert lines[0] == "near sae/1234 by decoder · 2 neighbors"
    assert lines[2].split() == ["feature", "cosine", "density", "max", "fires", "on"]
    assert lines[3].startswith("1  sae/5     0.900        3.1%  20.50  ·war ␛[31mred␇␍⏎⇥<U+009B…")
    assert lines[4].startswith("2  sae/17    0.900  1 in 2,500   3.25  ·war ␛[31mred␇␍⏎⇥<U+009B…")
    assert "jaccard" in str(answers.neighbors("coactivation"))
    found = replace(quiet, method="ivf", recall=0.9912)
    assert str(found).splitlines()[0] == f"{lines[0]} · approximate, recall@10 0.991"


def test_a_line_too_narrow_for_tokens_gives_them_the_next() -> None:
    lines = to_text(answers.neighbors(), Page(46)).splitlines()
    assert lines[4].split()[:3] == ["fires", "on", "·war"]


def test_columns_that_do_not_fit_are_left_out_from_the_right() -> None:
    lines = to_text(answers.firing(), Page(60)).splitlines()
    heading = next(line for line in lines if "feature" in line and "specific" in line)
    assert heading.split() == ["feature", "specific", "active", "peak", "tokens", "density"]
    narrow = to_text(answers.firing(), Page(40)).splitlines()
    assert all(len(line) <= 40 for line in narrow)
    assert any("specific" in line for line in narrow)


def test_lists_in_sql_read_as_tokens() -> None:
    rows = Rows(pa.table({"n": [1], "words": [[" death", " died", "x" * 30, *["y"] * 40]]}))
    assert "·death ·died xxxxxxxxxxxxxxxxxxx… y +39" in str(rows)


def test_provenance_is_short() -> None:
    row = answers.top_contexts().table.slice(0, 1).to_pylist()[0]
    more = {"id": "battle", "url": "https://x.org/Battle", "a": 1, "b": 2, "c": 3}
    table = pa.Table.from_pylist([{**row, **more}])
    text = str(replace(answers.top_contexts(), table=table))
    assert "1  7.50  Battle · context 101 token 3 · topic History · a 1\n" in text
    bare = table.drop_columns(["title", "topic", *more]).set_column(
        table.column_names.index("source"), "source", pa.array(["/home/me/texts/wiki.parquet"])
    )
    assert "context 101 token 3 · wiki.parquet\n" in str(
        replace(answers.top_contexts(), table=bare)
    )


def test_a_card_shows_every_part_and_counts_what_it_leaves_out() -> None:
    text = str(answers.feature_card())
    for part in ("1 in 246 tokens", "4,071 activations in 1,231 contexts of 821 documents"):
        assert part in text
    for part in ("maximum 10.00", "100%       10.00", "suppresses  -", "… 12 more"):
        assert part in text
    assert re.search("·w0 +90 of 100  ███████▎", text)
    assert "by chance  up to 0.18 · usual nearest 0.50" in text
    assert "up to 0.0012 · usual nearest 0.08" in text
    assert "nearest by decoder" in text
    assert "nearest by co-activation" in text
    assert "«Hastings»" in text


def test_a_card_shows_no_context_of_its_sample_twice() -> None:
    card = answers.feature_card()
    assert "5.000 to 10.00 · 1 of 3 contexts · 1 above" in str(card)
    assert str(card).count("«Hastings»") == 2  # at the top, and among the silent ones
    alone = replace(card, contexts=card.contexts[1:])
    assert "5.000 to 10.00 · 1 of 3 contexts\n1  7.50" in str(alone)


def test_a_histogram_has_an_axis() -> None:
    lines = str(answers.feature_card()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("activations per bin"))
    assert lines[start + 1].startswith("3,000 █")
    assert lines[start + 6].startswith("    1 ███▅")
    assert lines[start + 7].split()[:3] == ["0", "5.000", "10.00"]
    html = answers.feature_card()._repr_html_()
    assert 'title="0 to 0.2500: 3,000 activations"' in html
    assert 'title="0.7500 to 1.000: 1 activation"' in html


def test_special_tokens_before_a_text_are_left_out_and_others_faint() -> None:
    row = answers.top_contexts().table.slice(0, 1).to_pylist()[0]
    row |= {"tokens": ["<s>", " battle", "</s>", " of", "<s>"], "token_index": 4}
    row |= {"activations": [0, 2.5, 0, 0, 7.5], "window_start": 0}
    table = pa.Table.from_pylist([row], answers.top_contexts().table.schema)
    answer = replace(answers.top_contexts(), table=table, special=frozenset({"<s>", "</s>"}))
    assert " ‹battle›</s> of«<s>»" in str(answer)
    assert '<span style="opacity:.65">&lt;/s&gt;</span>' in answer._repr_html_()
    assert "special" not in answer.attributes()


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ('https://x.org/a"b', True),
        ("HTTP://x.org/", True),
        ("javascript:alert(1)//https://x.org", False),
        ("data:text/html,x", False),
        ("see https://x.org", False),
        ("https://x.org/\n", False),
    ],
)
def test_a_title_leads_to_an_address_of_the_web(url: str, linked: bool) -> None:
    row = answers.top_contexts().table.slice(0, 1).to_pylist()[0]
    answer = replace(answers.top_contexts(), table=pa.Table.from_pylist([{**row, "url": url}]))
    html = answer._repr_html_()
    assert ("<a href=" in html) == linked
    if linked:
        escaped = url.replace('"', "&#34;")
        assert f'<a href="{escaped}" rel="noopener noreferrer"' in html
        assert ">Battle</a>" in html


def test_a_dead_feature_has_a_card() -> None:
    card = answers.feature_card()
    row: dict[str, object] = dict.fromkeys(card.table.column_names)
    row |= {"sae": "sae", "feature_id": 3, "count": 0, "density": 0.0, "decoder_norm": 1.0}
    row |= {"n_contexts": 0}
    dead = replace(
        card,
        table=pa.Table.from_pylist([row], card.table.schema),
        contexts=card.contexts[:0],
        sample=card.sample[:0],
        silent=card.silent[:0],
        neighbors=card.neighbors[:0],
        coactive=card.coactive[:0],
    )
    assert "never active" in str(dead)
    assert "never active" in dead._repr_html_()


def test_sql_rows_beyond_the_page_are_counted() -> None:
    many = Rows(pa.table({"n": list(range(112))}))
    assert str(many).splitlines()[-1] == "… 12 more rows"
    assert to_text(many, Page(rows=200)).splitlines()[-1] == "111"
    assert "… 12 more rows" in many._repr_html_()


def test_sql_rows_too_wide_for_columns_become_records() -> None:
    wide = Rows(pa.table({f"column_{i}": [i, 10 * i] for i in range(12)}))
    lines = str(wide).splitlines()
    assert lines[:2] == ["column_0   0", "column_1   1"]
    assert len(lines) == 25


def test_one_row_of_many_lines_keeps_them() -> None:
    plan = Rows(pa.table({"explain_key": ["plan"], "explain_value": ["╭──╮\n│\x1b│\n╰──╯\n"]}))
    assert str(plan) == "explain_key\nplan\nexplain_value\n╭──╮\n│␛│\n╰──╯"


def test_an_answer_without_columns_can_be_shown() -> None:
    assert str(Rows(pa.table({}))) == "no rows"
    assert Rows(pa.table({}))._repr_html_()


@pytest.mark.parametrize("empty", answers.every_empty_answer(), ids=lambda a: a.kind)
def test_an_empty_answer_says_so(empty: Answer) -> None:
    assert re.search(r"\bno\b", str(empty))
    assert empty._repr_html_()


def test_info_formats_values_by_name() -> None:
    lines = str(answers.info()).splitlines()
    assert "format version  1" in lines
    assert "bytes           2.64 GB" in lines
    assert "  normalized  yes" in lines
    assert "  hooks  a, b" in lines


@given(st.text())
def test_neutralized_text_is_one_harmless_line(text: str) -> None:
    shown = neutralize(text)
    assert not _DANGEROUS.search(shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()  # no lone surrogate is left
    assert neutralize(shown) == shown


def test_tokens_show_their_spaces() -> None:
    assert [label(t) for t in (" the", "the", "\n", "  ", "", "\ufe0f")] == [
        "·the",
        "the",
        "⏎",
        "··",
        "(empty)",
        "<U+FE0F>",
    ]


@given(st.text(alphabet="ab 東\u0301", max_size=60), st.integers(2, 20))
def test_wrapping_loses_nothing_but_spaces_at_a_break(text: str, width: int) -> None:
    lines = [line.plain for line in wrap(Text(text), width)]
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("tty", "environment", "ramp"),
    [
        (True, {"TERM": "xterm-256color"}, Ramp("dark", "256")),
        (True, {"TERM": "xterm", "COLORTERM": "truecolor"}, Ramp("dark", "truecolor")),
        (True, {"TERM": "xterm", "COLORFGBG": "0;15"}, Ramp("light", "standard")),
        (True, {"TERM": "dumb"}, None),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, None),
        (False, {"TERM": "xterm"}, None),
        (False, {"FORCE_COLOR": "1"}, Ramp("dark", "256")),
        (True, {"TERM": "xterm", "FORCE_COLOR": "0"}, None),
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, None),
    ],
)
def test_colors_follow_the_stream_and_the_environment(
    tty: bool, environment: Mapping[str, str], ramp: Ramp | None
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return tty

    page = page_for(Stream(), {"COLUMNS": "72", **environment})
    assert page == Page(72, ramp)


def test_a_pipe_is_as_wide_as_plain_text() -> None:
    assert page_for(io.StringIO(), {}) == Page()


def test_shades_rise_with_activation_and_only_zero_has_none() -> None:
    levels = [level(x / 100, 1.0) for x in range(101)]
    assert levels == sorted(levels)
    assert (levels[0], levels[1], levels[-1]) == (0, 1, LEVELS)
    assert level(2.0, 1.0) == LEVELS
    assert level(float("nan"), 1.0) == 0
    assert css(shade(0, 1)) == ""
    assert css(shade(-1, 1)) != css(shade(1, 1))
    assert background({"COLORFGBG": "15;0"}) == "dark"


@pytest.mark.parametrize("ramp", [Ramp("dark"), Ramp("light")], ids=str)
def test_every_shade_can_be_read(ramp: Ramp) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for value in (step / LEVELS for step in range(-LEVELS, LEVELS + 1) if step):
        ink, _, ground = ramp.style(value, 1.0).split()
        bright, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5  # what WCAG asks of text


def test_numbers_read_well() -> None:
    assert [numbers.density(d) for d in (None, 0, 1.0, 0.031, 0.0004)] == [
        "-",
        "0",
        "100.0%",
        "3.1%",
        "1 in 2,500",
    ]
    assert numbers.aligned([21.5, 3.25, None, 0.001]) == ["21.50", "3.25", "-", "0.001000"]
    assert numbers.aligned([0.93, 0.5]) == ["0.930", "0.500"]
    assert [numbers.number(x) for x in (0, 14.234, 0.99999, 1e-7, 2e9)] == [
        "0",
        "14.23",
        "1.000",
        "1e-07",
        "2e+09",
    ]
    assert [numbers.size(n) for n in (12, 999, 999_600, 2_640_000_000)] == [
        "12 bytes",
        "999 bytes",
        "1 MB",
        "2.64 GB",
    ]


def test_a_histogram_shows_every_bin_that_holds_something() -> None:
    lines = histogram_rows([1000, 0, 1], height=3)
    assert [len(line) for line in lines] == [3, 3, 3]
    assert lines[0][0] == lines[2][0] == "█"
    assert lines[2][1] == " "
    assert lines[2][2] != " "
    assert histogram_rows([0, 0], height=1) == ["  "]


def test_a_sparkline_tells_weak_from_none() -> None:
    assert sparkline([0, 0.001, 1]) == "▁▂█"
    assert len(sparkline([1.0] * 1000)) == 16
    assert sparkline([]) == ""
