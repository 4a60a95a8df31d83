"""The alarms of monitors on new texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Heading, Passage, Passages, View
from queries.answers import Answer, Row
from queries.replay import feature_parts

SCHEMA = pa.schema(
    [
        ("monitor", pa.string()),
        ("sae", pa.string()),
        ("feature_id", pa.int64()),
        ("text_index", pa.int64()),
        ("text_id", pa.string()),
        ("token_index", pa.int32()),
        ("role", pa.string()),
        ("n_tokens", pa.int32()),
        ("strength", pa.float32()),
        ("quantile", pa.float64()),
        ("score", pa.float64()),
        ("before", pa.string()),
        ("text", pa.string()),
        ("after", pa.string()),
        ("label", pa.string()),
    ]
)

_SHOWN = 50


@dataclass(frozen=True, repr=False)
class NewAlarms(Answer):
    """The alarms of monitors on new texts, text by text, then monitor by monitor.

    Columns: as of `queries.replay.Alarms`, but for where an alarm is: text_index i64 (of the texts,
    from 0), text_id string, token_index i32 (in the text, BOS not counted), and role string, who
    says its first token in a chat.

    n_texts, n_tokens: how much was read.
    """

    kind: ClassVar[str] = "new_alarms"

    n_texts: int
    n_tokens: int

    def view(self) -> View:
        """How many alarms in how much text, and the first of them."""
        many = numbers.plural(len(self), "alarm") if len(self) else "no alarm"
        tokens = numbers.plural(self.n_tokens, "token")
        read = f" in {numbers.plural(self.n_texts, 'text')}, {tokens}"
        rows = list(self[:_SHOWN])
        more = f" · the first {len(rows)}" if len(self) > len(rows) else ""
        heading = Heading("", many, read + more)
        if not rows:
            return View([[heading]])
        items = [_passage(number, row) for number, row in enumerate(rows, 1)]
        return View([[heading], [Passages(items)]])


def alarm_line(row: Row) -> str:
    """One alarm as a line of text."""
    name = row.text_id if row.text_id is not None else f"text {row.text_index}"
    about = [row.monitor, f"{name} token {row.token_index}"]
    if row.role is not None:
        about.append(row.role)
    if row.sae is not None:
        strength = numbers.number(row.strength)
        feature, *rest = feature_parts(row)
        about += [f"{feature} {strength}", *rest]
    bare = row.text.lstrip()
    marked = f"{row.text[: len(row.text) - len(bare)]}«{bare}»"  # as answers mark a peak
    return f"{' · '.join(about)} · {row.before}{marked}{row.after}"


def _passage(number: int, row: Row) -> Passage:
    name = row.text_id if row.text_id is not None else f"text {row.text_index}"
    where = [row.monitor, f"{name} token {row.token_index}"]
    if row.role is not None:
        where.append(row.role)
    if row.sae is not None:
        where += feature_parts(row)
    return Passage(
        [row.before, row.text, row.after],
        [0.0, 1.0, 0.0],
        peak=1,
        rank=str(number),
        value=row.score if row.score is not None else row.strength,
        about=" · ".join(where),
    )
