"""Find the one weight file of a reference, and read it with the reader for its format.

Tensor names and shapes decide the format. Where several formats share both, the configuration
files beside the weights do. File names are the last resort: releases reuse them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from featuredb.errors import SaeError
from ingest.sae.config import refuse_unheeded
from ingest.sae.formats import (
    circuit_tracer,
    cross_layer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    kissane,
    llama_scope,
    llamascopium,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from ingest.sae.layout import (
    SET_CONFIG,
    WEIGHT_SUFFIXES,
    members_in,
    weights_below,
    weights_in,
)
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.references import Resolved
from ingest.sae.refused import refuse_known, refuse_opensae
from ingest.sae.tensors import Tensors, read_tensors

FormatReader = Callable[[SaeFiles, Tensors], SaeParts]

_NEEDED = (
    saelens.NEEDS,
    sparsify.NEEDS,
    gemma_scope.NEEDS,
    gemma_scope_2.NEEDS,
    llama_scope.NEEDS,
    llamascopium.NEEDS,
    circuit_tracer.NEEDS,
    cross_layer.NEEDS,
    qwen_scope.NEEDS,
    kissane.NEEDS,
    dictionary_learning.NEEDS,
    openai.NEEDS,
    goodfire.NEEDS,
)
_DEPTH = 5
_SHOWN = 10


def detect(resolved: Resolved) -> SaeFiles:
    """The weight file of the one SAE at `resolved`.

    Raises SaeError where there is none (naming what was found and what each format needs), or
    where there are several (naming them).
    """
    path = resolved.path
    if path.is_file():
        if path.suffix not in WEIGHT_SUFFIXES:
            raise SaeError(
                f"{path} is not an SAE: weight files end in {', '.join(WEIGHT_SUFFIXES)}"
            )
        return SaeFiles(path, resolved.label, resolved.hints)
    names = list(_files(path))
    here = weights_in(names)
    if len(here) == 1:
        return SaeFiles(path / here[0], resolved.label / here[0], resolved.hints)
    several = here or weights_below(names)
    if whole := members_in(names):
        raise SaeError(
            f"{path} is a cross-layer transcoder or crosscoder of {len(whole)} SAEs, one for each "
            f"layer: name the one to load, of {_some(whole)} (an ingest takes the whole folder)"
        )
    if several:
        count = "an SAE further down" if len(several) == 1 else f"{len(several)} SAEs"
        raise SaeError(f"{path} holds {count}: name the one to load, of {_some(several)}")
    if (path / SET_CONFIG).is_file():
        circuit_tracer.refuse_whole_set(path)
    contents = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
    raise SaeError(
        f"{path} is not an SAE: it holds {_some(contents) or 'nothing'}; needed is one of: "
        f"{'; '.join(_NEEDED)}"
    )


def read(place: SaeFiles) -> SaeParts:
    """Read the SAE at `place`, all of it: a tensor that no reader took is refused.

    Raises SaeError where the file is damaged, its format is unknown or not supported, or its
    files contradict each other.
    """
    tensors = read_tensors(place.weights)
    parts = _reader(place, tensors)(place, tensors)
    tensors.refuse_leftovers()
    refuse_unheeded(place.weights, tensors.words())
    return parts


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _files(folder: Path, depth: int = _DEPTH) -> Iterator[str]:
    """The files below `folder`, relative to it, with slashes."""
    for child in sorted(folder.iterdir()):
        if child.is_file():
            yield child.name
        elif depth and child.is_dir():
            yield from (f"{child.name}/{name}" for name in _files(child, depth - 1))


def _reader(place: SaeFiles, tensors: Tensors) -> FormatReader:
    refuse_known(tensors)
    llamascopium.refuse_other_types(place)
    names = set(tensors.names())
    if cross_layer.recognizes(tensors):
        return cross_layer.read
    if place.weights.suffix == ".npz":
        return gemma_scope.read
    if "w_enc" in names:
        return gemma_scope_2.read
    if "pre_bias" in names:
        return openai.read
    if "encoder_linear.weight" in names:
        return goodfire.read
    if "W_E" in names:
        return llamascopium.read
    if {"W_enc", "W_dec"} <= names:
        return _raw_matrices(place, tensors)
    if {"encoder.weight", "W_dec"} <= names:
        if (opensae := place.folder / "config.json").is_file() and _has(opensae, "input_normalize"):
            refuse_opensae(opensae)
        return sparsify.read
    if "encoder.weight" in names:
        return _linear_layers(place, tensors)
    raise SaeError(
        f"{place.weights} is not an SAE of a known format: it holds "
        f"{', '.join(sorted(names)[:_SHOWN]) or 'nothing'}; needed is one of: {'; '.join(_NEEDED)}"
    )


def _linear_layers(place: SaeFiles, tensors: Tensors) -> FormatReader:
    """`encoder.weight` and `decoder.weight`: three formats have both."""
    if llamascopium.recognizes(place, tensors):
        return llamascopium.read
    if llama_scope.recognizes(place):
        return llama_scope.read
    if place.weights.suffix == ".safetensors" and not dictionary_learning.recognizes(place):
        raise SaeError(
            f"no configuration beside {place.weights}: this looks like Llama Scope "
            "(hyperparams.json is missing), Llamascopium or dictionary_learning (config.json is)"
        )
    return dictionary_learning.read


def _raw_matrices(place: SaeFiles, tensors: Tensors) -> FormatReader:
    """`W_enc` and `W_dec`: told apart by which axis is the features', then by what lies beside."""
    shape, bias = tensors.shape("W_enc"), tensors.shape("b_enc")
    torch_file = place.weights.suffix in (".pt", ".pth")
    if shape is not None and len(shape) == 2 and bias == shape[:1]:
        if shape[0] == shape[1]:
            return _square(place, torch_file)
        transposed = tensors.shape("W_dec") == (shape[1], shape[0])
        return qwen_scope.read if transposed else circuit_tracer.read
    if kissane.recognizes(place):
        return kissane.read
    if not torch_file and (place.folder / saelens.CONFIG).is_file():
        return saelens.read
    if torch_file or dictionary_learning.recognizes(place):
        return dictionary_learning.read
    return saelens.read


def _square(place: SaeFiles, torch_file: bool) -> FormatReader:
    """As many features as inputs: only the configuration says which axis is which."""
    readers: dict[str, FormatReader] = {}
    if qwen_scope.recognizes(place):
        readers["the name of Qwen-Scope"] = qwen_scope.read
    if kissane.recognizes(place):
        readers["a _cfg.json"] = kissane.read
    if not torch_file and (place.folder / saelens.CONFIG).is_file():
        readers[f"SAELens's {saelens.CONFIG}"] = saelens.read
    elif dictionary_learning.recognizes(place):
        readers["dictionary_learning's config.json"] = dictionary_learning.read
    if not torch_file and circuit_tracer.recognizes(place):
        readers[f"circuit-tracer's {SET_CONFIG}"] = circuit_tracer.read
    if len(readers) == 1:
        return next(iter(readers.values()))
    beside = " and ".join(readers) or "no configuration"
    raise SaeError(
        f"{place.weights}: W_enc is square, so its shape does not say which axis is the features', "
        f"and {beside} lies beside it: leave the one configuration that belongs to it"
    )


def _has(file: Path, key: str) -> bool:
    try:
        return key in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
