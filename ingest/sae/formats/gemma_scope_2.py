"""Gemma Scope 2: `config.json` and `params.safetensors`, with lower-case tensor names.

JumpReLU with a threshold per feature and no subtraction of b_dec. A transcoder may add
x · affine_skip_connection [d_in, d_out]. Hooks are Hugging Face module paths that end in
`.input` or `.output`.
"""

from __future__ import annotations

import re
from typing import Any

from featuredb.errors import SaeError
from ingest.sae.activations import JumpReLU
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder, Encoder
from ingest.sae.tensors import read_json, read_tensors

WEIGHTS = "params.safetensors"
CONFIG = "config.json"
NEEDS = f"Gemma Scope 2: {CONFIG} and {WEIGHTS}"

CONTEXT_SIZE = 1024


def read(place: SaeFiles) -> SaeParts:
    """Load a Gemma Scope 2 SAE or transcoder. Raises SaeError if its files are inconsistent."""
    file = place.folder / CONFIG
    # A few folders of the release lack it. The weights have everything encode() needs.
    raw = read_json(file) if file.exists() else {}
    if raw.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise SaeError(f"{file}: architecture {raw['architecture']!r} is not jump_relu")
    tensors = read_tensors(place.weights)
    hook, hook_out = raw.get("hf_hook_point_in"), raw.get("hf_hook_point_out")
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
        format="gemma_scope_2",
        architecture="jump_relu",
        config=raw,
        hook=hook,
        hook_out=hook_out if transcoder else None,
        model_name=_model(raw),
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        stated_l0=_l0(raw),
    )


def _model(raw: dict[str, Any]) -> str | None:
    """The model's hub name. The files have `gemma-v3-1b-pt` for `google/gemma-3-1b-pt`."""
    name = raw.get("model_name")
    if not isinstance(name, str):
        return None
    name = re.sub(r"-v3\b", "-3", name)
    return name if "/" in name or not name.startswith("gemma") else f"google/{name}"


def _l0(raw: dict[str, Any]) -> float | None:
    value = raw.get("l0")
    return float(value) if isinstance(value, int | float) else None
