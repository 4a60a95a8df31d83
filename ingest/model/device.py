"""The device and dtype a model runs with."""

from __future__ import annotations

import platform

import torch

from featuredb.errors import ModelError


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


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the requested dtype. Raises `ModelError` for an unknown name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        native = device.type != "cpu" or _cpu_has_bfloat16()
        return torch.bfloat16 if native else torch.float32
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ModelError(f"unknown dtype {dtype!r}: auto, float32, bfloat16 or float16")
    return named


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively. Emulation is slower than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN's own check is true on any AVX-512, where it emulates
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
