"""Write, prefer, vote for and remove labels: each a new snapshot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.errors import LabelError, shortened
from featuredb.labels.batch import LabelBatch, check_name, label_ids, label_text, resolved
from featuredb.labels.methods import AUTOMATIC, HUMAN
from featuredb.store.names import parse_feature
from featuredb.store.outcomes import Labeled
from featuredb.store.snapshot import Snapshot
from featuredb.store.user_data import (
    LABELS,
    SCORES,
    in_order,
    replaced,
    row_keys,
    rows_of_sae,
)
from ingest.operations.user_data import Tables, change_user_data, signed
from queries.arguments import check_text, is_whole

_FEATURE = LABELS.key[:3]

_END = 2**63
"""Votes are below."""


def add_labels(
    path: Path, batch: LabelBatch, operation: str = "label", replaces: str | None = None
) -> Labeled:
    """Publish labels, and scores of them, all in one snapshot.

    A label that is there already, said by the same author about the same feature by the same
    method, is skipped: its votes stay. Its scores are written. Scores of one scorer and model
    replace those before.

    A label takes over as the preferred one of its feature where there is none, or an automatic one.
    Of several new ones those marked as preferred come first, then those with most votes, then the
    newest, ties by id.

    Args:
        path: The database folder.
        batch: The labels.
        operation: What the snapshot records as having made it.
        replaces: A method, whose labels go that are not among these.

    Returns:
        How many were written.

    Raises:
        LabelError: A row is wrong. Nothing is written.
        DatabaseError: There is no database, or another process is writing.
        StorageError: The disk is full or read-only.
    """
    counts: list[int] = []

    def change(snapshot: Snapshot, tables: Tables) -> Tables:
        labels, scores = resolved(snapshot, batch)
        labels = _named_and_signed(labels)
        scores = _of_labels(scores, labels)
        before = tables[LABELS.name]
        known = row_keys(before, LABELS.key)
        keys = row_keys(labels, LABELS.key)
        first = dict(zip(reversed(keys.to_pylist()), range(len(keys) - 1, -1, -1), strict=True))
        added = labels.take(pa.array(sorted(first.values()), pa.int64()))
        there = pc.is_in(row_keys(added, LABELS.key), value_set=known)
        added = added.filter(pc.invert(there))
        counts[:] = len(added), len(labels) - len(added), len(scores)
        changed = {}
        old = before.filter(pc.equal(before.column("method"), replaces))
        old = old.filter(pc.invert(pc.is_in(row_keys(old, LABELS.key), value_set=keys)))
        if len(added) or len(old):
            changed[LABELS.name] = _preferred(_without(before, old), added, old)
        scored = _without(tables[SCORES.name], old)
        if len(scores) or len(scored) < len(tables[SCORES.name]):
            changed[SCORES.name] = replaced(scored, scores, SCORES)
        return changed

    snapshot = change_user_data(path, [LABELS, SCORES], change, operation)
    return Labeled(snapshot, *counts)


def write_label(
    path: Path,
    feature: int | str,
    text: str,
    method: str = HUMAN,
    model: str | None = None,
) -> Snapshot:
    """Publish one label, which becomes the preferred one of its feature.

    One that is there already keeps its votes and its time. Raises `UnknownFeatureError`, and as
    `add_labels`.
    """
    text = label_text(check_text(text, "the label", LabelError))
    check_name(method, "the method")
    if model is not None:
        check_name(model, "the model")

    def change(snapshot: Snapshot, tables: Tables) -> Tables:
        sae, number = parse_feature(snapshot, feature)
        row = {"feature_id": [f"{sae.name}/{number}"], "text": [text]}
        table = pa.table({**row, "model": pa.array([model], pa.string())})
        labels, _ = resolved(snapshot, LabelBatch(table, method=method, source="the label"))
        labels = _named_and_signed(labels)
        rows = tables[LABELS.name]
        there = pc.is_in(row_keys(labels, LABELS.key), value_set=row_keys(rows, LABELS.key))
        if not there[0].as_py():
            rows = replaced(rows, labels, LABELS)
        return {LABELS.name: _prefer(rows, labels)}

    return change_user_data(path, [LABELS], change, "label")


def prefer_label(path: Path, feature: int | str, label: str) -> Snapshot:
    """Make a label, named by its text or its id, the one that answers show.

    Raises `UnknownFeatureError`, `LabelError` unless exactly one is meant, and as `add_labels`.
    """
    return _change_one(path, feature, label, _prefer)


def vote_for_label(path: Path, feature: int | str, label: str, votes: int = 1) -> Snapshot:
    """Add votes to a label, or take some away. Raises as `prefer_label`."""
    if not is_whole(votes):
        raise LabelError(f"votes must be a whole number, not {shortened(repr(votes))}")

    def vote(rows: pa.Table, chosen: pa.Table) -> pa.Table:
        if not -_END <= chosen.column("votes")[0].as_py() + int(votes) < _END:
            raise LabelError("a label has at most 2^63 - 1 votes: give fewer")
        here = pc.is_in(row_keys(rows, LABELS.key), value_set=row_keys(chosen, LABELS.key))
        more = pc.if_else(here, pc.add(rows.column("votes"), int(votes)), rows.column("votes"))
        return _with(rows, "votes", more)

    return _change_one(path, feature, label, vote)


def remove_label(path: Path, feature: int | str, label: str) -> Snapshot:
    """Remove a label and its scores. Another of its feature is preferred then.

    Raises as `prefer_label`.
    """

    def remove(rows: pa.Table, chosen: pa.Table) -> pa.Table:
        rest = _without(rows, chosen)
        return _settled(rest, np.zeros(len(rest), bool), row_keys(chosen, _FEATURE))

    return _change_one(path, feature, label, remove, scores=True)


def _change_one(
    path: Path,
    feature: int | str,
    label: str,
    change: Callable[[pa.Table, pa.Table], pa.Table],
    *,
    scores: bool = False,
) -> Snapshot:
    """Publish what `change` makes of all labels and the one that is named."""

    def changes(snapshot: Snapshot, tables: Tables) -> Tables:
        chosen = _named(snapshot, tables[LABELS.name], feature, label)
        changed = {LABELS.name: change(tables[LABELS.name], chosen)}
        if scores:
            rest = _without(tables[SCORES.name], chosen)
            if len(rest) < len(tables[SCORES.name]):
                changed[SCORES.name] = rest
        return changed

    return change_user_data(path, [LABELS, SCORES] if scores else [LABELS], changes, "label")


def _named(snapshot: Snapshot, rows: pa.Table, feature: int | str, label: str) -> pa.Table:
    """The one row that is meant. Raises `LabelError`."""
    sae, number = parse_feature(snapshot, feature)
    own = rows_of_sae(rows, sae)
    own = own.filter(pc.equal(own.column("feature_id"), number))
    name = f"{sae.name}/{number}"
    if not len(own):
        raise LabelError(f"feature {name} has no label")
    wanted = check_text(label, "the label", LabelError).strip()
    same = pc.or_(
        pc.equal(own.column("text"), wanted),
        pc.starts_with(own.column("label_id"), wanted) if len(wanted) >= 4 else False,
    )
    found = own.filter(same)
    if len(found) == 1:
        return found
    ids, texts = (own.column(column).to_pylist() for column in ("label_id", "text"))
    known = ", ".join(f"{each} {text[:40]!r}" for each, text in zip(ids, texts, strict=True))
    if len(found):
        what = f"{len(found)} labels of feature {name} read {wanted[:40]!r}"
        raise LabelError(f"{what}: say which by its id, of {known}")
    raise LabelError(f"feature {name} has no label {wanted[:40]!r}: it has {known}")


def _prefer(rows: pa.Table, chosen: pa.Table) -> pa.Table:
    """The rows with this one preferred, and no other of its feature."""
    of_feature = pc.is_in(row_keys(rows, _FEATURE), value_set=row_keys(chosen, _FEATURE))
    it = pc.is_in(row_keys(rows, LABELS.key), value_set=row_keys(chosen, LABELS.key))
    return _with(rows, "preferred", pc.if_else(of_feature, it, rows.column("preferred")))


def _without(rows: pa.Table, labels: pa.Table) -> pa.Table:
    """The rows, labels or scores of them, that are not of these labels."""
    gone = pc.is_in(row_keys(rows, LABELS.key), value_set=row_keys(labels, LABELS.key))
    return rows.filter(pc.invert(gone))


def _preferred(before: pa.Table, added: pa.Table, gone: pa.Table) -> pa.Table:
    """Both, sorted, with one preferred label per feature. gone: labels that were removed."""
    fresh = pa.array([False] * len(before) + [True] * len(added))
    both = pa.concat_tables([before, added]).append_column("fresh", fresh)
    both = in_order(both, LABELS)
    new = both.column("fresh").to_numpy()
    touched = row_keys(pa.concat_tables([added, gone]), _FEATURE)
    return _settled(both.drop_columns("fresh"), new, touched)


def _settled(rows: pa.Table, new: npt.NDArray[np.bool_], features: pa.Array) -> pa.Table:
    """The rows with exactly one preferred label for each of `features`, the first of: not
    automatic, preferred before, new and marked as preferred, most votes, newest, least id.

    An automatic one that is preferred to another beside it was chosen, and counts as any other.
    """
    here = pc.is_in(row_keys(rows, _FEATURE), value_set=features).to_numpy(zero_copy_only=False)
    preferred = rows.column("preferred").to_numpy().copy()
    at = np.flatnonzero(here)
    own = rows.take(pa.array(at)).combine_chunks()
    mark = preferred[at]
    order = own.append_column("at", pa.array(at))
    automatic = pc.equal(own.column("method"), AUTOMATIC).to_numpy()
    feature = row_keys(own, _FEATURE)
    chosen = np.zeros(len(own), bool)
    for together in (new[at], ~new[at]):
        others = feature.filter(pa.array(~automatic & together))
        beside = pc.is_in(feature, value_set=others).to_numpy(zero_copy_only=False)
        chosen |= mark & together & beside
    order = order.append_column("mine", pa.array((automatic & ~chosen).astype(np.int8)))
    # 0: preferred before, 1: new and marked, 2: neither.
    order = order.append_column("tier", pa.array(np.where(mark, new[at].astype(int), 2)))
    down = {"votes", "created"}
    keys = (*_FEATURE, "mine", "tier", "votes", "created", "label_id")
    order = order.sort_by([(k, "descending" if k in down else "ascending") for k in keys])
    keys_of = row_keys(order, _FEATURE).to_numpy(zero_copy_only=False)
    first = np.append(True, keys_of[1:] != keys_of[:-1])[: len(keys_of)]
    preferred[at] = False
    preferred[order.column("at").to_numpy()[first]] = True
    return _with(rows, "preferred", pa.array(preferred))


def _with(rows: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    at = rows.schema.get_field_index(name)
    return rows.set_column(at, rows.schema.field(at), values)


def _named_and_signed(labels: pa.Table) -> pa.Table:
    """Rows of the table ``labels``. Ids depend on the author, also where that is the user."""
    no_ids = pa.array([""] * len(labels), pa.string())
    rows = signed(labels.append_column("label_id", no_ids), LABELS)
    return _with(rows, "label_id", label_ids(rows))


def _of_labels(scores: pa.Table, labels: pa.Table) -> pa.Table:
    """Rows of the table ``scores``, of each key the last."""
    named = labels.select(LABELS.key).take(scores.column("row"))
    for name in scores.column_names[1:]:
        named = named.append_column(name, scores.column(name))
    rows = signed(named, SCORES)
    last = dict(zip(row_keys(rows, SCORES.key).to_pylist(), range(len(rows)), strict=True))
    return rows.take(pa.array(sorted(last.values()), pa.int64()))
