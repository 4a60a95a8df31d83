"""Contexts where a feature never fires, though something there is like where it does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.render.characters import label
from featuredb.render.view import Heading, Passages, View
from featuredb.store.names import BAD_MATCH, parse_feature
from featuredb.store.recorded import BLOCK, ranges_read
from featuredb.store.snapshot import Corpus, Sae, Snapshot
from featuredb.store.store import Store
from queries.activations import feature_contexts
from queries.answers import of_feature
from queries.arguments import check_k, check_seed, check_window
from queries.catalog import literals
from queries.catalog.draws import keyed
from queries.catalog.recorded import read_by
from queries.catalog.windows import windows
from queries.connection import Reader
from queries.draws import keys, turns
from queries.peaks import Peak, peak_columns
from queries.question import Macro, Question
from queries.show import counted
from queries.sql import duckdb_errors
from queries.top_contexts import TopContexts

Int64 = npt.NDArray[np.int64]

KINDS = ("tokens", "neighbors", "random")

NEIGHBORS = 10
"""Nearest features by decoder whose stored examples are searched."""


@dataclass(frozen=True, repr=False)
class SilentContexts(TopContexts):
    """Contexts its SAE has read and a feature never fires in, in the order they were drawn in.

    Columns: those of `TopContexts`, and after the rank matched string. activation and activations
    are 0 throughout. like ``tokens``: matched is a token that the feature elsewhere fires on and
    token_index its first place in the context. like ``neighbors``: matched is the neighbor that
    fires, token_index where it does most. like ``random``: matched is null, token_index drawn.
    """

    kind: ClassVar[str] = "silent_contexts"

    like: str
    seed: int

    def view(self) -> View:
        """The contexts, the matched token marked."""
        what = {
            "tokens": " with a token that it elsewhere fires on",
            "neighbors": " in which a neighbor fires",
            "random": " at random",
        }[self.like]
        after = f" · silent in {counted(len(self), 'context')}{what}"
        heading = Heading("feature ", self.titled, after)
        return View([[heading], [self.passages()]] if len(self) else [[heading]])

    def passages(self) -> Passages:
        """The contexts, each after what it was matched by."""
        passages = super().passages()
        named = "silent on" if self.like == "tokens" else "beside"
        items = []
        for row, item in zip(self, passages.items, strict=True):
            about = item.about
            if row.matched is not None:
                rest = about.removeprefix(item.title)
                about = f"{item.title} · {named} {label(row.matched)}{rest}"
            items.append(replace(item, value=None, about=about))
        return replace(passages, items=items)


def silent_contexts(
    reader: Reader,
    feature: int | str,
    k: int = 20,
    like: str = "tokens",
    seed: int = 0,
    window: int = 16,
) -> SilentContexts:
    """See `featuredb.Database.silent_contexts`."""
    sae, number = parse_feature(reader.snapshot, feature)
    k, window, seed = check_k(k), check_window(window), check_seed(seed)
    if like not in KINDS:
        raise QueryError(BAD_MATCH.format(like=like))
    if like == "tokens":
        contexts = feature_contexts(reader.store, sae, number)
        return with_tokens(reader.store, sae, number, contexts.context_id, k, seed, window)
    query = "FROM silent_contexts(?, k := ?, matched_by := ?, seed := ?, window_size := ?)"
    with duckdb_errors(reader.location):
        relation = reader.cursor().sql(
            query, params=[f"{sae.name}/{number}", k, like, seed, window]
        )
        table = relation.to_arrow_table()
    return _answer(reader.store, sae, number, table, like, seed)


def with_tokens(
    store: Store, sae: Sae, number: int, fired: Int64, k: int, seed: int = 0, window: int = 16
) -> SilentContexts:
    """`silent_contexts` like its tokens: what the SQL gives, in less time (docs/design.md).

    fired: the contexts in which the feature fires, ascending.
    """
    top = store.features.card(sae, number).column("top_tokens")[0].as_py()
    texts = [entry["token"] for entry in top]
    place = np.full(store.snapshot.model.vocab_size, len(top), np.int8)
    for i in reversed(range(len(top))):
        place[store.texts.ids_of(texts[i])] = i
    corpora = store.snapshot.corpora if k and top else ()
    found = [_first_places(store, corpus, place, len(top)) for corpus in corpora]
    none = (np.empty(0, np.int64),) * 3
    context, best, index = (np.concatenate(each) for each in zip(none, *found, strict=True))
    edges = np.array(ranges_read(store.snapshot, sae.name), np.int64).reshape(-1)
    silent = ~np.isin(context, fired, assume_unique=True)
    silent &= np.searchsorted(edges, context, side="right") % 2 == 1
    context, best, index = context[silent], best[silent], index[silent]
    weight = np.array([entry["count"] for entry in top], np.int64)
    key = keys(context, seed, f"{sae.name}/{number}")
    turn = (turns(best, key) + 1) / weight[best]
    rows = np.lexsort((key, turn))[:k]
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    peaks = [Peak(int(context[i]), 0.0, int(index[i]), *nothing) for i in rows]
    columns = dict(zip(("sae", "feature_id"), of_feature(sae.name, number, len(rows)), strict=True))
    shown = peak_columns(store, peaks, window, 0)
    columns["rank"] = shown.pop("rank")
    columns["matched"] = pa.array([texts[best[i]] for i in rows], pa.string())
    return _answer(store, sae, number, pa.table(columns | shown), "tokens", seed)


def _first_places(
    store: Store, corpus: Corpus, place: npt.NDArray[np.int8], none: int
) -> tuple[Int64, Int64, Int64]:
    """Of each context with a wanted token: its id, the least place, and that token's index.

    place: of each token id, `none` where it is not wanted.
    """
    tokens, starts = store.texts.tokens(corpus), store.texts.index(corpus)[:, 1]
    at, places = [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    for first in range(0, len(tokens), BLOCK):
        block = place[tokens[first : first + BLOCK]]
        here = np.flatnonzero(block < none)
        at.append(here + first)
        places.append(block[here])
    position, which = np.concatenate(at), np.concatenate(places).astype(np.int64)
    row = np.searchsorted(starts, position, side="right") - 1
    if not len(row):
        return row, which, position
    # Of each context the least place comes first, of several tokens with it the first.
    firsts = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1])))
    least = np.minimum.reduceat(which << 32 | (position - starts[row]), firsts)
    return row[firsts] + corpus.first_context, least >> 32, least & 0xFFFFFFFF


def _answer(
    store: Store, sae: Sae, number: int, table: pa.Table, like: str, seed: int
) -> SilentContexts:
    return SilentContexts(
        table,
        sae=sae.name,
        feature_id=number,
        max_activation=float(store.features.max_activation(sae)[number]),
        special=store.texts.special,
        label=store.labels.preferred(sae, number),
        like=like,
        seed=seed,
    )


_SAE = "featuredb_sae(feature)"
_FIRED = "(SELECT context_id FROM feature_activations(feature))"

# A context counts for the token that the feature fires on most often.
_BY_TOKEN = f"""
    WITH wanted AS (
        SELECT v.token_id, t.token AS matched, t.count AS weight, place
        FROM (
            SELECT unnest(top_tokens) AS t, generate_subscripts(top_tokens, 1) AS place
            FROM features
            WHERE sae = featuredb_sae(feature)
                AND feature_id = CAST(featuredb_number(feature) AS BIGINT)
        ) JOIN vocabulary AS v ON v.text = t.token
    ),
    silent AS (
        FROM contexts ANTI JOIN {_FIRED} USING (context_id)
        WHERE list_has_any(token_ids, (SELECT list(token_id) FROM wanted))
    )
    SELECT context_id, first(matched ORDER BY place, token_index) AS matched,
        first(token_index ORDER BY place, token_index) AS token_index,
        first(weight ORDER BY place, token_index) AS weight
    FROM (
        SELECT context_id, unnest(token_ids) AS token_id,
            generate_subscripts(token_ids, 1) - 1 AS token_index
        FROM silent
    ) JOIN wanted USING (token_id)
    GROUP BY context_id"""

_BY_NEIGHBOR = f"""
    SELECT context_id, first(matched ORDER BY n.rank, e.token_index) AS matched,
        first(e.token_index ORDER BY n.rank, e.token_index) AS token_index, 1 AS weight
    FROM examples AS e JOIN (
        SELECT neighbor_sae AS sae, neighbor_id AS feature_id, rank,
            concat(neighbor_sae, '/', neighbor_id) AS matched
        FROM neighbors
        WHERE sae = featuredb_sae(feature)
            AND feature_id = CAST(featuredb_number(feature) AS BIGINT) AND rank <= {NEIGHBORS}
    ) AS n USING (sae, feature_id) ANTI JOIN {_FIRED} USING (context_id)
    GROUP BY context_id"""

_AT_RANDOM = f"""
    SELECT context_id, NULL::VARCHAR AS matched, NULL::BIGINT AS token_index, 1 AS weight
    FROM contexts ANTI JOIN {_FIRED} USING (context_id)"""


def _candidates() -> str:
    ways = {"tokens": _BY_TOKEN, "neighbors": _BY_NEIGHBOR, "random": _AT_RANDOM}
    refused = literals.message(BAD_MATCH, like="matched_by")
    known = ", ".join(map(literals.text, ways))
    return "\n    UNION ALL ".join(
        [
            *(f"SELECT * FROM ({sql}) WHERE matched_by = '{way}'" for way, sql in ways.items()),
            "SELECT NULL, NULL, NULL, 1 WHERE CASE "
            f"WHEN coalesce(matched_by IN ({known}), false) THEN false ELSE error({refused}) END",
        ]
    )


def _silent(snapshot: Snapshot) -> str:
    # Of each token as many in proportion as the feature fires on it, as seats are given to parties
    # by D'Hondt's rule. Of each neighbor equally many.
    best = """
    SELECT featuredb_sae(feature) AS sae, CAST(featuredb_number(feature) AS BIGINT) AS feature_id,
        rank, context_id, CAST(0 AS FLOAT) AS activation, token_index,
        CAST([] AS INTEGER[]) AS token_indexes, CAST([] AS FLOAT[]) AS activations
    FROM drawn"""
    return f"""
