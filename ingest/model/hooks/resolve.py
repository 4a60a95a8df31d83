"""Resolve the name of a hook point to a module and a side of it.

Two kinds of name are accepted: TransformerLens's (`blocks.9.hook_resid_post`) and plain
module paths of the Hugging Face model (`model.layers.9`, `layers.9.mlp`), with or without the
prefixes of the base model, optionally ending in `.input` or `.output` (a module alone means its
output).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from featuredb.errors import HookError, first_line
from ingest.model.hooks.capture import capture
from ingest.model.hooks.families import FAMILIES, Family, base_of, family_of, join, text_config
from ingest.model.hooks.hook_point import HookPoint, Side

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
# What releases put before a path, for the base model and for the half of a model that reads text.
_PREFIXES = re.compile(r"((model|language_model|text_model|transformer|gpt_neox|bert|esm)\.)+")

_STREAM = {"hook_resid_pre": "input", "hook_resid_post": "output"}
"""Sites that every family has."""

_SITES: dict[str, Callable[[Family], str | None]] = {
    "hook_resid_pre": lambda _: "input",
    "hook_resid_post": lambda _: "output",
    "hook_resid_mid": lambda family: family.resid_mid,
    "hook_attn_out": lambda family: family.attn_out,
    "hook_mlp_out": lambda family: family.mlp_out,
    "attn.hook_z": lambda family: family.hook_z,
    "mlp.hook_post": lambda family: family.mlp_post,
    # What a sublayer reads before its norm is the stream: TransformerLens's hooks of these names
    # are copies of resid_pre and resid_mid.
    "hook_attn_in": lambda _: "input",
    "hook_mlp_in": lambda family: family.resid_mid,
    "attn.hook_in": lambda family: family.attn[0],
    "attn.hook_out": lambda family: family.attn[1],
    "mlp.hook_in": lambda family: family.mlp[0],
    "mlp.hook_out": lambda family: family.mlp[1],
    "ln1.hook_in": lambda family: family.ln1 and f"{family.ln1}.input",
    "ln2.hook_in": lambda family: family.ln2 and f"{family.ln2}.input",
    "ln1.hook_out": lambda family: family.ln1 and f"{family.ln1}.output",
    "ln2.hook_out": lambda family: family.ln2 and f"{family.ln2}.output",
    "ln1.hook_normalized": lambda family: family.ln1 and f"{family.ln1}.{_normalized(family)}",
    "ln2.hook_normalized": lambda family: family.ln2 and f"{family.ln2}.{_normalized(family)}",
}
_SIDES = {
    **dict.fromkeys(("pre", "in", "input"), "before"),
    **dict.fromkeys(("post", "out", "output", "normalized"), "after"),
}


def resolve_hook(model: nn.Module, name: str) -> HookPoint:
    """Resolve `name` in `model`.

    Raises:
        HookError: there is no such place (with near names and the range of layers), attention and
            MLP run in parallel so nothing lies between them, the name means two places, it is a
            TransformerLens name and the architecture is not in the table, or the architecture is
            not supported.
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
    return int(text_config(model).num_hidden_layers)


def _transformer_lens(model: nn.Module, name: str) -> HookPoint | None:
    family = family_of(model)
    base, _ = base_of(model)
    if name == "hook_embed" and family is not None:
        return _at(model, name, base, family.embed, None)
    block = _BLOCK.fullmatch(name)
    what = block[2] if block else name
    if family is None and what not in _STREAM:
        raise HookError(
            f"{name!r} is a TransformerLens name, and the {text_config(model).model_type!r} "
            f"architecture has no row in the table ({', '.join(FAMILIES)}): give the module path "
            f"instead, such as {_any_layer(model)}"
        )
    if block is None or int(block[1]) >= layer_count(model) or what not in _SITES:
        return None
    layer = int(block[1])
    if family is None:
        layers = _only_layers(model, name)
        _same_stream(model, name, layers, layer + (what == "hook_resid_post"))
        return _at(model, name, join(layers, str(layer)), _STREAM[what], layer)
    if what == "hook_mlp_in" and family.ln2 == "pre_feedforward_layernorm":
        raise HookError(
            f"{name!r} is the stream before the norm in TransformerLens and the MLP's input after "
            f"it in SAEs for Gemma from SAELens: give blocks.{layer}.hook_resid_mid or "
            f"blocks.{layer}.mlp.hook_in"
        )
    site = _SITES[what](family)
    if site is None:
        between = "mid" in what or what == "hook_mlp_in"
        why = (
            "attention and MLP run in parallel in each layer, so nothing lies between them; "
            "hook_resid_pre and hook_resid_post are either side"
            if between
            else "no norm comes before attention and MLP in its layers; attn.hook_in and "
            "mlp.hook_in are what they read"
        )
        raise HookError(f"no hook {name!r} in this model: {why}")
    return _at(model, name, join(base, family.layers, str(layer)), site, layer)


def _normalized(family: Family) -> str:
    return "normalized" if family.rms else "output"


def _at(model: nn.Module, name: str, inside: str, sites: str, layer: int | None) -> HookPoint:
    """The first of `sites`, relative to the module `inside`, that the model has."""
    modules = dict(model.named_modules())
    for site in sites.split(" or "):
        path, _, side = site.rpartition(".")
        if join(inside, path) in modules:
            break
    else:
        raise HookError(
            f"no hook {name!r} in this model: {inside} has no {path}, as where the MLP is experts"
        )
    return HookPoint(
        name,
        join(inside, path),
        "output" if side == "output" else "input",
        layer,
        0,
        before_gain=side == "normalized",
    )


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
    known = _lists_of_layers(model)
    path_match = re.match(rf"({'|'.join(map(re.escape, known)) or '(?!)'})\.(\d+)(\.|$)", module)
    return HookPoint(name, module, side, int(path_match[2]) if path_match else None, 0)


