"""Resolve the name of a hook point to a module and a side of it.

Two kinds of name are accepted: TransformerLens's (`blocks.9.hook_resid_post`) and plain
module paths of the Hugging Face model (`model.layers.9`, `layers.9.mlp`), with or without the
base model's prefix, optionally ending in `.input` or `.output` (a module alone means its output).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from featuredb.errors import HookError
from ingest.model.hooks.capture import capture
from ingest.model.hooks.families import FAMILIES, Family, base_of, family_of, join
from ingest.model.hooks.hook_point import HookPoint, Side

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYER_NAMES = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "mlp.hook_post",
    "ln1.hook_normalized",
    "ln2.hook_normalized",
)


def resolve_hook(model: nn.Module, name: str) -> HookPoint:
    """Resolve `name` in `model`.

    Raises:
        HookError: there is no such place (with near names and the range of layers), attention and
            MLP run in parallel so nothing lies between them, or it is a TransformerLens name and
            the architecture is not in the table.
    """
    if name == "hook_embed" or name.startswith("blocks."):
        point = _transformer_lens(model, name)
    else:
        point = _module_path(model, name)
    if point is None:
        raise HookError(f"no hook {name!r} in this model: {_suggestions(model, name)}")
    return replace(point, width=_width(model, point))


def layer_count(model: nn.Module) -> int:
    """Number of layers of the text model."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.num_hidden_layers)


def _transformer_lens(model: nn.Module, name: str) -> HookPoint | None:
    family = family_of(model)
    if family is None:
        config: Any = model.config
        raise HookError(
            f"{name!r} is a TransformerLens name, and the {config.model_type!r} architecture has "
            f"no row in the table ({', '.join(FAMILIES)}): give the module path instead, "
            f"such as {_any_layer(model)}"
        )
    base, _ = base_of(model)
    if name == "hook_embed":
        return _at(name, base, family.embed, None)
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    layer, what = int(found[1]), found[2]
    if layer >= layer_count(model) or what not in _LAYER_NAMES:
        return None
    inside = join(base, family.layers, str(layer))
    if what.endswith("hook_normalized"):
        norm = family.ln1 if what.startswith("ln1") else family.ln2
        if family.rms:
            return HookPoint(name, join(inside, norm), "input", layer, 0, before_gain=True)
        return HookPoint(name, join(inside, norm), "output", layer, 0)
    site = _site(family, what)
    if site is None:
        raise HookError(
            f"no hook {name!r} in this model: attention and MLP run in parallel in each layer, "
            "so nothing lies between them; hook_resid_pre and hook_resid_post are either side"
        )
    return _at(name, inside, site, layer)


def _site(family: Family, what: str) -> str | None:
    return {
        "hook_resid_pre": "input",
        "hook_resid_mid": family.resid_mid,
        "hook_resid_post": "output",
        "hook_attn_out": family.attn_out,
        "hook_mlp_out": family.mlp_out,
        "attn.hook_z": family.hook_z,
        "mlp.hook_post": family.mlp_post,
    }[what]


def _at(name: str, inside: str, site: str, layer: int | None) -> HookPoint:
    path, _, side = site.rpartition(".")
    return HookPoint(name, join(inside, path), "input" if side == "input" else "output", layer, 0)


def _module_path(model: nn.Module, name: str) -> HookPoint | None:
    """A module path; the whole name is tried first, since BERT has modules named `output`."""
    side: Side = "output"
    module = _find_module(model, name)
    if module is None and name.endswith((".input", ".output")):
        stem, _, ending = name.rpartition(".")
        side = "input" if ending == "input" else "output"
        module = _find_module(model, stem)
    if not module:
        return None
    base, _ = base_of(model)
    family = family_of(model)
    layers = re.escape(join(base, family.layers)) if family else r"(?:\w+\.)*\w+"
    found = re.match(rf"{layers}\.(\d+)(\.|$)", module)
    return HookPoint(name, module, side, int(found[1]) if found else None, 0)


def _find_module(model: nn.Module, path: str) -> str | None:
    """`path` as this model spells it: the base model's prefix added, dropped or exchanged."""
    base, _ = base_of(model)
    tail = re.sub(r"^(model|transformer|gpt_neox|bert)\.(language_model\.)?", "", path)
    modules = dict(model.named_modules())
    for candidate in (path, join(base, path), tail, join(base, tail)):
        if candidate in modules:
            return candidate
    return None


def _width(model: nn.Module, point: HookPoint) -> int:
    """The last dimension of what passes there: from the module's weights, else by a forward."""
    module = model.get_submodule(point.module)
    d_model = _d_model(model)
    if isinstance(module, nn.Linear):
        return module.in_features if point.side == "input" else module.out_features
    if isinstance(module, nn.Embedding) and point.side == "output":
        return module.embedding_dim
    if type(module).__name__ == "Conv1D" and isinstance(weight := module.weight, torch.Tensor):
        return int(weight.shape[0 if point.side == "input" else 1])
    family, (base, _) = family_of(model), base_of(model)
    if family is not None and point.layer is not None:
        inside = join(base, family.layers, str(point.layer))
        if point.module in (inside, join(inside, family.ln1), join(inside, family.ln2)):
            return d_model
    with capture(model, [point]) as forward:
        token = torch.zeros((1, 1), dtype=torch.long, device=next(model.parameters()).device)
        return int(forward.run(token, torch.ones_like(token))[point.name].shape[-1])


def _d_model(model: nn.Module) -> int:
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.hidden_size)


def _any_layer(model: nn.Module) -> str:
    """The path of some layer, to show what module paths look like here."""
    last = layer_count(model) - 1
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == last + 1:
            return f"{name}.{last}"
    return "model.layers.0"


def _suggestions(model: nn.Module, name: str) -> str:
    last = layer_count(model) - 1
    numbers = [int(n) for n in re.findall(r"(?<=\.)\d+(?=\.|$)", name)]
    layer = min(numbers[0], last) if numbers else 0
    known = [f"blocks.{layer}.{what}" for what in _LAYER_NAMES] + ["hook_embed"]
    if family_of(model) is None:
        known = []
    known += [path for path, _ in model.named_modules() if path]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return f"{hint}its layers are 0 to {last}"
