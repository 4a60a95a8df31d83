"""Keep an accelerator busy: launch the next forward pass while a batch is processed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ingest.extract.runs import Order, stable_order

_AHEAD_ON_A_GPU = 2
"""One batch on the device while the one before is copied and rounded on the host."""


def batches_ahead(device: torch.device) -> int:
    """How many batches to have in flight at once. 0 runs them one after the other.

    On a CPU nothing can overlap: the same cores do the forward pass and the rest.
    """
    return 0 if device.type == "cpu" else _AHEAD_ON_A_GPU


def order_on(device: torch.device) -> Order:
    """The function that sorts feature ids: on an accelerator if present, otherwise on the CPU."""
    if device.type == "cpu":
        return stable_order

    def on_device(keys: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.intp]:
        return sorted_by_torch(keys, device)

    return on_device


def sorted_by_torch(
    keys: npt.NDArray[np.unsignedinteger], device: torch.device
) -> npt.NDArray[np.intp]:
    """Like `stable_order`, on `device`. Only keys and indices are copied."""
    on_device = torch.from_numpy(keys.astype(np.int32)).to(device)
    order: npt.NDArray[np.intp] = torch.sort(on_device, stable=True).indices.cpu().numpy()
    return order
