"""What steering is answered with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import (
    Column,
    Group,
    Heading,
    Part,
    Passage,
    Passages,
    Table,
    View,
)
from queries.answers import Answer, Row
from queries.show import feature_name, fires_on, label_table

TEXTS = pa.schema(
    [
        ("prompt_index", pa.int32()),
        ("prompt", pa.string()),
        ("variant", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("n_tokens", pa.int32()),
        ("kl", pa.float64()),
        ("perplexity", pa.float64()),
        ("repetition", pa.float64()),
        ("target", pa.float64()),
        ("hits", pa.float64()),
    ]
)
EFFECTS = pa.schema(
    [
        ("variant", pa.string()),
        ("measure", pa.string()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n_prompts", pa.int32()),
    ]
)
NEXT_TOKENS = pa.schema(
    [
        ("prompt_index", pa.int32()),
        ("token", pa.string()),
        ("before", pa.float64()),
        ("after", pa.float64()),
    ]
)
MOVED = pa.schema(
    [
        ("sae", pa.string()),
        ("feature_id", pa.int64()),
        ("edited", pa.bool_()),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("top_tokens", pa.list_(pa.string())),
        ("label", pa.string()),
    ]
)
EDITED = pa.schema(
    [
        ("edit", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("generated_places", pa.int64()),
        ("n_generated", pa.int64()),
    ]
)

MEASURES = {
    "kl": "KL per token",
    "perplexity": "perplexity",
    "repetition": "repeated 3-grams",
    "target": "feature fires",
    "hits": "its tokens",
}
"""What is measured of a text, and what it is called."""

_SHOWN_PROMPTS = 5
_SHOWN_MOVED = 8
_SHOWN_NEXT = 8


@dataclass(frozen=True, repr=False)
class Effects(Answer):
    """Means over prompts with 95 % intervals, null of one prompt. By variant, then measure.

    Columns: variant string, measure string, mean, low, high f64, n_prompts i32. Measures: kl (nats
    per new token, from the unsteered distribution), perplexity (of the new tokens, under the
    unsteered model), repetition (share of 3-grams that came before), target (largest share of its
    maximum at which an edited feature fires, when the unsteered model reads the new tokens), hits
    (share of new tokens that are among those the features fire on most).
    """

    kind: ClassVar[str] = "effects_of_steering"

    def view(self) -> View:
        """One line per variant, in two tables that fit beside a name."""
        rows = list(self)
        names = list(dict.fromkeys(row.variant for row in rows))

        def column(measure: str) -> Column:
            cells = {row.variant: _spelled(row) for row in rows if row.measure == measure}
            return Column(MEASURES[measure], [cells.get(name, "-") for name in names], right=True)

        variants = Column("", names, style="bold")
        measures = list(MEASURES)
        return View(
            [[Table([variants, *map(column, part)])] for part in (measures[:3], measures[3:])]
        )


@dataclass(frozen=True, repr=False)
class NextTokens(Answer):
    """Probabilities of the first new token, before and after. By prompt, then by change.

    Columns: prompt_index i32, token string, before, after f64.
    """

    kind: ClassVar[str] = "next_tokens"


@dataclass(frozen=True, repr=False)
class MovedFeatures(Answer):
    """Features by how far their mean activation moved, at the places new tokens came from.

    At the hook of the first edit and later ones, on the steered text, with the edits and without.
    Columns: sae string, feature_id i64, edited bool, before, after, difference f64, its 95 %
    interval over prompts low, high f64, top_tokens list<string>, label string (the preferred one,
    or null).
    """

    kind: ClassVar[str] = "moved_features"


@dataclass(frozen=True, repr=False)
class Steered(Answer):
    """Texts that a model went on with, unsteered and steered, and controls.

    Columns: prompt_index i32, prompt string, variant string (unsteered, steered, flipped, random
    feature, noise), text string, tokens list<string>, n_tokens i32, and the measures of `Effects`,
    null where they were not asked for. By prompt, then variant.
    """

    kind: ClassVar[str] = "steered"

    edited: pa.Table
    """Per edit: prompt_tokens, generated_places, n_generated i64. n new tokens: n places."""
    effects_table: pa.Table = field(default_factory=EFFECTS.empty_table)
    next_table: pa.Table = field(default_factory=NEXT_TOKENS.empty_table)
    moved_table: pa.Table = field(default_factory=MOVED.empty_table)
    random_feature: str = ""
    """Which feature stands for which in the control."""
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Of the edited features that have one, by name."""

    def attributes(self) -> dict[str, Any]:
        return {
            "edited": self.edited.to_pylist(),
            "effects": self.effects_table.to_pylist(),
            "next_tokens": self.next_table.to_pylist(),
            "moved": self.moved_table.to_pylist(),
            "random_feature": self.random_feature,
            "labels": dict(self.labels),
        }

    @property
    def effects(self) -> Effects:
        """Means over the prompts."""
        return Effects(self.effects_table)

    @property
    def next_tokens(self) -> NextTokens:
        """What the first new token is likely to be."""
        return NextTokens(self.next_table)

    @property
    def moved(self) -> MovedFeatures:
        """Which features moved most."""
        return MovedFeatures(self.moved_table)

    def text(self, prompt: int = 0, variant: str = "steered") -> str:
        """What the model went on with."""
        texts = {(row.prompt_index, row.variant): row.text for row in self}
        return str(texts[prompt, variant])

    def view(self) -> View:
        """Both texts side by side, then what the edits changed."""
        edits = Heading("", "; ".join(self._edits()))
        sections: list[list[Part]] = [[edits, *label_table(self.labels)]]
        by_prompt: dict[int, list[Row]] = {}
        for row in self:
            by_prompt.setdefault(row.prompt_index, []).append(row)
        for rows in list(by_prompt.values())[:_SHOWN_PROMPTS]:
            first = [row for row in rows if row.variant in ("unsteered", "steered")]
            blocks: list[list[Part]] = [[Heading("", r.variant), _passage(r)] for r in first]
            sections.append([Heading("prompt ", _short(rows[0].prompt)), Group(blocks)])
        more = len(by_prompt) - _SHOWN_PROMPTS
        if more > 0:
            sections.append([Heading(f"… {numbers.plural(more, 'more prompt')}")])
        sections += self._measured()
        return View(sections)

    def _edits(self) -> Iterator[str]:
        for row in self.edited.to_pylist():
            places = f"{row['generated_places']:,} of {row['n_generated']:,} new tokens"
            prompt = numbers.plural(row["prompt_tokens"], "prompt token")
            yield f"{row['edit']} · {places}, {prompt}"

    def _measured(self) -> Iterator[list[Part]]:
        if not len(self.effects_table):
            return
        n = self.effects_table.column("n_prompts")[0].as_py()
        about = f"mean of {n} prompts, 95 % interval" if n > 1 else "of one prompt"
        controls = list(
            dict.fromkeys(
                (row.prompt_index, row.variant, row.text)
                for row in self
                if row.variant not in ("unsteered", "steered")
            )
        )
        first, second = self.effects.view().sections
        yield [Heading("effect, ", about), *first]
        yield list(second)
        if controls:
            shown = [each for each in controls if each[0] == 0]
            columns = [
                Column("control", [each[1] for each in shown]),
                Column("text", [_short(each[2], 300) for each in shown], wrap=True),
            ]
            about = f" · {self.random_feature}" if self.random_feature else ""
            yield [Heading("controls", "", about), Table(columns)]
        rows = list(self.next_tokens)
        likely = [row for row in rows if row.prompt_index == 0][:_SHOWN_NEXT]
        yield [
            Heading("next token"),
            Table(
                [
                    Column("token", [row.token for row in likely], tokens=True),
                    Column("before", [f"{row.before:.1%}" for row in likely], right=True),
                    Column("after", [f"{row.after:.1%}" for row in likely], right=True),
                ]
            ),
        ]
        if len(self.moved_table):
            yield [Heading("features that moved most"), self._moved()]

    def _moved(self) -> Table:
        rows = list(self.moved)[:_SHOWN_MOVED]
        return Table(
            [
                Column("feature", list(map(feature_name, rows)), features=True),
                Column("", ["edited" if row.edited else "" for row in rows], style="dim"),
                Column("before", numbers.aligned([row.before for row in rows]), right=True),
                Column("after", numbers.aligned([row.after for row in rows]), right=True),
                fires_on(rows),
            ],
            more=len(self.moved_table) - len(rows),
        )


def _passage(row: Row) -> Passages:
    tokens = row.tokens or [""]
    return Passages([Passage(tokens, [0.0] * len(tokens))])


def _short(text: str, most: int = 70) -> str:
    text = " ↵ ".join(part.strip() for part in text.split("\n"))
    return text if len(text) <= most else text[: most - 1] + "…"


def _spelled(row: Row) -> str:
    """The mean and half of its interval, or its ends where they are not as far."""
    if row.low is None or row.high is None:
        return numbers.short(row.mean)
    if row.measure == "perplexity":
        return f"{numbers.short(row.mean)} ({numbers.short(row.low)}–{numbers.short(row.high)})"
    return f"{numbers.short(row.mean)} ±{numbers.short(row.high - row.mean, 2)}"
