"""Where hook points lie in each family of Hugging Face models.

One row per family. A *site* is a module path and a side, "self_attn.o_proj.input": what goes into
that module, or what comes out of it. Sites of a layer are relative to the layer, the others to
the base model (the model without its head). "a.output or b.output" is the first of them that a
layer has: in some families layers differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from featuredb.errors import HookError


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
    """Site of the MLP's hidden activations: the input of its down-projection. Layers with experts
    have none."""
    ln1: str | None
    """The norm before attention (after it, in BERT); None where attention reads the stream."""
    ln2: str | None
    """The norm before the MLP (after it, in BERT); the same module as ln1 where they share it."""
    rms: bool
    """RMS norms rather than layer norms."""
    unit_offset: bool = False
    """The norm multiplies by 1 + weight rather than by weight (Gemma)."""
    linear_head: bool = True
    """Logits are the final norm and one matrix; not so for BERT's head."""
    attn: tuple[str, str] = ("self_attn.input", "self_attn.output")
    """Sites of what attention is given and what it returns, before a post-norm."""
    mlp: tuple[str, str] = ("mlp.input", "mlp.output")
    """Sites of what the MLP is given and what it returns, before a post-norm."""


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
# Gemma scales the embedding by sqrt(d) before the first layer, in a place that moved between
# versions of transformers: the layer's input is after it. Granite scales its embedding too.
_GEMMA = replace(_LLAMA, embed="layers.0.input", unit_offset=True)
# Gemma 2 and 3 norm what attention and the MLP give before adding it, so that is where
# TransformerLens places attn_out and mlp_out.
_GEMMA_2 = replace(
    _GEMMA,
    attn_out="post_attention_layernorm.output",
    mlp_out="post_feedforward_layernorm.output",
    resid_mid="pre_feedforward_layernorm.input",
    ln2="pre_feedforward_layernorm",
)
# After the MLP a layer adds an embedding of its own and scales the sum: resid_post is more than
# resid_mid + mlp_out. With experts, mlp_out is the sum of both branches, `mlp` the dense one.
_GEMMA_4 = replace(_GEMMA_2, unit_offset=False)
# Three of four layers have linear attention.
_QWEN_3_5 = replace(
    _LLAMA,
    unit_offset=True,
    attn_out="self_attn.output or linear_attn.output",
    hook_z="self_attn.o_proj.input or linear_attn.out_proj.input",
    attn=(
        "self_attn.input or linear_attn.input",
        "self_attn.output or linear_attn.output",
    ),
)
_LLAMA_4 = replace(
    _LLAMA,
    mlp_out="feed_forward.output",
    mlp_post="feed_forward.down_proj.input",
    mlp=("feed_forward.input", "feed_forward.output"),
)
# Norms only what attention and the MLP give, not what they read.
_OLMO_2 = replace(
    _LLAMA,
    attn_out="post_attention_layernorm.output",
    mlp_out="post_feedforward_layernorm.output",
    resid_mid="mlp.input",
    ln1=None,
    ln2=None,
)
_GLM_4 = replace(
    _LLAMA, attn_out="post_self_attn_layernorm.output", mlp_out="post_mlp_layernorm.output"
)
_COHERE = replace(_LLAMA, resid_mid=None, ln2="input_layernorm", rms=False)
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
    attn=("attn.input", "attn.output"),
)
_GPT_NEO = replace(_GPT2, hook_z="attn.attention.out_proj.input")
_GPTJ = replace(
    _GPT2,
    resid_mid=None,
    hook_z="attn.out_proj.input",
    mlp_post="mlp.fc_out.input",
    ln2="ln_1",
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
    attn=("attention.input", "attention.output"),
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
    mlp=("fc1.input", "fc2.output"),
)
_PHI = replace(
    _LLAMA,
    final_norm="final_layernorm",
    resid_mid=None,
    hook_z="self_attn.dense.input",
    mlp_post="mlp.fc2.input",
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
    attn=("attention.self.input", "attention.output.dense.output"),
    mlp=("intermediate.input", "output.dense.output"),
)
# BERT's modules, normed before attention and the MLP. Its embedding is scaled.
_ESM = replace(
    _BERT,
    embed="embeddings.output",
    final_norm="encoder.emb_layer_norm_after",
    resid_mid="LayerNorm.input",
    ln1="attention.LayerNorm",
    ln2="LayerNorm",
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _LLAMA,
    "mistral3": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "gpt_oss": _LLAMA,
    "deepseek_v2": _LLAMA,
    "deepseek_v3": _LLAMA,
    "smollm3": _LLAMA,
    "phi3": _LLAMA,
    "olmo": replace(_LLAMA, rms=False),
    # Attention and MLP outputs are multiplied by residual_multiplier as they are added: attn_out
    # and mlp_out are before that.
    "granite": replace(_LLAMA, embed="layers.0.input"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3": _GEMMA_2,
    "gemma3_text": _GEMMA_2,
    "gemma4": _GEMMA_4,
    "gemma4_text": _GEMMA_4,
    "qwen3_5": _QWEN_3_5,
    "qwen3_5_text": _QWEN_3_5,
    "qwen3_5_moe": _QWEN_3_5,
    "qwen3_5_moe_text": _QWEN_3_5,
    "qwen3_next": _QWEN_3_5,
    "llama4": _LLAMA_4,
    "llama4_text": _LLAMA_4,
    "olmo2": _OLMO_2,
    "olmo3": _OLMO_2,
    "glm4": _GLM_4,
    "cohere2": _COHERE,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gptj": _GPTJ,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "phi": _PHI,
    "bert": _BERT,
    "esm": _ESM,
}
"""By `model_type`. Where a model also sees images, the type of its text half decides."""

UNSUPPORTED = {
    "gemma3n_text": "a layer of Gemma 3n carries four residual streams at once (AltUp), so "
    "there is no one vector for each token that an SAE could read",
}
"""Architectures that are refused, by `model_type`, and why."""


def family_of(model: nn.Module) -> Family | None:
    """The row for this model, adjusted to its configuration; None for an unknown architecture.

    Raises `HookError` for an architecture that cannot be supported.
    """
    config: Any = text_config(model)
    kind = str(getattr(config, "model_type", ""))
    if kind in UNSUPPORTED:
        raise HookError(f"{kind} is not supported: {UNSUPPORTED[kind]}")
    family = FAMILIES.get(kind) or FAMILIES.get(str(getattr(model.config, "model_type", "")))
    if family is _GPT_NEOX and config.use_parallel_residual:
        return replace(family, resid_mid=None)
    if family is _OPT and not config.do_layer_norm_before:
        return replace(family, resid_mid="self_attn_layer_norm.output", final_norm=None)
    return family


def text_config(model: nn.Module) -> Any:
    """The configuration of the model that reads text."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def base_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The path and module of the text model without its head.

    The path is "" where `model` is already that, and ends below the text half of a model that
    also sees images.
    """
    path, base = "", model
    while True:
        prefix: str = getattr(base, "base_model_prefix", "") or ""
        for name in (prefix, "language_model", "text_model", "model"):
            inner = getattr(base, name, None) if name else None
            if isinstance(inner, nn.Module):
                path, base = join(path, name), inner
                break
        else:
            return path, base


def join(*parts: str) -> str:
    """A module path from its parts; empty ones are left out."""
    return ".".join(part for part in parts if part)
