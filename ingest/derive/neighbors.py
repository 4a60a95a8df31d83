"""The stored neighbour graph: per feature the nearest directions among SAEs that share a hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from featuredb import schemas
from featuredb.snapshot import Sae
from featuredb.vectors import Float32Matrix, cosine_top, unit_rows

_QUERIES = 4_096


def neighbors(saes: Sequence[Sae], rows: Mapping[str, Float32Matrix]) -> pa.Table:
    """Rows of NEIGHBORS for all features.

    rows: directions float32 [d_sae, d] by SAE name. SAEs are comparable when they read the same
    hook, write the same hook and their directions have the same length; a feature is not its own
    neighbour. Exact, by the scoring rule of `featuredb.vectors`.
    """
    groups: dict[tuple[str, str | None, int], list[Sae]] = {}
    for sae in saes:
        groups.setdefault((sae.hook, sae.hook_out, rows[sae.name].shape[1]), []).append(sae)
    by_sae = {s.name: table for group in groups.values() for s, table in _of_group(group, rows)}
    tables = [by_sae[sae.name] for sae in saes]
    return pa.concat_tables(tables) if tables else schemas.NEIGHBORS.empty_table()


def _of_group(
    group: Sequence[Sae], rows: Mapping[str, Float32Matrix]
) -> list[tuple[Sae, pa.Table]]:
    stacked = np.concatenate([rows[s.name] for s in group])
    first_row = np.cumsum([0] + [s.d_sae for s in group])
    unit = unit_rows(stacked)
    half = unit.astype(np.float16)
    names = np.array([s.name for s in group], dtype=object)
    answer = []
    for number, sae in enumerate(group):
        own = np.arange(first_row[number], first_row[number + 1])
        tables = []
        for start in range(0, len(own), _QUERIES):
            block = own[start : start + _QUERIES]
            found, scores = cosine_top(
                unit[block], half, stacked, min(schemas.NEIGHBORS_KEPT + 1, len(stacked))
            )
            tables.append(_table(sae, block, found, scores, names, first_row, own[0]))
        answer.append((sae, pa.concat_tables(tables)))
    return answer


def _table(
    sae: Sae,
    block: np.ndarray,
    found: np.ndarray,
    scores: Float32Matrix,
    names: np.ndarray,
    first_row: np.ndarray,
    own_first: int,
) -> pa.Table:
    other = found != block[:, None]
    rank = np.cumsum(other, axis=1)
    kept = other & (rank <= schemas.NEIGHBORS_KEPT)
    neighbor = found[kept]
    owner = np.searchsorted(first_row, neighbor, side="right") - 1
    feature = np.repeat(block - own_first, kept.sum(axis=1))
    return pa.table(
        [
            pa.array([sae.name] * len(neighbor), pa.string()),
            pa.array(feature, pa.int64()),
            pa.array(rank[kept], pa.int32()),
            pa.array(names[owner].tolist(), pa.string()),
            pa.array(neighbor - first_row[owner], pa.int64()),
            pa.array(scores[kept]),
        ],
        schema=schemas.NEIGHBORS,
    )
