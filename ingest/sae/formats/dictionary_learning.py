"""dictionary_learning: `ae.pt` and `config.json`, and the nested dictionaries of its backups.

Formulas: dictionary_learning/dictionary.py and trainers/*.py, version 0.1. The class is in
config.json (`trainer.dict_class`). TopK and BatchTopK save the same tensors, so it is needed to
distinguish them. BatchTopK and Matryoshka use their fitted threshold. The top k of a batch is for
training only. The library's loader folds decoder norms into an `AutoEncoder` by default. Here
encode() stays in the units of the saved weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, Gated, JumpReLU, ReLU, TopK
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder, Encoder
from ingest.sae.tensors import Tensors, read_json

WEIGHTS = "ae.pt"
CONFIG = "config.json"
NEEDS = f"dictionary_learning: {CONFIG} and {WEIGHTS}"

_CLASSES = {
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
}
_TOPK = {"AutoEncoderTopK"}
_THRESHOLD = {"BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"}
# What the library's scale_biases() multiplies; a negative threshold was never fitted.
_BIASES = ("bias", "encoder.bias", "decoder.bias", "b_enc", "b_dec", "decoder_bias")
_GATED_BIASES = ("mag_bias", "gate_bias")
# Submodule names of the library's examples, as TransformerLens names.
_SITES = {
    "resid_post": "blocks.{}.hook_resid_post",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid": "blocks.{}.hook_resid_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp": "blocks.{}.hook_mlp_out",
    "attn_out": "blocks.{}.hook_attn_out",
    "attn": "blocks.{}.hook_attn_out",
}


def recognizes(content: Mapping[Any, Any]) -> bool:
    """Whether a torch file contains such a dictionary or a backup of one."""
    state = content.get("ae", content)
    return isinstance(state, Mapping) and ("encoder.weight" in state or "W_enc" in state)


def parts(place: SaeFiles, content: Mapping[Any, Any]) -> SaeParts:
    """Load the dictionary of an open file. Raises SaeError if its files are inconsistent."""
    nested = isinstance(content.get("ae"), Mapping)
    state = _rescaled(content) if nested else content
    tensors = Tensors(place.weights, state)
    file, raw = _config(place, content if nested else {})
    trainer = raw.get("trainer") or {}
    buffer = raw.get("buffer") or {}
    kind = _kind(place, trainer, tensors)
    tensors.size("d_in", trainer.get("activation_dim"), f"{CONFIG} activation_dim")
    tensors.size("d_sae", trainer.get("dict_size"), f"{CONFIG} dict_size")

    W_enc, W_dec = _matrices(tensors)
    b_dec = tensors.take(_decoder_bias(kind), "d_in")
    subtracts = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    k = trainer.get("k") or tensors.number("k")
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=_activation(file, kind, k, tensors),
            b_enc=None if kind == "GatedAutoEncoder" else _encoder_bias(tensors),
            b_pre=b_dec if subtracts else None,
        ),
        decoder=Decoder(W_dec=W_dec, b_dec=b_dec),
        format="dictionary_learning",
        architecture=kind,
        config=raw,
        hook=_hook(trainer, buffer),
        model_name=trainer.get("lm_name"),
        context_size=buffer.get("ctx_len"),
        stated_l0=float(k) if k and kind != "JumpReluAutoEncoder" else None,
    )


def _rescaled(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The state of a backup in the units of the model.

    Training divides the activations by `norm_factor`. The final save scales the biases back, a
    backup does not.
    """
    state = dict(content["ae"])
    factor = float(content.get("norm_factor") or 1.0)
    if factor != 1.0:
        for name in (*_BIASES, *_GATED_BIASES):
            if isinstance(state.get(name), Tensor):
                state[name] = state[name] * factor
        threshold = state.get("threshold")
        if isinstance(threshold, Tensor):
            state["threshold"] = torch.where(threshold >= 0, threshold * factor, threshold)
    return state


def _config(place: SaeFiles, content: Mapping[Any, Any]) -> tuple[Path, dict[str, Any]]:
    """config.json next to the weights, above them for a checkpoint, or inside a backup."""
    for folder in (place.folder, place.folder.parent):
        file = folder / CONFIG
        if file.is_file():
            raw = read_json(file)
            if "trainer" in raw:
                return file, raw
    inner = content.get("config")
    if isinstance(inner, Mapping) and "dict_class" in inner:
        return place.weights, {"trainer": dict(inner)}
    return place.weights, {}


def _kind(place: SaeFiles, trainer: Mapping[str, Any], tensors: Tensors) -> str:
    kind = trainer.get("dict_class")
    if kind in _CLASSES:
        return str(kind)
    if kind is not None:
        raise SaeError(
            f"{place.weights}: dict_class {kind!r} is not supported: {', '.join(sorted(_CLASSES))}"
        )
    if "gate_bias" in tensors:
        return "GatedAutoEncoder"
    if "group_sizes" in tensors:
        return "MatryoshkaBatchTopKSAE"
    if "bias" in tensors:
        return "AutoEncoder"
    if "decoder.bias" in tensors:
        return "AutoEncoderNew"
    if "W_enc" in tensors and "k" not in tensors:
        return "JumpReluAutoEncoder"
    raise SaeError(
        f"{place.weights}: {CONFIG} with trainer.dict_class is needed beside it: "
        "a top-k and a batch top-k dictionary hold the same tensors"
    )


def _matrices(tensors: Tensors) -> tuple[Tensor, Tensor]:
    if "W_enc" in tensors:
        W_enc = tensors.take("W_enc", "d_in", "d_sae")
        return W_enc, tensors.take("W_dec", "d_sae", "d_in")
    W_enc = tensors.take("encoder.weight", "d_sae", "d_in").T
    return W_enc, tensors.take("decoder.weight", "d_in", "d_sae").T


def _encoder_bias(tensors: Tensors) -> Tensor:
    return tensors.take("b_enc" if "b_enc" in tensors else "encoder.bias", "d_sae")


def _decoder_bias(kind: str) -> str:
    names = {
        "AutoEncoder": "bias",
        "AutoEncoderNew": "decoder.bias",
        "GatedAutoEncoder": "decoder_bias",
    }
    return names.get(kind, "b_dec")


def _activation(file: Path, kind: str, k: Any, tensors: Tensors) -> Activation:
    if kind in _THRESHOLD:
        return JumpReLU(tensors.take_threshold("threshold"))
    if kind in _TOPK:
        if not isinstance(k, int) or not 0 < k <= tensors["d_sae"]:
            raise SaeError(f"{file}: k is {k!r}, not between 1 and d_sae, {tensors['d_sae']}")
        return TopK(k)
    if kind == "GatedAutoEncoder":
        return Gated(
            b_gate=tensors.take("gate_bias", "d_sae"),
            b_mag=tensors.take("mag_bias", "d_sae"),
            scale=tensors.take("r_mag", "d_sae").exp(),
        )
    return ReLU()


def _hook(trainer: Mapping[str, Any], buffer: Mapping[str, Any]) -> str | None:
    """The hook's TransformerLens name. An unknown submodule name is returned unchanged."""
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    if isinstance(name, str):
        if found := re.fullmatch(r"(\w+?)_layer_?(\d+)", name):
            site = _SITES.get(found[1])
            return site.format(found[2]) if site else name
        return name
    if layer is None or buffer.get("io", "out") != "out":
        return None
    return _SITES["resid_post"].format(layer)
