"""Weights that a checkpoint leaves out: a pooler or a head that is never run, or a damaged file."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from featuredb.errors import HookError
from ingest.model.hooks.capture import forward_to_hooks
from ingest.model.hooks.families import base_of
from ingest.model.hooks.resolve import layer_count, resolve_hook

_NUMBERED = re.compile(r"(^|\.)\d+\.")


@torch.no_grad()
def first_needed(model: nn.Module, missing: Sequence[str]) -> str | None:
    """The first of the missing tensors that the layers need, None if they need none of them.

    transformers has put random numbers in their place. They become NaN here, so that what reads
    them all the same, such as a hook behind a pooler, is refused and not computed.
    """
    inside, _ = base_of(model)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    try:
        last = resolve_hook(model, f"blocks.{layer_count(model) - 1}.hook_resid_post")
    except HookError:  # an architecture of which nobody knows where its layers are
        return missing[0]
    for name in missing:
        # Not all experts of a layer see a token, so layers are not asked.
        if name not in tensors or (name.startswith(inside) and _NUMBERED.search(name)):
            return name
        tensors[name].fill_(torch.nan)
        token = torch.zeros((1, 1), dtype=torch.long, device=tensors[name].device)
        if not bool(torch.isfinite(forward_to_hooks(model, [last], token)[last.name]).all()):
            return name
    return None
