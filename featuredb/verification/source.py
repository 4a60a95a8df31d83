"""Run some contexts through the model and the SAEs again and compare with what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from featuredb.errors import OptionError
from featuredb.store.snapshot import Corpus, Sae
from featuredb.store.store import Store
from featuredb.store.values import FLOAT16_TINY, RELATIVE_ERROR
from featuredb.verification import Problem, Recomputed, Report

MOST_CONTEXTS = 1 << 15


class Tolerance(NamedTuple):
    """How far two runs of one model may differ, since batches of other shapes sum in another order.

    error: of two values, relative to the larger of the computed one and the median, rounding not
    counted. beyond: the share of activations whose error may be larger. flips: the share that may
    be on one side only, because their pre-activation is at the threshold.
    """

    error: float
    beyond: float
    flips: float


_TOLERANCES = {
    "float32": Tolerance(5e-4, 0.0, 1e-4),
    "float16": Tolerance(1e-2, 2e-3, 5e-3),
    "bfloat16": Tolerance(8e-2, 2e-3, 4e-2),
}
"""By the model's dtype."""

_FEW_FLIPS = 2
"""Always allowed, however small the sample."""


class _Activations(NamedTuple):
    """Activations of one SAE, all [n], sorted by key.

    key int64: which of the sampled contexts, token and feature, packed. value float32.
    """

    key: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]


class _Difference(NamedTuple):
    """Difference of two runs.

    both: activations on both sides. beyond: those of them that differ by more than allowed. flips:
    activations on one side only. error: the largest.
    """

    both: int
    beyond: int
    flips: int
    error: float

    def and_(self, other: _Difference) -> _Difference:
        """The difference over the contexts of both."""
        return _Difference(
            self.both + other.both,
            self.beyond + other.beyond,
            self.flips + other.flips,
            max(self.error, other.error),
        )


class EncodedAgain(Protocol):
    """Activations of one SAE on some contexts, all [n]. context: which of the contexts."""

    @property
    def context(self) -> npt.NDArray[np.int64]: ...
    @property
    def token_index(self) -> npt.NDArray[np.int64]: ...
    @property
    def feature_id(self) -> npt.NDArray[np.integer[Any]]: ...
    @property
    def activation(self) -> npt.NDArray[np.float32]: ...


class Encode(Protocol):
    """Runs contexts through a database's model and SAEs: `ingest.extract.new_text`."""

    def __call__(
        self, store: Store, corpus: Corpus, contexts: Sequence[npt.NDArray[Any]]
    ) -> Iterable[EncodedAgain]: ...


def compare(path: Path, report: Report, n_contexts: int, encode: Encode) -> Report:
    """Run contexts of a database through its model and SAEs again.

    Args:
        path: The database folder.
        report: What was found so far.
        n_contexts: How many, drawn at random. The same every time.
        encode: Runs them.

    Returns:
        The report, with a problem for every SAE that differs by more than rounding and the order
        of sums explain.

    Raises:
        OptionError: `n_contexts` is out of range.
        ModelError: The model is missing or has changed.
        SaeError: An SAE is missing or has changed.
    """
    if not 0 < n_contexts <= MOST_CONTEXTS:
        raise OptionError(f"source must be 1 to {MOST_CONTEXTS:,} contexts, not {n_contexts:,}")
    store = Store.open(path)
    try:
        snapshot = store.snapshot
        allowed = _TOLERANCES.get(snapshot.model.dtype, _TOLERANCES["float32"])
        values = snapshot.recording.values
        most = RELATIVE_ERROR[values] + allowed.error
        least = 0.0 if values == "float32" else FLOAT16_TINY
        totals = {sae.name: _Difference(0, 0, 0, 0.0) for sae in snapshot.saes}
        contexts = tokens = 0
        for corpus, ids in _sample(snapshot.corpora, n_contexts):
            contexts += len(ids)
            token_ids = [np.asarray(store.texts.token_ids(int(i))) for i in ids]
            tokens += sum(map(len, token_ids))
            encoded = encode(store, corpus, token_ids)
            for sae, each in zip(snapshot.saes, encoded, strict=True):
                key = _key(each.context, each.token_index, each.feature_id)
                computed = _sorted([_Activations(key, each.activation)])
                difference = _difference(computed, _stored(store, sae, ids), most, least)
                totals[sae.name] = totals[sae.name].and_(difference)
    finally:
        store.close()
    problems = []
    for name, (both, beyond, flips, error) in totals.items():
        if beyond > allowed.beyond * both:
            message = (
                f"{beyond:,} of {both:,} activations differ from the model's by more than "
                f"{most:.1e}, up to {error:.1e}"
            )
            problems.append(Problem(f"SAE {name}", message, _REMEDY))
        if flips > max(_FEW_FLIPS, allowed.flips * both):
            message = f"{flips:,} of {both + flips:,} activations are only stored or only computed"
            problems.append(Problem(f"SAE {name}", message, _REMEDY))
    recomputed = Recomputed(
        contexts,
        tokens,
        sum(t.both for t in totals.values()),
        sum(t.flips for t in totals.values()),
        max(t.error for t in totals.values()),
    )
    return replace(report, problems=(*report.problems, *problems), recomputed=recomputed)


