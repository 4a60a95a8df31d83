"""circuit-tracer's per-layer transcoders: `config.yaml` and `layer_{L}.safetensors`.

Formulas: circuit_tracer/transcoder/single_layer_transcoder.py, version 0.5. W_enc is [d_sae, d_in].
The rule is in config.yaml: `topk` keeps the sign of the k largest, `relu` is ReLU, otherwise
JumpReLU where the weights hold a threshold and ReLU where they do not. Its JumpReLU does not
clamp at zero. The hooks are in config.yaml too: nothing else distinguishes a transcoder of the
residual stream from one of the normed stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, JumpReLU, ReLU, TopK
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.layout import SET_CONFIG
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, companion, read_yaml

NEEDS = f"circuit-tracer: {SET_CONFIG} and layer_{{L}}.safetensors"

_THRESHOLD = "activation_function.threshold"
_LOOKS_LIKE = "a circuit-tracer transcoder, whose rule and hooks are in it"
# circuit-tracer has this release's k in its code.
_K_IN_CODE = {"crv-8b-instruct-transcoders": 128}


def recognizes(place: SaeFiles) -> bool:
    """Whether the configuration of a transcoder set lies near."""
    for folder in (place.folder, place.folder.parent):
        if (file := folder / SET_CONFIG).is_file():
            return bool(read_yaml(file).get("model_kind"))
    return False


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load one layer of a set. Raises SaeError if its files are inconsistent."""
    file = companion(place.weights, SET_CONFIG, _LOOKS_LIKE, above=True)
    raw = read_set(file)
    refuse_unheeded(file, raw)
    W_enc = tensors.take("W_enc", "d_sae", "d_in").T
    W_skip = tensors.take("W_skip", "d_out", "d_in") if "W_skip" in tensors else None
    activation, architecture = _activation(place, file, raw, tensors)
    hook, hook_out = hooks(raw, layer_of(place.label.stem))
    return SaeParts(
        encoder=Encoder(W_enc=W_enc, activation=activation, b_enc=tensors.take("b_enc", "d_sae")),
        decoder=Decoder(
            W_dec=tensors.take("W_dec", "d_sae", "d_out"),
            b_dec=tensors.take("b_dec", "d_out"),
            W_skip=W_skip,
        ),
        format="circuit_tracer",
        architecture=f"{architecture}_skip" if W_skip is not None else architecture,
        config=raw,
        hook=hook,
        hook_out=hook_out,
        model_name=raw.get("model_name"),
        stated_l0=float(activation.k) if isinstance(activation, TopK) else None,
    )


def read_set(file: Path) -> dict[str, Any]:
    """The configuration of a set of per-layer transcoders. Raises SaeError for another kind."""
    raw = read_yaml(file)
    if raw.get("model_kind") != "transcoder_set":
        raise SaeError(f"{file}: model_kind is {raw.get('model_kind')!r}, not transcoder_set")
    return raw


def layer_of(stem: str) -> int | None:
    """The layer of `layer_5`, the name of a file or of one of a set; SAELens's catalog says 5."""
    layer_match = re.fullmatch(r"(?:layer_?)?(\d+)", stem)
    return int(layer_match[1]) if layer_match else None


def hooks(raw: Mapping[str, Any], layer: int | None) -> tuple[str | None, str | None]:
    """Where a set's transcoder of `layer` reads and writes, None where that is not said."""
    if layer is None:
        return None, None
    read, write = raw.get("feature_input_hook"), raw.get("feature_output_hook")
    return _at(read, layer), _at(write, layer)


def _at(hook: str | None, layer: int) -> str | None:
    """`hook_mlp_out`, or as some converters write it, `blocks.{layer}.hook_mlp_out`."""
    if hook is None or "{layer}" in hook:
        return hook and hook.replace("{layer}", str(layer))
    return f"blocks.{layer}.{hook}"


def refuse_whole_set(folder: Path) -> NoReturn:
    """Raise SaeError for a folder whose config.yaml lists transcoders that lie elsewhere."""
    listed = read_set(folder / SET_CONFIG).get("transcoders") or []
    raise SaeError(
        f"{folder} is a circuit-tracer set of {len(listed)} transcoders: name the one to load, "
        f"as {folder.name}/layer_0" + (f" … layer_{len(listed) - 1}" if len(listed) > 1 else "")
        if listed
        else f"{folder} is a circuit-tracer set, but layer_0.safetensors and so on are missing"
    )


def _activation(
    place: SaeFiles, file: Path, raw: Mapping[str, Any], tensors: Tensors
) -> tuple[Activation, str]:
    rule = raw.get("activation")
    in_code = next((k for name, k in _K_IN_CODE.items() if name in place.label.as_posix()), None)
    # to_safetensors() of a top-k transcoder writes it.
    saved = tensors.number("k")
    if rule == "topk" or (rule is None and in_code):
        k = raw.get("k") or in_code or saved
        if not isinstance(k, int) or not 0 < k <= tensors["d_sae"]:
            raise SaeError(f"{file}: k is {k!r}, not between 1 and d_sae, {tensors['d_sae']}")
        if saved not in (None, k):
            raise SaeError(f"{file}: k is {k}, but {place.weights.name} holds a k of {saved}")
        tensors.ignore(_THRESHOLD)
        return TopK(k, relu=False), "topk"
    if saved is not None:
        raise SaeError(
            f"{file}: activation is {rule!r}, but {place.weights.name} holds a k of {saved}: "
            "write activation: topk, or take the k out"
        )
    if rule == "relu":
        return ReLU(), "relu"
    if rule not in (None, "jumprelu", "jump_relu"):
        raise SaeError(f"{file}: activation {rule!r} is not supported: topk, relu and jumprelu are")
    if _THRESHOLD in tensors or rule:
        return JumpReLU(tensors.take_threshold(_THRESHOLD), clamp=False), "jumprelu"
    return ReLU(), "relu"
