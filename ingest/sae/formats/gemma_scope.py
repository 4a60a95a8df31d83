"""Gemma Scope: `layer_L/width_W/average_l0_N/params.npz`.

JumpReLU with a threshold per feature and no subtraction of b_dec (Lieberum et al. 2024, arXiv
2408.05147). The archive contains no other metadata, so model and hook come from the path: the
repository is `gemma-scope-2b-pt-res` (`-mlp`, `-att`, `-transcoders`).
"""

from __future__ import annotations

import re
from pathlib import PurePath

from ingest.sae.activations import JumpReLU
from ingest.sae.encoder import Encoder
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors

WEIGHTS = "params.npz"
NEEDS = f"Gemma Scope: {WEIGHTS}"

CONTEXT_SIZE = 1024
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)\b")
_HOOKS = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "blocks.{}.attn.hook_z",
    "transcoders": "blocks.{}.ln2.hook_normalized",
}


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load a Gemma Scope SAE or transcoder. Raises SaeError if the archive is not one."""
    upper = {name.lower(): name for name in tensors.names()}
    repository = _REPOSITORY.search(place.label.as_posix())
    site = repository[3] if repository else None
    transcoder = site == "transcoders"
    out = "d_out" if transcoder else "d_in"

    W_enc = tensors.take(upper.get("w_enc", "W_enc"), "d_in", "d_sae")
    W_dec = tensors.take(upper.get("w_dec", "W_dec"), "d_sae", out)
    embedding = "embedding" in place.label.parts
    if embedding:
        # Trained on the rows of the embedding matrix. Gemma multiplies those by √d before its
        # first layer, and `hook_embed` is after that.
        root = tensors["d_in"] ** 0.5
        W_enc, W_dec = W_enc / root, W_dec * root
    layer, l0 = _numbers(place.label)
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=JumpReLU(tensors.take_threshold("threshold")),
            b_enc=tensors.take("b_enc", "d_sae"),
        ),
        decoder=Decoder(W_dec=W_dec, b_dec=tensors.take("b_dec", out)),
        format="gemma_scope",
        architecture="jumprelu_transcoder" if transcoder else "jumprelu",
        config={},
        hook="hook_embed"
        if embedding
        else _HOOKS[site].format(layer)
        if site and layer is not None
        else None,
        hook_out=f"blocks.{layer}.hook_mlp_out" if transcoder and layer is not None else None,
        model_name=_model(repository),
        prepend_bos=True,
        context_size=CONTEXT_SIZE,
        stated_l0=l0,
    )


def _numbers(label: PurePath) -> tuple[int | None, float | None]:
    """The layer and the mean L0 from the path."""
    layer = l0 = None
    for part in label.parts:
        if match := re.fullmatch(r"layer_(\d+)", part):
            layer = int(match[1])
        if match := re.fullmatch(r"average_l0_(\d+)", part):
            l0 = float(match[1])
    return layer, l0


def _model(repository: re.Match[str] | None) -> str | None:
    if repository is None:
        return None
    size, tuning = repository[1], repository[2]
    return f"google/gemma-2-{size}" + ("-it" if tuning == "it" else "")
