"""Kissane et al.'s attention SAEs of GPT-2: `{name}.pt` and `{name}_cfg.json`.

ReLU((z - b_dec) W_enc + b_enc) of the concatenated heads (hook_z). They were trained on
TransformerLens's default model, whose value biases are folded away: z is the model's own minus
b_V. The attention rows sum to one, so that is exact.
"""

from __future__ import annotations

from pathlib import Path

from featuredb.errors import SaeError
from ingest.sae.activations import ReLU
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, read_json

NEEDS = "Kissane's attention SAEs: {name}.pt and {name}_cfg.json"


def config_file(weights: Path) -> Path:
    """Where the configuration of `weights` lies."""
    return weights.with_name(f"{weights.stem}_cfg.json")


def recognizes(place: SaeFiles) -> bool:
    """Whether the configuration lies beside the weights."""
    return config_file(place.weights).is_file()


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load one SAE. Raises SaeError if its files are inconsistent."""
    file = config_file(place.weights)
    raw = read_json(file)
    refuse_unheeded(file, raw)
    if raw.get("remove_rare_dir"):
        raise SaeError(f"{file}: remove_rare_dir is not supported")
    tensors.size("d_in", raw.get("act_size"), f"{file.name} act_size")
    tensors.size("d_sae", raw.get("dict_size"), f"{file.name} dict_size")
    hook = raw.get("act_name")
    if not isinstance(hook, str):
        raise SaeError(f"{file}: missing act_name, the hook")
    W_enc = tensors.take("W_enc", "d_in", "d_sae")
    b_dec = tensors.take("b_dec", "d_in")
    at_z = hook.endswith("hook_z")
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc,
            activation=ReLU(),
            b_enc=tensors.take("b_enc", "d_sae"),
            b_pre=b_dec,
            normalization="none" if at_z else "center",
        ),
        decoder=Decoder(
            W_dec=tensors.take("W_dec", "d_sae", "d_in"),
            b_dec=b_dec,
            undoes="none" if at_z else "center",
        ),
        format="kissane",
        architecture="standard",
        config=raw,
        hook=hook,
        model_name=raw.get("model_name"),
        context_size=raw.get("seq_len"),
        processed_weights=True,
    )
