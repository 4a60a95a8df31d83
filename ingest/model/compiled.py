"""Layers that torch compiles: an option, since their sums are rounded otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from featuredb.errors import ModelError, first_line
from featuredb.render.progress import log
from ingest.model.hooks import HookPoint, forward_to_hooks, layer_paths
from ingest.model.load import LoadedModel
from ingest.model.quiet import quiet


def compile_layers(loaded: LoadedModel) -> None:
    """Fill in what `torch.compile` makes of each layer's forward.

    One layer at a time, so that alike ones share their code, and hooks between them are called as
    before. The first is compiled here, on two contexts of two tokens, to see whether that works;
    the others are when they are first run.

    Raises `ModelError` where torch cannot compile.
    """
    log.info("compiling the model's layers")
    model = loaded.model
    paths = layer_paths(model)
    if not paths:
        raise ModelError(f"it is not known what the layers of {loaded.id} are: {_WITHOUT}")
    hooks = [HookPoint(paths[0], paths[0], "output", 0, 0)]
    ids = torch.zeros((2, 2), dtype=torch.long, device=loaded.device)
    try:
        with quiet():
            layers = {
                path: torch.compile(model.get_submodule(path).forward, dynamic=True)
                for path in paths
            }
            with _replaced(model, layers, hooks):
                forward_to_hooks(model, hooks, ids)
    except Exception as error:  # torch's, the compiler's, and what the system says of either
        raise ModelError(
            f"torch cannot compile {loaded.id} here ({first_line(error)}): on a CPU it needs a C++ "
            f"compiler; {_WITHOUT}"
        ) from error
    loaded.layers.update(layers)


_WITHOUT = "an ingest can leave --torch-compile out"


@contextmanager
def compiled_layers(loaded: LoadedModel, hooks: Sequence[HookPoint]) -> Iterator[None]:
    """Run the layers' compiled code inside a `with` block, if the model is to be compiled.

    The first block compiles it, as a model is loaded for much that runs no layer. Hold the model's
    lock. Raises as `compile_layers`.
    """
    if loaded.compiled and not loaded.layers:
        compile_layers(loaded)
    with _replaced(loaded.model, loaded.layers, hooks):
        yield


@contextmanager
def _replaced(
    model: nn.Module, layers: Mapping[str, Callable[..., Any]], hooks: Sequence[HookPoint]
) -> Iterator[None]:
    """Run `layers`, by path, in place of the model's own inside a `with` block.

    A layer with a hook inside it runs as it is, since compiled code calls no hooks.
    """
    replaced = [
        (model.get_submodule(path), forward)
        for path, forward in layers.items()
        if not any(hook.module.startswith(f"{path}.") for hook in hooks)
    ]
    for layer, forward in replaced:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, _ in replaced:
            del layer.forward  # that of its class shows again