def _find_module(model: nn.Module, path: str) -> str | None:
    """`path` as this model spells it: the base model's prefixes added, dropped or exchanged."""
    base, _ = base_of(model)
    tail = _PREFIXES.sub("", path, count=1) if _PREFIXES.match(path) else path
    modules = dict(model.named_modules())
    for candidate in (path, join(base, path), tail, join(base, tail)):
        if candidate in modules:
            return candidate
    return None


def _width(model: nn.Module, point: HookPoint) -> int:
    """The last dimension of what passes there: from the module's weights, else by a forward."""
    module = model.get_submodule(point.module)
    d_model = int(text_config(model).hidden_size)
    if isinstance(module, nn.Linear):
        return module.in_features if point.side == "input" else module.out_features
    if isinstance(module, nn.Embedding) and point.side == "output":
        return module.embedding_dim
    if type(module).__name__ == "Conv1D" and isinstance(weight := module.weight, torch.Tensor):
        return int(weight.shape[0 if point.side == "input" else 1])
    family, (base, _) = family_of(model), base_of(model)
    if family is not None and point.layer is not None:
        inside = join(base, family.layers, str(point.layer))
        norms = [join(inside, norm) for norm in (family.ln1, family.ln2) if norm]
        if point.module in (inside, *norms):
            return d_model
    return int(_probe(model, [point])[point.name].shape[-1])


def _probe(model: nn.Module, points: list[HookPoint]) -> dict[str, torch.Tensor]:
    """What passes `points` for one token. Raises HookError if the model cannot be run on one."""
    token = torch.zeros((1, 1), dtype=torch.long, device=next(model.parameters()).device)
    try:
        with capture(model, points) as forward:
            return forward.run(token, torch.ones_like(token))
    except HookError:
        raise
    except Exception as error:  # each architecture has its own demands on its input
        raise HookError(
            f"{points[0].name}: the model does not run on one token: {first_line(error)}"
        ) from error


def layer_paths(model: nn.Module) -> list[str]:
    """Paths of the text model's layers."""
    return [f"{path}.{i}" for path in _lists_of_layers(model) for i in range(layer_count(model))]


def _lists_of_layers(model: nn.Module) -> list[str]:
    family, (base, _) = family_of(model), base_of(model)
    return [join(base, family.layers)] if family else _layer_lists(model)


def _layer_lists(model: nn.Module) -> list[str]:
    """The lists in the text model that could be its layers: as long, and not inside a layer."""
    base, inner = base_of(model)
    count = layer_count(model)
    return [
        join(base, name)
        for name, module in inner.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and not any(part.isdigit() for part in name.split("."))
    ]


def _only_layers(model: nn.Module, name: str) -> str:
    """The list of layers of an architecture that has no row."""
    lists = _layer_lists(model)
    if len(lists) != 1:
        what = f"which of {', '.join(lists)} is meant" if lists else "where its layers are"
        raise HookError(
            f"{name!r} is a TransformerLens name, and the {text_config(model).model_type!r} "
            f"architecture has no row in the table that says {what}: give the module path instead"
        )
    return lists[0]


def _same_stream(model: nn.Module, name: str, layers: str, boundary: int) -> None:
    """Refuse an unknown architecture whose layers do not hand one stream to one another.

    boundary: 0 before the first layer, 1 between the first two, and so on.
    """
    if not 0 < boundary < layer_count(model):
        return
    before = HookPoint("before", f"{layers}.{boundary - 1}", "output", None, 0)
    after = HookPoint("after", f"{layers}.{boundary}", "input", None, 0)
    values = _probe(model, [before, after])
    if not torch.equal(values["before"], values["after"]):
        raise HookError(
            f"no hook {name!r} in this model: {after.module} does not read what {before.module} "
            "gives: name the module whose values are meant"
        )


def _any_layer(model: nn.Module) -> str:
    """The path of some layer, to show what module paths look like here."""
    lists = _layer_lists(model)
    return f"{lists[0]}.{layer_count(model) - 1}" if lists else "model.layers.0"


def _suggestions(model: nn.Module, name: str) -> str:
    """Names like `name`, never of the other side of a module or of a norm."""
    last = layer_count(model) - 1
    if block := _BLOCK.fullmatch(name):
        layer, what = min(int(block[1]), last), block[2]
        # "mlp.hook_in" is after the norm, "hook_mlp_in" before it: what is before the dot counts.
        place, side = what.rpartition(".")[0], _side(what)
        known = _SITES if family_of(model) else _STREAM
        alike = [other for other in known if other.rpartition(".")[0] == place]
        alike = [other for other in alike if not side or _side(other) in (None, side)]
        near = [f"blocks.{layer}.{other}" for other in _closest(what, alike)]
    else:
        stem, _, final = name.rpartition(".")
        sides = {"in": "input", "inputs": "input", "out": "output", "outputs": "output"}
        ends = difflib.get_close_matches(final, (*sides, "input", "output"), n=1, cutoff=0.7)
        ending = f".{sides.get(ends[0], ends[0])}" if ends else ""
        stem = stem if ends else name
        paths = [path for path, _ in model.named_modules() if path]
        near = [path + ending for path in _closest(stem, paths)]
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return f"{hint}its layers are 0 to {last}"


def _closest(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)


def _side(what: str) -> str | None:
    """The side of a module or of a norm that a name, perhaps misspelled, says it is on."""
    last = what.rpartition("_")[2]
    near = difflib.get_close_matches(last, _SIDES, n=1)
    ends = next((word for word in (*near, *_SIDES) if last.endswith(word) or word in near), "")
    return _SIDES.get(ends)
