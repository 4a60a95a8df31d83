"""The device and dtype a model runs with."""

from __future__ import annotations

import gc
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featuredb.errors import ModelError, first_line

_MESSAGES = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "HOST_ALLOCATION_FAILED",
)
"""Of backends without an exception type for it: CPU, MPS, cuBLAS, cuDNN."""


def choose_device(device: str | torch.device) -> torch.device:
    """Return the requested device, after a test allocation. Raises `ModelError`."""
    wanted = _best_device() if str(device) == "auto" else device
    try:
        place = torch.device(wanted)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ModelError(
            f"torch cannot compute on {str(wanted)!r} here: "
            f"give {', '.join(['auto', 'cpu', *there])}"
        ) from error
    return place


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(
    dtype: str | torch.dtype, device: torch.device, published: torch.dtype | None = None
) -> torch.dtype:
    """Return the requested dtype. Raises `ModelError` for an unknown name.

    "auto" is bfloat16 where the device computes in it natively, else float16 for a model
    `published` in it on a GPU, else float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if _has_bfloat16(device):
            return torch.bfloat16
        half = device.type == "cuda" and published == torch.float16
        return torch.float16 if half else torch.float32
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ModelError(f"unknown dtype {dtype!r}: auto, float32, bfloat16 or float16")
    return named


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the CPU, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in _MESSAGES)


def not_placed(what: str, device: str | torch.device | None, error: Exception) -> str:
    """Why `what` could not be put on a device, in one line."""
    if not (isinstance(error, RuntimeError) and is_out_of_memory(error)):
        return f"{what} cannot be put on {device}: {first_line(error)}"
    # CUDA goes on with advice for its allocator's settings.
    return f"{what} does not fit on {device}: {'. '.join(first_line(error).split('. ')[:3])}"


def empty_cache() -> None:
    """Return what the device's allocator keeps for later to the device."""
    for backend in (torch.cuda, torch.mps):
        if backend.is_available():
            backend.empty_cache()


def release() -> None:
    """Free what nothing refers to any more, on the device too: others may share it."""
    gc.collect()
    empty_cache()


_PRECISION = threading.Lock()
_exact_users = 0
_precision_before = "highest"


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products in float32 inside a `with` block.

    The environment or a notebook may have allowed TF32 or bfloat16, of 10 or 7 bits, and what is
    stored must not depend on it. The setting is the process's: it returns to what it was when the
    last of several threads leaves.
    """
    global _exact_users, _precision_before
    with _PRECISION:
        if _exact_users == 0:
            _precision_before = torch.get_float32_matmul_precision()
            if _precision_before != "highest":
                torch.set_float32_matmul_precision("highest")
        _exact_users += 1
    try:
        yield
    finally:
        with _PRECISION:
            _exact_users -= 1
            if _exact_users == 0 and _precision_before != "highest":
                torch.set_float32_matmul_precision(_precision_before)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively: an NVIDIA GPU before Ampere emulates it."""
    if device.type == "cpu":
        return _cpu_has_bfloat16()
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively. Emulation is slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN's own check is true on any AVX-512, where it emulates
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
