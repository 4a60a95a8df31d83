"""Formats that are recognized and not read: each with its name and the reason.

The guide's table of refusals is checked against `REFUSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from featuredb.errors import SaeError
from ingest.sae.tensors import Tensors


def _axes(tensors: Tensors, name: str) -> int:
    return len(tensors.shape(name) or ())


def _any(tensors: Tensors, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors.names())


@dataclass(frozen=True)
class Refusal:
    """A format that is recognized by its tensors, or by its configuration alone."""

    name: str
    why: str
    recognizes: Callable[[Tensors], bool] = lambda tensors: False


_TWO_MODELS = Refusal(
    "a crosscoder of two models",
    "it needs the activations of both models on the same tokens",
    lambda t: _axes(t, "W_enc") == 3 or _axes(t, "encoder.weight") == 3,
)
_LORSA = Refusal(
    "Lorsa",
    "a sparse attention layer, whose activations depend on the tokens before",
    lambda t: {"W_Q", "W_K", "W_V", "W_O"} <= set(t.names()),
)
_MOLT = Refusal(
    "MOLT",
    "a mixture of linear transforms, in which a feature is a matrix and has no direction",
    lambda t: _any(t, "U_matrices.") or _any(t, "V_matrices."),
)
_LLAMASCOPIUM_CLT = Refusal(
    "a cross-layer transcoder of Llamascopium",
    "its layers lie in one file; only those of circuit-tracer and Gemma Scope 2 are read",
    lambda t: _any(t, "W_D.") or (_axes(t, "W_E") == 3 and _axes(t, "W_D") == 0),
)
_LLAMASCOPIUM_CROSSCODER = Refusal(
    "a crosscoder of Llamascopium",
    "one latent reads several hooks at once",
    lambda t: _axes(t, "W_E") == 3,
)
_TEMPORAL = Refusal(
    "a temporal SAE",
    "its activations depend on the tokens before, through attention over activations",
    lambda t: _any(t, "attn_layers.") or {"D", "E"} <= set(t.names()),
)
_MULTI_TARGET = Refusal(
    "a transcoder of clt-training with several targets",
    "each target has a decoder of its own (W_decs)",
    lambda t: _any(t, "W_decs.") or _any(t, "post_encs."),
)
_OPENSAE = Refusal(
    "OpenSAE",
    "its config.json normalizes the input in ways that have no reader here",
)
_INTERPROT = Refusal(
    "interprot",
    "a top-k SAE of a layer-normed input whose k is in no file",
    lambda t: {"w_enc", "b_pre"} <= set(t.names()),
)
_NO_K = Refusal(
    "Goodfire's DeepSeek-R1 SAE",
    "a top k over the batch, whose threshold is in no file",
    lambda t: {"W", "b_enc", "b_dec"} <= set(t.names()) and "W_dec" not in t,
)
_E2E = Refusal(
    "an original of e2e_sae",
    "decoder rows are normalized when used; take its SAELens conversion",
    lambda t: any(name.endswith("encoder.0.weight") for name in t.names()),
)

REFUSED = (
    _TWO_MODELS,
    _LORSA,
    _MOLT,
    _LLAMASCOPIUM_CLT,
    _LLAMASCOPIUM_CROSSCODER,
    _TEMPORAL,
    _MULTI_TARGET,
    _OPENSAE,
    _INTERPROT,
    _NO_K,
    _E2E,
)
"""In the order in which they are looked for."""

_BY_SAE_TYPE = {
    "lorsa": _LORSA,
    "molt": _MOLT,
    "clt": _LLAMASCOPIUM_CLT,
    "crosscoder": _LLAMASCOPIUM_CROSSCODER,
}


def refuse_known(tensors: Tensors) -> None:
    """Raise SaeError where `tensors` are of a format that is recognized and not read."""
    for refusal in REFUSED:
        if refusal.recognizes(tensors):
            _refuse(tensors.file, refusal)


def refuse_sae_type(file: Path, sae_type: str) -> NoReturn:
    """Raise SaeError for a Llamascopium `sae_type` that is not "sae"."""
    known = _BY_SAE_TYPE.get(sae_type)
    if known is None:
        raise SaeError(f"{file}: sae_type {sae_type!r} of Llamascopium is not supported: sae is")
    _refuse(file, known)


def refuse_opensae(file: Path) -> NoReturn:
    """Raise SaeError for a config.json of OpenSAE."""
    _refuse(file, _OPENSAE)


def _refuse(file: Path, refusal: Refusal) -> NoReturn:
    raise SaeError(f"{file}: this is {refusal.name}, which is not supported: {refusal.why}")
