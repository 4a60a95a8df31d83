"""Models and SAEs of real sizes with random weights, for speed only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from ingest.demo.fetch import model_folder


class Shape(NamedTuple):
    """An architecture, its sizes, the layer that is read, and the size of its SAEs."""

    config: str
    sizes: dict[str, Any]
    layer: int
    d_sae: int
    k: int


SHAPES = {
    "gemma-2-2b": Shape(
        "Gemma2Config",
        {
            "hidden_size": 2_304,
            "intermediate_size": 9_216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
        },
        layer=12,
        d_sae=16_384,
        k=64,
    ),
    "llama-3-8b": Shape(
        "LlamaConfig",
        {
            "hidden_size": 4_096,
            "intermediate_size": 14_336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        layer=15,
        d_sae=131_072,
        k=64,
    ),
    "tiny": Shape(
        "LlamaConfig",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        layer=1,
        d_sae=512,
        k=16,
    ),
}


def _fastest() -> torch.device:
    """Where to draw billions of random numbers."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_model(name: str, folder: Path) -> Path:
    """A bfloat16 model of that shape with the demo's tokenizer, cut after the layer that is read.

    Later layers would not run. Leaving them out saves the time to create them.
    """
    import transformers

    shape = SHAPES[name]
    demo = model_folder()
    vocabulary = json.loads((demo / "config.json").read_text())["vocab_size"]
    config = getattr(transformers, shape.config)(
        num_hidden_layers=shape.layer + 1,
        vocab_size=vocabulary,
        max_position_embeddings=2_048,
        **shape.sizes,
    )
    torch.manual_seed(0)
    with _fastest():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in demo.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def random_sae(name: str, folder: Path, seed: int, d_sae: int | None = None) -> Path:
    """A top-k SAE of that shape in SAELens's format. d_sae: None for the shape's."""
    shape = SHAPES[name]
    d_sae = d_sae or shape.d_sae
    d = shape.sizes["hidden_size"]
    torch.manual_seed(seed)
    with _fastest():
        directions = torch.randn(d_sae, d)
    directions = (directions / directions.norm(dim=1, keepdim=True)).cpu()
    weights = {
        "W_enc": directions.T.contiguous(),
        "W_dec": directions.clone(),
        "b_enc": torch.zeros(d_sae),
        "b_dec": torch.zeros(d),
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae_weights.safetensors")
    told = {
        "architecture": "topk",
        "k": shape.k,
        "d_in": d,
        "d_sae": d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "hook_name": f"blocks.{shape.layer}.hook_resid_post",
            "prepend_bos": True,
            "context_size": 256,
        },
    }
    (folder / "cfg.json").write_text(json.dumps(told))
    return folder