WITH candidates AS (SELECT c.* FROM ({_candidates()}) AS c WHERE {read_by(snapshot, _SAE)}),
turns AS (
    SELECT *, row_number() OVER (PARTITION BY matched ORDER BY key) / weight AS turn
    FROM ({keyed("FROM candidates")})
),
drawn AS MATERIALIZED (
    SELECT CAST(row_number() OVER (ORDER BY turn, key) AS INTEGER) AS rank, context_id, matched,
        CAST(coalesce(token_index, key % n_tokens) AS INTEGER) AS token_index
    FROM turns JOIN (SELECT context_id, n_tokens FROM contexts) USING (context_id)
    QUALIFY rank <= featuredb_k(k)
)
SELECT w.sae, w.feature_id, w.rank, d.matched, w.* EXCLUDE (sae, feature_id, rank)
FROM ({windows(best, snapshot)}) AS w JOIN drawn AS d USING (rank)
ORDER BY w.rank"""


QUESTION = Question(
    "silent_contexts",
    SilentContexts,
    "silent",
    (
        Macro("featuredb_silent(feature, k, matched_by, seed, size)", _silent),
        Macro(
            "silent_contexts(feature, k := 20, matched_by := 'tokens', seed := 0, "
            "window_size := 16)",
            "FROM featuredb_silent(feature, k, matched_by, seed, featuredb_window(window_size))",
            about="contexts where the feature never fires, matched by tokens, neighbors or random",
        ),
    ),
)
