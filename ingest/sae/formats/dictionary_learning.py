"""dictionary_learning: `ae.pt` and `config.json`, and the nested dictionaries of its backups.

Formulas: dictionary_learning/dictionary.py and trainers/*.py, version 0.1. The class is in
config.json (`trainer.dict_class`). TopK and BatchTopK save the same tensors, so it is needed to
distinguish them. BatchTopK and Matryoshka use their fitted threshold. The top k of a batch is for
training only. The library's loader folds decoder norms into an `AutoEncoder` by default. Here
encode() stays in the units of the saved weights.

Two forks save the same files with a normalized input: science-of-finetuning (one mean and scale for
the whole data set, folded into the weights) and InterPLM (each token to norm √d).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, Gated, JumpReLU, ReLU, TopK
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.normalize import Normalization
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, read_json, read_yaml

CONFIG = "config.json"
NEEDS = f"dictionary_learning: {CONFIG} and ae.pt"

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
# science-of-finetuning's, in its normalization.
_EPSILON = 1e-8
_SQRT_D = "normalize_to_sqrt_d"
_STATISTICS = ("activation_mean", "activation_std", "activation_global_scale", _SQRT_D)
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


def recognizes(place: SaeFiles) -> bool:
    """Whether a configuration of the library lies near the weights."""
    return bool(_config(place, {})[1])


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load the dictionary of an open file. Raises SaeError if its files are inconsistent."""
    file, raw = _config(place, tensors.around)
    trainer = raw.get("trainer") or {}
    buffer = raw.get("buffer") or {}
    refuse_unheeded(file, trainer, frozenset(n for n in _STATISTICS if n in tensors))
    kind = _kind(place, trainer, tensors)
    tensors.size("d_in", trainer.get("activation_dim"), f"{CONFIG} activation_dim")
    tensors.size("d_sae", trainer.get("dict_size"), f"{CONFIG} dict_size")

    W_enc, W_dec = _matrices(tensors)
    b_dec = tensors.take(_decoder_bias(kind), "d_in")
    b_enc = None if kind == "GatedAutoEncoder" else _encoder_bias(tensors)
    subtracts = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    k = trainer.get("k")
    if kind in _TOPK | _THRESHOLD:
        k = k or tensors.number("k")
        tensors.ignore("k", "group_sizes")
    activation = _activation(file, kind, k, tensors)
    scale = _backup_scale(tensors.around)
    if scale != 1:
        activation, b_enc, b_dec = _scaled(activation, scale), _times(b_enc, scale), b_dec * scale
    b_pre, per_token = b_dec, _per_token(place, tensors)
    if (whole := _whole_set(file, raw, tensors)) is not None:
        mean, factor, back = whole
        W_enc, W_dec = W_enc * factor.unsqueeze(1), W_dec * back
        b_pre, b_dec = mean + b_dec / factor, b_dec * back + mean
        if not subtracts:
            raise SaeError(f"{place.weights}: {kind} with a normalized input is not supported")
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=activation,
            b_enc=b_enc,
            b_pre=b_pre if subtracts else None,
            normalization=per_token,
        ),
        decoder=Decoder(W_dec=W_dec, b_dec=b_dec, undoes=per_token),
        format="dictionary_learning",
        architecture=kind,
        config=raw,
        hook=_hook(trainer, buffer),
        model_name=trainer.get("lm_name"),
        context_size=buffer.get("ctx_len"),
        stated_l0=float(k) if k and kind != "JumpReluAutoEncoder" else None,
    )


def _backup_scale(around: Mapping[Any, Any]) -> float:
    """What a backup's biases and thresholds are multiplied by to be in the units of the model.

    Training divides the activations by `norm_factor`. The final save scales the biases back, a
    backup does not.
    """
    return float(around.get("norm_factor") or 1.0)


def _times(tensor: Tensor | None, scale: float) -> Tensor | None:
    return None if tensor is None else tensor * scale


def _scaled(activation: Activation, scale: float) -> Activation:
    if isinstance(activation, JumpReLU):  # a negative threshold was never fitted
        return replace(activation, threshold=activation.threshold * scale)
    if isinstance(activation, Gated):
        gate, magnitude = activation.b_gate * scale, activation.b_mag * scale
        return replace(activation, b_gate=gate, b_mag=magnitude)
    return activation


