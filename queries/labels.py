"""The labels of features, with their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.view import Column, Facts, Heading, Table, View
from featuredb.store.names import parse_feature
from featuredb.store.store import Store
from queries.answers import Answer, Row
from queries.arguments import one_or_several
from queries.connection import Reader
from queries.question import Question
from queries.show import counted, feature_name

_SHOWN = 50


@dataclass(frozen=True, repr=False)
class Labels(Answer):
    """Labels by SAE and feature id. Of one feature the preferred first, then most votes, newest.

    Columns: sae string, feature_id i64, text string, method string, model string (null if no model
    wrote it), author string, created string (UTC, ISO 8601), votes i64, preferred bool, label_id
    string, scores list<struct<scorer, model, value, details>> (by scorer, then model).
    """

    kind: ClassVar[str] = "labels"

    def view(self) -> View:
        """The first labels, with who says so."""
        rows = list(self[:_SHOWN])
        heading = Heading("", counted(len(self), "label"))
        if not rows:
            return View([[heading]])
        columns = [
            Column("feature", [feature_name(row) for row in rows], features=True),
            Column("", ["★" if row.preferred else "" for row in rows]),
            Column("by", [_by(row) for row in rows], style="dim"),
            Column("votes", [str(row.votes) for row in rows], right=True),
            Column("scores", [_scores(row) for row in rows]),
            Column("id", [row.label_id for row in rows], style="dim"),
            Column("label", [row.text for row in rows], wrap=True),
        ]
        told = {name for name in ("votes", "scores") if any(row[name] for row in rows)}
        shown = [c for c in columns if c.name not in {"votes", "scores"} - told]
        return View([[heading], [Table(shown, more=len(self) - len(rows))]])


def label_facts(rows: Sequence[Mapping[str, Any]]) -> list[Facts]:
    """The labels of one feature, for its card. None where there are none."""
    if not rows:
        return []
    said = [f"{row['text']} · {_by(row)}" for row in rows]
    facts: dict[str, Any] = {"label": said[0]}
    if said[1:]:
        facts["also"] = "; ".join(said[1:4]) + (f"; {len(said) - 4} more" if said[4:] else "")
    return [Facts(facts)]


def _by(row: Row | Mapping[str, Any]) -> str:
    """Who says so: a person, or a method and its model."""
    if row["method"] == "human":
        return str(row["author"])
    return f"{row['method']} ({row['model']})" if row["model"] else str(row["method"])


def _scores(row: Row) -> str:
    return " ".join(f"{s['scorer']} {numbers.number(s['value'])}" for s in row.scores)


def with_labels(store: Store, table: pa.Table) -> pa.Table:
    """The rows with `label` last: the preferred one of the feature of each, null where it has
    none. They have columns sae and feature_id."""
    names = (table.column(name).to_pylist() for name in ("sae", "feature_id"))
    return table.append_column("label", store.labels.column(*names))


def labels(reader: Reader, feature: int | str | Sequence[int | str] | None = None) -> Labels:
    """See `featuredb.Database.labels`."""
    wanted = ""
    cursor = reader.cursor()
    if feature is not None:
        named = [parse_feature(reader.snapshot, each) for each in one_or_several(feature)]
        chosen = pa.table(
            {
                "sae": pa.array([sae.name for sae, _ in named], pa.string()),
                "feature_id": pa.array([number for _, number in named], pa.int64()),
            }
        )
        cursor.register("featuredb_chosen", chosen)
        wanted = "SEMI JOIN featuredb_chosen USING (sae, feature_id)"
    return Labels(cursor.sql(_SQL.format(wanted=wanted)).to_arrow_table())


_SQL = """
WITH scored AS (
    SELECT sae, feature_id, label_id, list(
        {{'scorer': scorer, 'model': model, 'value': value, 'details': details}}
        ORDER BY scorer, model NULLS FIRST) AS scores
    FROM scores GROUP BY sae, feature_id, label_id
)
SELECT l.sae, l.feature_id, l.text, l.method, l.model, l.author, l.created, l.votes, l.preferred,
    l.label_id, coalesce(s.scores, []) AS scores
FROM labels AS l {wanted} LEFT JOIN scored AS s USING (sae, feature_id, label_id)
JOIN (SELECT sae, sae_index FROM saes) USING (sae)
ORDER BY sae_index, feature_id, l.preferred DESC, l.votes DESC, l.created DESC, label_id"""

QUESTION = Question("labels", Labels, "labels")
