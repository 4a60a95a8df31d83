"""Whether a feature is causal: take it away where it fires, and see what the next tokens lose.

In each of its contexts the feature is ablated at every token on which the database has it, up to
`REACH` tokens after its peak, and the loss of the token after each is compared. As a control, what
was taken away at the peak is taken away at a matched token of a context in which the feature is
silent, where ablating it would change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from featuredb.errors import QueryError
from featuredb.render.progress import log, progress
from featuredb.steering.forward import ResumedModel
from featuredb.steering.intervals import Interval
from featuredb.steering.resolve import ResolvedEdit
from featuredb.steering.rows import SaeEdits
from featuredb.steering.token_changes import TokenChanges
from featuredb.store.names import parse_feature
from featuredb.store.snapshot import Sae
from ingest.attached import AttachedSae, ModelWithSaes
from ingest.extract.recorded import recorded
from ingest.tokens.vocabulary import known_ids
from queries.activations import FeatureContexts, feature_contexts
from queries.arguments import check_k, check_seed
from queries.association import q_values
from queries.connection import Reader
from queries.sample_contexts import SampledContexts, sample_contexts
from queries.silent_contexts import silent_contexts
from queries.top_contexts import TopContexts, top_contexts

REACH = 16
"""Tokens after the peak at which the feature still counts."""


class _Context(NamedTuple):
    """A context to run, changed and compared at `places` int64 [m], ascending."""

    context_id: int
    places: npt.NDArray[np.int64]


class _Change(NamedTuple):
    """Mean change of the loss in one context, over how many tokens."""

    document: int
    loss: float
    tokens: int


def ablate_each(
    reader: Reader,
    features: Sequence[int | str],
    k: int,
    sample: bool,
    seed: int,
    where: str | None = None,
) -> pa.Table:
    """Rows of `schemas.ABLATED`, without author and time, in the order of `features`.

    Arguments as of `featuredb.Database.effect`. where: the model is now. Interrupted, it gives
    what is done.
    """
    store, k, seed = reader.store, check_k(k), check_seed(seed)
    wanted = list(dict.fromkeys(parse_feature(store.snapshot, feature) for feature in features))
    if not wanted:
        raise QueryError("name at least one feature")
    for sae, number in wanted:
        if store.features.count(sae)[number] == 0:
            raise QueryError(f"feature {sae.name}/{number} never fires: there is nothing to ablate")
    loaded = recorded(store, where)
    saes = {sae.name: sae for sae, _ in wanted}
    tests = {name: _Test(reader, loaded, sae) for name, sae in saes.items()}
    rows: list[dict[str, object]] = []
    with progress("ablating", "tokens") as bar:
        bar.start("ablating", len(wanted))
        try:
            for sae, number in wanted:
                rows.append(tests[sae.name].row(number, k, sample, seed))
                bar.advance(1, f"{sae.name}/{number}")
        except KeyboardInterrupt:
            if not rows:
                raise
            log.info(f"interrupted: {len(rows):,} of {len(wanted):,} features are done")
    table = pa.Table.from_pylist(rows)
    adjusted = q_values(table.column("p").to_numpy())
    table = table.append_column("q", pa.array(adjusted))
    return table.append_column("n_tested", pa.array([len(rows)] * len(rows), pa.int32()))


class _Test:
    """Features of one SAE."""

    def __init__(self, reader: Reader, loaded: ModelWithSaes, sae: Sae) -> None:
        self._reader, self._store, self._sae = reader, reader.store, sae
        self._attached: AttachedSae = next(a for a in loaded.saes if a.name == sae.name)
        self._lock = loaded.model.lock
        with self._lock:
            self._model = ResumedModel(loaded.model, self._edits(0).writes)
        self._known = known_ids(loaded.model.tokenizer, loaded.model.vocab_size)

    def row(self, feature: int, k: int, sample: bool, seed: int) -> dict[str, object]:
        """A row of `schemas.ABLATED` without author, time, q and n_tested."""
        name = f"{self._sae.name}/{feature}"
        active = feature_contexts(self._store, self._sae, feature)
        chosen: TopContexts | SampledContexts
        if sample:
            chosen = sample_contexts(self._reader, name, k, bins=min(k, 10), seed=seed)
        else:
            chosen = top_contexts(self._reader, name, k, window=0, per_document=True, distinct=True)
        peaks = [(row.context_id, row.token_index, row.activation) for row in chosen]
        silent = silent_contexts(self._reader, name, k, "tokens", seed, 0)
        edits = self._edits(feature)
        changes = TokenChanges(1, len(self._known))
        own = [
            self._run(edits, _places(active, context, peak), None, changes)
            for context, peak, _ in peaks
        ]
        control = [
            self._run(
                edits,
                _Context(row.context_id, np.array([row.token_index])),
                peaks[number % len(peaks)][2],
                None,
            )
            for number, row in enumerate(silent)
        ]
        effect, against = _by_document(own), _by_document(control)
        if not len(effect):
            raise QueryError(f"{name} fires only where no token follows: nothing can be compared")
        interval = Interval.of(effect)
        other = Interval.of(against) if len(against) else None
        return {
            "sae_sha256": self._sae.sha256,
            "hook": self._sae.hook,
            "feature_id": feature,
            "n_documents": len(effect),
            "n_contexts": sum(change.tokens > 0 for change in own),
            "n_tokens": sum(change.tokens for change in own),
            "loss_change": interval.mean,
            "loss_change_low": interval.low,
            "loss_change_high": interval.high,
            "share_raised": float((effect > 0).mean()),
            "control_change": other and other.mean,
            "control_change_low": other and other.low,
            "control_change_high": other and other.high,
            "p": sign_test(effect),
            "carried_tokens": changes.listed(
                raised=False, known=self._known, texts=self._store.texts.token_texts
            ).to_pylist()[0],
        }

    @torch.no_grad()
    def _run(
        self,
        edits: SaeEdits,
        context: _Context,
        amount: float | None,
        changes: TokenChanges | None,
    ) -> _Change:
        """Run a context as it is and with the feature taken away at its places.

        amount: take so much away, whatever is there. changes: counts the next tokens of the places.
        """
        ids = self._store.texts.token_ids(context.context_id).astype(np.int64)
        document = self._store.texts.document_of(context.context_id)
        kept = context.places[context.places < len(ids) - 1]  # the last predicts nothing known
        if not len(kept):
            return _Change(document, math.nan, 0)
        first, end = int(kept[0]), int(kept[-1]) + 1
        tokens = torch.from_numpy(ids[None, :end]).to(self._model.model.device)
        places = torch.from_numpy(kept).to(tokens.device)
        keep = end - first
        with self._lock:
            before = self._model.full(tokens, [edits.read], keep=keep)
            rows = before.values[edits.read.name][0, places].float()
            add = {}
            change = edits.change(rows)
            for hook in edits.writes:
                if amount is None:
                    delta = edits.delta(rows, change, hook)
                else:
                    delta = -amount * self._attached.sae.W_dec[edits.features[0]].expand(
                        len(rows), -1
                    )
                add[hook] = torch.zeros(1, end, self._attached.sae.d_out, device=tokens.device)
                if delta is not None:
                    add[hook][0, places] = delta.float()
            after = self._model.resume(tokens, before.hidden, add=add, keep=keep)
        at = places - first
        was, now = (each.logits[0, at].float().log_softmax(dim=1) for each in (before, after))
        following = torch.from_numpy(ids[kept + 1])[:, None].to(tokens.device)
        loss = (was.gather(1, following) - now.gather(1, following)).squeeze(1)
        if changes is not None:
            changes.pool(was, now)
        return _Change(document, float(loss.mean()), len(loss))

    def _edits(self, feature: int) -> SaeEdits:
        return SaeEdits(self._attached, [ResolvedEdit.anywhere(self._sae, feature, "set", 0.0)])


def _places(active: FeatureContexts, context: int, peak: int) -> _Context:
    """Where the feature is active in a context, up to `REACH` tokens after the peak."""
    at = int(np.searchsorted(active.context_id, context))
    tokens = active.token_index[active.offsets[at] : active.offsets[at + 1]].astype(np.int64)
    return _Context(context, tokens[tokens <= peak + REACH])


def _by_document(changes: Sequence[_Change]) -> npt.NDArray[np.float64]:
    """The mean change of each document, float64 [n], of those with any token."""
    documents: dict[int, list[float]] = {}
    for change in changes:
        if change.tokens:
            documents.setdefault(change.document, []).append(change.loss)
    return np.array([np.mean(losses) for losses in documents.values()], np.float64)


def sign_test(values: npt.NDArray[np.float64]) -> float:
    """The two-sided p-value of the signs of values, zeros left out: an exact binomial test."""
    n, up = int((values != 0).sum()), int((values > 0).sum())
    tail = sum(math.comb(n, i) for i in range(min(up, n - up) + 1))
    return float(min(1.0, 2 * tail / 2**n))
