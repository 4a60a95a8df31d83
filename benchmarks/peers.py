"""The way of others to tell two sets of documents apart, run in an environment of their own.

Started by `python -m benchmarks.contrast --peers PYTHON`: ``PYTHON benchmarks/peers.py PEER FILE``
prints what each step took. FILE has every activation, token by token, and which documents are in A
(numpy's npz). PYTHON has, without what they need to run models, `interp_embed==0.1.0` and
`hypothesaes==2.0.1` (``pip install --no-deps``), and torch, pandas, openai, scikit-learn, pydantic.

**interp_embed** takes a sparse matrix of tokens by features of each document, makes it dense to
pool it, and `diff_features` of its examples compares two dense matrices of which document has which
feature: shares, and no test. **HypotheSAEs** takes one dense matrix of documents by features and
ranks its columns by separation, without a test either.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

SELECTED = 20


class Steps:
    """Prints the CPU seconds of steps, and the peak memory at the end."""

    def __init__(self, peer: str) -> None:
        self._peer, self._began, self._said = peer, time.process_time(), list[str]()

    def done(self, name: str) -> None:
        """A step ends here, and the next begins."""
        now = time.process_time()
        self._said.append(f"{name} {now - self._began:.1f} s of CPU")
        self._began = now

    def say(self) -> None:
        """All steps in one line."""
        # Of this program alone: `ru_maxrss` has the peak of who started it.
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e6
        print(f"{self._peer}: {', '.join(self._said)}, {peak:.2f} GB", flush=True)


def bare(package: str) -> None:
    """Let modules of a package be imported without what its `__init__` imports to run models."""
    parent, _, _ = package.rpartition(".")
    spec = PathFinder.find_spec(package, sys.modules[parent].__path__ if parent else None)
    assert spec is not None
    module = sys.modules[package] = ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations or ())


def documents(given: Any) -> Iterator[csr_matrix]:
    """Tokens by features of each document."""
    first, offsets, width = given["first_token"], given["offsets"], int(given["d_sae"])
    features, activations = given["feature"], given["activation"]
    for start, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        low, high = offsets[start], offsets[end]
        rows = activations[low:high], features[low:high], offsets[start : end + 1] - low
        yield csr_matrix(rows, shape=(end - start, width))


def interp_embed(given: Any, steps: Steps) -> None:
    """As `examples/functions.py` of its repository has it at commit 2c7a5bcc."""
    bare("interp_embed")
    bare("interp_embed.saes")
    from interp_embed.dataset_analysis import Dataset, DatasetRow

    rows = [DatasetRow({"text": ""}, [""] * matrix.shape[0], matrix) for matrix in documents(given)]
    steps.done("pool")
    shares = []
    for inside in (given["in_a"], ~given["in_a"]):
        own = [row for row, chosen in zip(rows, inside.tolist(), strict=True) if chosen]
        texts = [{"text": ""} for _ in own]
        found = Dataset(texts, None, rows=own, compute_activations=False).latents("binarize")
        shares.append(found.sum(axis=0) / len(found))
    np.argsort(-(shares[0] - shares[1]))
    steps.done("compare")


def hypothesaes(given: Any, steps: Steps) -> None:
    """Its `select_neurons` of a dense matrix, as its users hold one."""
    bare("hypothesaes")
    from hypothesaes.select_neurons import select_neurons

    matrix = np.zeros((len(given["in_a"]), int(given["d_sae"])), np.float32)
    for row, each in zip(matrix, documents(given), strict=True):
        np.maximum.at(row, each.indices, each.data)
    steps.done("fill")
    select_neurons(matrix, given["in_a"].astype(float), SELECTED, method="separation_score")
    steps.done("compare by separation")


def main() -> None:
    """Run one."""
    peer, path = sys.argv[1:]
    given = dict(np.load(path))
    steps = Steps(peer)
    {"interp_embed": interp_embed, "hypothesaes": hypothesaes}[peer](given, steps)
    steps.say()


if __name__ == "__main__":
    main()
