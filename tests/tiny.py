"""A small real language model, SAE and corpus on disk: random weights, every code path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Threads sum in another order: what two processes made is compared, and one of them has one thread.
torch.set_num_threads(1)

WIDTH = 32
LAYERS = 3
HOOK = "blocks.1.hook_resid_post"
_TEXT = """
river bridge stone water tower music paint planet orbit comet king queen empire battle treaty
enzyme protein cell neuron axiom theorem prime number graph verse poem novel stage harbour island
desert forest glacier volcano market trade silver copper iron engine wheel
"""
_WORDS = _TEXT.split()


def tiny_model(folder: Path, *, width: int = WIDTH, seed: int = 0) -> Path:
    """A Llama of random weights with a byte-level tokenizer that knows a few words."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + w for w in _WORDS] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    config = LlamaConfig(
        vocab_size=608,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_sae(
    folder: Path,
    *,
    d_in: int = WIDTH,
    d_sae: int = 96,
    hook: str = HOOK,
    seed: int = 1,
    scale: float = 1.0,
    bias: float = -0.02,
    **config: Any,
) -> Path:
    """A ReLU SAE in SAELens's format. Its last feature never fires."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(d_sae, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    b_enc = torch.full((d_sae,), bias * scale)
    b_enc[-1] = -1e4
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        "W_enc": (directions.T * scale).contiguous(),
        "W_dec": directions.clone(),
        "b_enc": b_enc,
        "b_dec": torch.zeros(d_in),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    told = {
        "architecture": "standard",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": hook, "prepend_bos": True, "context_size": 32},
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(told))
    return folder


def tiny_documents(n: int = 60, seed: int = 2) -> list[dict[str, Any]]:
    """Documents of all lengths: empty, one token, several contexts, repeated words."""
    rng = np.random.default_rng(seed)
    documents: list[dict[str, Any]] = []
    for i in range(n):
        length = [0, 1, 200][i] if i < 3 else int(rng.integers(2, 70))
        text = "".join(" " + _WORDS[j] for j in rng.zipf(1.5, length) % len(_WORDS))
        documents.append(
            {"text": text, "title": f"Title {i}", "topic": ["History", "Science"][i % 2]}
        )
    return documents


def write_jsonl(path: Path, documents: Sequence[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    return path