def _per_token(place: SaeFiles, tensors: Tensors) -> Normalization:
    """InterPLM normalizes each token to norm √d where its checkpoint says so.

    The class's own encode() leaves that to forward(). `activation_rescale_factor` is for showing
    features and is not applied. Checkpoints before the flag may have been trained either way.
    """
    tensors.ignore("activation_rescale_factor")
    if tensors.number(_SQRT_D):
        return "constant_norm_rescale"
    file = place.folder / "config.yaml"
    if file.is_file() and _says(read_yaml(file), _SQRT_D):
        raise SaeError(
            f"{file}: it says {_SQRT_D}, but {place.weights.name} does not: nothing says whether "
            "the input is normalized"
        )
    return "none"


def _says(config: Any, key: str) -> bool:
    """Whether `key` is true anywhere in `config`."""
    if isinstance(config, Mapping):
        return bool(config.get(key)) or any(_says(value, key) for value in config.values())
    return False


def _whole_set(
    file: Path, raw: Mapping[str, Any], tensors: Tensors
) -> tuple[Tensor, Tensor, Tensor] | None:
    """μ, g and what undoes g, of science-of-finetuning's x̂ = (x - μ) g; None for no scaling.

    With `keep_relative_variance` false g is 1 / (σ + 1e-8) for each dimension, and the stored scale
    is 1. NaN in the statistics says that there are none.
    """
    names = ("activation_mean", "activation_std")
    if names[0] not in tensors:
        return None
    tensors.ignore("target_rms", "activation_global_scale")
    if tensors.missing_numbers(*names):
        return None
    mean, deviation = (tensors.take(name, "d_in") for name in names)
    scale = tensors.take_scalar("activation_global_scale")
    relative = raw.get("keep_relative_variance")
    if relative is None:
        relative = (raw.get("trainer") or {}).get("keep_relative_variance")
    if relative is None:
        rms = tensors.take_scalar("target_rms") if "target_rms" in tensors else torch.ones(())
        fitted = rms / (deviation.square().sum() + 1e-8).sqrt()
        if scale == 1 and not torch.isclose(fitted, scale, rtol=1e-3):
            raise SaeError(
                f"{file}: activation_global_scale is 1, so nothing says whether the input is "
                "divided by its deviation: add keep_relative_variance to config.json"
            )
        relative = True
    if relative:
        return mean, scale.expand_as(mean), 1 / (scale.expand_as(mean) + _EPSILON)
    return mean, 1 / (deviation + _EPSILON), deviation + _EPSILON


def _config(place: SaeFiles, around: Mapping[Any, Any]) -> tuple[Path, dict[str, Any]]:
    """config.json next to the weights, above them for a checkpoint, or inside a backup.

    A hub mixin's config.json has the keys of `trainer` at its top.
    """
    for folder in (place.folder, place.folder.parent):
        file = folder / CONFIG
        if file.is_file():
            raw = read_json(file)
            if "trainer" in raw:
                return file, raw
            if "dict_class" in raw or {"activation_dim", "dict_size"} <= set(raw):
                return file, {**raw, "trainer": raw}
    inner = around.get("config")
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
    if "W_enc" in tensors and "threshold" in tensors and "k" not in tensors:
        return "JumpReluAutoEncoder"
    if "activation_mean" in tensors and "threshold" in tensors:
        return "BatchTopKSAE"
    if "k" not in tensors and "W_enc" in tensors:
        raise SaeError(
            f"{place.weights.stem}_cfg.json is missing beside {place.weights}: this looks like "
            "an attention SAE of Kissane, whose hook is in it (or dictionary_learning without its "
            f"{CONFIG})"
        )
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
        tensors.ignore("threshold")  # fitted beside the top k, for another use
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
        if layer_match := re.fullmatch(r"(\w+?)_layer_?(\d+)", name):
            site = _SITES.get(layer_match[1])
            return site.format(layer_match[2]) if site else name
        return name
    if layer is None or buffer.get("io", "out") != "out":
        return None
    return _SITES["resid_post"].format(layer)
