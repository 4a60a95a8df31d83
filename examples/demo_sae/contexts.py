"""Top contexts of every feature over the training text, for reading by eye and for the card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.demo_sae.activations import Windows, blocks
from examples.demo_sae.saved import SavedSAE


@dataclass(frozen=True)
class Firings:
    """Every activation of some rows, by feature, then activation descending, then row.

    start: int64 [features + 1], the f-th feature's part is start[f]:start[f + 1]
    row: int64 [n], an index into the stored rows. value: float32 [n]
    """

    start: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Snippet:
    """A few tokens around a peak: the text before, the peak token, the text after."""

    document: int
    value: float
    before: str
    peak: str
    after: str


def firings(sae: SavedSAE, data: Tensor, rows: Tensor, features: Tensor | None = None) -> Firings:
    """Activations of data[rows], bfloat16 [tokens, d], computed in float32.

    Of all features, or of those in `features`, int64 [n], numbered by their index in it.
    """
    width = len(sae.b_enc) if features is None else len(features)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in blocks(rows):
        codes = sae.encode(data[part].float(), features)
        where = torch.from_numpy(np.flatnonzero((codes > 0).view(-1).numpy()))
        token = where // width
        found.append((part[token], where - token * width, codes.view(-1)[where]))
    row, feature, value = (torch.cat(column).numpy() for column in zip(*found, strict=True))
    order = np.lexsort((row, -value, feature))
    start = np.searchsorted(feature[order], np.arange(width + 1))
    return Firings(start.astype(np.int64), row[order], value[order])


def top_snippets(
    fired: Firings,
    feature: int,
    count: int,
    windows: Windows,
    owner: npt.NDArray[np.int64],
    tokenizer: Any,
    around: tuple[int, int] = (10, 4),
) -> list[Snippet]:
    """The feature's `count` top contexts, at most one per document.

    owner: per stored row its window, int64 [rows]. around: tokens shown before and after.
    """
    snippets: list[Snippet] = []
    seen: set[int] = set()
    for place in range(fired.start[feature], fired.start[feature + 1]):
        row = int(fired.row[place])
        window = int(owner[row])
        document = int(windows.document[window])
        if document in seen:
            continue
        seen.add(document)
        tokens = windows.tokens[window]
        peak = row - int(np.searchsorted(owner, window))
        before, at, after = (
            tokenizer.decode(tokens[part].tolist())
            for part in (
                slice(max(0, peak - around[0]), peak),
                slice(peak, peak + 1),
                slice(peak + 1, peak + 1 + around[1]),
            )
        )
        snippets.append(Snippet(document, float(fired.value[place]), before, at, after))
        if len(snippets) == count:
            break
    return snippets
