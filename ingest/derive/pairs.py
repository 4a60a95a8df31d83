"""Every pair of features of an SAE that are active together: the whole sparse matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.store.recorded import CommonTokens
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from ingest.derive.pair_counts import ActiveUnits, pair_counts, token_units
from queries.association import COUNTS, MEASURES, table_columns

SCHEMA = pa.schema(
    [
        ("sae", pa.string()),
        ("feature_id", pa.int64()),
        ("other_sae", pa.string()),
        ("other_id", pa.int64()),
        *((name, pa.int64()) for name in COUNTS),
        *((name, pa.float64()) for name in MEASURES),
    ]
)

_BATCH = 1 << 17
"""Most pairs in a batch, unless one feature has more: 16 MB."""


def pairs(
    store: Store, sae: Sae, unit: str, min_both: int, memory: int
) -> Iterator[pa.RecordBatch]:
    """Rows of `SCHEMA`, by feature, then by the other, which has the higher id.

    unit: ``token`` or ``document``. min_both: pairs that are active together less often are left
    out. memory: bytes to work in.
    """
    segments = store.snapshot.segments_of(sae.name)
    bits = store.snapshot.position_bits
    common = CommonTokens(store, sae, sae)
    tokens = unit == "token"
    n = common.tokens if tokens else common.documents
    alone = store.features.count(sae) if tokens else store.features.documents(sae)

    def pieces(within: int) -> Iterator[ActiveUnits]:
        if tokens:
            return token_units(store.root, segments, bits, within)
        # A piece of documents exists beside the piece of tokens that it is made of.
        return _documents(store, sae, token_units(store.root, segments, bits, within // 2))

    rows = max(1, _BATCH // sae.d_sae)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for first, together in pair_counts(pool, pieces, sae.d_sae, memory):
            for low in range(0, len(together), rows):
                some = together[low : low + rows]
                feature, other = np.nonzero(some >= min_both)
                above = other > feature + first + low
                feature, other = feature[above], other[above]
                both = some[feature, other].astype(np.int64)
                if len(both):
                    yield _batch(sae, feature + first + low, other, both, alone, n)


def reader_of_pairs(
    store: Store, saes: Sequence[Sae], unit: str, min_both: int, memory: int
) -> pa.RecordBatchReader:
    """`pairs` of several SAEs, one after the other."""
    batches = (batch for sae in saes for batch in pairs(store, sae, unit, min_both, memory))
    return pa.RecordBatchReader.from_batches(SCHEMA, batches)


def _batch(
    sae: Sae,
    feature: npt.NDArray[np.int64],
    other: npt.NDArray[np.int64],
    both: npt.NDArray[np.int64],
    alone: npt.NDArray[np.int64],
    n: int,
) -> pa.RecordBatch:
    m = len(both)
    columns = table_columns(both, alone[feature], alone[other], np.full(m, n))
    name = pa.array([sae.name] * m, pa.string())
    named = [name, pa.array(feature, pa.int64()), name, pa.array(other, pa.int64())]
    return pa.record_batch([*named, *columns.values()], schema=SCHEMA)


def _documents(store: Store, sae: Sae, tokens: Iterator[ActiveUnits]) -> Iterator[ActiveUnits]:
    """Documents with the features active anywhere in them, from all tokens in order.

    The last document of a piece may go on in the next one, so it is held back until then.
    """
    seen = np.full(sae.d_sae, -1, np.int64)
    held = ActiveUnits(np.zeros(1, np.int64), np.empty(0, np.uint32), np.empty(0, np.int64))
    for piece in tokens:
        document = store.texts.documents_of(piece.context)
        # What is held back is the first unit, as if it were a token.
        offsets = np.concatenate((held.offsets[:-1], piece.offsets + held.offsets[-1]))
        feature_id = np.concatenate((held.feature_id, piece.feature_id))
        document = np.concatenate((held.context, document))
        made = _distinct(document, offsets, feature_id, seen)
        last = len(made[0]) - 2
        yield ActiveUnits(made[0][:-1], made[1][: made[0][last]], document[:0])
        rest = made[1][made[0][last] :]
        held = ActiveUnits(np.array([0, len(rest)], np.int64), rest, document[-1:])
    yield held


@nb.njit(cache=True, nogil=True)
def _distinct(
    document: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    feature_id: npt.NDArray[Any],
    seen: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """(offsets int64 [documents + 1], feature_id) of documents: each feature once, ascending.

    document: of each token, int64 [t], equal ones consecutive. seen: work space int64 [d_sae].
    """
    seen[:] = -1
    features = np.empty_like(feature_id)
    starts = np.zeros(len(document) + 1, np.int64)
    n, units = 0, 0
    for token in range(len(document)):
        if token == 0 or document[token] != document[token - 1]:
            features[starts[max(units - 1, 0)] : n].sort()
            starts[units] = n
            units += 1
        for at in range(offsets[token], offsets[token + 1]):
            feature = feature_id[at]
            if seen[feature] != document[token]:
                seen[feature] = document[token]
                features[n] = feature
                n += 1
    features[starts[max(units - 1, 0)] : n].sort()
    starts[units] = n
    return starts[: units + 1], features[:n]
