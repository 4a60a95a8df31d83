"""Locate a model's files: weights and tokenizer, in a folder or on the hub."""

from __future__ import annotations

import json
from pathlib import Path

from featuredb.errors import ModelError, first_line
from ingest.corpus.locate import near
from ingest.model.quiet import quiet

HUB = "hf:"
"""Before a model's name on the hub, where a folder here could be meant."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def locate(ref: str | Path, revision: str | None) -> tuple[Path, str | None, str | None]:
    """Return the local folder, the name of its GGUF file if any, and the hub's commit if any."""
    found = local(ref)
    if found is not None:
        return *found, None
    return _fetch(str(ref).removeprefix(HUB), revision)


def local(ref: str | Path) -> tuple[Path, str | None] | None:
    """Return the folder and the name of its GGUF file if any, None for what may be a hub id.

    An id whose owner is the name of a folder here is a path, unless it begins with `HUB`. Raises
    ModelError where a path is named and no model is there.
    """
    if isinstance(ref, str) and ref.startswith(HUB):
        return None
    path = Path(ref).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path} is not a model: a folder, a .gguf file or a hub id is needed")
        return path.parent, path.name
    if path.is_dir():
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        if (path / "config.json").exists():
            return path, None
        if len(ggufs) == 1:
            return path, ggufs[0]
        if ggufs:
            raise ModelError(f"{path} holds {len(ggufs)} models, name one: {', '.join(ggufs)}")
        raise ModelError(f"{path} is not a model folder: it has no config.json")
    text = str(ref)
    if isinstance(ref, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise ModelError(f"no model at {path}: there is no such folder")
    if path.parent.is_dir() and path.parent != Path():
        # A hub's id begins with its owner, which is rarely a folder here too.
        raise ModelError(f"no model at {path}: {near(path)} (on the hub: {HUB}{text})")
    return None


def _fetch(name: str, revision: str | None) -> tuple[Path, str | None, str | None]:
    """Return a hub model's snapshot in the local cache, downloading it where allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        with quiet():
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
            if not any(folder.glob("*.safetensors")):
                patterns.append("pytorch_model*.bin")
                folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a hub id") from error
    except Exception as error:  # the hub client has its own, and its transport's
        raise ModelError(
            f"no folder {name!r} here, and the hub does not give a model of that name: "
            f"{first_line(error)}"
        ) from error
    return folder, None, folder.name


def weight_files(folder: Path) -> list[Path]:
    """List the weight files, sorted by name. An index decides where there is one."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} cannot be read: {first_line(error)}") from error
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise ModelError(f"{folder} lacks weight files: {', '.join(missing)}")
        return sorted(folder / name for name in names)
    for pattern in _WEIGHT_PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(
        f"{folder} has no weights: model.safetensors (or its shards), pytorch_model.bin or a "
        ".gguf file is missing"
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """List the files that identify the tokenizer: tokenizer.json, else the vocabulary files."""
    whole = folder / TOKENIZER_FILES[0]
    if whole.is_file():
        return [whole]
    return [folder / name for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()]
