"""User data: columns, keys, features that exist, one preferred label of each, labels of scores."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from featuredb.store.snapshot import UserData
from featuredb.store.user_data import (
    LABELS,
    SCORES,
    USER_TABLES,
    row_keys,
    rows_of_sae,
    user_rows,
)
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope


def check_user_data(scope: Scope, data: UserData) -> Iterator[Problem]:
    """One row per key, in order, about features that their SAEs have, of each feature's labels
    one that answers show, and scores of labels that there are. Tables of newer versions are checked
    by their bytes alone."""
    table = USER_TABLES.get(data.table)
    scope.bar.advance(data.file.bytes)
    if table is None:
        return
    path = data.file.path
    rows = scope.files.read(path)
    if not rows.schema.equals(table.schema):
        yield Problem(path, "has other columns than its table", remedy(path))
        return
    keys = rows.select(list(table.key))
    if not keys.sort_by([(name, "ascending") for name in table.key]).equals(keys):
        yield Problem(path, "is not sorted by its key", remedy(path))
    if len(keys.group_by(list(table.key)).aggregate([])) < len(keys):
        yield Problem(path, "has two rows with one key", remedy(path))
    if table is LABELS:
        features = rows.group_by(list(table.key[:3])).aggregate([("preferred", "sum")])
        if not pc.all(pc.equal(features.column("preferred_sum"), 1), min_count=0).as_py():
            what = "has labels of a feature of which not exactly one is preferred"
            yield Problem(path, what, remedy(path))
    if table is SCORES:
        labels = row_keys(user_rows(scope.files, scope.snapshot, LABELS), LABELS.key)
        there = pc.is_in(row_keys(rows, LABELS.key), value_set=labels)
        if not pc.all(there, min_count=0).as_py():
            yield Problem(path, "has a score of a label that does not exist", remedy(path))
    for sae in scope.snapshot.saes if "feature_id" in table.key else ():
        features = rows_of_sae(rows, sae).column("feature_id")
        if len(features) and not _between(features, sae.d_sae):
            yield Problem(path, "names a feature that does not exist", remedy(path))
            return


def _between(features: pa.ChunkedArray, end: int) -> bool:
    ends = pc.min_max(features).as_py()
    return bool(ends["min"] >= 0 and ends["max"] < end)
