"""Llama Scope v1: `hyperparams.json` and `checkpoints/final.safetensors`.

JumpReLU with one threshold (He et al. 2024, arXiv 2410.20526). The weights are for inputs scaled
to norm √d on average over the data set. With s = √d / dataset_average_activation_norm that scale
folds away as b_enc /= s_in, b_dec /= s_out, W_dec ·= s_in / s_out. If
`sparsity_include_decoder_norm` is set, the threshold applies to activation times decoder norm,
so the norms are folded into the encoder, after the scale and before the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, JumpReLU, ReLU, TopK
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.parts import SaeFiles, SaeParts, fold_decoder_norms
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, companion, read_json, require

CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"
NEEDS = f"Llama Scope: {CONFIG} and {WEIGHTS}"

_HEEDED = frozenset({"apply_decoder_bias_to_pre_encoder", "dataset_average_activation_norm"})

MODEL = "meta-llama/Llama-3.1-8B"


def recognizes(place: SaeFiles) -> bool:
    """Whether its configuration lies beside the weights, or next to their `checkpoints/`."""
    return any((folder / CONFIG).is_file() for folder in (place.folder, place.folder.parent))


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load a Llama Scope SAE or transcoder. Raises SaeError if its files are inconsistent."""
    file = companion(place.weights, CONFIG, "Llama Scope", above=True)
    raw = read_json(file)
    require(file, raw, ["d_model", "hook_point_in"])
    refuse_unheeded(file, raw, _HEEDED)
    tensors.size("d_in", raw["d_model"], f"{CONFIG} d_model")
    tensors.size("d_sae", raw.get("d_sae"), f"{CONFIG} d_sae")
    W_enc = tensors.take("encoder.weight", "d_sae", "d_in").T
    b_enc = tensors.take("encoder.bias", "d_sae")
    W_dec = tensors.take("decoder.weight", "d_in", "d_sae").T
    biased = raw.get("use_decoder_bias", True)
    b_dec = tensors.take("decoder.bias", "d_in") if biased else torch.zeros(tensors["d_in"])

    # What OpenMOSS's trainer of 2024 multiplied activations by, never changed in the release.
    tensors.ignore_ones("feature_act_mask", "feature_act_scale")
    scale_in, scale_out = _scales(file, raw)
    b_enc, b_dec, W_dec = b_enc / scale_in, b_dec / scale_out, W_dec * (scale_in / scale_out)
    if raw.get("sparsity_include_decoder_norm", True):
        W_enc, b_enc, W_dec = fold_decoder_norms(W_enc, b_enc, W_dec)
    hook, hook_out = raw["hook_point_in"], raw.get("hook_point_out")
    rule = raw.get("act_fn", "jumprelu")
    l0 = raw.get("top_k") if rule == "topk" else None
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=_activation(file, raw, rule),
            b_enc=b_enc,
            b_pre=b_dec if raw.get("apply_decoder_bias_to_pre_encoder") else None,
        ),
        decoder=Decoder(W_dec=W_dec, b_dec=b_dec),
        format="llama_scope",
        architecture=rule,
        config=raw,
        hook=hook,
        hook_out=hook_out if hook_out != hook else None,
        model_name=MODEL,
        prepend_bos=True,
        context_size=1024,
        stated_l0=float(l0) if l0 else None,
    )


def _scales(file: Path, raw: Mapping[str, Any]) -> tuple[float, float]:
    """s_in and s_out, both 1 if the published weights already include the scale."""
    kind = raw.get("norm_activation", "dataset-wise")
    if kind in ("inference", "none"):
        return 1.0, 1.0
    if kind != "dataset-wise":
        raise SaeError(f"{file}: norm_activation {kind!r} is not supported: dataset-wise is")
    norms = raw.get("dataset_average_activation_norm")
    if not isinstance(norms, dict) or not norms.get("in"):
        raise SaeError(f"{file}: missing dataset_average_activation_norm")
    root = raw["d_model"] ** 0.5
    return root / norms["in"], root / (norms.get("out") or norms["in"])


def _activation(file: Path, raw: Mapping[str, Any], rule: str) -> Activation:
    if rule == "jumprelu":
        require(file, raw, ["jump_relu_threshold"])
        threshold = float(raw["jump_relu_threshold"])
        if threshold < 0:
            raise SaeError(f"{file}: jump_relu_threshold is {threshold}, which is negative")
        return JumpReLU(torch.tensor(threshold))
    if rule == "topk":
        require(file, raw, ["top_k"])
        return TopK(int(raw["top_k"]))
    if rule == "relu":
        return ReLU()
    raise SaeError(f"{file}: act_fn {rule!r} is not supported: jumprelu, topk and relu are")
