"""For each feature of a contrast, the strongest context of each side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from featuredb.store.positions import context_of, token_of
from featuredb.store.recorded import CommonTokens
from featuredb.store.snapshot import Sae
from queries.coactivation import fired
from queries.connection import Reader
from queries.contrasts.chosen import Compared
from queries.encode import Named, active_on
from queries.fires import Encode
from queries.peaks import Peak, peak_columns
from queries.pooled import Int64

WINDOW = 12


def contexts_of_sides(
    reader: Reader,
    compared: Compared,
    features: Sequence[tuple[int, Sae, int]],
    encode: Encode,
) -> pa.Table:
    """The context with the largest activation in A, and in B, of each feature that has one there.

    features: rank, SAE and number. Columns: rank, side (``A`` or ``B``), sae, feature_id, then
    those of `featuredb.Database.top_contexts` and text_index i64, the number of a new text in
    its set, whose context_id and document_id are null. By rank and side.
    """
    store = reader.store
    stored = compared.units.n
    bits = store.snapshot.position_bits
    common = {sae.name: CommonTokens(store, sae, sae) for sae in compared.saes}
    tables = []
    sides = (("A", compared.in_a), ("B", compared.in_b))
    new = _best_texts(reader, compared, sides, features, encode)
    for rank, sae, number in features:
        found, context, unit = None, np.empty(0, np.int64), np.empty(0, np.int32)
        for name, places in sides:
            inside = np.zeros(stored, np.bool_)
            inside[places[places < stored]] = True
            if inside.any():
                if found is None:
                    found = fired(store, sae, number, common[sae.name], with_activations=True)
                    keys = found.keys
                    context = context_of(keys, bits)
                    unit = compared.units.of(context, partial(token_of, keys, bits))
                here = np.flatnonzero((unit >= 0) & inside[unit])
                if len(here):
                    best = here[np.argmax(found.activation[here])]
                    at = context == context[best]
                    peak = Peak(
                        int(context[best]),
                        float(found.activation[best]),
                        int(token_of(found.keys[best], bits)),
                        token_of(found.keys[at], bits),
                        found.activation[at],
                    )
                    columns = peak_columns(store, [peak], WINDOW, 0)
                    columns["text_index"] = pa.nulls(1, pa.int64())
                    tables.append(_named(columns, rank, name, sae, number))
            if (name, rank) in new:
                tables.append(_named(new[name, rank], rank, name, sae, number))
    return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})


def _named(columns: dict[str, pa.Array], rank: int, side: str, sae: Sae, number: int) -> pa.Table:
    first = {
        "rank": pa.array([rank], pa.int32()),
        "side": pa.array([side], pa.string()),
        "sae": pa.array([sae.name], pa.string()),
        "feature_id": pa.array([number], pa.int64()),
    }
    return pa.table(first | {k: v for k, v in columns.items() if k != "rank"})


def _best_texts(
    reader: Reader,
    compared: Compared,
    sides: Sequence[tuple[str, Int64]],
    features: Sequence[tuple[int, Sae, int]],
    encode: Encode,
) -> dict[tuple[str, int], dict[str, pa.Array]]:
    """The columns of the new text of each side and rank in which the feature is strongest."""
    stored = compared.units.n
    wanted: dict[tuple[str, int], int] = {}
    for name, places in sides:
        new = places[places >= stored]
        for rank, sae, number in features if len(new) else ():
            pairs = compared.new[sae.name]
            low, high = np.searchsorted(pairs.feature, [number, number + 1])
            here = np.flatnonzero(np.isin(pairs.unit[low:high], new))
            if len(here):
                best = low + here[np.argmax(pairs.value[low:high][here])]
                wanted[name, rank] = int(pairs.unit[best]) - stored
    numbers = sorted(set(wanted.values()))
    group = [Named(i, *compared.texts[i]) for i in numbers]
    active = dict(zip(numbers, active_on(reader.store, group, encode), strict=True))
    result = {}
    by_rank = {rank: (sae, number) for rank, sae, number in features}
    for (side, rank), text in wanted.items():
        sae, number = by_rank[rank]
        one = next(each for each in active[text].active if each.sae.name == sae.name)
        mine = one.feature_id == number
        if (on := compared.units.on) is not None:
            mine &= on.on_text(active[text])[one.token_index]
        index, values = one.token_index[mine], one.activation[mine].astype(np.float32)
        peak = int(index[np.argmax(values)])
        words = active[text].tokens
        start, stop = max(0, peak - WINDOW), min(len(words), peak + WINDOW + 1)
        shown = np.zeros(len(words), np.float32)
        shown[index] = values
        within = text - (compared.n_texts_of_a if side == "B" else 0)
        result[side, rank] = {
            "context_id": pa.nulls(1, pa.int64()),
            "document_id": pa.nulls(1, pa.int64()),
            "activation": pa.array([values.max()], pa.float32()),
            "token_index": pa.array([peak], pa.int32()),
            "token": pa.array([words[peak]], pa.string()),
            "window_start": pa.array([start], pa.int32()),
            "tokens": pa.array([list(words[start:stop])], pa.list_(pa.string())),
            "activations": pa.array([shown[start:stop].tolist()], pa.list_(pa.float32())),
            "text_index": pa.array([within], pa.int64()),
        }
    return result
