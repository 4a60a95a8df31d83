"""A small model in which every mistake of loading an SAE shows, and an SAE that explains it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from ingest.model.hooks import forward_to_hooks, resolve_hook
from ingest.model.load import LoadedModel, load_model
from tests.tiny import tiny_documents, tiny_model

WIDTH = 32
LAYERS = 4
RANK = 20
HOOK = "blocks.2.hook_resid_post"


def offset_model(folder: Path) -> Path:
    """A GPT-2 with an offset added in each layer, as real models' residual streams
    drift, and which puts one more on every token of a context that begins with a BOS."""
    tiny_model(folder)
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=608,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.bias += torch.randn(WIDTH)
            block.mlp.c_proj.bias += torch.randn(WIDTH)
            block.mlp.c_fc.weight *= 20
            block.mlp.c_proj.weight *= 10
        # Only BOS uses the last dimension: all queries look for it, and find this value.
        model.transformer.wte.weight[:, -1] = 0
        model.transformer.wte.weight[0, -1] = 20
        attention = model.transformer.h[0].attn
        attention.c_attn.weight[-1, WIDTH : 2 * WIDTH] = 10
        attention.c_attn.bias[:WIDTH] = 1
        attention.c_attn.weight[-1, 2 * WIDTH :] = torch.randn(WIDTH)
        attention.c_proj.weight *= 20
    model.save_pretrained(folder)
    return folder


def states_at(model: LoadedModel, hook: str, documents: int = 60) -> torch.Tensor:
    """What passes `hook`, [n, width], BOS left out."""
    point = resolve_hook(model.model, hook)
    found = []
    for document in tiny_documents(documents):
        ids = model.tokenizer(document["text"], add_special_tokens=False).input_ids[:31]
        if ids:
            states = forward_to_hooks(model.model, [point], torch.tensor([[0, *ids]]))
            found.append(states[hook][0, 1:])
    return torch.cat(found).float()


def explaining_sae(
    folder: Path,
    model: LoadedModel,
    *,
    hook: str = HOOK,
    rank: int = RANK,
    noise: int = 0,
    scale: float = 1.0,
    **config: object,
) -> Path:
    """An SAE that explains what passes `hook`, in SAELens's format.

    Features are both directions of the first `rank` principal axes, so that ReLU loses nothing,
    and `noise` more that fire weakly on everything, which a threshold or k leaves out. The SAE
    is for inputs multiplied by `scale`.
    """
    x = states_at(model, hook) * scale
    mean = x.mean(dim=0)
    axes = torch.linalg.svd(x - mean, full_matrices=False).Vh[:rank]
    axes = torch.cat([axes, -axes])
    generator = torch.Generator().manual_seed(0)
    weak = torch.randn(noise, WIDTH, generator=generator)
    weak /= weak.norm(dim=1, keepdim=True)
    spread = float((x - mean).norm(dim=1).mean())
    folder.mkdir(parents=True, exist_ok=True)
    decoder = torch.cat([axes, 4 * weak])
    weights = {
        "W_enc": torch.cat([axes, 0 * weak]).T.contiguous(),
        "W_dec": decoder.contiguous(),
        "b_enc": torch.cat([-(axes @ mean), torch.full((noise,), 0.05 * spread)]),
        "b_dec": mean,
    }
    told = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": len(decoder),
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"hook_name": hook, "prepend_bos": True, "context_size": 32},
        **config,
    }
    if told["architecture"] == "jumprelu":
        weights["threshold"] = torch.cat(
            [torch.zeros(2 * rank), torch.full((noise,), 0.1 * spread)]
        )
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(told))
    return folder


def open_model(folder: Path) -> LoadedModel:
    """Float32, on the CPU."""
    return load_model(folder, device="cpu", dtype="float32")
