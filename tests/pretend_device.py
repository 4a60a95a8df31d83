"""A made-up asynchronous accelerator, so that the path of a GPU runs where there is none.

Built on PyTorch's PrivateUse1 in Python: a tensor on ``pretend:0`` wraps one of the CPU, which does
the arithmetic, so that values are the CPU's own. What a GPU punishes is an error here:

- tensors of the host and of the device in one operation,
- float64 on the device, which Apple's GPUs do not have,
- a copy to the host read before the device was waited for: until then it is filled with rubbish,
- memory that a copy to the device comes from, changed before the device was waited for,
- more memory than a budget, as `torch.OutOfMemoryError`.

What makes the host wait for the device is counted, with the line of the caller.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "pretend"
AVAILABLE = (
    hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
    and not torch.cuda.is_available()
)
"""Whether this torch lets Python make a device. Not beside a real one, as torch would then ask the
made-up one for the other's pinned memory."""

starts_processes = pytest.mark.skipif(
    os.environ.get("FEATUREDB_TEST_DEVICE") == NAME, reason="new processes do not know the device"
)
"""Of tests that everything on this device would fail."""

aten = torch.ops.aten
_RUBBISH = 0xA5

_WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
"""Operations whose result, or its size, the host has to know."""

_BY_MASK = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""So have these, when they are given a mask."""


class DeviceMixError(RuntimeError):
    """Tensors of the host and of the device in one operation."""


@dataclass
class Device:
    """The state of the one device. waits: by line, how often the host waited for it."""

    budget: int | None = None
    used: int = 0
    peak: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    queue: list[Callable[[], None]] = field(default_factory=list)
    owners: Counter[int] = field(default_factory=Counter)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def wait(self) -> None:
        """The host waits until everything that was launched is done."""
        with self.lock:  # until it is done: other threads may wait for the same
            queue, self.queue = self.queue, []
            for work in queue:
                work()

    def waited(self) -> None:
        self.waits[_caller()] += 1
        self.wait()

    def take(self, holder: Tensor, inner: Tensor) -> None:
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self.lock:
            if key not in self.owners:
                if self.budget is not None and self.used + size > self.budget:
                    raise torch.OutOfMemoryError(
                        f"{NAME} out of memory: {self.used + size:,} of {self.budget:,} bytes"
                    )
                self.used += size
                self.peak = max(self.peak, self.used)
            self.owners[key] += 1
        weakref.finalize(holder, self._give_back, key, size)

    def _give_back(self, key: int, size: int) -> None:
        with self.lock:
            self.owners[key] -= 1
            if not self.owners[key]:
                del self.owners[key]
                self.used -= size


DEVICE = Device()


def _caller() -> str:
    """The line outside torch and this file that an operation came from."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and name != __file__:
            return f"{name.split('site-packages/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class PretendTensor(Tensor):
    """A tensor on the device. held: the one of the CPU that has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        if inner.dtype == torch.float64:
            raise TypeError(f"Cannot convert to float64 on {NAME}: the device does not have it")
        self: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        self.held = inner
        DEVICE.take(self, inner)
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.nn.functional.scaled_dot_product_attention:
                return _run(func, args, kwargs)  # whole, so that the CPU takes the same kernel
            if func is Tensor.tolist:  # Python's own, as `item` is
                DEVICE.waited()
                return args[0].held.tolist()
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten.copy_.default:
            return _copy(args[0], args[1], bool(args[2]) if len(args) > 2 else False)
        if func is aten._to_copy.default and _to_host(kwargs):
            return _download(args[0], kwargs)
        if func is aten.histc.default:  # a GPU counts integers too
            return _run(func, (args[0].float(), *args[1:]), kwargs)
        if func in _WAITS or (func in _BY_MASK and any(map(_is_mask, args[1]))):
            DEVICE.waited()
        return _run(func, args, kwargs)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held!r})"


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _to_host(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the inner tensors, its results on the device."""
    known: dict[int, PretendTensor] = {}

    def inner(value: Any) -> Any:
        if isinstance(value, PretendTensor):
            known[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor) and value.ndim:
            shape = list(value.shape)
            raise DeviceMixError(f"{func}: a tensor {shape} on cpu among those on {NAME}")
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, (list, tuple)):
            return type(value)(map(inner, value))
        return value

    def outer(value: Any) -> Any:
        if isinstance(value, Tensor):
            return known[id(value)] if id(value) in known else PretendTensor(value)
        if isinstance(value, (list, tuple)):
            kind = type(value)
            return kind(map(outer, value)) if kind in (list, tuple) else tuple(map(outer, value))
        return value

    args = inner(args)
    kwargs = {name: inner(value) for name, value in kwargs.items()}
    return outer(func(*args, **kwargs))


