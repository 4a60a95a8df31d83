"""Some contexts through the model and the SAEs again: is what is stored what they give?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import OptionError
from featuredb.store.snapshot import Corpus, Sae
from featuredb.store.store import Store
from featuredb.store.values import FLOAT16_TINY, RELATIVE_ERROR
from featuredb.verification import Problem, Recomputed, Report
from ingest.extract.batches import batches
from ingest.extract.forward import Probe, Rule, run_batch
from ingest.extract.new_text import recorded_model, recorded_probe
from ingest.model.load import LoadedModel

MOST_CONTEXTS = 1 << 15
_BATCH_TOKENS = 4_096


class Tolerance(NamedTuple):
    """How far two runs of one model may differ: batches of other shapes sum in another order.

    error: of two values, over the larger of the computed one and the median, for rounding apart.
    beyond: the share of the activations whose error may be larger. flips: the share that may be on
    one side only, their pre-activation being at the threshold.
    """

    error: float
    beyond: float
    flips: float


_TOLERANCES = {
    "float32": Tolerance(5e-4, 0.0, 1e-4),
    "float16": Tolerance(1e-2, 2e-3, 5e-3),
    "bfloat16": Tolerance(8e-2, 2e-3, 4e-2),
}
"""By what the model computes in. In bfloat16 a real model of 30 layers had 99.9 % of the errors
below 0.066, the largest 0.48, and 1.2 % on one side only."""

_FEW_FLIPS = 2
"""So many are allowed in any sample, however small."""


class _Found(NamedTuple):
    """Activations of one SAE, all [n], sorted by key.

    key int64: which of the sampled contexts, token and feature, packed. value float32.
    """

    key: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]


class _Difference(NamedTuple):
    """both: activations on both sides, of which `beyond` differ by more than they may; flips: on
    one side only; error: the largest."""

    both: int
    beyond: int
    flips: int
    error: float

    def and_(self, other: _Difference) -> _Difference:
        """Of other contexts."""
        return _Difference(
            self.both + other.both,
            self.beyond + other.beyond,
            self.flips + other.flips,
            max(self.error, other.error),
        )


def compare(path: Path, report: Report, n_contexts: int) -> Report:
    """`report` with what running `n_contexts` contexts of the database at `path` again gives.

    The contexts are drawn at random, always the same. Stored token ids go through the model and
    SAEs that the snapshot names. Differences beyond what rounding and other batches explain are
    problems. Raises `ModelError` and `SaeError` where one of them is gone or has changed.
    """
    if not 0 < n_contexts <= MOST_CONTEXTS:
        raise OptionError(f"source must be 1 to {MOST_CONTEXTS:,} contexts, not {n_contexts:,}")
    store = Store.open(path)
    try:
        snapshot = store.snapshot
        model = recorded_model(snapshot.model)
        keep_sinks = snapshot.recording.keep_sinks
        probes = [recorded_probe(model, sae, keep_sinks) for sae in snapshot.saes]
        allowed = _TOLERANCES.get(snapshot.model.dtype, _TOLERANCES["float32"])
        values = snapshot.recording.values
        most = RELATIVE_ERROR[values] + allowed.error
        least = 0.0 if values == "float32" else FLOAT16_TINY
        totals = {sae.name: _Difference(0, 0, 0, 0.0) for sae in snapshot.saes}
        contexts = tokens = 0
        for corpus, ids in _sample(snapshot.corpora, n_contexts):
            contexts += len(ids)
            tokens += sum(len(store.texts.token_ids(int(i))) for i in ids)
            computed = _computed(store, model, probes, corpus, ids)
            for sae, fresh in zip(snapshot.saes, computed, strict=True):
                found = _difference(fresh, _stored(store, sae, ids), most, least)
                totals[sae.name] = totals[sae.name].and_(found)
    finally:
        store.close()
    problems = []
    for name, (both, beyond, flips, error) in totals.items():
        if beyond > allowed.beyond * both:
            said = (
                f"{beyond:,} of {both:,} activations differ from the model's by more than "
                f"{most:.1e}, up to {error:.1e}"
            )
            problems.append(Problem(f"SAE {name}", said, _REMEDY))
        if flips > max(_FEW_FLIPS, allowed.flips * both):
            said = f"{flips:,} of {both + flips:,} activations are only stored or only computed"
            problems.append(Problem(f"SAE {name}", said, _REMEDY))
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
        own = np.sort(rows[(rows >= low) & (rows < high)]) - low + corpus.first_context
        if len(own):
            drawn.append((corpus, own))
    return drawn


def _computed(
    store: Store,
    model: LoadedModel,
    probes: list[Probe],
    corpus: Corpus,
    ids: npt.NDArray[np.int64],
) -> list[_Found]:
    """What each probe gives on the contexts `ids` of one corpus, unrounded."""
    pieces = [np.asarray(store.texts.token_ids(int(i))) for i in ids]
    starts = np.cumsum([0, *(len(p) for p in pieces)])
    skip_first = corpus.bos_token_id is not None and not store.snapshot.recording.keep_bos
    found: list[list[_Found]] = [[] for _ in probes]
    budget = max(_BATCH_TOKENS, corpus.context_size)
    for batch in batches(np.concatenate(pieces), starts, budget):
        for own, got in zip(
            found, run_batch(model, probes, batch, Rule(skip_first, "float32")), strict=True
        ):
            key = _key(batch.contexts[got.row], got.token_index, got.feature_id)
            own.append(_Found(key, got.activation.astype(np.float32)))
    return [_sorted(own) for own in found]


def _stored(store: Store, sae: Sae, ids: npt.NDArray[np.int64]) -> _Found:
    """What the store has of one SAE for the contexts `ids`."""
    found = []
    for place, context in enumerate(ids.tolist()):
        for reader in store.token_major(sae):
            segment = reader.segment
            if segment.first_context <= context < segment.end_context:
                index, rows = reader.context(context)
                token = np.repeat(index, np.diff(rows.offsets))
                key = _key(np.full(len(token), place), token, rows.feature_id)
                found.append(_Found(key, rows.activation.astype(np.float32)))
    return _sorted(found)


def _key(
    context: npt.NDArray[np.int64], token: npt.NDArray[np.int64], feature: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Context below 2**15, token below 2**16, feature below 2**32 as one number."""
    key: npt.NDArray[np.int64] = (context << 48) | (token << 32) | feature.astype(np.int64)
    return key


def _sorted(pieces: list[_Found]) -> _Found:
    if not pieces:
        return _Found(np.empty(0, np.int64), np.empty(0, np.float32))
    key = np.concatenate([p.key for p in pieces])
    value = np.concatenate([p.value for p in pieces])
    order = np.argsort(key)
    return _Found(key[order], value[order])


def _difference(computed: _Found, stored: _Found, most: float, least: float) -> _Difference:
    """most: the largest error that may be. least: a distance that is none, whatever the values."""
    both, mine, theirs = np.intersect1d(
        computed.key, stored.key, assume_unique=True, return_indices=True
    )
    want, have = computed.value[mine], stored.value[theirs]
    # What a sum's order changes does not shrink with the value, so small ones are measured by the
    # SAE's usual ones.
    usual = float(np.median(np.abs(want))) if len(want) else 1.0
    error = np.maximum(np.abs(want - have) - least, 0) / np.maximum(np.abs(want), usual)
    flips = len(computed.key) + len(stored.key) - 2 * len(both)
    beyond = int((error > most).sum())
    return _Difference(len(both), beyond, flips, float(error.max(initial=0.0)))
