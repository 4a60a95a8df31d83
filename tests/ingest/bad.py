"""Invalid inputs: each is a change to valid ones, the expected error and what it names."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from featuredb import errors
from tests.tiny import tiny_sae, write_jsonl

Told = dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """change: edits the files in a folder and gives the options that differ from `good`."""

    change: Callable[[Path], Told]
    error: type[errors.FeatureDBError]
    named: tuple[str, ...]


def good(folder: Path) -> Told:
    """A valid ingest of the files that `tests.ingest.test_bad_input` puts in `folder`."""
    return {
        "corpus": str(folder / "corpus.jsonl"),
        "model": str(folder / "model"),
        "saes": [str(folder / "sae")],
        "names": ["sae"],
        "dtype": "float32",
        "device": "cpu",
        "check": False,
    }


def _corpus(name: str, content: bytes, **told: Any) -> Callable[[Path], Told]:
    def change(folder: Path) -> Told:
        (folder / name).write_bytes(content)
        return {"corpus": str(folder / name), **told}

    return change


def _edited(tensor: str, value: float) -> Callable[[Path], Told]:
    """A weight of the model."""

    def change(folder: Path) -> Told:
        file = folder / "model" / "model.safetensors"
        weights = load_file(file)
        weights[tensor].view(-1)[0] = value
        save_file(weights, file, metadata={"format": "pt"})
        return {}

    return change


def _sae(**weights: torch.Tensor) -> Callable[[Path], Told]:
    def change(folder: Path) -> Told:
        file = folder / "sae" / "sae_weights.safetensors"
        save_file({**load_file(file), **weights}, file)
        return {}

    return change


def _nan_weight(folder: Path) -> Told:
    file = folder / "sae" / "sae_weights.safetensors"
    weights = load_file(file)
    weights["W_enc"][3, 3] = float("inf")
    save_file(weights, file)
    return {}


def _no_features(folder: Path) -> Told:
    config = folder / "sae" / "cfg.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "d_sae": 0}))
    return _sae(W_enc=torch.zeros(32, 0), W_dec=torch.zeros(0, 32), b_enc=torch.zeros(0))(folder)


def _cut(path: str) -> Callable[[Path], Told]:
    def change(folder: Path) -> Told:
        file = folder / path
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return {}

    return change


def _npz(folder: Path) -> Told:
    place = folder / "gemma" / "layer_1" / "width_96"
    place.mkdir(parents=True)
    np.savez(place / "params.npz", W_enc=np.zeros((32, 96), np.float32))
    file = place / "params.npz"
    file.write_bytes(file.read_bytes()[:500])
    return {"saes": [str(place)]}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _pickle(folder: Path) -> Told:
    place = folder / "pickled"
    place.mkdir()
    (place / "ae.pt").write_bytes(pickle.dumps({"encoder.weight": Bomb(folder / "ran")}))
    (place / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    return {"saes": [str(place)]}


def _no_weights(folder: Path) -> Told:
    (folder / "model" / "model.safetensors").unlink()
    return {}


def _wide(folder: Path) -> Told:
    return {"saes": [str(tiny_sae(folder / "wide", d_in=48))]}


def _deep(folder: Path) -> Told:
    return {"saes": [str(tiny_sae(folder / "deep", hook="blocks.7.hook_resid_post"))]}


def _twice(folder: Path) -> Told:
    return {"saes": [str(folder / "sae")] * 2, "names": ["sae", "sae"]}


def _other_vocabulary(folder: Path) -> Told:
    """Token ids of another model's tokenizer."""
    path = write_jsonl(folder / "ids.jsonl", [{"ids": [5, 6, 50_000]}])
    return {"corpus": str(path), "tokens_column": "ids"}


def _bos_for_one(folder: Path) -> Told:
    plain = tiny_sae(folder / "plain", metadata={"hook_name": "blocks.1.hook_resid_post",
                                                 "prepend_bos": False})  # fmt: skip
    return {"saes": [str(folder / "sae"), str(plain)], "names": ["a", "b"]}


