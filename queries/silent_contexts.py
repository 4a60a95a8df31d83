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
from featuredb.store.files.arrays import fetch_rows
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

_FIRST = 1024
"""Contexts looked at first for one that is silent on a wanted token."""

_FASTER = 8
"""How much less a token takes where all are read, one after another."""

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
    weight = np.array([entry["count"] for entry in top], np.int64)
    name = f"{sae.name}/{number}"
    silent = _silent_in(store, sae, fired) if k and top else np.empty(0, np.int64)
    context, best, index = _drawn(store, silent, keys(silent, seed, name), place, weight, k)
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    peaks = [Peak(int(c), 0.0, int(i), *nothing) for c, i in zip(context, index, strict=True)]
    columns = dict(
        zip(("sae", "feature_id"), of_feature(sae.name, number, len(peaks)), strict=True)
    )
    shown = peak_columns(store, peaks, window, 0)
    columns["rank"] = shown.pop("rank")
    columns["matched"] = pa.array([texts[i] for i in best], pa.string())
    return _answer(store, sae, number, pa.table(columns | shown), "tokens", seed)


def _silent_in(store: Store, sae: Sae, fired: Int64) -> Int64:
    """The contexts that the SAE has read and in which it does not fire, ascending."""
    ranges = ranges_read(store.snapshot, sae.name)
    read = [np.arange(first, end) for first, end in ranges]
    contexts = np.concatenate([np.empty(0, np.int64), *read])
    return contexts[~np.isin(contexts, fired, assume_unique=True)]


def _drawn(
    store: Store,
    contexts: Int64,
    key: Int64,
    place: npt.NDArray[np.int8],
    weight: Int64,
    k: int,
) -> tuple[Int64, Int64, Int64]:
    """(context, its wanted token's place, that token's index) of those drawn, in their order.

    contexts: those to draw from, ascending. key: of each. place: of each token id, `len(weight)`
    where it is not wanted. weight: of each place.

    Contexts of a token come by key, so those of the least keys are looked at first, until no other
    can come before the last of k. Few need to be, unless a wanted token is never without firing.
    """
    look = _FIRST
    while True:
        everything = look * _FASTER >= len(contexts)
        chosen = slice(None) if everything else np.sort(np.argpartition(key, look)[:look])
        found = _first_places(store, contexts[chosen], place, len(weight), everything=everything)
        context, best, index = found
        its_key = key[np.searchsorted(contexts, context)]
        turn = (turns(best, its_key) + 1) / weight[best]
        rows = np.lexsort((its_key, turn))[:k]
        # The least turn that a context that was not looked at can have, of each token.
        others = (np.bincount(best, minlength=len(weight)) + 1) / weight
        if everything or (len(rows) == k and (others >= turn[rows[-1]]).all()):
            return context[rows], best[rows], index[rows]
        look *= 4


def _first_places(
    store: Store,
    contexts: Int64,
    place: npt.NDArray[np.int8],
    none: int,
    *,
    everything: bool,
) -> tuple[Int64, Int64, Int64]:
    """Of each context with a wanted token: its id, the least place, and that token's index.

    contexts: ascending. place: of each token id, `none` where it is not wanted. everything: they
    are so many that all tokens are read, one block after another.
    """
    found = [(np.empty(0, np.int64),) * 3]
    for corpus in store.snapshot.corpora:
        span = corpus.first_context, corpus.first_context + corpus.n_contexts
        first, end = np.searchsorted(contexts, span)
        rows = contexts[first:end] - corpus.first_context
        starts = store.texts.index(corpus)[:, 1]
        if not len(rows):
            continue
        read = _places(store, corpus, place, none) if everything else None
        position, which = read or _places_in(store, corpus, place, none, rows)
        row = np.searchsorted(starts, position, side="right") - 1
        if not len(row):
            continue
        # Of each context the least place comes first, of several tokens with it the first.
        firsts = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1])))
        least = np.minimum.reduceat(which << 32 | (position - starts[row]), firsts)
        there = np.isin(row[firsts], rows, assume_unique=True)
        least = least[there]
        context = row[firsts][there] + corpus.first_context
        found.append((context, least >> 32, least & 0xFFFFFFFF))
    context, best, index = (np.concatenate(each) for each in zip(*found, strict=True))
    return context, best, index


def _places(
    store: Store, corpus: Corpus, place: npt.NDArray[np.int8], none: int
) -> tuple[Int64, Int64]:
    """Where wanted tokens are in a corpus, ascending, and the place of each."""
    tokens = store.texts.tokens(corpus)
    at, places = [np.empty(0, np.int64)], [np.empty(0, np.int8)]
    for first in range(0, len(tokens), BLOCK):
        block = place[tokens[first : first + BLOCK]]
        here = np.flatnonzero(block < none)
        at.append(here + first)
        places.append(block[here])
    return np.concatenate(at), np.concatenate(places).astype(np.int64)


def _places_in(
    store: Store, corpus: Corpus, place: npt.NDArray[np.int8], none: int, rows: Int64
) -> tuple[Int64, Int64]:
    """As `_places`, of some contexts alone: reads no others."""
    starts = store.texts.index(corpus)[:, 1]
    tokens = store.texts.tokens(corpus)
    fetch_rows(tokens, zip(starts[rows].tolist(), starts[rows + 1].tolist(), strict=True))
    lengths = starts[rows + 1] - starts[rows]
    before = np.cumsum(lengths) - lengths
    position = np.repeat(starts[rows] - before, lengths) + np.arange(lengths.sum())
    which = place[tokens[position]]
    here = np.flatnonzero(which < none)
    return position[here], which[here].astype(np.int64)


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
