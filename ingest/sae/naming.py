"""What an SAE is called: as its user says, or after its path."""

from __future__ import annotations

import re
from pathlib import PurePath

from featuredb.errors import IngestError
from featuredb.store.names import is_sae_name

# Folders that say how a release is laid out, not which SAE this is.
_SILENT = {"checkpoints", "autoencoders"}
_FILES = {
    "params",
    "sae",
    "sae_weights",
    "ae",
    "ae_backup",
    "final",
    "weights",
    "model",
    "model_final",
}
# Folders that mean something only together with the one above them.
_PARTIAL = re.compile(
    r"(trainer_?\d+|seed_?\d+|step_?\d+|ae_\d+|final.*|canonical|\d+|width_\w+|average_l0_\w+)"
)


def check_sae_name(name: str) -> None:
    """Raise `IngestError` for a name that no feature could be asked for by."""
    if not is_sae_name(name):
        raise IngestError(
            f"an SAE's name cannot be {name!r}: not empty, no slash, printable text (--name)"
        )


def short_name(weights: PurePath) -> str:
    """A name of letters, digits, dots, dashes and underscores, from the path of a weight file.

    `layer_12/width_16k/average_l0_82/params.npz` gives `layer_12-width_16k-average_l0_82`;
    `pythia/layers.5.mlp/sae.safetensors` gives `layers.5.mlp`.
    """
    parts = [part for part in weights.parent.parts if part not in _SILENT and part != "/"]
    stem = re.sub(r"\.(sae|state_dict)$", "", weights.stem)
    if stem not in _FILES:
        parts.append(stem)
    name = parts.pop() if parts else "sae"
    while parts and _PARTIAL.fullmatch(name.split("-")[0]):
        name = f"{parts.pop()}-{name}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "sae"
