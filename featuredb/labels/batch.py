"""Labels from elsewhere, resolved to the features of a database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from math import isfinite
from typing import Any
from unicodedata import category

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.errors import FeatureDBError, LabelError, shortened
from featuredb.labels.methods import IMPORTED
from featuredb.store.names import parse_feature, sae_named
from featuredb.store.snapshot import Sae, Snapshot
from queries.arguments import check_text

LONGEST = 10_000
"""Characters of a label at most."""

_OPTIONAL = {
    "model": pa.string(),
    "author": pa.string(),
    "created": pa.string(),
    "votes": pa.int64(),
    "preferred": pa.bool_(),
}
SCORES = pa.schema(
    {
        "row": pa.int64(),
        "scorer": pa.string(),
        "model": pa.string(),
        "value": pa.float64(),
        "details": pa.string(),
    }
)
"""Of `LabelBatch.scores`."""

_SAE = ("sae", "sae_sha256", "hook", "d_sae")
_KINDS = {
    pa.string(): "text",
    pa.int64(): "a whole number",
    pa.float64(): "a number",
    pa.bool_(): "true or false",
}

COLUMNS = frozenset({"feature_id", "text", "method", *_OPTIONAL, *_SAE})
"""That `LabelBatch.labels` may have."""

_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
"""Unicode's categories of characters that show nothing."""


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
    text = _texts(rows, table)
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
            "created": _times(rows, given["created"]),
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
        if kind == pa.int64() and pa.types.is_string(column.type):
            # As data frames write a column of whole numbers with a gap in it.
            column = pc.replace_substring_regex(column, r"^\s*(-?\d+)(\.0+)?\s*$", r"\1")
        try:
            return column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            for row, value in enumerate(column):
                try:
                    pa.array([value.as_py()]).cast(kind)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                    said = shortened(repr(value.as_py()))
                    raise self.wrong(row, f"{name} is {said}, not {_KINDS[kind]}") from None
            raise


def label_text(text: str) -> str:
    """A label without the space around it. Raises `LabelError` if it is empty or too long."""
    text = text.strip()
    if all(category(character) in _INVISIBLE for character in text):
        raise LabelError("the label is empty: write what the feature means, or leave it out")
    if len(text) > LONGEST:
        raise LabelError(f"the label has {len(text):,} characters: it may have {LONGEST:,}")
    return text


def check_name(name: object, what: str) -> None:
    """Raises `LabelError` unless it is text that names a method or a model."""
    if not check_text(name, what, LabelError).strip():
        raise LabelError(f"{what} has no name: give one, or leave it out")


def check_scorer(name: str) -> None:
    """Raises `LabelError` unless a scorer's name can be a folder's, as it is in Delphi's format."""
    if not name.strip(". ") or not name.isprintable() or {"/", "\\"} & set(name):
        said = shortened(repr(name))
        raise LabelError(f"{said} names no scorer: give it a name without / and \\")


def _texts(rows: _Rows, table: pa.Table) -> pa.Array:
    texts = []
    for row, value in enumerate(rows.cast(table, "text", pa.string()).to_pylist()):
        try:
            texts.append(label_text(value or ""))
        except LabelError as error:
            raise rows.wrong(row, str(error)) from None
    return pa.array(texts, pa.string())


def _times(rows: _Rows, created: pa.Array) -> pa.Array:
    """When labels were made, as snapshots write it: their order as texts is that in time."""
    times = []
    for row, value in enumerate(created.to_pylist()):
        try:
            times.append(_utc(value.strip()) if value and value.strip() else None)
        except (ValueError, OverflowError):
            said = shortened(repr(value))
            what = f"created is {said}, no time such as 2026-01-31T12:00:00+00:00"
            raise rows.wrong(row, what) from None
    return pa.array(times, pa.string())


def _utc(time: str) -> str:
    at = datetime.fromisoformat(time)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at.astimezone(UTC).isoformat(timespec="seconds")


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
    known: dict[tuple[Any, ...], Sae] = {}  # by what a row says of its SAE
    saes: list[Sae] = []
    features = np.empty(len(table), np.int64)
    ids = table.column("feature_id").to_pylist()
    for row in range(len(table)):
        columns = (said[name][row] if name in said else None for name in _SAE)
        try:
            name, slash, number = str(_number(ids[row])).rpartition("/")
            key: tuple[Any, ...] = (name if slash else batch.sae, *columns)
            if key not in known:
                known[key] = _sae(snapshot, *key)
            sae = known[key]
            if slash and name != sae.name:
                sae_named(snapshot, name)
                raise LabelError(f"its feature is of {shortened(name)}, its columns say {sae.name}")
            features[row] = parse_feature(snapshot, f"{sae.name}/{number}")[1]
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
    return re.sub(r"(?<=\d)\.0+$", "", feature.strip()) if isinstance(feature, str) else feature


def _sae(
    snapshot: Snapshot,
    default: str | None,
    name: str | None,
    digest: str | None,
    hook: str | None,
    width: int | None,
) -> Sae:
    """The SAE that a row is about. Its hash says more than its name, and this than `default`."""
    names = ", ".join(f"{sae.name} ({sae.sha256[:12]})" for sae in snapshot.saes) or "none"
    same = [s for s in snapshot.saes if digest in ("", None, s.sha256)]
    same = [s for s in same if hook in ("", None, s.hook)]
    if not same:
        raise LabelError(
            "it is about an SAE"
            + (f" with hash {digest[:12]}" if digest else "")
            + (f" at {shortened(hook)}" if hook else "")
            + f", and this database has {names}"
        )
    named = [s for s in same if s.name == (name or default)]
    if digest:
        sae = (named or same)[0]
    elif name or (default and not hook):
        sae = sae_named(snapshot, str(name or default))
        if sae not in same:
            raise LabelError(f"it is about {sae.name} at {hook}, and {sae.name} is at {sae.hook}")
    elif len(named or same) == 1:
        sae = (named or same)[0]
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
        return SCORES.empty_table()
    columns = {
        field.name: rows.cast(table, field.name, field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in SCORES
    }
    checked = (columns[name].to_pylist() for name in ("row", "scorer", "value"))
    for row, scorer, value in zip(*checked, strict=True):
        if scorer is None:
            raise rows.wrong(row, "a score has no scorer")
        try:
            check_scorer(scorer)
        except LabelError as error:
            raise rows.wrong(row, str(error)) from None
        if value is None or not isfinite(value):
            raise rows.wrong(row, f"the score of {scorer} is {value}, no number: leave it out")
    extra = {n: table.column(n) for n in ("author", "created") if n in table.column_names}
    return pa.table({**columns, **extra})
