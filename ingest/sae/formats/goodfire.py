"""Goodfire's Llama SAEs: one `.pt` or `.pth`, ReLU(x W + b) with no subtraction.

Model and layer come from the file name: `Llama-3.1-8B-Instruct-SAE-l19.pth`.
"""

from __future__ import annotations

import re

from ingest.sae.activations import ReLU
from ingest.sae.encoder import Encoder
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors

NEEDS = "Goodfire: a .pt or .pth with encoder_linear and decoder_linear"

_NAME = re.compile(r"(?P<model>Llama-[\w.-]+?)-SAE-l(?P<layer>\d+)")


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load one SAE. Raises SaeError if its tensors are inconsistent."""
    name = _NAME.search(place.label.name)
    W_enc = tensors.take("encoder_linear.weight", "d_sae", "d_in").T
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc, activation=ReLU(), b_enc=tensors.take("encoder_linear.bias", "d_sae")
        ),
        decoder=Decoder(
            W_dec=tensors.take("decoder_linear.weight", "d_in", "d_sae").T,
            b_dec=tensors.take("decoder_linear.bias", "d_in"),
        ),
        format="goodfire",
        architecture="standard",
        config={},
        hook=f"blocks.{name['layer']}.hook_resid_post" if name else None,
        model_name=f"meta-llama/{name['model']}" if name else None,
    )
