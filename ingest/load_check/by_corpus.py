"""How well an SAE explains each corpus of a sample, and how that differs between its contexts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from featuredb.store.snapshot import SPREAD, CorpusCheck
from ingest.load_check.sample import Errors, SampleTokens


def corpus_checks(
    sample: SampleTokens, active: Tensor, context: Tensor, errors: Errors | None
) -> tuple[CorpusCheck, ...]:
    """The measurements of each corpus of the sample that has recorded positions.

    active: [n], features active at each recorded position. context: [n], its context in the sample.
    errors: None if nothing is compared. They may be at fewer positions.
    """
    corpus = sample.from_corpus
    of_tokens = _numbers(context)
    explained = [None] * len(sample.corpora) if errors is None else _explained(corpus, errors)
    checks = []
    for number, name in enumerate(sample.corpora):
        here = corpus[of_tokens] == number
        if not here.any():
            continue
        counts = _numbers(active)[here]
        contexts, row, tokens = np.unique(of_tokens[here], return_inverse=True, return_counts=True)
        low, high = np.quantile(np.bincount(row, counts) / tokens, SPREAD)
        share, least, most = explained[number] or (None, None, None)
        checks.append(
            CorpusCheck(
                corpus=name,
                contexts=len(contexts),
                tokens=len(counts),
                l0=float(counts.mean()),
                l0_low=float(low),
                l0_high=float(high),
                variance_explained=share,
                variance_explained_low=least,
                variance_explained_high=most,
            )
        )
    return tuple(checks)


def _explained(
    corpus: npt.NDArray[np.int64], errors: Errors
) -> list[tuple[float, float, float] | None]:
    """(of all positions, low, high) of variance explained, by corpus. None where nothing varies.

    A context's is 1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖² over its positions, with the ȳ of its corpus.
    """
    of_tokens, squared = _numbers(errors.context), errors.squared.numpy()
    every_y = errors.y.cpu()
    results: list[tuple[float, float, float] | None] = []
    for number in range(corpus.max() + 1):
        here = corpus[of_tokens] == number
        y = every_y[np.flatnonzero(here)].double()
        deviation = (y - y.mean(dim=0)).square().sum(dim=1).numpy()
        if not deviation.sum() > 0:
            results.append(None)
            continue
        _, row = np.unique(of_tokens[here], return_inverse=True)
        varies = np.bincount(row, deviation)
        left = np.bincount(row, squared[here])[varies > 0] / varies[varies > 0]
        low, high = np.quantile(1 - left, SPREAD)
        share = 1 - squared[here].sum() / deviation.sum()
        results.append((float(share), float(low), float(high)))
    return results


def _numbers(column: Tensor) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = column.cpu().numpy()
    return numbers
