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
from ingest.model.quiet import quiet

Forward = Callable[..., Any]


def compile_layers(model: nn.Module) -> dict[str, Forward]:
    """What `torch.compile` makes of each layer's forward, by the layer's path.

    One layer at a time, so that alike ones share their code, and hooks between them are called as
    before. The first is compiled here, on two contexts of two tokens, to see whether that works;
    the others are when they are first run.

    Raises `ModelError` where torch cannot compile: on a CPU it needs a C++ compiler.
    """
    log.info("compiling the model's layers")
    paths = layer_paths(model)
    if not paths:
        raise ModelError(
            "it is not known where this model has its layers: leave --torch-compile out"
        )
    hooks = [HookPoint(paths[0], paths[0], "output", 0, 0)]
    ids = torch.zeros((2, 2), dtype=torch.long, device=next(model.parameters()).device)
    try:
        with quiet():
            layers = {
                path: torch.compile(model.get_submodule(path).forward, dynamic=True)
                for path in paths
            }
            with compiled_layers(model, layers, hooks):
                forward_to_hooks(model, hooks, ids)
    except Exception as error:  # torch's, the compiler's, and what the system says of either
        raise ModelError(
            f"torch cannot compile the model here ({first_line(error)}): leave --torch-compile out"
        ) from error
    return layers


@contextmanager
def compiled_layers(
    model: nn.Module, layers: Mapping[str, Forward], hooks: Sequence[HookPoint]
) -> Iterator[None]:
    """Run `layers`, by path, in place of the model's own inside a `with` block.

    A layer with a hook inside it runs as it is, since compiled code calls no hooks. One block at a
    time for one model.
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
