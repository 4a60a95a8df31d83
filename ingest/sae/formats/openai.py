"""OpenAI's GPT-2 SAEs: `{layer}.pt`, one torch file per layer and hook.

Formulas: sparse_autoencoder/model.py of openai/sparse_autoencoder. v1 and v4 are ReLU on the raw
input. v5 is top-k on a layer-normed input. The activation's name distinguishes them, as in the
library.
"""

from __future__ import annotations

import re

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, ReLU, TopK
from ingest.sae.encoder import Encoder
from ingest.sae.normalize import Normalization
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors

NEEDS = "OpenAI: a .pt with pre_bias, latent_bias, encoder.weight and decoder.weight"

# The hooks of sparse_autoencoder/paths.py by their TransformerLens names.
_HOOKS = {
    "resid_post_mlp": "blocks.{}.hook_resid_post",
    "resid_post_attn": "blocks.{}.hook_resid_mid",
    "resid_delta_mlp": "blocks.{}.hook_mlp_out",
    "resid_delta_attn": "blocks.{}.hook_attn_out",
    "mlp_post_act": "blocks.{}.mlp.hook_post",
}


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load one SAE. Raises SaeError if its tensors are inconsistent."""
    W_enc = tensors.take("encoder.weight", "d_sae", "d_in").T
    pre_bias = tensors.take("pre_bias", "d_in")
    # A tied decoder is the encoder's transpose and is not saved.
    W_dec = (
        tensors.take("decoder.weight", "d_in", "d_sae").T
        if "decoder.weight" in tensors
        else W_enc.T
    )
    activation, architecture = _activation(place, tensors)
    norm: Normalization = "layer_norm" if isinstance(activation, TopK) else "none"
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=activation,
            b_enc=tensors.take("latent_bias", "d_sae"),
            b_pre=pre_bias,
            normalization=norm,
        ),
        decoder=Decoder(W_dec=W_dec, b_dec=pre_bias, undoes=norm),
        format="openai",
        architecture=architecture,
        config={"activation": architecture},
        hook=_hook(place),
        model_name="gpt2",
        stated_l0=float(activation.k) if isinstance(activation, TopK) else None,
    )


def _activation(place: SaeFiles, tensors: Tensors) -> tuple[Activation, str]:
    name = tensors.plain("activation", "ReLU")
    if name == "ReLU":
        return ReLU(), "ReLU"
    if name == "TopK":
        state = tensors.plain("activation_state_dict", {})
        k, post = state.get("k"), state.get("postact_fn", "ReLU")
        if k is None or not 0 < int(k) <= tensors["d_sae"] or post not in ("ReLU", "Identity"):
            raise SaeError(f"{place.weights}: TopK with k {k!r} and postact_fn {post!r}")
        return TopK(int(k), relu=post == "ReLU"), "TopK"
    raise SaeError(f"{place.weights}: activation {name!r} is not supported: ReLU and TopK are")


def _hook(place: SaeFiles) -> str | None:
    """The hook of …/resid_post_mlp_v5_32k/autoencoders/8.pt, if the path has that layout."""
    if not place.label.stem.isdigit():
        return None
    for part in place.label.parts:
        site = re.sub(r"_v\d+(_\d+k)?$", "", part)
        if site in _HOOKS:
            return _HOOKS[site].format(place.label.stem)
    return None
