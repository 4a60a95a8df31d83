"""The alarms of a monitor, or of any rule, on everything that is stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from featuredb.render import numbers
from featuredb.render.view import Heading, Passage, Passages, View
from featuredb.store.store import Store
from queries.answers import Answer, Row
from queries.arguments import check_text, check_window
from queries.connection import Reader
from queries.filters import contexts_where
from queries.question import Macro, Question
from queries.rules.alarms_sql import alarms_sql, macro_sql
from queries.rules.rule import FeatureRule, parse_rule
from queries.rules.stored import NAME, alarms_macro, alarms_view, monitor_of
from queries.show import feature_name
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
    comparison), before, text and after string. In the order of the texts.

    monitor: its name, or the rule. rule: it, every feature with its SAE.
    """

    kind: ClassVar[str] = "alarms"

    monitor: str
    rule: str

    def view(self, most: int = _SHOWN) -> View:
        """The rule, how many alarms there are, and the first of them in their texts."""
        many = numbers.plural(len(self), "alarm") if len(self) else "no alarm"
        rows = list(self[:most])
        more = f" · the first {len(rows)}" if len(self) > len(rows) else ""
        rule = "" if self.rule == self.monitor else f" · {self.rule}"
        heading = Heading("alarms of ", self.monitor, f"{rule} · {many}{more}")
        return View([[heading], [alarm_passages(rows)]] if rows else [[heading]])


def alarm_passages(rows: list[Row]) -> Passages:
    """Alarms in their texts, each with the feature, its strength and where it is."""
    items = []
    for number, row in enumerate(rows, 1):
        where = [f"context {row.context_id} token {row.token_index}"]
        if row.sae is not None:
            where.append(feature_name(row))
            where.append(f"q{row.quantile:.4g}")
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


def replay(reader: Reader, rule: str, where: str | None = None, window: int = 8) -> Alarms:
    """See `featuredb.Database.replay`."""
    named, found = rule_of(reader.store, rule)
    return Alarms(alarm_rows(reader, found, named, where, window), monitor=named, rule=found.text)


def rule_of(store: Store, text: str) -> tuple[str, FeatureRule]:
    """A monitor's name and its rule, or a rule that is given and as what it is shown."""
    if re.fullmatch(NAME, check_text(text, "the rule")) and not re.fullmatch(r"f\d+", text):
        monitor = monitor_of(store, text)
        return monitor.name, monitor.rule
    found = parse_rule(store, text)
    return text, found


def alarm_rows(
    reader: Reader, rule: FeatureRule, name: str, where: str | None = None, window: int = 8
) -> pa.Table:
    """The columns of `Alarms`. where: a SQL condition on documents, contexts."""
    sql = alarms_sql(rule, reader.snapshot, name, str(min(check_window(window), _LONGEST)))
    with duckdb_errors(reader.location):
        rows = reader.cursor().sql(sql).to_arrow_table()
    if where is not None:
        chosen = contexts_where(reader, where)
        rows = rows.filter(pc.is_in(rows.column("context_id"), value_set=pa.array(chosen)))
    return rows


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
