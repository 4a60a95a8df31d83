"""Qwen-Scope: `SAE-Res-{model}-W{n}K-L0_{k}/layer{L}.sae.pt`, and no configuration.

The k largest of x W_encᵀ + b_enc, kept with their sign, as the model cards' code does (arXiv
2605.11887). SAELens adds a ReLU: the two differ where fewer than k are positive. b_dec is not
subtracted. k, the width and the model are in the folder's name alone, the layer in the file's.
"""

from __future__ import annotations

import re

from featuredb.errors import SaeError
from ingest.sae.activations import TopK
from ingest.sae.encoder import Encoder
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors

NEEDS = "Qwen-Scope: layer{L}.sae.pt in a folder SAE-Res-{model}-W{n}K-L0_{k}"

_FOLDER = re.compile(r"SAE-Res-(?P<model>[^/]+)-W(?P<width>\d+)K-L0_(?P<k>\d+)")
_FILE = re.compile(r"layer_?(\d+)")


def recognizes(place: SaeFiles) -> bool:
    """Whether the path has the release's folder name."""
    return bool(_FOLDER.search(place.label.as_posix()))


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load one layer. Raises SaeError if its path does not say k."""
    named = _FOLDER.search(place.label.as_posix())
    if named is None:
        raise SaeError(
            f"{place.weights}: this looks like Qwen-Scope, whose k is in the name of its folder "
            "alone: keep the repository's name, as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    k = int(named["k"])
    tensors.size("d_sae", int(named["width"]) * 1024, f"the folder's W{named['width']}K")
    W_enc = tensors.take("W_enc", "d_sae", "d_in").T
    if not 0 < k <= tensors["d_sae"]:
        raise SaeError(f"{place.weights}: k is {k}, not between 1 and d_sae, {tensors['d_sae']}")
    layer = _FILE.match(place.label.name)
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc, activation=TopK(k, relu=False), b_enc=tensors.take("b_enc", "d_sae")
        ),
        decoder=Decoder(
            W_dec=tensors.take("W_dec", "d_in", "d_sae").T, b_dec=tensors.take("b_dec", "d_in")
        ),
        format="qwen_scope",
        architecture="topk",
        config={},
        # A module path: several of the models are of families with no TransformerLens names.
        hook=f"model.layers.{layer[1]}" if layer else None,
        model_name=f"Qwen/{named['model']}",
        stated_l0=float(k),
    )
