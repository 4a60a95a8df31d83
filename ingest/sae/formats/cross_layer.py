"""SAEs that write to several layers together: one file for each, read as an SAE of its own.

- circuit-tracer's cross-layer transcoders: `config.yaml`, `W_enc_{L}.safetensors` (W_enc_L
  [d_sae, d_in], b_enc_L, b_dec_L, perhaps threshold_L) and `W_dec_{L}.safetensors` (W_dec_L
  [d_sae, n - L, d_out], whose j-th part writes to layer L + j). Its JumpReLU does not clamp at
  zero. Formulas: circuit_tracer/transcoder/cross_layer_transcoder.py, version 0.5.
- Gemma Scope 2's cross-layer transcoders and weakly causal crosscoders:
  `params_layer_{i}.safetensors` with w_dec [d_sae, n, d_out], whose o-th part writes to place o. i
  and o count the set's layers: `crosscoder/layer_7_13_17_22_width_…` has places 0 to 3.

Directions are the sum of what a feature writes to each layer, as in SAELens.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, JumpReLU, ReLU
from ingest.sae.config import refuse_unheeded
from ingest.sae.cross_layer import CrossLayer
from ingest.sae.encoder import Encoder
from ingest.sae.formats import circuit_tracer, gemma_scope_2
from ingest.sae.layout import MEMBER, SET_CONFIG
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, companion, read_yaml, safetensors_shapes

NEEDS = f"cross-layer transcoder of circuit-tracer: {SET_CONFIG}, W_enc_{{L}} and W_dec_{{L}}"

_KIND = "cross_layer_transcoder"
_LOOKS_LIKE = "a layer of circuit-tracer's cross-layer transcoder"
_CROSSCODER = re.compile(r"layer((?:_\d+)+)_width_")


def recognizes(tensors: Tensors) -> bool:
    """Whether the file is one layer of a set."""
    return _layer(tensors) is not None or len(tensors.shape("w_dec") or ()) == 3


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load one layer of a set. Raises SaeError if its files are inconsistent."""
    layer = _layer(tensors)
    return _circuit_tracer(place, tensors, layer) if layer is not None else _gemma(place, tensors)


def _layer(tensors: Tensors) -> int | None:
    encoders = [re.fullmatch(r"W_enc_(\d+)", name) for name in tensors.names()]
    return next((int(match[1]) for match in encoders if match), None)


def _circuit_tracer(place: SaeFiles, tensors: Tensors, layer: int) -> SaeParts:
    file = companion(place.weights, SET_CONFIG, _LOOKS_LIKE)
    raw = read_yaml(file)
    if raw.get("model_kind", _KIND) != _KIND:
        raise SaeError(f"{file}: model_kind is {raw['model_kind']!r}, not {_KIND}")
    refuse_unheeded(file, raw)
    name = f"W_dec_{layer}"
    decoders = companion(place.weights, f"{name}.safetensors", _LOOKS_LIKE)
    shapes = safetensors_shapes(decoders)
    if set(shapes) != {name} or len(shapes[name]) != 3:
        shown = ", ".join(f"{key} {shape}" for key, shape in shapes.items()) or "nothing"
        raise SaeError(f"{decoders}: holds {shown}, but should hold {name} [d_sae, layers, d_out]")
    W_enc = tensors.take(f"W_enc_{layer}", "d_sae", "d_in").T
    b_enc = tensors.take(f"b_enc_{layer}", "d_sae")
    tensors.size("d_sae", shapes[name][0], f"{name} {shapes[name]}")
    tensors.size("d_out", shapes[name][2], f"{name} {shapes[name]}")
    places = range(layer + shapes[name][1])
    cross = CrossLayer(
        group=str(place.folder),
        member=f"layer_{layer}",
        place=layer,
        sites=tuple(circuit_tracer.hooks(raw, each)[1] for each in places),
        file=decoders,
        tensor=name,
        first=layer,
        causal=True,
    )
    rule, threshold = raw.get("activation"), f"threshold_{layer}"
    if rule not in (None, "relu", "jumprelu", "jump_relu"):
        raise SaeError(f"{file}: activation {rule!r} is not supported: relu and jumprelu are")
    activation: Activation = ReLU()
    if rule not in (None, "relu") or (rule is None and threshold in tensors):
        activation = JumpReLU(tensors.take_threshold(threshold), clamp=False)
    W_dec, written = cross.total()
    return SaeParts(
        encoder=Encoder(W_enc=W_enc, activation=activation, b_enc=b_enc),
        decoder=Decoder(W_dec=W_dec, b_dec=tensors.take(f"b_dec_{layer}", "d_out")),
        format="circuit_tracer",
        architecture=_KIND,
        config=raw,
        hook=circuit_tracer.hooks(raw, layer)[0],
        model_name=raw.get("model_name"),
        files=(decoders,),
        cross_layer=cross,
        places_out=written,
    )


def _gemma(place: SaeFiles, tensors: Tensors) -> SaeParts:
    release = gemma_scope_2.release(place)
    shape = tensors.shape("w_dec") or ()
    at = MEMBER.fullmatch(place.label.name)
    if at is None or int(at[1]) >= shape[1]:
        raise SaeError(
            f"{place.weights}: w_dec writes to {shape[1]} places, and the file's name does not "
            f"say which of them this is: it should be params_layer_0 to params_layer_{shape[1] - 1}"
        )
    read_layer = int(at[1])
    kind = release["config"].get("type") or _kind(place.label)
    layers = _layers(place, kind, shape[1])
    reads, writes = gemma_scope_2.SITES["resid_post" if kind == "crosscoder" else "transcoder"]
    cross = CrossLayer(
        group=str(place.folder),
        member=f"layer_{layers[read_layer]}" if layers else f"place_{read_layer}",
        place=read_layer,
        sites=tuple((writes or reads).format(layer) for layer in layers) or (None,) * shape[1],
        file=place.weights,
        tensor="w_dec",
    )
    W_enc = tensors.take("w_enc", "d_in", "d_sae")
    tensors.size("d_sae", shape[0], f"w_dec {list(shape)}")
    tensors.size("d_out", shape[2], f"w_dec {list(shape)}")
    tensors.ignore("w_dec")  # read below, one part at a time
    W_dec, written = cross.total()
    W_skip = None
    if "affine_skip_connection" in tensors:
        W_skip = tensors.take("affine_skip_connection", "d_in", "d_out").T
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=JumpReLU(tensors.take_threshold("threshold")),
            b_enc=tensors.take("b_enc", "d_sae"),
        ),
        decoder=Decoder(W_dec=W_dec, b_dec=tensors.take("b_dec", "d_out"), W_skip=W_skip),
        architecture=kind or "jump_relu",
        hook=reads.format(layers[read_layer]) if layers else None,
        cross_layer=cross,
        places_out=written,
        **release,
    )


def _kind(label: PurePath) -> str | None:
    return next((part for part in label.parts if part in ("clt", "crosscoder")), None)


def _layers(place: SaeFiles, kind: str | None, count: int) -> list[int]:
    """The layer of each place, empty where the path does not say. Raises SaeError for another
    number of them than w_dec has places."""
    if kind == "clt":
        return list(range(count))
    crosscoder = _CROSSCODER.match(place.label.parent.name) if kind == "crosscoder" else None
    layers = [int(layer) for layer in crosscoder[1].split("_")[1:]] if crosscoder else []
    if layers and len(layers) != count:
        raise SaeError(
            f"{place.weights}: w_dec writes to {count} places, but {place.label.parent.name} has "
            f"{len(layers)} layers"
        )
    return layers
