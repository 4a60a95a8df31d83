"""Labels from elsewhere, resolved to the features of a database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.errors import FeatureDBError, LabelError
from featuredb.labels.methods import IMPORTED
from featuredb.store.names import parse_feature, sae_named
from featuredb.store.snapshot import Sae, Snapshot

LONGEST = 10_000
"""Characters of a label at most."""

_OPTIONAL = {
    "model": pa.string(),
    "author": pa.string(),
    "created": pa.string(),
    "votes": pa.int64(),
    "preferred": pa.bool_(),
}
_OF_SCORES = {
    "row": pa.int64(),
    "scorer": pa.string(),
    "model": pa.string(),
    "value": pa.float64(),
    "details": pa.string(),
}
_SAE = ("sae", "sae_sha256", "hook", "d_sae")


@dataclass(frozen=True)
class LabelBatch:
    """Labels to be written, and scores of them, as a file has them.

    labels: columns feature_id (numbers, or their digits, or ``"sae/1234"``) and text. And, each if
    known: method, model, author, created, votes, preferred, and what says of which SAE a row is:
    sae (its name), sae_sha256 and hook, d_sae (its width). scores: columns row (of labels), scorer,
    model, value and details (JSON). method, sae: those of all rows, where they have no column.
    source: what messages name.
    """

    labels: pa.Table
    scores: pa.Table | None = None
    method: str | None = None
    sae: str | None = None
    source: str = "the labels"


def resolved(snapshot: Snapshot, batch: LabelBatch) -> tuple[pa.Table, pa.Table]:
    """Rows of the tables ``labels`` and ``scores``, in the batch's order, author and time as given.

    Raises `LabelError` naming the first row that is wrong: of an SAE or a feature that the database
    does not have, or with an empty or too long text.
    """
    table = batch.labels
    for name in ("feature_id", "text"):
        if name not in table.column_names:
            raise LabelError(f"{batch.source} has no column {name}")
    rows = _Rows(batch.source)
    text = rows.cast(table, "text", pa.string())
    _check_texts(rows, text)
    _check_times(rows, table)
    saes, features = _features(snapshot, batch, rows)
    given = {
        name: rows.cast(table, name, kind)
        if name in table.column_names
        else pa.nulls(len(table), kind)
        for name, kind in _OPTIONAL.items()
    }
    method = (
        rows.cast(table, "method", pa.string())
        if "method" in table.column_names
        else pa.nulls(len(table), pa.string())
    ).fill_null(batch.method or IMPORTED)
    labels = pa.table(
        {
            "sae_sha256": pa.array([sae.sha256 for sae in saes], pa.string()),
            "hook": pa.array([sae.hook for sae in saes], pa.string()),
            "feature_id": pa.array(features, pa.int64()),
            "text": text,
            "method": method,
            **given,
            "votes": given["votes"].fill_null(0),
            "preferred": given["preferred"].fill_null(False),
        }
    )
    return labels, _scores(batch, rows)


def label_ids(labels: pa.Table) -> pa.Array:
    """What names a label among those of its feature: a hash of who says what, and how."""
    names = ("sae_sha256", "hook", "feature_id", "text", "method", "model", "author")
    columns = [labels.column(name).to_pylist() for name in names]
    return pa.array(
        [
            sha256("\0".join(map(_spelled, values)).encode()).hexdigest()[:12]
            for values in zip(*columns, strict=True)
        ],
        pa.string(),
    )


def _spelled(value: Any) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True)
class _Rows:
    """The rows of what `source` names, for messages."""

    source: str

    def wrong(self, row: int, what: str) -> LabelError:
        return LabelError(f"{self.source}, row {row + 1}: {what}")

    def cast(self, table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
        """A column as that type. Raises `LabelError` naming the first value that is none."""
        column = table.column(name).combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        try:
            return column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            for row, value in enumerate(column):
                try:
                    pa.array([value.as_py()]).cast(kind)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                    raise self.wrong(row, f"{name} is {value.as_py()!r}, not {kind}") from None
            raise


def _check_texts(rows: _Rows, text: pa.Array) -> None:
    for row, value in enumerate(text.to_pylist()):
        if value is None or not value.strip():
            raise rows.wrong(row, "the label is empty: leave the row out")
        if len(value) > LONGEST:
            raise rows.wrong(
                row, f"the label has {len(value):,} characters: it may have {LONGEST:,}"
            )


def _check_times(rows: _Rows, table: pa.Table) -> None:
    if "created" not in table.column_names:
        return
    for row, value in enumerate(rows.cast(table, "created", pa.string()).to_pylist()):
        try:
            datetime.fromisoformat(value or "2000-01-01")
        except ValueError:
            what = f"created is {value!r}, no time such as 2026-01-31T12:00:00+00:00"
            raise rows.wrong(row, what) from None


def _features(
    snapshot: Snapshot, batch: LabelBatch, rows: _Rows
) -> tuple[list[Sae], npt.NDArray[np.int64]]:
    """The SAE and the number of every row."""
    table = batch.labels
    said = {
        name: rows.cast(table, name, pa.int64() if name == "d_sae" else pa.string()).to_pylist()
        for name in _SAE
        if name in table.column_names
    }
    known: dict[tuple[Any, ...], Sae] = {}
    saes: list[Sae] = []
    features = np.empty(len(table), np.int64)
    ids = table.column("feature_id").to_pylist()
    for row in range(len(table)):
        key = tuple(said[name][row] if name in said else None for name in _SAE)
        feature = ids[row]
        try:
            if isinstance(feature, str) and "/" in feature and not any(key):
                sae, features[row] = parse_feature(snapshot, feature)
            else:
                if key not in known:
                    known[key] = _sae(snapshot, batch.sae, *key)
                sae = known[key]
                features[row] = parse_feature(snapshot, f"{sae.name}/{_number(feature)}")[1]
        except FeatureDBError as error:
            raise rows.wrong(row, str(error)) from None
        saes.append(sae)
    return saes, features


def _number(feature: Any) -> Any:
    """A feature's number as spreadsheets and data frames spell it: 12, "12", " 12 ", "12.0"."""
    if feature is None or feature == "":
        raise LabelError("it names no feature")
    if isinstance(feature, float) and feature.is_integer():
        return int(feature)
    return re.sub(r"\.0+$", "", feature.strip()) if isinstance(feature, str) else feature


