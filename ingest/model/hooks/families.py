"""Where hook points lie in each family of Hugging Face models.

One row per family. A *site* is a module path and a side, "self_attn.o_proj.input": what goes into
that module, or what comes out of it. Sites of a layer are relative to the layer, the others to
the base model (the model without its head).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Family:
    """The parts of one architecture that hooks and the logit lens need."""

    layers: str
    """The list of layers."""
    embed: str
    """Site of the token embedding as the first layer's residual stream begins from it."""
    final_norm: str | None
    """The norm before the unembedding."""
    attn_out: str
    """Site of what attention adds to the residual stream, after a post-norm if there is one."""
    mlp_out: str
    """Site of what the MLP adds to the residual stream, after a post-norm if there is one."""
    resid_mid: str | None
    """Site of the residual stream between the two; None where they run in parallel."""
    hook_z: str
    """Site of the concatenated heads: the input of attention's out-projection."""
    mlp_post: str
    """Site of the MLP's hidden activations: the input of its down-projection."""
    ln1: str
    """The norm before attention (after it, in BERT)."""
    ln2: str
    """The norm before the MLP (after it, in BERT); the same module as ln1 where they share it."""
    rms: bool
    """RMS norms rather than layer norms."""
    unit_offset: bool = False
    """The norm multiplies by 1 + weight rather than by weight (Gemma)."""
    linear_head: bool = True
    """Logits are the final norm and one matrix; not so for BERT's head."""


_LLAMA = Family(
    layers="layers",
    embed="embed_tokens.output",
    final_norm="norm",
    attn_out="self_attn.output",
    mlp_out="mlp.output",
    resid_mid="post_attention_layernorm.input",
    hook_z="self_attn.o_proj.input",
    mlp_post="mlp.down_proj.input",
    ln1="input_layernorm",
    ln2="post_attention_layernorm",
    rms=True,
)
# Gemma 2 and 3 norm what attention and the MLP give before adding it, so that is where
# TransformerLens places attn_out and mlp_out. The embedding is scaled by sqrt(d) before the first
# layer, in a place that moved between versions of transformers: the layer's input is after it.
_GEMMA_2 = replace(
    _LLAMA,
    embed="layers.0.input",
    attn_out="post_attention_layernorm.output",
    mlp_out="post_feedforward_layernorm.output",
    resid_mid="pre_feedforward_layernorm.input",
    ln2="pre_feedforward_layernorm",
    unit_offset=True,
)
_GPT2 = Family(
    layers="h",
    embed="wte.output",
    final_norm="ln_f",
    attn_out="attn.output",
    mlp_out="mlp.output",
    resid_mid="ln_2.input",
    hook_z="attn.c_proj.input",
    mlp_post="mlp.c_proj.input",
    ln1="ln_1",
    ln2="ln_2",
    rms=False,
)
_GPT_NEOX = Family(
    layers="layers",
    embed="embed_in.output",
    final_norm="final_layer_norm",
    attn_out="attention.output",
    mlp_out="mlp.output",
    resid_mid="post_attention_layernorm.input",  # None with use_parallel_residual, the default
    hook_z="attention.dense.input",
    mlp_post="mlp.dense_4h_to_h.input",
    ln1="input_layernorm",
    ln2="post_attention_layernorm",
    rms=False,
)
_OPT = Family(
    layers="decoder.layers",
    embed="decoder.embed_tokens.output",
    final_norm="decoder.final_layer_norm",
    attn_out="self_attn.output",
    mlp_out="fc2.output",
    resid_mid="final_layer_norm.input",  # elsewhere in opt-350m, which norms after adding
    hook_z="self_attn.out_proj.input",
    mlp_post="fc2.input",
    ln1="self_attn_layer_norm",
    ln2="final_layer_norm",
    rms=False,
)
_PHI = Family(
    layers="layers",
    embed="embed_tokens.output",
    final_norm="final_layernorm",
    attn_out="self_attn.output",
    mlp_out="mlp.output",
    resid_mid=None,
    hook_z="self_attn.dense.input",
    mlp_post="mlp.fc2.input",
    ln1="input_layernorm",
    ln2="input_layernorm",
    rms=False,
)
# BERT norms after adding. The residual stream is taken to be the normed one throughout, which
# makes resid_post of a layer that layer's output and resid_pre of the next, as everywhere else
# (TransformerLens gives the sums before the norms for this one family).
_BERT = Family(
    layers="encoder.layer",
    embed="embeddings.word_embeddings.output",
    final_norm=None,
    attn_out="attention.output.dense.output",
    mlp_out="output.dense.output",
    resid_mid="attention.output.LayerNorm.output",
    hook_z="attention.output.dense.input",
    mlp_post="output.dense.input",
    ln1="attention.output.LayerNorm",
    ln2="output.LayerNorm",
    rms=False,
    linear_head=False,
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA_2,
    "gemma3": _GEMMA_2,
    "gemma3_text": _GEMMA_2,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "phi": _PHI,
    "bert": _BERT,
}


def family_of(model: nn.Module) -> Family | None:
    """The row for this model, adjusted to its configuration; None for an unknown architecture."""
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is _GPT_NEOX and config.use_parallel_residual:
        return replace(family, resid_mid=None)
    if family is _OPT and not config.do_layer_norm_before:
        return replace(family, resid_mid="self_attn_layer_norm.output", final_norm=None)
    return family


def base_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The path and module of the text model without its head.

    The path is "" where `model` is already that, and ends below the text half of a model that
    also sees images.
    """
    prefix: str = getattr(model, "base_model_prefix", "") or ""
    base = getattr(model, prefix, model) if prefix else model
    path = prefix if base is not model else ""
    inner = getattr(base, "language_model", None)
    if isinstance(inner, nn.Module):
        return join(path, "language_model"), inner
    return path, base


def join(*parts: str) -> str:
    """A module path from its parts; empty ones are left out."""
    return ".".join(part for part in parts if part)
