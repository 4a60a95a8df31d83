"""Resume the forward pass at a layer: what comes before an edit is computed once.

A pass is resumed by the model's own forward, in which the layers before give back what they gave
the first time. So masks, positions and caches are the model's, and the logits are those of a whole
pass, bit for bit where the shapes are the same.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featuredb.errors import ModelError
from ingest.model.hooks import HookPoint
from ingest.model.hooks.capture import (
    hidden_states,
    in_batches,
    unit_rms,
    with_input,
    with_output,
)
from ingest.model.hooks.families import base_of, family_of, join
from ingest.model.load import LoadedModel

_SIMPLE_CACHES = ("DynamicLayer", "DynamicSlidingWindowLayer")
"""Layers of a cache that can be repeated for every row of a batch."""


@dataclass(frozen=True)
class Passed:
    """What a whole pass gave. hidden: [b, t, d], what enters the layer to resume at, None where
    that is the first. values: by hook name, [b, t, width]. logits: [b, kept, vocab]."""

    hidden: Tensor | None
    values: Mapping[str, Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Prefix:
    """The keys and values of tokens that every row of a batch begins with. tokens: how many."""

    cache: Any
    tokens: int

    def for_rows(self, n: int) -> Any:
        """A cache of its own for n rows."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(n)
        return cache


class ResumedModel:
    """A causal language model whose passes can be resumed where the first of some hooks lies.

    The caller holds the model's lock. Raises `ModelError` for a model that predicts no next token.
    """

    def __init__(self, model: LoadedModel, hooks: Sequence[HookPoint]) -> None:
        refuse_no_next_token(model)
        self.model = model
        self.layers = _layers(model)
        self.start = min((self._first_layer(hook) for hook in hooks), default=0)
        """The first layer that a resumed pass runs."""
        self._keeps = "logits_to_keep" in inspect.signature(model.model.forward).parameters
        self._width: int | None = None

    @torch.no_grad()
    def full(
        self,
        ids: Tensor,
        hooks: Sequence[HookPoint] = (),
        *,
        mask: Tensor | None = None,
        cache: Any = None,
        keep: int = 0,
    ) -> Passed:
        """Run the whole model on ids int64 [b, t].

        Args:
            ids: Token ids, padded on the right.
            hooks: Where to read values.
            mask: [b, t], 1 for tokens. Default: all.
            cache: Keys and values of what comes before, which are added to.
            keep: Compute the logits of that many last positions. 0 for all.
        """
        hidden: list[Tensor] = []
        with ExitStack() as stack:
            if self.start > 0:
                stack.enter_context(self._watch(self.layers[self.start - 1], hidden))
            return self._run(stack, ids, hidden, hooks, mask, cache, keep)

    @torch.no_grad()
    def resume(
        self,
        ids: Tensor,
        hidden: Tensor | None,
        *,
        add: Mapping[HookPoint, Tensor] | None = None,
        hooks: Sequence[HookPoint] = (),
        mask: Tensor | None = None,
        cache: Any = None,
        keep: int = 0,
    ) -> Passed:
        """Run the layers from `start` on. Arguments as of `full`, and:

        Args:
            hidden: What a whole pass gave.
            add: By hook, float32 that broadcasts to [b, t, width], added to what passes there.
        """
        b, t = ids.shape
        with ExitStack() as stack:
            if hidden is not None:
                stack.enter_context(self._skipping(hidden))
            for hook, delta in (add or {}).items():
                delta = delta.to(ids.device).expand(b, t, delta.shape[-1])
                stack.enter_context(adding(self.model.model, hook, delta))
            return self._run(stack, ids, [], hooks, mask, cache, keep)

    @torch.no_grad()
    def prefix(self, ids: Tensor) -> Prefix | None:
        """The keys and values of ids int64 [1, t], None for a model whose memory is not only
        keys and values."""
        if ids.shape[1] == 0:
            return None
        cache = self.model.model(input_ids=ids, use_cache=True).past_key_values
        layers = getattr(cache, "layers", None)
        if layers is None or any(type(each).__name__ not in _SIMPLE_CACHES for each in layers):
            return None
        return Prefix(cache, ids.shape[1])

    def _run(
        self,
        stack: ExitStack,
        ids: Tensor,
        hidden: list[Tensor],
        hooks: Sequence[HookPoint],
        mask: Tensor | None,
        cache: Any,
        keep: int,
    ) -> Passed:
        """One pass with the hooks of `stack` in place. hidden: filled by it."""
        found: dict[str, Tensor] = {}
        for hook in hooks:
            stack.enter_context(_reading(self.model.model, hook, found))
        logits = self._logits(ids, mask, cache, keep)
        values = {hook.name: in_batches(hook, found[hook.name], *ids.shape) for hook in hooks}
        return Passed(hidden[0] if hidden else None, values, logits)

    def _logits(self, ids: Tensor, mask: Tensor | None, cache: Any, keep: int) -> Tensor:
        options: dict[str, Any] = {"logits_to_keep": keep} if self._keeps else {}
        logits: Tensor = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        ).logits
        return logits if self._keeps or keep == 0 else logits[:, -keep:]

    def reaches(self, hook: HookPoint) -> bool:
        """Whether a resumed pass passes a hook."""
        return self._first_layer(hook) >= self.start

    def _first_layer(self, hook: HookPoint) -> int:
        """The first layer whose work an edit at the hook changes."""
        if hook.layer is None or not self.layers:
            return 0
        module = self.model.model.get_submodule(hook.module)
        whole = module is self.layers[hook.layer] and hook.side == "output"
        return hook.layer + 1 if whole else hook.layer

    @contextmanager
    def _watch(self, layer: nn.Module, hidden: list[Tensor]) -> Iterator[None]:
        """Keep what a layer gives, and how many values it returns."""

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._width = len(output) if isinstance(output, tuple) else None
            hidden.append(output[0] if isinstance(output, tuple) else output)

        handle = layer.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _skipping(self, hidden: Tensor) -> Iterator[None]:
        """Let the layers before `start` give back `hidden`."""

        def given(*args: Any, **kwargs: Any) -> Any:
            return hidden if self._width is None else (hidden, *[None] * (self._width - 1))

        skipped = self.layers[: self.start]
        for layer in skipped:
            layer.forward = given
        try:
            yield
        finally:
            for layer in skipped:
                del layer.forward


