"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 and earlier.

Formulas: sae_lens/saes/*.py of SAELens 6.54. Before version 6 the configuration was flat, and a
top-k SAE was a "standard" SAE whose `activation_fn_str` was "topk".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, Gated, JumpReLU, ReLU, TopK
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.normalize import Normalization
from ingest.sae.parts import SaeFiles, SaeParts, fold_decoder_norms
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, companion, read_json

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
NEEDS = f"SAELens: {CONFIG} and {WEIGHTS}"

_RELU = {"standard", "transcoder", "skip_transcoder"}
_JUMPRELU = {"jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder"}
_TOPK = {"topk", "abstopk"}
_BATCH_TOPK = {"batchtopk", "matryoshka_batchtopk"}
_KNOWN = _RELU | _JUMPRELU | _TOPK | _BATCH_TOPK | {"gated"}
_HEEDED = frozenset(
    {"normalize_activations", "rescale_acts_by_decoder_norm", "center_writing_weights"}
)
# Where centering the weights that write to the residual stream changes nothing.
_NOT_CENTERED = ("attn.hook_z", "mlp.hook_post", "mlp.hook_pre")


@dataclass(frozen=True)
class _Config:
    """Common view of the two generations of cfg.json."""

    architecture: str
    apply_b_dec_to_input: bool
    normalize: str
    k: int | None
    rescale_by_decoder_norm: bool
    processed_weights: bool
    about: Mapping[str, Any]
    """Section with the model, hook and context: `metadata`, or the flat configuration."""

    @property
    def is_transcoder(self) -> bool:
        return self.architecture.endswith("transcoder")


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load a SAELens folder. Raises SaeError if its files are inconsistent or unsupported."""
    file = companion(place.weights, CONFIG, "an SAE of SAELens")
    raw = {**read_json(file), **place.hints.get("overrides", {})}
    config = _understand(file, raw)
    tensors.size("d_in", raw.get("d_in"), f"{CONFIG} d_in")
    tensors.size("d_sae", raw.get("d_sae"), f"{CONFIG} d_sae")
    if config.is_transcoder:
        tensors.size("d_out", raw.get("d_out"), f"{CONFIG} d_out")
    out = "d_out" if config.is_transcoder else "d_in"

    W_enc = tensors.take("W_enc", "d_in", "d_sae")
    W_dec = tensors.take("W_dec", "d_sae", out)
    b_dec = tensors.take("b_dec", out)
    b_enc = None if config.architecture == "gated" else tensors.take("b_enc", "d_sae")
    activation = _activation(file, config, tensors)
    skip = tensors.take("W_skip", "d_out", "d_in") if "skip" in config.architecture else None

    W_dec = W_dec * _finetuned(file, raw, tensors)
    if config.rescale_by_decoder_norm and b_enc is not None:
        # z·‖W_dec,i‖ selects the top k and decode divides it out, which equals unit-norm rows.
        W_enc, b_enc, W_dec = fold_decoder_norms(W_enc, b_enc, W_dec)
    if config.normalize == "expected_average_only_in":
        scale = _dataset_scale(place, raw, config)
        W_enc, W_dec, b_dec = W_enc * scale, W_dec / scale, b_dec / scale

    about = config.about
    # For Gemma 3 it writes blocks.9.hook_mlp_in, in TransformerLens the place before the norm,
    # and the module path of the norm's output.
    hook = about.get("hf_hook_name") or about.get("hook_name") or about.get("hook_point")
    per_token = _per_token(file, config, hook)
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=activation,
            b_enc=b_enc,
            b_pre=b_dec if config.apply_b_dec_to_input else None,
            normalization=per_token,
        ),
        decoder=Decoder(
            W_dec=W_dec,
            b_dec=b_dec,
            W_skip=skip,
            undoes="none" if config.is_transcoder else per_token,
        ),
        format="saelens",
        architecture=config.architecture,
        config=raw,
        hook=hook,
        hook_out=(about.get("hf_hook_name_out") or about.get("hook_name_out"))
        if config.is_transcoder
        else None,
        model_name=about.get("model_name"),
        prepend_bos=about.get("prepend_bos"),
        context_size=about.get("context_size"),
        stated_l0=float(config.k) if config.k else None,
        processed_weights=config.processed_weights,
        excluded_tokens=_excluded(file, about.get("exclude_special_tokens")),
    )


def _excluded(file: Path, value: Any) -> bool | tuple[int, ...]:
    """The tokens left out in training: none, the tokenizer's special ones, or a list of ids."""
    if isinstance(value, list) and all(type(each) is int and each >= 0 for each in value):
        return tuple(sorted(set(value)))
    if value is None or isinstance(value, bool):
        return bool(value)
    raise SaeError(
        f"{file}: exclude_special_tokens is {value!r}: it has to be true, false or a list of ids"
    )


def _per_token(file: Path, config: _Config, hook: str | None) -> Normalization:
    """The normalization of each token, centering included."""
    stated: Normalization = "none"
    if config.normalize in ("layer_norm", "constant_norm_rescale"):
        stated = config.normalize  # type: ignore[assignment]
    if not config.processed_weights or (hook or "").endswith(_NOT_CENTERED):
        return stated
    if stated == "constant_norm_rescale":
        raise SaeError(
            f"{file}: normalize_activations constant_norm_rescale on top of "
            "center_writing_weights is not supported"
        )
    return "center" if stated == "none" else stated  # a layer norm centers by itself


def _understand(file: Path, raw: dict[str, Any]) -> _Config:
    """Parse a version 6 configuration (with `metadata`) or an earlier, flat one."""
    flat = "metadata" not in raw
    about: Mapping[str, Any] = {"prepend_bos": True, **raw} if flat else raw["metadata"] or {}
    architecture = raw.get("architecture") or "standard"
    k = raw.get("k")
    if flat:
        rule = raw.get("activation_fn_str") or raw.get("activation_fn") or "relu"
        k = (raw.get("activation_fn_kwargs") or {}).get("k", k)
        if rule == "topk":
            architecture = "topk"
        elif rule != "relu":
            raise SaeError(f"{file}: activation_fn {rule!r} is not supported: relu and topk are")
    if architecture not in _KNOWN:
        raise SaeError(
            f"{file}: architecture {architecture!r} is not supported: "
            f"{', '.join(sorted(_KNOWN))} are"
        )
    for key in ("hook_head_index", "hook_point_head_index"):
        if about.get(key) is not None:
            raise SaeError(
                f"{file}: reads a single attention head ({key} {about[key]}), which is not "
                "supported"
            )
    normalize = raw.get("normalize_activations") or "none"
    if normalize is True:  # older files have a flag instead of a name
        normalize = "expected_average_only_in"
    if normalize not in ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale"):
        raise SaeError(f"{file}: normalize_activations {normalize!r} is not supported")
    if (shape := raw.get("reshape_activations")) not in (None, "none", "hook_z"):
        raise SaeError(f"{file}: reshape_activations {shape!r} is not supported")
    refuse_unheeded(file, raw, _HEEDED)
    is_transcoder = architecture.endswith("transcoder")
    return _Config(
        architecture=architecture,
        apply_b_dec_to_input=bool(raw.get("apply_b_dec_to_input", True)) and not is_transcoder,
        normalize=normalize,
        k=int(k) if k is not None and architecture in _TOPK | _BATCH_TOPK else None,
        rescale_by_decoder_norm=bool(raw.get("rescale_acts_by_decoder_norm"))
        and architecture in _TOPK | _BATCH_TOPK,
        processed_weights=_processed_weights(file, raw, about),
        about=about,
    )


def _processed_weights(file: Path, *sections: Mapping[str, Any]) -> bool:
    """Whether it was trained on TransformerLens's centered weights, in either section."""
    options: dict[str, Any] = {}
    for section in sections:
        options |= section.get("model_from_pretrained_kwargs") or {}
        if section.get("center_writing_weights"):
            options["center_writing_weights"] = True
    if options.get("refactor_factored_attn_matrices"):
        raise SaeError(f"{file}: refactor_factored_attn_matrices is not supported")
    hook = next((s["hook_name"] for s in sections if s.get("hook_name")), "")
    if options.get("fold_ln") and hook.endswith("hook_normalized"):
        raise SaeError(f"{file}: fold_ln, which takes the norm's weight away at {hook}")
    centered = bool(options.get("center_writing_weights"))
    if hook.endswith("hook_z"):  # only the value biases are gone there: by default with the rest
        return bool(options.get("fold_value_biases", centered))
    return centered


def _activation(file: Path, config: _Config, tensors: Tensors) -> Activation:
    architecture = config.architecture
    if architecture in _JUMPRELU:
        return JumpReLU(tensors.take_threshold("threshold"))
    if architecture in _BATCH_TOPK:
        # The top k of a batch is for training. Inference uses the fitted threshold.
        return JumpReLU(tensors.take_scalar("topk_threshold"))
    if architecture in _TOPK:
        if config.k is None or not 0 < config.k <= tensors["d_sae"]:
            raise SaeError(
                f"{file}: k is {config.k}, which is not between 1 and d_sae, {tensors['d_sae']}"
            )
        signed = architecture == "abstopk"
        tensors.ignore("threshold")  # for training's auxiliary loss
        return TopK(config.k, relu=not signed, by_magnitude=signed)
    if architecture == "gated":
        return Gated(
            b_gate=tensors.take("b_gate", "d_sae"),
            b_mag=tensors.take("b_mag", "d_sae"),
            scale=tensors.take("r_mag", "d_sae").exp(),
        )
    return ReLU()


def _finetuned(file: Path, raw: Mapping[str, Any], tensors: Tensors) -> Tensor:
    """Decoder scale of each activation, [d_sae, 1]: ones except for old finetunes."""
    if "scaling_factor" not in tensors:
        return torch.ones(())
    factor = tensors.take("scaling_factor", "d_sae")
    if not raw.get("finetuning_scaling_factor") and not torch.allclose(
        factor, torch.ones_like(factor)
    ):
        raise SaeError(
            f"{file}: the weights hold a scaling_factor, but finetuning_scaling_factor is not set"
        )
    return factor.unsqueeze(1)


def _dataset_scale(place: SaeFiles, raw: Mapping[str, Any], config: _Config) -> float:
    """s of `expected_average_only_in`, required in a checkpoint's files or a catalog.

    SAELens continues without it, and the activations are then wrong by that factor.
    """
    scaler = place.folder / "activation_scaler.json"
    scale = (
        raw.get("norm_scaling_factor")
        or config.about.get("norm_scaling_factor")
        or place.hints.get("norm_scaling_factor")
        or (read_json(scaler).get("scaling_factor") if scaler.exists() else None)
    )
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise SaeError(
            f"{place.folder / CONFIG}: normalize_activations is expected_average_only_in, but no "
            "scale is given: add norm_scaling_factor (√d_in / mean norm of the inputs) to cfg.json"
        )
    return float(scale)
