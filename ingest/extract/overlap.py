"""How much of an ingest is under way at once."""

from __future__ import annotations

import os

import torch

_AHEAD_ON_A_GPU = 3
"""One batch on the device, one launched behind it, and one that the host makes ready to be kept."""

_MOST_WRITERS = 8
_MOST_FINISHING = 6

MOST_WRITING = 3
"""Partitions that are sorted and written at once, at most. Each takes up to a quarter of the
memory, and so does the one that the model runs on."""


def batches_ahead(device: torch.device) -> int:
    """How many batches to have in flight at once. 0 runs them one after the other.

    On a CPU nothing can overlap: the same cores do the forward pass and the rest. Two threads that
    use an Apple GPU abort the process (pytorch#197805).
    """
    return 0 if device.type in ("cpu", "mps") else _AHEAD_ON_A_GPU


def finishing_threads(saes: int) -> int:
    """How many threads make ready what the device found, of several SAEs and of two batches."""
    return max(1, min(_MOST_FINISHING, 2 * saes, (os.cpu_count() or 1) - 1))


def segments_at_once(threads: int, saes: int) -> int:
    """How many segments so many threads sort and write at once: one thread does one."""
    return min(threads, min(threads, MOST_WRITING) * saes)


def writers_beside(device: torch.device) -> int:
    """How many threads sort and write segments while the model runs.

    Beside a GPU all cores but one, which launches its work. On a CPU the model takes much longer
    than writing, and uses the cores itself.
    """
    if device.type == "cpu":
        return 1
    return max(1, min(_MOST_WRITERS, (os.cpu_count() or 1) - 1))
