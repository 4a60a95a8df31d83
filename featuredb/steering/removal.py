"""Removal: features taken away over texts, by dose, and what that costs on other texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from featuredb.errors import QueryError
from featuredb.render.view import Column, Heading, Table, View
from featuredb.steering.edits import Edit
from featuredb.steering.intervals import Interval
from featuredb.steering.opened import SteeringOptions, intervene
from featuredb.store.names import parse_feature
from featuredb.store.store import Store
from ingest.extract.recorded import recorded_model
from ingest.model.load import LoadedModel, no_tokenizer
from queries.answers import Answer
from queries.arguments import one_or_several

_ROW = pa.schema(
    [
        ("texts", pa.string()),
        ("dose", pa.float64()),
        ("n_features", pa.int64()),
        ("n_texts", pa.int64()),
        ("n_tokens", pa.int64()),
        ("loss", pa.float64()),
        ("change", pa.float64()),
        ("change_low", pa.float64()),
        ("change_high", pa.float64()),
    ]
)


@dataclass(frozen=True, repr=False)
class Removal(Answer):
    """The loss on target and control texts with features taken away.

    Columns: texts string (``target`` or ``control``), dose f64 (the share of each activation that
    is taken away, 0 for none), n_features, n_texts, n_tokens i64 (predicted), loss f64 (mean over
    texts of the next token's, nats), change f64 (from dose 0), change_low and change_high f64 (95 %
    interval over texts, null of one text). Target first, by dose.
    """

    kind: ClassVar[str] = "removal"

    def view(self) -> View:
        """One row per dose, target and control beside each other."""
        rows = list(self)
        count = rows[0].n_features
        heading = Heading("without ", f"{count:,} feature{'' if count == 1 else 's'}", "")
        columns = [Column("dose", [f"{r.dose:g}" for r in rows if r.texts == "target"], right=True)]
        for name in dict.fromkeys(row.texts for row in rows):
            own = [row for row in rows if row.texts == name]
            changes = [_spelled(row.change, row.change_low, row.change_high) for row in own]
            columns.append(Column(f"{name} loss", [f"{row.loss:.3f}" for row in own], right=True))
            columns.append(Column("change", changes, right=True, style="dim"))
        return View([[heading, Table(columns)]])


def _spelled(change: float, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
    return f"{change:+.3f}{ends}"


def remove_features(
    store: Store,
    features: Any,
    target: Iterable[str],
    control: Iterable[str] | None,
    doses: Sequence[float],
    where: str | None = None,
) -> Removal:
    """See `featuredb.Database.ablate`. where: the model is now."""
    names = _names(store, features)
    wrong = [dose for dose in doses if not 0 < dose <= 1]
    if wrong or not doses:
        raise QueryError(f"a dose is a share from 0 to 1, 1 for all of it, not {wrong or 'none'}")
    model = recorded_model(store.snapshot.model, where)
    sets = {"target": target} if control is None else {"target": target, "control": control}
    tokens = {name: _tokenized(store, model, name, texts) for name, texts in sets.items()}
    before = {name: _losses(model, ids) for name, ids in tokens.items()}
    losses: dict[float, dict[str, npt.NDArray[np.float64]]] = {0.0: before}
    for dose in sorted(set(doses)):
        edits = [
            Edit(name, "scale", 1 - dose, where=recorded_places(store, name)) for name in names
        ]
        with intervene(store, edits, where, SteeringOptions()):
            losses[dose] = {name: _losses(model, ids, held=True) for name, ids in tokens.items()}
    rows = []
    for name, ids in tokens.items():
        for dose, found in losses.items():
            change = Interval.of(found[name] - before[name])
            predicted = sum(len(row) - 1 for row in ids)
            rows.append(
                [name, dose, len(names), len(ids), predicted, float(found[name].mean()),
                 change.mean, change.low, change.high]
            )  # fmt: skip
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, _ROW.types, strict=True)]
    return Removal(pa.table(arrays, schema=_ROW))


def recorded_places(store: Store, feature: str) -> str:
    """Where the database records a feature: at BOS and sinks almost every one fires, and says
    nothing of the text."""
    snapshot = store.snapshot
    sae, _ = parse_feature(snapshot, feature)
    left_out = []
    if snapshot.corpora[0].bos_token_id is not None and not snapshot.recording.keep_bos:
        left_out.append("not bos")
    if sae.check.sink_threshold is not None and not snapshot.recording.keep_sinks:
        left_out.append("not sinks")
    return ", ".join(left_out) or "everywhere"


def _names(store: Store, features: Any) -> list[str]:
    """The features of a list, or of an answer or relation with columns sae and feature_id."""
    if isinstance(features, Answer) or hasattr(features, "to_arrow_table"):
        table = features.arrow() if isinstance(features, Answer) else features.to_arrow_table()
        if not {"sae", "feature_id"} <= set(table.column_names):
            raise QueryError("the rows name no features: they need columns sae and feature_id")
        pairs = zip(*(table.column(c).to_pylist() for c in ("sae", "feature_id")), strict=True)
        features = [f"{sae}/{number}" for sae, number in pairs]
    named = [parse_feature(store.snapshot, feature) for feature in one_or_several(features)]
    if not named:
        raise QueryError("there is no feature to take away: name at least one")
    return list(dict.fromkeys(f"{sae.name}/{number}" for sae, number in named))


def _tokenized(
    store: Store, model: LoadedModel, name: str, texts: Iterable[str]
) -> list[list[int]]:
    """Token ids of each text, BOS first as at the ingest, no longer than a context."""
    if model.tokenizer is None:
        raise no_tokenizer(model.path)
    corpus = store.snapshot.corpora[0]
    bos = [] if corpus.bos_token_id is None else [corpus.bos_token_id]
    given = [texts] if isinstance(texts, str) else list(texts)
    rows = [[*bos, *model.tokenizer(t, add_special_tokens=False).input_ids] for t in given]
    rows = [row[: corpus.context_size] for row in rows if len(row) > 1]
    if not rows:
        raise QueryError(f"the {name} texts have no token to predict: give texts of several tokens")
    return rows


def _losses(
    model: LoadedModel, rows: Sequence[Sequence[int]], *, held: bool = False
) -> npt.NDArray[np.float64]:
    """The mean loss of the next token in each text. held: the model is, by `intervene`."""
    means = []
    for row in rows:
        ids = torch.tensor([list(row)], device=model.device)
        with torch.no_grad():
            if held:
                logits = model.model(input_ids=ids, use_cache=False).logits
            else:
                with model.lock:
                    logits = model.model(input_ids=ids, use_cache=False).logits
        shares = logits[0, :-1].float().log_softmax(dim=1)
        means.append(-float(shares.gather(1, ids[0, 1:, None]).mean()))
    if not all(map(math.isfinite, means)):
        raise QueryError("the loss of a text is not finite")
    return np.array(means, np.float64)
