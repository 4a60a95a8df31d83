"""Run one batch through the model, up to the last hook, and through the SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featuredb.errors import ModelError, SaeError
from featuredb.store import schemas
from featuredb.store.snapshot import Corpus, Draft, Snapshot
from featuredb.store.values import Values, stored_values
from ingest.attached import AttachedSae
from ingest.extract.batches import Batch
from ingest.model.compiled import compiled_layers
from ingest.model.device import full_float32
from ingest.model.hooks import HookPoint, forward_to_hooks
from ingest.model.load import LoadedModel
from ingest.model.maskless import has_experts, without_mask_code
from ingest.sae.codes import SparseCodes


class Recorded(NamedTuple):
    """The activations of one SAE on a batch.

    place: integer [n], the position of each, among those of `rows` (the context's row in the batch)
    and `indices` (the token), int64 [p]. feature_id uint32 [n]. activation [n]: as stored. Sorted
    by (row, token_index, feature_id). recorded: how many positions. sink_*: the positions left
    out, [s].
    """

    place: npt.NDArray[np.signedinteger]
    rows: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    feature_id: npt.NDArray[np.uint32]
    activation: schemas.FloatArray
    recorded: int
    sink_row: npt.NDArray[np.int64]
    sink_index: npt.NDArray[np.int64]
    sink_norm: npt.NDArray[np.float32]

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """int64 [n]: the context's row in the batch."""
        return self.rows.take(self.place)

    @property
    def token_index(self) -> npt.NDArray[np.int64]:
        """int64 [n]."""
        return self.indices.take(self.place)


class Rule(NamedTuple):
    """Which positions are recorded, and what values are rounded to.

    skip_first: the first token of every context is a BOS that is not recorded.
    """

    skip_first: bool
    values: Values

    @classmethod
    def of(cls, snapshot: Draft | Snapshot, corpus: Corpus) -> Rule:
        """The rule for a corpus of a database."""
        recording = snapshot.recording
        return cls(corpus.bos_token_id is not None and not recording.keep_bos, recording.values)


@torch.inference_mode()
def run_batch(
    model: LoadedModel, saes: Sequence[AttachedSae], batch: Batch, rule: Rule
) -> list[Recorded]:
    """Activations of each SAE at every recorded position of the batch, in the order of `saes`.

    Raises `ModelError` for residuals and `SaeError` for activations that are not finite.
    """
    wanted = positions(batch.lengths, rule.skip_first)
    tokens = batch.token_ids[wanted]
    with full_float32():
        residuals = forward(model, [attached.hook for attached in saes], batch)
        return [
            record(each, residuals[each.hook.name], wanted, tokens, rule.values) for each in saes
        ]


def forward(model: LoadedModel, hooks: Sequence[HookPoint], batch: Batch) -> dict[str, Tensor]:
    """Hidden states [b, t, d] by hook name, padding positions included.

    Holds the model's lock for the pass.
    """
    full = bool((batch.lengths == batch.token_ids.shape[1]).all())
    with model.lock:
        masked = not full and not _maskless(model, hooks)
        return _pass(model, hooks, batch, masked=masked)


def _pass(
    model: LoadedModel, hooks: Sequence[HookPoint], batch: Batch, *, masked: bool
) -> dict[str, Tensor]:
    ids = upload(batch.token_ids, model.device)
    mask = upload(_mask(batch), model.device) if masked else None
    usual = masked or model.device.type == "cpu"
    attention = nullcontext() if usual else without_mask_code(model.model, ids.shape[1])
    with attention, compiled_layers(model, hooks):
        return forward_to_hooks(model.model, hooks, ids, mask)


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device, without waiting for what was launched there before."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


_TRIAL = (48, 29)
"""The lengths of the two contexts on which a pass without a mask is tried."""


def _maskless(model: LoadedModel, hooks: Sequence[HookPoint]) -> bool:
    """Whether no real token is changed by padding on its right that no mask hides.

    A causal model never looks there, and without a mask it takes a faster kernel, and a GPU does
    not wait for the host to look at the mask. Tried out once, as there is no telling from a
    configuration: the values must not depend on what the padding is, and on a CPU their bits must
    be those under a mask. There a model with experts keeps its mask: padding is sent to experts
    too, and how many rows an expert multiplies may decide the last bit of each.
    """
    key = tuple(sorted(hook.canonical for hook in hooks))
    if key not in model.maskless and model.device.type == "cpu" and has_experts(model.model):
        model.maskless[key] = False
    if key not in model.maskless:
        lengths = np.minimum(_TRIAL, model.context_length)
        ids = np.random.default_rng(0).integers(0, model.vocab_size, (2, lengths[0]))
        padded, otherwise = ids.copy(), ids.copy()
        padded[1, lengths[1] :] = 0
        passes = [(padded, False), (otherwise, False)]
        if model.device.type == "cpu":
            passes.append((padded, True))
        real = _mask(Batch(np.arange(2), lengths, padded)).astype(bool)
        seen = [
            {
                name: states.cpu()[torch.from_numpy(real)]
                for name, states in _pass(
                    model, hooks, Batch(np.arange(2), lengths, tokens), masked=masked
                ).items()
            }
            for tokens, masked in passes
        ]
        model.maskless[key] = all(
            torch.equal(states, seen[0][name]) for other in seen for name, states in other.items()
        )
    return model.maskless[key]


def all_finite(x: Tensor, hook: str) -> Tensor:
    """The norm [n] of each row of x [n, width]. Raises `ModelError` where one is not finite."""
    norm: Tensor = x.norm(dim=1)
    if not bool(torch.isfinite(norm).all()):
        raise ModelError(
            f"the model gives NaN or infinite values at {hook}: "
            "try --dtype float32, and check the model's weights"
        )
    return norm


def positions(
    lengths: npt.NDArray[np.int64], skip_first: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(row, token_index) int64 [n] of every position that may be recorded, row by row."""
    first = int(skip_first)
    counts = np.maximum(lengths - first, 0)
    row = np.repeat(np.arange(len(lengths)), counts)
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first
    return row, index


def _mask(batch: Batch) -> npt.NDArray[np.int64]:
    columns = np.arange(batch.token_ids.shape[1])
    return (columns[None, :] < batch.lengths[:, None]).astype(np.int64)


def included(
    attached: AttachedSae,
    wanted: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    tokens: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The positions of tokens, one at each, that an SAE does not exclude."""
    row, index = wanted
    if not attached.excluded:
        return row, index
    recorded = ~np.isin(tokens, attached.excluded)
    return row[recorded], index[recorded]


def record(
    attached: AttachedSae,
    residual: Tensor,
    wanted: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    tokens: npt.NDArray[np.int64],
    values: Values,
) -> Recorded:
    """What is stored of an SAE on hidden states [b, t, d], at most at the positions `wanted`.

    wanted: their rows and token indexes. tokens: their ids. Raises as `run_batch`.
    """
    row, index = included(attached, wanted, tokens)
    flat = upload(row * residual.shape[1] + index, residual.device)
    x = residual.reshape(-1, residual.shape[-1]).index_select(0, flat)
    norm = all_finite(x.float(), attached.hook.name)
    sink_row = sink_index = np.empty(0, np.int64)
    sink_norm = np.empty(0, np.float32)
    if attached.sink_norm is not None:
        sink = norm > attached.sink_norm
        if bool(sink.any()):
            is_sink = sink.cpu().numpy()
            sink_row, sink_index = row[is_sink], index[is_sink]
            sink_norm = norm[sink].cpu().numpy()
            row, index = row[~is_sink], index[~is_sink]
            x = x[~sink]
    codes = attached.sae.encode_sparse(x)
    if not bool(torch.isfinite(codes.values).all()):
        raise SaeError(
            f"SAE {attached.name} gives NaN or infinite activations at {attached.hook.name}: "
            "its weights or its hook are wrong; nothing was stored"
        )
    at, feature, value = _to_host(codes)
    return Recorded(
        at,
        row,
        index,
        feature.astype(np.uint32),
        stored_values(value, values),
        len(row),
        sink_row,
        sink_index,
        sink_norm,
    )


def _to_host(
    codes: SparseCodes,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    rows, features, values = (t.cpu().numpy() for t in codes)
    return rows, features, values
