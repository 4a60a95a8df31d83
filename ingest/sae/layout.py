"""Which files of a folder hold an SAE's weights, and which others its reader needs.

Only names are looked at, so that a local folder and a hub's list of files are judged alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")

# Where one of these lies, it is the SAE, and other weight files beside it are not.
_MAIN = (
    "sae_weights.safetensors",  # SAELens, Llamascopium
    "sae.safetensors",  # sparsify
    "params.npz",  # Gemma Scope
    "params.safetensors",  # Gemma Scope 2
)
# As above, but only where none of the former lies there.
_TORCH_MAIN = ("ae.pt", "sae_weights.pt", "model_final.pt")
_LLAMA_SCOPE_CONFIG = "hyperparams.json"
_FINAL = "checkpoints/final.safetensors"

# What trainers and releases leave beside the weights. `examples.safetensors` of Gemma Scope 2 is
# several times the size of the weights.
_NOT_WEIGHTS = {
    "sparsity.safetensors",
    "activations_store_state.safetensors",
    "activation_whitening.safetensors",
    "examples.safetensors",
    "trainer_state.pt",
    "optimizer.pt",
    "scheduler.pt",
    "lr_scheduler.pt",
    "state.pt",
}
_COMPANIONS = {
    "cfg.json",
    "config.json",
    "hyperparams.json",
    "activation_scaler.json",
    "config.yaml",
}
SET_CONFIG = "config.yaml"
"""Configuration of a circuit-tracer set: one transcoder per layer."""
MEMBER = re.compile(r"(?:W_enc|params_layer)_(\d+)\.safetensors")
"""One of the SAEs, one for each layer, that write to several layers together."""
_DECODERS = re.compile(r"W_dec_\d+\.safetensors")


def layer_files(name: str) -> list[str]:
    """What the file of `layer_5`, or of 5 as SAELens's catalog says, may be called in its set."""
    layer_match = re.fullmatch(r"(?:layer_?)?(\d+)", name)
    if not layer_match:
        return []
    number = layer_match[1]
    return [f"{name}.safetensors", f"layer_{number}.safetensors", f"W_enc_{number}.safetensors"]


def members_in(names: Iterable[str]) -> list[str]:
    """The files directly in a folder that are SAEs which write together, in the order of layers."""
    members = [match for name in names if (match := MEMBER.fullmatch(name))]
    return [match[0] for match in sorted(members, key=lambda match: int(match[1]))]


def weights_in(names: Iterable[str]) -> list[str]:
    """The weight files of the SAEs that lie directly in a folder with the files `names`.

    names: relative to the folder, with slashes.
    """
    known = set(names)
    if _LLAMA_SCOPE_CONFIG in known:
        checkpoints = sorted(n for n in known if re.fullmatch(r"checkpoints/[^/]+\.safetensors", n))
        if checkpoints:
            return [_FINAL] if _FINAL in known else checkpoints
    for main in (_MAIN, _TORCH_MAIN):
        if by_name := [name for name in main if name in known]:
            return by_name
    return sorted(
        name
        for name in known
        if "/" not in name
        and name.endswith(WEIGHT_SUFFIXES)
        and name not in _NOT_WEIGHTS
        and not _DECODERS.fullmatch(name)
    )


def weights_below(names: Iterable[str]) -> list[str]:
    """The weight files of the SAEs in the folders below one, without the checkpoints of each."""
    weights: list[str] = []
    folders: dict[str, list[str]] = {}
    for name in names:
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                folders.setdefault(str(parent), []).append(name[len(str(parent)) + 1 :])
    done: set[str] = set()
    for folder in sorted(folders, key=lambda path: (path.count("/"), path)):
        if any(str(above) in done for above in PurePosixPath(folder).parents):
            continue
        if here := weights_in(folders[folder]):
            weights += [f"{folder}/{name}" for name in here]
            done.add(folder)
    return weights


def companions(names: Iterable[str], weights: str) -> list[str]:
    """The files that a reader of `weights` needs or may need: beside it, or in the folder above."""
    path = PurePosixPath(weights)
    near = {str(folder) for folder in list(path.parents)[:2]}
    companions = {str(path.with_name(f"{path.stem}_cfg.json"))}
    if path.name.startswith("W_enc_"):
        companions.add(str(path.with_name(path.name.replace("W_enc_", "W_dec_"))))
    return [
        name
        for name in names
        if name in companions
        or (PurePosixPath(name).name in _COMPANIONS and str(PurePosixPath(name).parent) in near)
    ]
