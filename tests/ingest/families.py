"""A tiny model of random weights for every family in the table, and some that are not."""

from __future__ import annotations

from typing import Any

import torch
import transformers

LAYERS, WIDTH, HEADS, VOCAB, MLP = 3, 32, 4, 64, 48

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SMALL = {**_BASE, "intermediate_size": MLP}
GATED = {**_SMALL, "num_key_value_heads": 2}
# Heads of 12 make the width of hook_z, 48, differ.
_HEADS = {**GATED, "head_dim": 12}
_GPT = {
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_SHARED = {**_HEADS, **_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24}
_LATENT = {
    **_SMALL,
    "num_key_value_heads": HEADS,
    "head_dim": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
_GEMMA_4 = {**_HEADS, "global_head_dim": 12, "num_global_key_value_heads": 2}
_OPT = {**_BASE, "ffn_dim": MLP, "word_embed_proj_dim": WIDTH}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _HEADS),
    "mistral": ("MistralConfig", _HEADS),
    "ministral": ("MinistralConfig", _HEADS),
    "ministral3": ("Ministral3Config", _HEADS),
    "mixtral": ("MixtralConfig", {**GATED, "num_local_experts": 4}),
    "qwen2": ("Qwen2Config", GATED),
    "qwen3": ("Qwen3Config", _HEADS),
    "qwen3_moe": ("Qwen3MoeConfig", {**_HEADS, **_EXPERTS, "mlp_only_layers": [0]}),
    "gpt_oss": ("GptOssConfig", {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": ("DeepseekV2Config", _LATENT),
    "deepseek_v3": ("DeepseekV3Config", _LATENT),
    "smollm3": ("SmolLM3Config", GATED),
    "phi3": ("Phi3Config", GATED),
    "olmo": ("OlmoConfig", GATED),
    "granite": ("GraniteConfig", {**GATED, "residual_multiplier": 0.5, "embedding_multiplier": 3}),
    "gemma": ("GemmaConfig", _HEADS),
    "gemma2": ("Gemma2Config", _HEADS),
    "gemma3_text": ("Gemma3TextConfig", _HEADS),
    "gemma4_text": (
        "Gemma4TextConfig",
        {**_GEMMA_4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB},
    ),
    "gemma4_experts": (
        "Gemma4TextConfig",
        {
            **_GEMMA_4,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "qwen3_5_text": ("Qwen3_5TextConfig", {**_HEADS, **_LINEAR}),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", _SHARED),
    "qwen3_next": ("Qwen3NextConfig", {**_SHARED, "mlp_only_layers": [0]}),
    "llama4_text": (
        "Llama4TextConfig",
        {
            **_HEADS,
            "intermediate_size_mlp": MLP,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
        },
    ),
    "olmo2": ("Olmo2Config", GATED),
    "olmo3": ("Olmo3Config", GATED),
    "glm4": ("Glm4Config", _HEADS),
    "cohere2": ("Cohere2Config", _HEADS),
    "gpt2": ("GPT2Config", {**_GPT, "n_inner": MLP}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local", "global"], 1]],
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gptj": ("GPTJConfig", {**_GPT, "n_inner": MLP, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXConfig", _SMALL),
    "gpt_neox_serial": ("GPTNeoXConfig", {**_SMALL, "use_parallel_residual": False}),
    "opt": ("OPTConfig", _OPT),
    "opt_post_norm": ("OPTConfig", {**_OPT, "do_layer_norm_before": False}),
    "phi": ("PhiConfig", _SMALL),
    "bert": ("BertConfig", _SMALL),
    "esm": (
        "EsmConfig",
        {**_SMALL, "position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 63},
    ),
}
"""name -> (config class, its arguments)."""

POST_NORM = {"bert", "opt_post_norm"}  # a norm follows each addition
PARALLEL = {"gpt_neox", "phi", "gptj", "cohere2"}
NO_PRE_NORM = {"olmo2", "olmo3"}
LAYER_NORM = {
    *PARALLEL,
    *("olmo", "gpt2", "gpt_neo", "gpt_neox_serial", "opt", "opt_post_norm", "bert", "esm"),
}
SUBLAYER_NORM = {  # a norm follows attention and the MLP, before the addition
    *NO_PRE_NORM,
    *("gemma2", "gemma3_text", "gemma4_text", "gemma4_experts", "glm4"),
}
EXPERTS: dict[str, set[int]] = {  # layers whose MLP has no hidden activations of its own
    **{name: {0, 1, 2} for name in ("mixtral", "gpt_oss", "qwen3_5_moe_text")},
    **{name: {1, 2} for name in ("qwen3_moe", "qwen3_next", "deepseek_v2", "deepseek_v3")},
    "llama4_text": {1},
}

_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MULTIMODAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": ("Gemma3", "gemma3_text", _VISION),
    "gemma4": ("Gemma4", "gemma4_text", {**_VISION, "head_dim": 8}),
    "llama4": (
        "Llama4",
        "llama4_text",
        {**_VISION, "vision_output_dim": 16, "projector_input_dim": 16},
    ),
    "llava": ("Llava", "llama", {**_VISION, "model_type": "clip_vision_model"}),
    "mistral3": ("Mistral3", "ministral3", {**_VISION, "model_type": "pixtral"}),
    "qwen3_5": ("Qwen3_5", "qwen3_5_text", {"depth": 1, "hidden_size": 16, "num_heads": 2}),
}
"""name -> (class, text model, the vision half's arguments)."""


def build(name: str) -> Any:
    """The model called `name` in `CONFIGS`, with its head."""
    kind, arguments = CONFIGS[name]
    config = getattr(transformers, kind)(**arguments)
    auto = (
        transformers.AutoModelForMaskedLM
        if name in ("bert", "esm")
        else transformers.AutoModelForCausalLM
    )
    return _shaken(auto.from_config(config, dtype=torch.float32))


def build_multimodal(name: str) -> Any:
    """A model that sees images and has the text model of `MULTIMODAL`."""
    kind, text, vision = MULTIMODAL[name]
    text_config = getattr(transformers, CONFIGS[text][0])(**CONFIGS[text][1]).to_dict()
    config = getattr(transformers, f"{kind}Config")(text_config=text_config, vision_config=vision)
    return _shaken(getattr(transformers, f"{kind}ForConditionalGeneration")(config))


def _shaken(model: Any) -> Any:
    """Weights that would hide a missing factor, such as norms of ones, made random."""
    torch.manual_seed(0)
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.mul_(0.7)
    return model