def _copy(to: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
    if isinstance(to, PretendTensor) and isinstance(source, PretendTensor):
        to.held.copy_(source.held)
    elif isinstance(to, PretendTensor):
        if to.dtype == torch.float64 or source.dtype == torch.float64:
            raise TypeError(f"float64 on {NAME}")
        to.held.copy_(source)
        if non_blocking:
            was = source.clone()

            def check() -> None:
                assert torch.equal(was, source), "changed while it was copied to the device"

            DEVICE.queue.append(check)
        elif source.ndim:
            DEVICE.waited()
    else:
        assert isinstance(source, PretendTensor)
        if non_blocking:
            _later(to, source.held)
        else:
            DEVICE.waited()
            to.copy_(source.held)
    return to


def _download(source: PretendTensor, kwargs: dict[str, Any]) -> Tensor:
    made = source.held.to(dtype=kwargs.get("dtype") or source.dtype, copy=True)
    if kwargs.get("non_blocking"):
        given = torch.empty_like(made)
        _later(given, made)
        return given
    DEVICE.waited()
    return made


def _later(to: Tensor, source: Tensor) -> None:
    """Copy to the host when it waits, and until then fill the place with rubbish."""
    was = source.clone()
    if to.numel():
        to.view(torch.uint8 if to.ndim else to.dtype).fill_(_RUBBISH)

    def arrive() -> None:
        to.copy_(was)

    DEVICE.queue.append(arrive)


class _Event:
    """What was launched before `record` is done after `synchronize`."""

    def __init__(self, **_: Any) -> None:
        self._queue: list[Callable[[], None]] = []

    def record(self, *_: Any) -> None:
        self._queue = list(DEVICE.queue)

    def synchronize(self) -> None:
        DEVICE.waits[_caller()] += 1
        with DEVICE.lock:
            for work in self._queue:
                if work in DEVICE.queue:
                    DEVICE.queue.remove(work)
                    work()


class _Module:
    """``torch.pretend``."""

    Event = _Event
    empty_caches: ClassVar[int] = 0

    def __getattr__(self, name: str) -> Any:
        plain = {
            "is_initialized": True,
            "is_available": True,
            "_is_in_bad_fork": False,
            "device_count": 1,
            "current_device": 0,
            "current_stream": None,
            "manual_seed_all": None,
            "get_amp_supported_dtype": [torch.float16, torch.bfloat16],
            "empty_cache": None,
            # `torch.random.fork_rng` keeps the state of every device there is.
            "get_rng_state": torch.empty(0, dtype=torch.uint8),
            "set_rng_state": None,
        }
        if name not in plain:
            raise AttributeError(name)
        return lambda *_, **__: plain[name]

    def synchronize(self, *_: Any) -> None:
        DEVICE.waited()


_LIBRARY: list[Any] = []


def register() -> None:
    """Make the device known to torch, once in a process."""
    if _LIBRARY:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    _LIBRARY.append(library)

    def factory(name: str) -> None:
        function = getattr(aten, name.partition(".")[0])
        overload = getattr(function, name.partition(".")[2] or "default")

        def make(*args: Any, **kwargs: Any) -> Tensor:
            return PretendTensor(
                overload(*args, **{**kwargs, "device": "cpu", "pin_memory": False})
            )

        library.impl(name, make, "PrivateUse1")

    # What `torch.tensor` copies with, below the level at which a subclass is asked.
    library.impl("_copy_from", lambda source, to, *_: _copy(to, source, False), "PrivateUse1")
    for name in (
        "empty.memory_format",
        "empty_strided",
        "arange.start_step",
        "full",
        "zeros",
        "ones",
        "scalar_tensor",
        "eye",
        "linspace",
    ):
        factory(name)


@contextmanager
def pretend_device(budget: int | None = None) -> Iterator[Device]:
    """The device, freshly counted, for a `with` block."""
    register()
    DEVICE.wait()
    DEVICE.waits.clear()
    DEVICE.budget, DEVICE.peak = budget, DEVICE.used
    try:
        yield DEVICE
    finally:
        DEVICE.budget = None
        DEVICE.queue.clear()


@contextmanager
def without_inference_mode() -> Iterator[None]:
    """Inference mode as plain no-grad: in it, tensors that wrap others cannot be cut."""
    mode = torch.autograd.grad_mode.inference_mode
    given = mode.__enter__, mode.__exit__

    def enter(self: Any) -> None:
        self.plain = torch.no_grad()
        self.plain.__enter__()

    def leave(self: Any, *error: Any) -> None:
        self.plain.__exit__(*error)

    mode.__enter__, mode.__exit__ = enter, leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        mode.__enter__, mode.__exit__ = given  # type: ignore[method-assign]
