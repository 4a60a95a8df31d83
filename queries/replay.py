"""The alarms of a monitor, or of any rule, on everything that is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.render import numbers
from featuredb.render.view import Heading, Part, Passage, Passages, View
from featuredb.store.store import Store
from queries.answers import FOR_DISPLAY, Answer, Row
from queries.arguments import check_k, check_text, check_window
from queries.connection import Reader
from queries.filters import contexts_where
from queries.labels import with_labels
from queries.question import Macro, Question
from queries.rules.alarms_sql import TEXT_TOKENS, macro_sql, places_sql
from queries.rules.rule import FeatureRule, parse_rule
from queries.rules.stored import NAME, alarms_macro, alarms_view, monitor_of
from queries.show import feature_name, label_table
from queries.sql import duckdb_errors

_SHOWN = 20
_LONGEST = 1 << 20


@dataclass(frozen=True, repr=False)
class Alarms(Answer):
    """The alarms of a rule: each a run of tokens of one document at which it holds.

    Columns: monitor string, sae string and feature_id i64 (the rule's feature that is strongest
    in the alarm, relative to its stored maximum, null where none is active), context_id i64,
    document_id i64, token_index i32 (where the alarm begins, BOS counted), n_tokens i32, strength
    f32 (the feature's largest activation in it), quantile f64 (the share of the feature's stored
    activations that are no larger), score f64 (the largest left side, of a rule that is one
    comparison), before, text and after string, label string (the feature's preferred one, or
    null). In the order of the texts.

    monitor: its name, or the rule. rule: it, every feature with its SAE. total: how many alarms
    there are, of which the rows may be the first. labels: of the rule's features that have one, by
    name. shown: how many of the rows a view has.
    """

    kind: ClassVar[str] = "alarms"

    monitor: str
    rule: str
    total: int
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    shown: int = field(default=_SHOWN, metadata=FOR_DISPLAY)

    def view(self) -> View:
        """The rule, how many alarms there are, and the first of them in their texts."""
        many = numbers.plural(self.total, "alarm") if self.total else "no alarm"
        rows = list(self[: self.shown])
        more = f" · the first {len(rows)}" if self.total > len(rows) else ""
        rule = "" if self.rule == self.monitor else f" · {self.rule}"
        heading = Heading("alarms of ", self.monitor, f"{rule} · {many}{more}")
        first: list[Part] = [heading, *label_table(self.labels)]
        return View([first, [alarm_passages(rows)]] if rows else [first])


def alarm_passages(rows: list[Row]) -> Passages:
    """Alarms in their texts, each with the feature, its strength and where it is."""
    items = []
    for number, row in enumerate(rows, 1):
        where = [f"context {row.context_id} token {row.token_index}"]
        if row.sae is not None:
            where += feature_parts(row)
        items.append(
            Passage(
                [row.before, row.text, row.after],
                [0.0, 1.0, 0.0],
                peak=1,
                rank=str(number),
                value=row.score if row.score is not None else row.strength,
                about=" · ".join(where),
                inside=bool(row.before) and row.token_index > 1,
                context=row.context_id,
            )
        )
    return Passages(items)


def feature_parts(row: Row) -> list[str]:
    """The feature of an alarm, how high its strength is, and its label, which may be long."""
    return [feature_name(row), f"q{row.quantile:.4g}", *([row.label] if row.label else [])]


def replay(
    reader: Reader, rule: str, where: str | None = None, window: int = 8, k: int | None = None
) -> Alarms:
    """See `featuredb.Database.replay`."""
    if k is not None:
        check_k(k)
    named, found = rule_of(reader.store, rule)
    size = str(min(check_window(window), _LONGEST))
    with duckdb_errors(reader.location):
        sql = places_sql(found, reader.snapshot, named, size)
        places = reader.cursor().sql(sql).to_arrow_table()
    if where is not None:
        chosen = pa.array(contexts_where(reader, where))
        places = places.filter(pc.is_in(places.column("context_id"), value_set=chosen))
    rows = _with_texts(reader.store, places.slice(0, k))
    shown = _SHOWN if k is None else k
    return Alarms(
        rows,
        monitor=named,
        rule=found.text,
        total=len(places),
        labels=rule_labels(reader.store, found),
        shown=shown,
    )


def _with_texts(store: Store, places: pa.Table) -> pa.Table:
    """The columns of `Alarms`, from those of `places_sql`."""
    columns = ("context_id", "first", "stop", "token_index", "n_tokens")
    context, first, stop, start, n = (places.column(c).to_numpy() for c in columns)
    length = (stop - first).astype(np.int64)
    ends = np.cumsum(length)
    token = np.arange(int(length.sum())) - np.repeat(ends - length - first, length)
    store.texts.fetch(np.unique(context).tolist())
    words = store.texts.read(store.texts.tokens_at(np.repeat(context, length), token))
    shown = np.minimum(n, TEXT_TOKENS)
    begin = ends - length
    at = begin + start - first
    cuts = np.stack([begin, at, np.minimum(at + shown, ends), ends], axis=1)
    parts: list[list[str]] = [[], [], []]
    for a, b, c, d in cuts.tolist():
        for part, (one, two) in zip(parts, ((a, b), (b, c), (c, d)), strict=True):
            part.append("".join(words[one:two]))
    for i in np.flatnonzero(n > shown).tolist():
        parts[1][i] += "…"
    table = places.drop_columns(["first", "stop"])
    for name, part in zip(("before", "text", "after"), parts, strict=True):
        table = table.append_column(name, pa.array(part, pa.string()))
    return with_labels(store, table)


def rule_labels(store: Store, rule: FeatureRule) -> dict[str, str]:
    """The labels of a rule's features, by name. Only of those that have one."""
    return store.labels.named((store.snapshot.sae(sae), number) for sae, number in rule.features)


def rule_of(store: Store, text: str) -> tuple[str, FeatureRule]:
    """A monitor's name and its rule, or a rule that is given and as what it is shown."""
    if re.fullmatch(NAME, check_text(text, "the rule")) and not re.fullmatch(r"f\d+", text):
        monitor = monitor_of(store, text)
        return monitor.name, monitor.rule
    found = parse_rule(store, text)
    return text, found


QUESTION = Question(
    "replay",
    Alarms,
    None,
    (
        Macro(
            "alarms(name, window_size := 8)",
            lambda snapshot: macro_sql({}, snapshot),
            about="the alarms of a monitor on everything stored, each with its text",
            of_rows=alarms_macro,
        ),
    ),
    alarms_view,
)