CASES = {
    "corpus missing": Bad(
        lambda f: {"corpus": str(f / "korpus.jsonl")},
        errors.CorpusError,
        ("korpus.jsonl", "did you mean", "corpus.jsonl?"),
    ),
    "corpus empty": Bad(_corpus("e.jsonl", b""), errors.CorpusError, ("e.jsonl", "is empty")),
    "corpus of empty documents": Bad(
        _corpus("e.jsonl", b'{"text": ""}\n' * 3), errors.CorpusError, ("all of its 3 documents",)
    ),
    "no text column": Bad(
        _corpus("c.jsonl", b'{"body": "a", "title": "b"}\n'),
        errors.CorpusError,
        ("no column 'text'", "body, title"),
    ),
    "text that is no text": Bad(
        _corpus("c.jsonl", b'{"text": "a"}\n{"text": 3}\n'),
        errors.CorpusError,
        ("c.jsonl", "row 1", "a number, not text"),
    ),
    "only nulls": Bad(
        _corpus("c.jsonl", b'{"text": null}\n'), errors.CorpusError, ("every 'text'", "is null")
    ),
    "invalid UTF-8": Bad(
        _corpus("c.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n'),
        errors.CorpusError,
        ("not valid UTF-8", "line 2"),
    ),
    "model without weights": Bad(_no_weights, errors.ModelError, ("model", "has no weights")),
    "model missing": Bad(
        lambda f: {"model": str(f / "nowhere")}, errors.ModelError, ("nowhere", "no such folder")
    ),
    "model truncated": Bad(_cut("model/model.safetensors"), errors.ModelError, ("cannot be load",)),
    "model gives NaN": Bad(
        _edited("model.layers.1.mlp.down_proj.weight", float("nan")),
        errors.ModelError,
        ("NaN or infinite values at blocks.1.hook_resid_post",),
    ),
    "SAE of another width": Bad(
        _wide, errors.HookError, ("reads 48 dimensions", "gives 32", "blocks.1.hook_resid_post")
    ),
    "unknown hook": Bad(
        _deep, errors.HookError, ("blocks.7.hook_resid_post", "did you mean", "layers are 0 to 2")
    ),
    "unknown --hook": Bad(
        lambda _: {"hook": "blocks.1.resid_post"},
        errors.HookError,
        ("blocks.1.resid_post", "did you mean blocks.1.hook_resid_post"),
    ),
    "two SAEs of one name": Bad(_twice, errors.IngestError, ("two SAEs are named 'sae'",)),
    "a name with a slash": Bad(
        lambda _: {"names": ["a/b"]}, errors.IngestError, ("cannot be 'a/b'", "--name")
    ),
    "safetensors truncated": Bad(
        _cut("sae/sae_weights.safetensors"), errors.SaeError, ("sae_weights.safetensors",)
    ),
    "npz truncated": Bad(_npz, errors.SaeError, ("params.npz",)),
    "pickle that runs code": Bad(_pickle, errors.SaeError, ("ae.pt", "can run code")),
    "infinite weight": Bad(_nan_weight, errors.SaeError, ("W_enc holds NaN or infinite values",)),
    "no features": Bad(_no_features, errors.SaeError, ("no features",)),
    "ids of another tokenizer": Bad(
        _other_vocabulary, errors.CorpusError, ("token id 50000", "model's own tokenizer")
    ),
    "BOS for one SAE only": Bad(
        _bos_for_one,
        errors.IngestError,
        ("SAE a was trained with a BOS token and SAE b without one", "--bos or --no-bos"),
    ),
    "context size beyond the model's": Bad(
        lambda _: {"context_size": 4_000}, errors.IngestError, ("4000", "128", "--context-size")
    ),
}
"""Everything that is refused before the plan is written."""
