"""SAEs trained on weights processed by TransformerLens, on a model with unprocessed weights.

`HookedTransformer.from_pretrained` centers by default what writes to the residual stream, and
folds the value biases away. For models with layer norms that changes nothing they compute: the
stream only loses each token's mean, and attention's heads lose b_V, since attention sums to one.
An SAE of the processed model reads the same here once both are subtracted.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from featuredb.errors import HookError, SaeError
from ingest.model.hooks import HookPoint
from ingest.model.hooks.families import family_of
from ingest.model.load import LoadedModel
from ingest.sae.sae import LoadedSae

_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
_VALUES = ("v_proj", "value", "c_attn", "query_key_value")


def on_plain_weights(sae: LoadedSae, model: LoadedModel, hook: HookPoint) -> LoadedSae:
    """`sae`, made to read the values of `model` at `hook` as they are.

    Raises SaeError if the processing changes the model's function (RMS norms), or
    is not known at this hook.
    """
    if not sae.processed_weights:
        return sae
    family = family_of(model.model)
    if family is None or family.rms or family.final_norm is None:
        norms = "RMS norms" if family is not None and family.rms else "other norms"
        raise SaeError(
            f"SAE {sae.name} was trained with center_writing_weights, which only models with layer "
            f"norms before each part allow: {model.architecture} has {norms}"
        )
    site = _site(model, hook)
    if site in _STREAM or site == "hook_embed":
        return replace(sae.normalized("center"), processed_weights=False)
    sae = replace(sae.normalized("none"), processed_weights=False)
    if site == "mlp.hook_post":
        return sae
    if site == "attn.hook_z":
        return sae.shifted(_value_bias(model, hook))
    raise SaeError(
        f"SAE {sae.name} was trained with center_writing_weights, and what that changes at "
        f"{hook.name} is not known: give a hook of the residual stream, hook_z or mlp.hook_post"
    )


def _site(model: LoadedModel, hook: HookPoint) -> str | None:
    """What TransformerLens calls the place of `hook` in its layer."""
    for site in ("hook_embed", *_STREAM, "attn.hook_z", "mlp.hook_post"):
        name = site if site == "hook_embed" else f"blocks.{hook.layer}.{site}"
        try:
            if model.hook(name).canonical == hook.canonical:
                return site
        except HookError:
            continue
    return None


def _value_bias(model: LoadedModel, hook: HookPoint) -> Tensor:
    """b_V of the layer of `hook`, heads concatenated: [hook.width]."""
    attention = model.model.get_submodule(hook.module.rpartition(".")[0])
    name, module = next(
        (
            (name, module)
            for name, module in attention.named_modules()
            if name.rpartition(".")[2] in _VALUES
        ),
        ("", nn.Identity()),
    )
    bias: Tensor | None = getattr(module, "bias", None)
    width = hook.width
    if not name:
        raise SaeError(f"no value projection beside {hook.name}, whose bias would be subtracted")
    if bias is None:
        return torch.zeros(width)
    bias = bias.detach().float()
    if name.endswith("c_attn"):
        return bias[-width:]
    heads = int(model.model.config.num_attention_heads)
    if name.endswith("query_key_value"):  # query, key and value of each head together
        return bias.reshape(heads, 3, width // heads)[:, 2].reshape(-1)
    # with fewer values than heads, each is read by several
    return bias.reshape(-1, width // heads).repeat_interleave(width // len(bias), 0).reshape(-1)
