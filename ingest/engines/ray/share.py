"""How the cores and GPUs of a cluster are shared out among workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

_CPUS_PER_WORKER = 4
"""Of a worker without a GPU, unless the number of workers says otherwise."""


class Share(NamedTuple):
    """How many workers, and what each of them asks of the cluster."""

    workers: int
    cpus: float
    gpus: float


def share_of(
    total: Mapping[str, float], workers: int | None, gpus: float, largest: float = math.inf
) -> Share:
    """How a cluster of these resources is shared out.

    gpus: asked for by each worker, if any. largest: cores of the node that has most of them, since
    a worker that asks for more than any node has would never start.
    """
    cpus = total.get("CPU", 1.0)
    if gpus and total.get("GPU"):
        count = workers or max(1, int(total["GPU"] / gpus))
        return Share(count, min(1.0, cpus / count), gpus)
    count = workers or max(1, int(cpus / min(_CPUS_PER_WORKER, largest)))
    each = min(cpus / count, largest)
    return Share(count, float(int(each)) if each >= 1 else each, 0.0)
