"""Gemma Scope 2: `config.json` and `params.safetensors`, with lower-case tensor names.

JumpReLU with a threshold per feature and no subtraction of b_dec. A transcoder may add
x · affine_skip_connection [d_in, d_out]. Hooks are Hugging Face module paths that end in
`.input` or `.output`. Some folders of the release have no config.json: model, hooks and whether
it is a transcoder are then read from the path, as SAELens does.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from featuredb.errors import SaeError
from ingest.sae.activations import JumpReLU
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, read_json

CONFIG = "config.json"
NEEDS = f"Gemma Scope 2: {CONFIG} and params.safetensors"

CONTEXT_SIZE = 1024

_REPOSITORY = re.compile(r"gemma-scope-2-(\d+[mb])(?:-(pt|it))?\b")
_LAYER = re.compile(r"layer_(\d+)(?:_|$)")
_BEFORE_MLP = "model.layers.{}.pre_feedforward_layernorm.output"
_AFTER_MLP = "model.layers.{}.post_feedforward_layernorm.output"
# Folder of a site in the release: where it reads, and where a transcoder writes.
SITES = {
    "transcoder": (_BEFORE_MLP, _AFTER_MLP),
    "resid_post": ("model.layers.{}.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "mlp_out": (_AFTER_MLP, None),
}


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load a Gemma Scope 2 SAE or transcoder. Raises SaeError if its files are inconsistent."""
    stated = release(place)
    raw = stated["config"]
    hook, hook_out = _hooks_of_path(place.label)
    hook = raw.get("hf_hook_point_in") or hook
    hook_out = raw.get("hf_hook_point_out") or hook_out
    transcoder = hook_out is not None and hook_out != hook
    out = "d_out" if transcoder else "d_in"
    W_skip = None
    if "affine_skip_connection" in tensors:
        W_skip = tensors.take("affine_skip_connection", "d_in", out).T
    W_enc = tensors.take("w_enc", "d_in", "d_sae")
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=JumpReLU(tensors.take_threshold("threshold")),
            b_enc=tensors.take("b_enc", "d_sae"),
        ),
        decoder=Decoder(
            W_dec=tensors.take("w_dec", "d_sae", out),
            b_dec=tensors.take("b_dec", out),
            W_skip=W_skip,
        ),
        architecture="jump_relu",
        hook=hook,
        hook_out=hook_out if transcoder else None,
        **stated,
    )


def release(place: SaeFiles) -> dict[str, Any]:
    """What the configuration and the path say that is the same for every kind of SAE, as fields of
    `SaeParts`. Raises SaeError for an unknown architecture."""
    file = place.folder / CONFIG
    raw = read_json(file) if file.exists() else {}
    if raw.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise SaeError(f"{file}: architecture {raw['architecture']!r} is not jump_relu")
    refuse_unheeded(file, raw)
    return {
        "format": "gemma_scope_2",
        "config": raw,
        "model_name": _model(raw) or _model_of_path(place.label),
        "prepend_bos": True,
        "context_size": CONTEXT_SIZE,
        "stated_l0": _l0(raw),
    }


def _hooks_of_path(label: PurePath) -> tuple[str | None, str | None]:
    """Hooks from …/gemma-scope-2-1b-pt/resid_post/layer_5_width_16k_l0_small/…"""
    layers = [layer_match[1] for part in label.parts if (layer_match := _LAYER.match(part))]
    # `resid_post_all` holds the same for every layer
    sites = [s for part in label.parts for s in SITES if re.fullmatch(rf"{s}(_\w+)?", part)]
    if not layers or not sites or not _REPOSITORY.search(label.as_posix()):
        return None, None
    into, out = SITES[sites[-1]]
    return into.format(layers[-1]), out.format(layers[-1]) if out else None


def _model_of_path(label: PurePath) -> str | None:
    repository = _REPOSITORY.search(label.as_posix())
    return _on_hub(f"gemma-3-{repository[1]}-{repository[2] or 'pt'}") if repository else None


def _model(raw: dict[str, Any]) -> str | None:
    """The model's hub name. The files have `gemma-v3-1b-pt` for `google/gemma-3-1b-pt`."""
    name = raw.get("model_name")
    return _on_hub(re.sub(r"-v3\b", "-3", name)) if isinstance(name, str) else None


def _on_hub(name: str) -> str:
    if name == "gemma-3-270m-pt":  # the one without a suffix
        name = "gemma-3-270m"
    return name if "/" in name or not name.startswith("gemma") else f"google/{name}"


def _l0(raw: dict[str, Any]) -> float | None:
    value = raw.get("l0")
    return float(value) if isinstance(value, int | float) else None
