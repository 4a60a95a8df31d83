"""Logit lens: the tokens each feature's decoder direction promotes and suppresses.

effect = (γ ⊙ d_f) W_Uᵀ, with d_f the raw decoder direction, γ the final norm's learned scale and
W_U the unembedding [vocab, d_model]. For a LayerNorm d_f is centered first, as the norm does. The
norm's division by the residual's size depends on the text and is left out, so effects compare
tokens within a feature (nostalgebraist 2020; "Mapping the Mind", 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from featuredb.store import schemas
from ingest.extract.device import in_pieces
from ingest.model.device import full_float32
from ingest.model.load import Unembedding

_BLOCK = 512
_BLOCK_ELEMENTS = 1 << 26
"""Of the effects of a block of features on a block of tokens, and of those tokens' rows of W_U: a
vocabulary of 262,144 would take half a gigabyte at once."""
_SLACK = 8


@torch.inference_mode()
def logit_lens(
    W_dec: Tensor,
    unembedding: Unembedding | None,
    texts: Sequence[str],
    known: npt.NDArray[np.bool_],
) -> pa.Table:
    """Rows of LOGITS for directions W_dec float32 [d_sae, d_out].

    Strongest effect first, ties by token id. known: bool [vocab], ids that are tokens. Other rows
    of the unembedding are padding, and nothing promotes them. A model without unembedding, or
    directions outside its residual stream, give empty lists.
    """
    n = len(W_dec)
    if unembedding is None or W_dec.shape[1] != unembedding.weight.shape[1]:
        empty = pa.array([[]] * n, pa.list_(schemas.TOKEN_LOGIT))
        return pa.table([pa.array(np.arange(n), pa.int64()), empty, empty], schema=schemas.LOGITS)
    k = min(schemas.TOP_TOKENS, int(known.sum()))
    tokens: dict[bool, list[pa.StructArray]] = {True: [], False: []}

    def add(rows: slice) -> None:
        for largest, (values, ids) in strongest_tokens(W_dec[rows], unembedding, known).items():
            names = pa.array([texts[i] for i in ids.reshape(-1).tolist()], pa.string())
            tokens[largest].append(
                pa.StructArray.from_arrays(
                    [names, pa.array(values.reshape(-1), pa.float32())],
                    fields=list(schemas.TOKEN_LOGIT),
                )
            )

    with full_float32():
        in_pieces(add, n, _BLOCK, "the logit lens of a feature")
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * k)
    lists = [
        pa.ListArray.from_arrays(offsets, pa.concat_arrays(tokens[largest]))
        for largest in (True, False)
    ]
    return pa.table([pa.array(np.arange(n), pa.int64()), *lists], schema=schemas.LOGITS)


@torch.inference_mode()
def strongest_tokens(
    W_dec: Tensor, unembedding: Unembedding, known: npt.NDArray[np.bool_]
) -> dict[bool, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """The tokens that directions W_dec float32 [n, d_model] promote (True) and suppress most.

    Effects and token ids, [n, `TOP_TOKENS`] each, strongest first, ties by token id.
    """
    weight = unembedding.weight
    directions = W_dec.to(weight.device)
    if unembedding.center:
        directions = directions - directions.mean(dim=1, keepdim=True)
    if unembedding.gain is not None:
        directions = directions * unembedding.gain.to(directions)
    padding = torch.from_numpy(~known).to(weight.device)
    k = min(schemas.TOP_TOKENS, int(known.sum()))
    ordered = {}
    for largest, (values, ids) in _strongest(directions, weight, padding, k + _SLACK).items():
        order = np.lexsort((ids, -values if largest else values), axis=1)[:, :k]
        ordered[largest] = (
            np.take_along_axis(values, order, 1),
            np.take_along_axis(ids, order, 1),
        )
    return ordered


def _strongest(
    directions: Tensor, weight: Tensor, padding: Tensor, count: int
) -> dict[bool, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """The `count` largest (True) and smallest effects of each direction, and their token ids."""
    rows = _BLOCK_ELEMENTS // max(_BLOCK, weight.shape[1])
    best: dict[bool, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(weight), rows):
        effect = directions @ weight[start : start + rows].float().T
        for largest in (True, False):
            effect[:, padding[start : start + rows]] = -torch.inf if largest else torch.inf
            top = effect.topk(min(count, effect.shape[1]), dim=1, largest=largest)
            values, ids = top.values, top.indices + start
            if largest in best:
                values = torch.cat([best[largest][0], values], dim=1)
                ids = torch.cat([best[largest][1], ids], dim=1)
                strongest = values.topk(min(count, values.shape[1]), dim=1, largest=largest)
                values, ids = strongest.values, ids.gather(1, strongest.indices)
            best[largest] = values, ids
    return {
        which: (values.cpu().numpy(), ids.cpu().numpy()) for which, (values, ids) in best.items()
    }
