"""What fires on each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render import numbers
from featuredb.render.characters import label
from featuredb.render.view import Column, Heading, Table, View
from featuredb.store.statistics import SUMMARY_COLUMNS
from featuredb.store.store import Store
from queries.answers import Answer
from queries.arguments import is_whole
from queries.show import feature_name, feature_sizes, feature_table, number_column, score_column
from queries.specificity import Active, specificity_of


@dataclass(frozen=True, repr=False)
class FiringByToken(Answer):
    """The features of each token of a text of `tokens`, the most specific first.

    Columns: token_index i32, token string, rank i32 (on the token), sae string, feature_id i64,
    specificity f32, activation f32, density f64, max_activation f32, top_tokens list<string>,
    promoted_tokens list<string>, label string (the preferred one, or null). By token, then rank.
    Ties by SAE and feature id.
    """

    kind: ClassVar[str] = "firing_by_token"

    tokens: list[str]
    only: int | None
    """The index of the one token that the answer is about, None for all."""

    def view(self) -> View:
        """One line per token, or the features of the one token."""
        rows = list(self)
        if self.only is not None:
            head = Heading(f"token {self.only}: ", label(self.tokens[self.only]))
            columns = [
                score_column("specific", rows, "specificity"),
                number_column("active", rows, "activation"),
                *feature_sizes(rows),
            ]
            return View([[head, *([feature_table(rows, columns)] if rows else [])]])
        several = len({row.sae for row in rows}) > 1
        known = "its label, or " if any(row.label for row in rows) else ""
        cells = ["" for _ in self.tokens]
        for row in rows:
            name = feature_name(row) if several else str(row.feature_id)
            what = row.label or (label(row.top_tokens[0]) if row.top_tokens else "")
            about = f" {what}" if what else ""
            cells[row.token_index] += f"{', ' if cells[row.token_index] else ''}{name}{about}"
        table = Table(
            [
                Column("", [str(i) for i in range(len(cells))], right=True, style="dim"),
                Column("token", [label(token) for token in self.tokens], style="bold"),
                Column(f"features, each with {known}what it mostly fires on", cells, wrap=True),
            ]
        )
        return View([[Heading(numbers.plural(len(cells), "token"))], *([[table]] if cells else [])])


def by_token(
    store: Store, active: Sequence[Active], tokens: list[str], k: int, by: str, token: int | None
) -> FiringByToken:
    """See `queries.fires.Firing.by_token`. by: ``specificity``, or anything else for activation."""
    if token is not None and not (is_whole(token) and 0 <= token < len(tokens)):
        raise QueryError(f"there is no token {token}: the text has {len(tokens)}, from 0")
    empty = np.empty(0, np.int64)
    places, saes, features = [empty], [empty], [empty]
    scores, values = [empty.astype(np.float32)], [empty.astype(np.float32)]
    for each in active:
        places.append(each.token_index.astype(np.int64))
        features.append(each.feature_id.astype(np.int64))
        values.append(each.activation.astype(np.float32))
        saes.append(np.full(len(each.token_index), store.sae_order[each.sae.name]))
        scores.append(specificity_of(store, each.sae, features[-1], values[-1]))
    place, sae, feature = (np.concatenate(part) for part in (places, saes, features))
    score, value = np.concatenate(scores), np.concatenate(values)
    order = np.lexsort((feature, sae, -(score if by == "specificity" else value), place))
    rank = np.arange(len(order)) - np.searchsorted(place[order], place[order])
    chosen = (rank < k) & ((place[order] == token) if token is not None else True)
    order, rank = order[chosen], rank[chosen]
    known = store.snapshot.saes
    rows = [
        store.features.row(known[s], f)
        for s, f in zip(sae[order].tolist(), feature[order].tolist(), strict=True)
    ]
    about = store.features.summaries(rows)
    table = pa.table(
        {
            "token_index": pa.array(place[order], pa.int32()),
            "token": pa.array([tokens[i] for i in place[order]], pa.string()),
            "rank": pa.array(rank + 1, pa.int32()),
            "sae": pa.array([known[i].name for i in sae[order]], pa.string()),
            "feature_id": pa.array(feature[order], pa.int64()),
            "specificity": pa.array(score[order], pa.float32()),
            "activation": pa.array(value[order], pa.float32()),
            **{name: about.column(name) for name in SUMMARY_COLUMNS},
        }
    )
    return FiringByToken(table, tokens=tokens, only=None if token is None else int(token))