def _sae(
    snapshot: Snapshot,
    default: str | None,
    name: str | None,
    digest: str | None,
    hook: str | None,
    width: int | None,
) -> Sae:
    """The SAE that a row is about. Its hash says more than its name."""
    names = ", ".join(f"{sae.name} ({sae.sha256[:12]})" for sae in snapshot.saes) or "none"
    if digest:
        same = [s for s in snapshot.saes if s.sha256 == digest and hook in (None, s.hook)]
        if not same:
            raise LabelError(
                f"it is about an SAE with hash {digest[:12]}"
                + (f" at {hook}" if hook else "")
                + f", and this database has {names}"
            )
        sae = next((s for s in same if s.name == (name or default)), same[0])
    elif name or default:
        sae = sae_named(snapshot, str(name or default))
    elif len(snapshot.saes) == 1:
        sae = snapshot.saes[0]
    else:
        raise LabelError(f"it does not say of which SAE: say so with sae, as one of {names}")
    if width is not None and width != sae.d_sae:
        raise LabelError(
            f"it is about an SAE of {width:,} features, and {sae.name} has {sae.d_sae:,}"
        )
    return sae


def _scores(batch: LabelBatch, rows: _Rows) -> pa.Table:
    """The scores, each with the row of its label."""
    table = batch.scores
    if table is None:
        return pa.schema(_OF_SCORES).empty_table()
    columns = {
        name: rows.cast(table, name, kind)
        if name in table.column_names
        else pa.nulls(len(table), kind)
        for name, kind in _OF_SCORES.items()
    }
    for name in ("row", "scorer", "value"):
        if columns[name].null_count:
            row = pc.index(columns[name].is_null(), True).as_py()
            raise LabelError(f"{batch.source}, score {row + 1} has no {name}")
    extra = {n: table.column(n) for n in ("author", "created") if n in table.column_names}
    return pa.table({**columns, **extra})
