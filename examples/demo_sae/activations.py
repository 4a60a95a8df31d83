"""The model's residual stream over the training text, computed once and stored in shards.

Documents are tokenized whole without special tokens, cut into windows of at most
`CONTEXT_SIZE` tokens, BOS included, and never packed. A shard has some windows. For each
requested layer it is one file with the residual at every position except BOS. A rerun computes
only missing shards, so runs are resumable and layers can be added or dropped later.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

CONTEXT_SIZE = 256
SINK_FACTOR = 10.0
_SHARD_WINDOWS = 512
_BATCH_TOKENS = 8192
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Windows:
    """Every window of a corpus, in the order of the stored activations.

    tokens: per window its token ids without BOS, int32 [<= CONTEXT_SIZE - 1]
    document: per window the index of its document, int64 [windows]
    held_out: per window whether its document is used for scoring, bool [windows]
    """

    tokens: list[npt.NDArray[np.int32]]
    document: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.bool_]

    def shards(self) -> list[range]:
        """The windows of each shard."""
        count = len(self.tokens)
        return [
            range(start, min(start + _SHARD_WINDOWS, count))
            for start in range(0, count, _SHARD_WINDOWS)
        ]

    def row_window(self, shards: int | None = None) -> npt.NDArray[np.int64]:
        """The window of each stored row of the first `shards` shards, int64 [rows]."""
        count = len(self.tokens) if shards is None else self.shards()[shards - 1].stop
        lengths = [len(tokens) for tokens in self.tokens[:count]]
        return np.repeat(np.arange(count), lengths)


def is_held_out(document_id: str) -> bool:
    """Whether a document is excluded from training: one in twenty, by the hash of its id."""
    return hashlib.sha256(document_id.encode()).digest()[0] % 20 == 0


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local model folder."""
    return AutoTokenizer.from_pretrained(folder)


def make_windows(documents: Sequence[tuple[str, str]], tokenizer: Any, seed: int) -> Windows:
    """Cut (id, text) documents into windows, shuffled so that any prefix is a fair sample."""
    tokens: list[npt.NDArray[np.int32]] = []
    document: list[int] = []
    step = CONTEXT_SIZE - 1
    encoded = tokenizer([text for _, text in documents], add_special_tokens=False)["input_ids"]
    for index, ids in enumerate(encoded):
        for start in range(0, len(ids), step):
            tokens.append(np.asarray(ids[start : start + step], dtype=np.int32))
            document.append(index)
    order = np.random.default_rng(seed).permutation(len(tokens))
    held_out = np.array([is_held_out(name) for name, _ in documents], dtype=np.bool_)
    by_document = np.asarray(document, dtype=np.int64)[order]
    return Windows([tokens[i] for i in order], by_document, held_out[by_document])


def load_model(folder: Path, layers: int | None = None) -> Any:
    """The model in bfloat16 for inference, cut after its first `layers` layers if given."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
    return model.eval()


def batches(windows: Windows, members: Sequence[int]) -> Iterator[list[int]]:
    """`members` in batches of similar length of at most 8,192 tokens with padding and BOS."""
    batch: list[int] = []
    for index in sorted(members, key=lambda member: (len(windows.tokens[member]), member)):
        if (len(batch) + 1) * (len(windows.tokens[index]) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(windows: Windows, batch: Sequence[int], bos: int) -> Tensor:
    """Token ids int64 [windows, longest + 1], BOS first, padded with BOS on the right.

    The model is causal, so padding on the right has no effect and needs no mask.
    """
    longest = max(len(windows.tokens[index]) for index in batch)
    ids = torch.full((len(batch), longest + 1), bos)
    for row, index in enumerate(batch):
        tokens = windows.tokens[index]
        ids[row, 1 : len(tokens) + 1] = torch.from_numpy(tokens)
    return ids


def shard_path(folder: Path, layer: int, shard: int) -> Path:
    """Path of one shard of one layer."""
    return folder / f"layer-{layer:02d}" / f"shard-{shard:04d}.safetensors"


@torch.inference_mode()
def store_activations(
    windows: Windows, model_folder: Path, layers: Sequence[int], folder: Path, shards: int | None
) -> None:
    """Compute missing shards of the first `shards` (all if None) at `layers`.

    A file contains `residual`, bfloat16 [rows, d_model], the output of the decoder layer, rows in
    the order of the windows.
    """
    parts = list(enumerate(windows.shards()))[:shards]
    todo = [
        (shard, members)
        for shard, members in parts
        if not all(shard_path(folder, layer, shard).exists() for layer in layers)
    ]
    if not todo:
        return
    model = load_model(model_folder, max(layers) + 1)
    captured: dict[int, Tensor] = {}
    for layer in layers:
        shard_path(folder, layer, 0).parent.mkdir(parents=True, exist_ok=True)
        model.model.layers[layer].register_forward_hook(_keeper(captured, layer))
    started, seen = time.perf_counter(), 0
    for shard, members in todo:
        found: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
        for batch in batches(windows, members):
            model.model(input_ids=pad(windows, batch, model.config.bos_token_id), use_cache=False)
            for layer in layers:
                for row, index in enumerate(batch):
                    length = len(windows.tokens[index])
                    found[layer][index] = captured[layer][row, 1 : length + 1].clone()
        for layer, rows in found.items():
            path = shard_path(folder, layer, shard)
            residual = torch.cat([rows[index] for index in members])
            save_file({"residual": residual}, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
        seen += sum(len(windows.tokens[index]) for index in members)
        rate = seen / (time.perf_counter() - started)
        print(f"shard {shard + 1}/{len(parts)}  {seen:,} tokens  {rate:,.0f}/s", flush=True)


def _keeper(captured: dict[int, Tensor], layer: int) -> Any:
    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        captured[layer] = output[0] if isinstance(output, tuple) else output

    return keep


def read_activations(folder: Path, layer: int, shards: int) -> Tensor:
    """The first `shards` shards of a layer, bfloat16 [rows, d_model]."""
    parts = []
    for shard in range(shards):
        with safe_open(shard_path(folder, layer, shard), framework="pt") as file:
            parts.append(file.get_tensor("residual"))
    return torch.cat(parts)


def row_norms(residual: Tensor) -> Tensor:
    """The Euclidean norm of every row, float32 [rows]."""
    return torch.cat([part.float().norm(dim=1) for part in blocks(residual)])


def blocks(rows: Tensor) -> Iterator[Tensor]:
    """`rows` in consecutive parts of 4,096, so that float32 copies and codes stay small."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield rows[start : start + _BLOCK_ROWS]


def is_sink(norms: Tensor, median: float) -> Tensor:
    """Which rows are attention sinks, bool [rows]: a norm of more than 10 times the median."""
    return norms > SINK_FACTOR * median
