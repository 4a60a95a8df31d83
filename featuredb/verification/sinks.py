"""The positions left out for their norm, and with them how many were recorded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.snapshot import Segment
from featuredb.verification.activations import Lengths
from featuredb.verification.remedies import RESTORE
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope


def check_sinks(scope: Scope, segment: Segment, lengths: Lengths) -> Iterator[Problem]:
    """Order and positions of a segment's sinks. All positions but those, BOS and the
    tokens that the SAE excludes are recorded."""
    snapshot, file = scope.snapshot, segment.sinks
    last = -1
    for group in range(scope.files.metadata(file.path).num_row_groups):
        table = scope.files.read(file.path, [group])
        if len(table) == 0:
            continue
        context = chunk_to_numpy(table.column("context_id")).astype(np.int64)
        index = chunk_to_numpy(table.column("token_index")).astype(np.int64)
        key = (context << snapshot.position_bits) | index
        if key[0] <= last or not (key[1:] > key[:-1]).all():
            yield Problem(file.path, "is not sorted by (context, token)", RESTORE)
            return
        last = int(key[-1])
        outside = (context < segment.first_context) | (context >= segment.end_context)
        if outside.any() or (index >= lengths.of(context)).any():
            yield Problem(file.path, "has positions that the segment has not", RESTORE)
            return
    excluded = snapshot.sae(segment.sae).excluded_tokens
    recorded = lengths.recorded(segment.first_context, segment.end_context, excluded) - file.rows
    if recorded != segment.recorded_tokens:
        what = (
            f"leaves {recorded:,} positions recorded, the snapshot says {segment.recorded_tokens:,}"
        )
        yield Problem(file.path, what, RESTORE)
