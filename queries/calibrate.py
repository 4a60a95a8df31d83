"""How often a rule fires on what is stored: exact counts, with documents as the unit.

**Interval of a rate.** Alarms of one document come together, so the count is not Poisson. Its
variance is estimated over documents (the linearized variance of a ratio), and divided by that of a
Poisson count gives the design effect d, at least 1. The interval is Byar's for a Poisson count of
alarms / d (Breslow and Day, 1987, 2.10), scaled back. It exists for no alarm at all, too.

**Interval of a share of documents.** Wilson's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError, RuleError
from featuredb.render import numbers
from featuredb.render.view import Column, Heading, Part, Table, View
from featuredb.store.names import folded
from queries.answers import Answer
from queries.arguments import check_text
from queries.catalog import literals
from queries.connection import Reader
from queries.filters import contexts_where
from queries.question import Question
from queries.replay import rule_labels, rule_of
from queries.rules.alarms_sql import beginnings_sql
from queries.rules.compiled import Compiled, silent_level
from queries.rules.rule import FeatureRule
from queries.rules.tree import Compare, Node, Not, Open, children, nodes, replaced
from queries.show import label_table
from queries.sql import duckdb_errors
from queries.tails import Z95, wilson

_RATE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*/\s*(M|k|\d+)\s*")
_UNITS = {"M": 10**6, "k": 10**3}
_SHOWN = 20

Floats = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AlarmRate:
    """Alarms on some documents. low, high: 95 % intervals, None of a single document."""

    alarms: int
    tokens: int
    documents: int
    alarmed: int
    low: float | None
    high: float | None

    @property
    def per_million(self) -> float:
        """Alarms per million tokens."""
        return 1e6 * self.alarms / self.tokens if self.tokens else 0.0

    @property
    def share(self) -> tuple[float, float, float]:
        """The share of documents with an alarm, and its interval."""
        return wilson(self.alarmed, self.documents)

    @classmethod
    def of(cls, alarms: Int64, tokens: Int64) -> AlarmRate:
        """From the alarms and the tokens of each document, both [d]."""
        a, n, d = int(alarms.sum()), int(tokens.sum()), len(alarms)
        low = high = None
        if d > 1 and n:
            effect = 1.0
            if a:
                errors = alarms - a / n * tokens
                effect = max(1.0, d / (d - 1) * float(errors @ errors) / a)
            low, high = (1e6 * effect * end / n for end in _byar(a / effect))
        return cls(a, n, d, int((alarms > 0).sum()), low, high)

    def __str__(self) -> str:
        between = "" if self.low is None else f" ({numbers.number(self.low)} to "
        between += "" if self.high is None else f"{numbers.number(self.high)})"
        return (
            f"{numbers.plural(self.alarms, 'alarm')}, {numbers.number(self.per_million)} per "
            f"million tokens{between}, in {self.alarmed:,} of "
            f"{numbers.plural(self.documents, 'document')}"
        )


_SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("documents", pa.int64()),
        ("tokens", pa.int64()),
        ("alarms", pa.int64()),
        ("per_million", pa.float64()),
        ("per_million_low", pa.float64()),
        ("per_million_high", pa.float64()),
        ("alarmed_documents", pa.int64()),
        ("share", pa.float64()),
        ("share_low", pa.float64()),
        ("share_high", pa.float64()),
    ]
)


@dataclass(frozen=True, repr=False)
class Calibration(Answer):
    """How often a rule fires on what is stored, over all documents and by group.

    Columns: group string (null in the first row, which is of all documents), documents i64, tokens
    i64, alarms i64, per_million f64 (alarms per million tokens) with its 95 % interval
    per_million_low and per_million_high (null of a single document), alarmed_documents i64, share
    f64 (of documents with an alarm), share_low and share_high f64. The groups by rate descending.

    monitor: its name, or the rule. rule: every feature with its SAE, every number given. by: the
    column of documents that groups them. labels: of the rule's features that have one, by name.
    """

    kind: ClassVar[str] = "calibration"

    monitor: str
    rule: str
    by: str | None
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def view(self) -> View:
        """The rates, highest first."""
        rows = list(self)
        shown = rows[: _SHOWN + 1]
        rule = "" if self.rule == self.monitor else f" · {self.rule}"
        heading = Heading("rate of ", self.monitor, rule)
        columns = [
            Column(self.by or "", ["all" if r.group is None else r.group for r in shown]),
            Column("alarms", [f"{r.alarms:,}" for r in shown], right=True),
            Column("per M tokens", [_range(r, "per_million") for r in shown], right=True),
            Column("of documents", [_range(r, "share", 100, " %") for r in shown], right=True),
            Column("documents", [f"{r.documents:,}" for r in shown], right=True),
            Column("tokens", [f"{r.tokens:,}" for r in shown], right=True),
        ]
        first: list[Part] = [heading, *label_table(self.labels)]
        return View([first, [Table(columns, more=len(rows) - len(shown))]])


def _range(row: object, name: str, scale: float = 1.0, unit: str = "") -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))  # type: ignore[index]
    text = f"{numbers.short(scale * value)}{unit}"
    if low is None:
        return text
    return f"{text} ({numbers.short(scale * low)}–{numbers.short(scale * high)})"


def calibrate(
    reader: Reader,
    rule: str,
    by: str | None = None,
    rate: str | None = None,
    where: str | None = None,
) -> Calibration:
    """See `featuredb.Database.calibrate`."""
    if rate is None:
        name, found = rule_of(reader.store, rule)
    else:
        found = threshold_for(reader, rule, rate, where)
        name = found.text
    document, alarms, tokens = _counts(reader, found, where)
    rows = [_row(None, AlarmRate.of(alarms, tokens))]
    if by is not None:
        group = _groups(reader, by, document)
        made = [
            _row(value, AlarmRate.of(alarms[group == value], tokens[group == value]))
            for value in np.unique(group)
        ]
        rows += sorted(made, key=lambda row: (-float(str(row["per_million"])), str(row["group"])))
    return Calibration(
        pa.Table.from_pylist(rows, _SCHEMA),
        monitor=name,
        rule=found.text,
        by=by,
        labels=rule_labels(reader.store, found),
    )


def alarm_rate(reader: Reader, rule: FeatureRule, where: str | None = None) -> AlarmRate:
    """How often a rule fires on what is stored."""
    _, alarms, tokens = _counts(reader, rule, where)
    return AlarmRate.of(alarms, tokens)


def threshold_for(reader: Reader, text: str, rate: str, where: str | None = None) -> FeatureRule:
    """The rule with the smallest number in place of ``?`` at which it fires at most so often.

    At that number and at every larger one. where: only these stored documents count.

    Raises:
        RuleError: It has not one ``?``, or not at the right of a ``>``.
        QueryError: The rate is none, or the rest of the rule alone fires more often.
    """
    rule = FeatureRule.parse(reader.store, text)
    sought = _sought(rule, text)
    most = _rate(rate)
    compiled = Compiled(rule, reader.snapshot)
    sql = f"WITH {compiled.levels()} SELECT * FROM levels ORDER BY document_id, pos"
    with duckdb_errors(reader.location):
        found = reader.cursor().sql(sql).fetchnumpy()
    document, at, level = (np.asarray(found[name]) for name in ("document_id", "pos", "level"))
    counted, tokens = _tokens(reader, rule, where)
    inside = np.isin(document, counted)
    document, at, level = document[inside], at[inside], level[inside]
    allowed = most * int(tokens.sum())
    silent = silent_level(rule.tree)
    number = _smallest(document, at, level, silent, allowed, above=sought.sign == ">")
    if number is None:
        raise QueryError(
            f"with any number the rule {text} fires more often than {rate}: its other parts do"
        )
    made = FeatureRule(replaced(rule.tree, number), rule.features)
    made.refuse_decided(reader.store)
    return made


def _smallest(
    document: Int64, at: Int64, level: Floats, silent: float, allowed: float, *, above: bool
) -> float | None:
    """The smallest c of which, and of all larger ones, there are at most `allowed` alarms.

    An alarm of c begins wherever the level rises from at most c to above it. All [n], by document
    and place. above: the rule holds above c. Else from c on, and c is the next level.
    """
    follows = np.zeros(len(level), bool)
    follows[1:] = (document[1:] == document[:-1]) & (at[1:] == at[:-1] + 1)
    before = np.where(follows, np.roll(level, 1), -np.inf)
    before = np.maximum(before, silent)
    rises = level > before
    ends = np.concatenate([before[rises], level[rises]])
    steps = np.concatenate([np.ones(int(rises.sum())), -np.ones(int(rises.sum()))])
    values = np.unique(np.append(ends[np.isfinite(ends)], silent if np.isfinite(silent) else 0.0))
    change = np.zeros(len(values) + 1)
    np.add.at(change, np.searchsorted(values, ends[ends < np.inf]), steps[ends < np.inf])
    counts = np.cumsum(change[:-1])
    too_many = np.flatnonzero(counts > allowed)
    first = 0 if not len(too_many) else int(too_many[-1]) + 1
    if first == len(values):
        return None
    if above:
        return float(values[first])
    return float(
        values[first + 1] if first + 1 < len(values) else np.nextafter(values[first], np.inf)
    )


def _sought(rule: FeatureRule, text: str) -> Compare:
    """The comparison with the open number. Raises `RuleError`."""
    opened = [n for n in nodes(rule.tree) if isinstance(n, Open)]
    if len(opened) != 1:
        raise RuleError(
            f"a rate sets one number: write ? in its place, as in f12 > ?, not {text!r}"
        )
    found = list(_comparisons(rule.tree))
    if len(found) != 1 or found[0].sign not in (">", ">="):
        raise RuleError(f"a rate sets the number that something is above: write > ? in {text!r}")
    return found[0]


def _comparisons(node: Node) -> Iterable[Compare]:
    """Comparisons of a value with the open number that no ``not`` turns round."""
    if isinstance(node, Compare) and isinstance(node.right, Open):
        yield node
    if not isinstance(node, Not):
        for child in children(node):
            yield from _comparisons(child)


def _rate(text: str) -> float:
    """Alarms per token, from ``5/M``. Raises `QueryError`."""
    match = _RATE.fullmatch(check_text(text, "the rate"))
    if match is None or float(match[1]) <= 0 or match[2].strip("0") == "":
        raise QueryError(f"{text!r} is no rate: give alarms per tokens, as in 5/M, 1/k or 1/200000")
    return float(match[1]) / (_UNITS.get(match[2]) or int(match[2]))


def _counts(reader: Reader, rule: FeatureRule, where: str | None) -> tuple[Int64, Int64, Int64]:
    """(document_id, alarms, tokens) of each document, int64 [d]."""
    document, tokens = _tokens(reader, rule, where)
    with duckdb_errors(reader.location):
        found = reader.cursor().sql(beginnings_sql(rule, reader.snapshot)).fetchnumpy()
    context, of = (np.asarray(found[name], np.int64) for name in ("context_id", "document_id"))
    if where is not None:
        of = of[np.isin(context, contexts_where(reader, where))]
    alarms = np.bincount(np.searchsorted(document, of), minlength=len(document))
    return document, alarms.astype(np.int64), tokens


def _tokens(reader: Reader, rule: FeatureRule, where: str | None) -> tuple[Int64, Int64]:
    """(document_id, tokens) of the documents that the rule's SAEs have read, by id."""
    sql = Compiled(rule, reader.snapshot).tokens()
    with duckdb_errors(reader.location):
        found = reader.cursor().sql(sql).fetchnumpy()
    context, document, n = (
        np.asarray(found[name], np.int64) for name in ("context_id", "document_id", "n")
    )
    if where is not None:
        chosen = np.isin(context, contexts_where(reader, where))
        document, n = document[chosen], n[chosen]
        if not len(document):
            raise QueryError(f"no stored document is where {where}")
    ids, place = np.unique(document, return_inverse=True)
    return ids, np.bincount(place, n, len(ids)).astype(np.int64)