def refuse_no_next_token(model: LoadedModel) -> None:
    """Raise `ModelError` unless the model predicts the next token."""
    family = family_of(model.model)
    if model.model.get_output_embeddings() is None or (family and not family.linear_head):
        raise ModelError(
            f"{model.id} predicts no next token ({model.architecture}): effects on its output "
            "need a causal language model"
        )


@contextmanager
def adding(model: nn.Module, hook: HookPoint, delta: Tensor) -> Iterator[None]:
    """Add delta, float32 [b, t, width], to what passes a hook."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = hidden_states(args or tuple(kwargs.values()))
        return with_input(args, kwargs, value, _sum(value, delta))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = hidden_states(output)
        return with_output(output, value, _sum(value, delta))

    with placed(model, hook, before, after):
        yield


@contextmanager
def _reading(model: nn.Module, hook: HookPoint, found: dict[str, Tensor]) -> Iterator[None]:
    """Keep what passes a hook under its name, after what was added there."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = hidden_states(args or tuple(kwargs.values()))
        found[hook.name] = unit_rms(module, value) if hook.before_gain else value

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found[hook.name] = hidden_states(output)

    with placed(model, hook, before, after):
        yield


@contextmanager
def placed(
    model: nn.Module, hook: HookPoint, before: Callable[..., Any], after: Callable[..., Any]
) -> Iterator[None]:
    """Call `before` with a module's inputs, or `after` with its outputs, as the hook's side is."""
    module = model.get_submodule(hook.module)
    if hook.side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _sum(value: Tensor, delta: Tensor) -> Tensor:
    return (value.float() + delta.reshape(value.shape)).to(value.dtype)


def _layers(model: LoadedModel) -> list[Any]:
    """The model's layers in order. Empty where they are not known."""
    family = family_of(model.model)
    if family is None:
        return []
    base, _ = base_of(model.model)
    layers = model.model.get_submodule(join(base, family.layers))
    return list(layers) if isinstance(layers, nn.ModuleList) else []
