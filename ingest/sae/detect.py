"""Detect the format of an SAE and the file that holds its weights.

Formats are detected by file names. Where those are arbitrary (`8.pt`, a renamed file), the names
of the tensors decide.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from featuredb.errors import SaeError
from ingest.sae.formats import (
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    saelens,
    sparsify,
    torch_release,
)
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.references import WEIGHT_SUFFIXES, Resolved
from ingest.sae.tensors import safetensors_names

FormatReader = Callable[[SaeFiles], SaeParts]

_BY_NAME: dict[str, FormatReader] = {
    saelens.WEIGHTS: saelens.read,
    sparsify.WEIGHTS: sparsify.read,
    gemma_scope.WEIGHTS: gemma_scope.read,
    gemma_scope_2.WEIGHTS: gemma_scope_2.read,
}
_NEEDED = (
    saelens.NEEDS,
    sparsify.NEEDS,
    gemma_scope.NEEDS,
    gemma_scope_2.NEEDS,
    llama_scope.NEEDS,
    torch_release.NEEDS,
)
# What trainers leave beside the weights.
_NOT_WEIGHTS = {
    "sparsity.safetensors",
    "activations_store_state.safetensors",
    "activation_whitening.safetensors",
    "trainer_state.pt",
    "optimizer.pt",
    "scheduler.pt",
    "lr_scheduler.pt",
    "state.pt",
}
_DEPTH = 5
_SHOWN = 10


def detect(resolved: Resolved) -> tuple[SaeFiles, FormatReader]:
    """The one SAE at `resolved` and the reader for its format.

    Raises SaeError where there is none (naming what was found and what each format needs), or
    where there are several (naming them).
    """
    path = resolved.path
    if path.is_file():
        return SaeFiles(path, resolved.label, resolved.hints), _reader(path)
    here = _weights_in(path)
    if len(here) == 1:
        weights = here[0]
        label = resolved.label / weights.relative_to(path)
        return SaeFiles(weights, label, resolved.hints), _reader(weights)
    several = here or _weights_below(path)
    if several:
        names = [str(file.relative_to(path)) for file in several]
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        count = "an SAE further down" if len(names) == 1 else f"{len(names)} SAEs"
        raise SaeError(f"{path} holds {count}: name the one to load, of {shown}")
    found = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
    shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "") or "nothing"
    raise SaeError(
        f"{path} is not an SAE: it holds {shown}; needed is one of: {'; '.join(_NEEDED)}"
    )


def _weights_in(folder: Path) -> list[Path]:
    """The weight files of the SAEs that lie directly in `folder`."""
    if (folder / llama_scope.CONFIG).exists():
        checkpoints = sorted((folder / "checkpoints").glob("*.safetensors"))
        final = folder / llama_scope.WEIGHTS
        return [final] if final in checkpoints else checkpoints
    named = [folder / name for name in _BY_NAME if (folder / name).is_file()]
    files = sorted(
        file
        for file in folder.iterdir()
        if file.suffix in (".pt", ".pth") and file.is_file() and file.name not in _NOT_WEIGHTS
    )
    usual = [file for file in files if file.name == torch_release.DICTIONARY]
    # A trainer's own checkpoint lies beside the SAE it produced, and is not another SAE.
    return named or usual or files


def _weights_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEPTH):
        level = sorted(child for parent in level for child in parent.iterdir() if child.is_dir())
        holding = {child: _weights_in(child) for child in level}
        found += [file for files in holding.values() for file in files]
        level = [child for child, files in holding.items() if not files]
    return found


def _reader(weights: Path) -> FormatReader:
    if weights.name in _BY_NAME:
        return _BY_NAME[weights.name]
    if weights.suffix in (".pt", ".pth"):
        return torch_release.read
    if weights.suffix == ".npz":
        return gemma_scope.read
    if weights.suffix == ".safetensors":
        names = set(safetensors_names(weights))
        if "w_enc" in names:
            return gemma_scope_2.read
        if {"encoder.weight", "decoder.weight"} <= names:
            return llama_scope.read
        if {"encoder.weight", "W_dec"} <= names:
            return sparsify.read
        if {"W_enc", "W_dec"} <= names:
            return saelens.read
        raise SaeError(f"{weights} is not an SAE of a known format: it holds {sorted(names)[:10]}")
    raise SaeError(f"{weights} is not an SAE: weight files end in {', '.join(WEIGHT_SUFFIXES)}")
