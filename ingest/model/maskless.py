"""A pass without an attention mask, for which the host never has to look at the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import nn

_NAME = "featuredb_sdpa"
_WINDOWS = ("sliding_window", "attention_chunk_size")


@contextmanager
def without_mask_code(model: Any, tokens: int) -> Iterator[None]:
    """Let the transformers model attend causally by its kernel alone inside a `with` block.

    Given no mask, transformers looks on the device whether position ids are of packed sequences,
    and waits for the answer. It makes no mask for an attention that has no mask function. Only for
    models that use `sdpa`, and contexts of `tokens` tokens that fit into the window of every layer.
    """
    config = model.config.get_text_config()
    given = config._attn_implementation
    windows = [getattr(config, name, None) or tokens + 1 for name in _WINDOWS]
    if given != "sdpa" or tokens >= min(windows):
        yield
        return
    config._attn_implementation = _registered()
    try:
        yield
    finally:
        config._attn_implementation = given


def has_experts(model: nn.Module) -> bool:
    """Whether some of a model's layers send tokens to experts."""
    return any(name.endswith("experts") for name, _ in model.named_modules())


@cache
def _registered() -> str:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_NAME, sdpa_attention_forward)
    return _NAME
