"""Run a model just far enough to read the values at its hooks.

The base model runs without its head and stops once every hook has fired: layers after the last
hook are never executed. Interventions (writing at a hook) belong beside this module. They share
`HookPoint` and need the full forward pass, so they do not go through here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featuredb.errors import HookError
from ingest.model.hooks.hook_point import HookPoint


class _Reached(Exception):
    """Raised inside the forward pass once every hook has fired; never leaves this module."""


_THREAD = threading.local()


def reading() -> bool:
    """Whether this thread is in a pass that only reads, which no intervention may change."""
    return getattr(_THREAD, "reading", False)


def with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A module's arguments with another tensor in place of `value`."""
    args = tuple(new if each is value else each for each in args)
    return args, {name: new if each is value else each for name, each in kwargs.items()}


def with_output(output: Any, value: Tensor, new: Tensor) -> Any:
    """A module's output with another tensor in place of `value`."""
    if output is value:
        return new
    return type(output)(new if each is value else each for each in output)


class Capture:
    """Hooks in a model for any number of forward passes. Use it through `capture`."""

    def __init__(self, model: nn.Module, hooks: Sequence[HookPoint]) -> None:
        if not hooks:
            raise HookError("no hook to capture: name at least one")
        self._hooks = list(hooks)
        self._forward = _headless(model)
        self._found: dict[str, Tensor] = {}
        self._wanted = {hook.canonical for hook in hooks}
        self._handles: list[Any] = []
        for hook in {hook.canonical: hook for hook in hooks}.values():
            self._handles.append(self._place(model.get_submodule(hook.module), hook))

    def run(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return the values at each hook, [B, T, width] in the model's dtype, by hook name.

        `input_ids` int64 [B, T] and `attention_mask` [B, T] (1 for tokens, 0 for padding on the
        right) are on the model's device. Values at padding positions mean nothing.

        Raises HookError where a hook's module is never executed, or has no one vector for each
        token.
        """
        self._found.clear()
        _THREAD.reading = True
        try:
            with torch.inference_mode():
                self._forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        except _Reached:
            pass
        finally:
            _THREAD.reading = False
        captured, self._found = self._found, {}
        missed = [hook.name for hook in self._hooks if hook.canonical not in captured]
        if missed:
            raise HookError(f"the forward pass never reaches {', '.join(missed)}")
        batch, tokens = input_ids.shape
        return {
            hook.name: in_batches(hook, captured[hook.canonical], batch, tokens)
            for hook in self._hooks
        }

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _place(self, module: nn.Module, hook: HookPoint) -> Any:
        key = hook.canonical

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = hidden_states(args or tuple(kwargs.values()))
            self._record(key, unit_rms(module, value) if hook.before_gain else value)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._record(key, hidden_states(output))

        if hook.side == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def _record(self, key: str, value: Tensor) -> None:
        # A module used twice in one pass is read at its first use.
        self._found.setdefault(key, value)
        if len(self._found) == len(self._wanted):
            raise _Reached


@contextmanager
def capture(model: nn.Module, hooks: Sequence[HookPoint]) -> Iterator[Capture]:
    """Place hooks in `model` for a `with` block. Call `.run(...)` as often as needed."""
    placed = Capture(model, hooks)
    try:
        yield placed
    finally:
        placed.close()


def forward_to_hooks(
    model: nn.Module,
    hooks: Sequence[HookPoint],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Run one forward pass up to the last of `hooks`. See `Capture.run`."""
    with capture(model, hooks) as forward:
        return forward.run(input_ids, attention_mask)


def _headless(model: nn.Module) -> nn.Module:
    """The model without its head: the logits are never computed, even if a hook is at the end."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def hidden_states(value: Any) -> Tensor:
    """The hidden states of a module's inputs or outputs, which come first where there are more."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list):
        for item in value:
            if isinstance(item, Tensor) and item.is_floating_point():
                return item
    raise HookError(f"a hook gave a {type(value).__name__} with no hidden states in it")


def in_batches(hook: HookPoint, value: Tensor, batch: int, tokens: int) -> Tensor:
    """[B, T, width]; a few modules (OPT's MLP, experts) work on [B·T, width]."""
    if value.ndim == 2 and len(value) == batch * tokens:
        return value.reshape(batch, tokens, value.shape[-1])
    if value.ndim == 3 and value.shape[:2] == (batch, tokens):
        return value
    raise HookError(
        f"{hook.name} has values of shape {list(value.shape)} for {batch} contexts of {tokens} "
        "tokens: not one vector for each token"
    )


def unit_rms(norm: nn.Module, x: Tensor) -> Tensor:
    """x / rms(x) in the dtype of x: an RMS norm without its weight, computed in float32."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6))
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * scale).to(x.dtype)