_REMEDY = "the files are as they were written, so ingest again, with this model and these SAEs"


def _sample(corpora: tuple[Corpus, ...], wanted: int) -> list[tuple[Corpus, npt.NDArray[np.int64]]]:
    """Context ids of each corpus, ascending, in proportion to the corpora's contexts."""
    sizes = [corpus.n_contexts for corpus in corpora]
    rows = np.random.default_rng(0).permutation(sum(sizes))[:wanted]
    starts = np.cumsum([0, *sizes])
    drawn = []
    for corpus, low, high in zip(corpora, starts[:-1], starts[1:], strict=True):
        ids = np.sort(rows[(rows >= low) & (rows < high)]) - low + corpus.first_context
        if len(ids):
            drawn.append((corpus, ids))
    return drawn


def _stored(store: Store, sae: Sae, ids: npt.NDArray[np.int64]) -> _Activations:
    """The stored activations of one SAE in the contexts `ids`."""
    pieces = []
    for place, context in enumerate(ids.tolist()):
        for reader in store.by_token(sae):
            segment = reader.segment
            if segment.first_context <= context < segment.end_context:
                index, rows = reader.context(context)
                token = np.repeat(index, np.diff(rows.offsets))
                key = _key(np.full(len(token), place), token, rows.feature_id)
                pieces.append(_Activations(key, rows.activation.astype(np.float32)))
    return _sorted(pieces)


def _key(
    context: npt.NDArray[np.int64], token: npt.NDArray[np.int64], feature: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Context below 2**15, token below 2**16, feature below 2**32 as one number."""
    key: npt.NDArray[np.int64] = (context << 48) | (token << 32) | feature.astype(np.int64)
    return key


def _sorted(pieces: list[_Activations]) -> _Activations:
    if not pieces:
        return _Activations(np.empty(0, np.int64), np.empty(0, np.float32))
    key = np.concatenate([p.key for p in pieces])
    value = np.concatenate([p.value for p in pieces])
    order = np.argsort(key)
    return _Activations(key[order], value[order])


def _difference(
    computed: _Activations, stored: _Activations, most: float, least: float
) -> _Difference:
    """most: the largest error allowed. least: an absolute difference that is always allowed."""
    both, ours, theirs = np.intersect1d(
        computed.key, stored.key, assume_unique=True, return_indices=True
    )
    want, have = computed.value[ours], stored.value[theirs]
    # The error of a sum does not shrink with the value, so small values are compared with the
    # SAE's usual ones.
    usual = float(np.median(np.abs(want))) if len(want) else 1.0
    error = np.maximum(np.abs(want - have) - least, 0) / np.maximum(np.abs(want), usual)
    flips = len(computed.key) + len(stored.key) - 2 * len(both)
    beyond = int((error > most).sum())
    return _Difference(len(both), beyond, flips, float(error.max(initial=0.0)))
