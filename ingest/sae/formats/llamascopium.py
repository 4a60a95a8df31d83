"""Llamascopium (OpenMOSS since 2025): `config.json` and `sae_weights.safetensors`.

Formulas: models/sae.py of Llamascopium. With u = s_in x, z = u W_E + b_E and n the decoder norms,
f = g(z n) / n, where g is ReLU, top-k or JumpReLU; y = (f W_D + b_D) / s_out. Stored is f, as the
library's own encode() gives it for the normalized input: not f / s_in, and not f n as in Llama
Scope v1. The scales fold into the weights. n only decides which features are active.
`norm_activation: inference` says that the scales are in the weights already, and the norms in the
file are then uninitialized memory. For JumpReLU the library's own folding leaves θ as it is, which
changes the result: here the input is scaled first, as in training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, JumpReLU, ReLU, TopK
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.normalize import Normalization
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.refused import refuse_sae_type
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, companion, read_json, require

CONFIG = "config.json"
NEEDS = f"Llamascopium: {CONFIG} with sae_type and sae_weights.safetensors"

_NORM = "dataset_average_activation_norm."
_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
# In `checkpoints/` the configuration lies in the folder above.
_LOOKS_LIKE = "Llamascopium, whose rule and hooks are in it"


def recognizes(place: SaeFiles, tensors: Tensors) -> bool:
    """Whether weights with the names of 2025 are of this format: other formats share those."""
    if any(name.startswith(_NORM) or name in _THRESHOLDS for name in tensors.names()):
        return True
    return _sae_type(place) is not None


def refuse_other_types(place: SaeFiles) -> None:
    """Raise SaeError where the configuration near the weights is of a kind that is not read."""
    if (kind := _sae_type(place)) not in (None, "sae"):
        refuse_sae_type(place.weights, str(kind))


def _sae_type(place: SaeFiles) -> str | None:
    """`sae_type` of a config.json near the weights, None without one."""
    above = [place.folder.parent] if place.folder.name == "checkpoints" else []
    for folder in (place.folder, *above):
        try:
            kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("sae_type")
        except (OSError, ValueError, AttributeError):
            continue
        if kind is not None:
            return str(kind)
    return None


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load an SAE or transcoder. Raises SaeError if its files are inconsistent or unsupported."""
    file = companion(place.weights, CONFIG, _LOOKS_LIKE, above=True)
    raw = read_json(file)
    require(file, raw, ["sae_type", "d_model", "hook_point_in"])
    refuse_unheeded(file, raw)
    tensors.size("d_in", raw["d_model"], f"{CONFIG} d_model")
    if raw.get("expansion_factor"):
        d_sae = int(raw["d_model"] * raw["expansion_factor"])
        tensors.size("d_sae", d_sae, f"{CONFIG} expansion_factor")
    W_enc, b_enc, W_dec = _weights(tensors)
    bias = "b_D" if "W_D" in tensors else "decoder.bias"
    biased = raw.get("use_decoder_bias", True)
    b_dec = tensors.take(bias, "d_in") if biased else torch.zeros(tensors["d_in"])

    hook, hook_out = raw["hook_point_in"], raw.get("hook_point_out") or raw["hook_point_in"]
    scale_in, scale_out, per_token = _scales(file, raw, tensors, hook, hook_out)
    norms = W_dec.norm(dim=1) if raw.get("sparsity_include_decoder_norm", True) else None
    activation = _activation(file, raw, tensors, norms)
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc * scale_in, activation=activation, b_enc=b_enc, normalization=per_token
        ),
        decoder=Decoder(W_dec=W_dec / scale_out, b_dec=b_dec / scale_out, undoes=per_token),
        format="llamascopium",
        architecture=raw.get("act_fn") or "relu",
        config=raw,
        hook=hook,
        hook_out=hook_out if hook_out != hook else None,
        model_name=raw.get("model_name"),
        stated_l0=float(activation.k) if isinstance(activation, TopK) else None,
    )


def _weights(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """W_enc, b_enc and W_dec by the names of 2026 or of 2025."""
    if "W_E" in tensors:
        W_enc = tensors.take("W_E", "d_in", "d_sae")
        return W_enc, tensors.take("b_E", "d_sae"), tensors.take("W_D", "d_sae", "d_in")
    W_enc = tensors.take("encoder.weight", "d_sae", "d_in").T
    W_dec = tensors.take("decoder.weight", "d_in", "d_sae").T
    return W_enc, tensors.take("encoder.bias", "d_sae"), W_dec


def _scales(
    file: Path, raw: Mapping[str, Any], tensors: Tensors, hook: str, hook_out: str
) -> tuple[float, float, Normalization]:
    """s_in and s_out, and the normalization that depends on the token."""
    kind = raw.get("norm_activation", "dataset-wise")
    known = {name for name in tensors.names() if name.startswith(_NORM)}
    if kind == "dataset-wise":
        root = raw["d_model"] ** 0.5
        places = (hook, hook_out)
        for place in places:
            if _NORM + place not in known:
                raise SaeError(
                    f"{tensors.file}: no tensor {_NORM + place}, the scale of "
                    "norm_activation dataset-wise"
                )
        norms = [float(tensors.take_scalar(_NORM + place)) for place in places]
        if min(norms) <= 0:
            raise SaeError(f"{tensors.file}: {_NORM + hook} is {min(norms)}, which is no norm")
        return root / norms[0], root / norms[1], "none"
    tensors.ignore(*known)  # never set
    if kind in ("inference", None, "none"):
        return 1.0, 1.0, "none"
    if kind == "token-wise" and hook == hook_out:
        return 1.0, 1.0, "constant_norm_rescale"
    what = " for a transcoder" if kind == "token-wise" else ""
    raise SaeError(
        f"{file}: norm_activation {kind!r} is not supported{what}: dataset-wise and inference are"
    )


def _activation(
    file: Path, raw: Mapping[str, Any], tensors: Tensors, norms: Tensor | None
) -> Activation:
    rule = raw.get("act_fn") or "relu"
    if rule == "topk":
        require(file, raw, ["top_k"])
        k = int(raw["top_k"])
        if not 0 < k <= tensors["d_sae"]:
            raise SaeError(f"{file}: top_k is {k}, not between 1 and d_sae, {tensors['d_sae']}")
        tensors.ignore(*_THRESHOLDS)
        return TopK(k, weights=norms)
    if rule == "jumprelu":
        name = next((name for name in _THRESHOLDS if name in tensors), _THRESHOLDS[0])
        threshold = tensors.take_threshold(name).exp()
        # z n > θ, for a feature whose decoder is zero never
        return JumpReLU(threshold if norms is None else threshold / norms)
    if rule == "relu":
        return ReLU()
    raise SaeError(f"{file}: act_fn {rule!r} is not supported: topk, jumprelu and relu are")