def _groups(reader: Reader, by: str, document: Int64) -> npt.NDArray[np.object_]:
    """The group of each document, as text. Raises `QueryError` for no such column."""
    check_text(by, "by")
    columns = reader.cursor().sql("FROM documents LIMIT 0").columns
    known = {folded(column): column for column in columns}
    if folded(by) not in known:
        raise QueryError(f"documents have no column {by}: there are {', '.join(columns)}")
    column = literals.name(known[folded(by)])
    sql = f"SELECT document_id, coalesce(CAST({column} AS VARCHAR), '') AS value FROM documents"
    with duckdb_errors(reader.location):
        table = reader.cursor().sql(f"{sql} ORDER BY document_id").to_arrow_table()
    ids = table.column("document_id").to_numpy()
    values = np.array(table.column("value").to_pylist(), object)
    return np.asarray(values[np.searchsorted(ids, document)])


def _row(group: str | None, rate: AlarmRate) -> dict[str, object]:
    share, low, high = rate.share
    return {
        "group": group,
        "documents": rate.documents,
        "tokens": rate.tokens,
        "alarms": rate.alarms,
        "per_million": rate.per_million,
        "per_million_low": rate.low,
        "per_million_high": rate.high,
        "alarmed_documents": rate.alarmed,
        "share": share,
        "share_low": low,
        "share_high": high,
    }


def _byar(a: float) -> tuple[float, float]:
    """Ends of the 95 % interval of a Poisson mean of which `a` were counted."""
    more = a + 1
    high = more * (1 - 1 / (9 * more) + Z95 / (3 * math.sqrt(more))) ** 3
    if a == 0:
        return 0.0, high
    return a * max(0.0, 1 - 1 / (9 * a) - Z95 / (3 * math.sqrt(a))) ** 3, high


QUESTION = Question("calibrate", Calibration)
