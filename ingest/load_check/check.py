"""The load check: what an SAE does on the first tokens of the corpus, before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import HookError, LoadCheckError
from featuredb.store.snapshot import LoadCheck
from ingest.extract.device import DeviceMemory
from ingest.load_check.alternatives import Reading, begins_with_sinks, suspects
from ingest.load_check.sample import SampleTokens, explain, read_states
from ingest.model.hooks import HookPoint
from ingest.model.load import LoadedModel
from ingest.sae import LoadedSae

SAMPLE_TOKENS = 8_192
"""Enough for L0 and explained variance to two digits, a few seconds on a CPU."""

L0_FACTOR = 5.0
"""An L0 this many times the stated one is taken for a wrong load: a TopK read as ReLU, a
normalisation forgotten, a wrong layer are all louder than this."""

_SINK_THRESHOLD = 10.0
_OVERRIDE = "--no-check goes on all the same"
_CAUSES = (
    "the usual causes are a wrong layer, resid_pre read as resid_post (off by one), "
    "a missing BOS, a wrong normalisation, or another model"
)
_LOUD_CAUSES = (
    "the usual causes are a TopK SAE read as ReLU, a threshold that was lost, "
    "a wrong normalisation, or a wrong layer"
)


class Measured(NamedTuple):
    """What is kept of the measurement, and int64 [d_sae], the tokens each feature was active on."""

    check: LoadCheck
    counts: npt.NDArray[np.int64]


def fit(
    sae: LoadedSae,
    name: str,
    hook: HookPoint,
    hook_out: HookPoint | None = None,
    *,
    check: bool = True,
) -> None:
    """Raises `HookError` when the SAE cannot read, or write, there, naming both widths.

    check: also when it is not known where it writes, so that it could not be checked.
    """
    if sae.d_in != hook.width:
        raise HookError(
            f"SAE {name} reads {sae.d_in} dimensions but {hook.name} gives {hook.width}: "
            "give the hook it was trained on with --hook, or the model it was trained on"
        )
    if check and hook_out is None and sae.d_out != sae.d_in:
        raise HookError(
            f"SAE {name} reads {sae.d_in} dimensions and writes {sae.d_out}, and its files do not "
            f"say where what it writes belongs: give the place with --hook-out; {_OVERRIDE}"
        )
    if hook_out is not None and sae.d_out != hook_out.width:
        raise HookError(
            f"SAE {name} writes {sae.d_out} dimensions but {hook_out.name} has {hook_out.width}: "
            "give the place it writes to with --hook-out, or the model it was trained on"
        )


def measure(
    model: LoadedModel,
    saes: Sequence[tuple[LoadedSae, HookPoint, HookPoint | None]],
    sample: SampleTokens,
    sink_threshold: float | None,
    memory: DeviceMemory,
) -> list[Measured]:
    """Measure each (SAE, input hook, output hook or None) on the first contexts.

    Sinks and BOS are left out of every figure as they are left out of the store. The median norm
    counts every recorded position. variance explained = 1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖², with y the
    hook the SAE rebuilds; None where that is not known and the widths differ. Raises `ModelError`
    for NaN or infinite hidden states.
    """
    hooks = {h.name: h for _, read, write in saes for h in (read, write) if h is not None}
    states = read_states(model, list(hooks.values()), sample.first(SAMPLE_TOKENS), memory)
    measured = []
    for sae, read, write in saes:
        kept, median = states[read.name].ordinary(sink_threshold)
        x = states[read.name].x[kept]
        known = write is not None or sae.d_out == sae.d_in
        y = states[(write or read).name].x[kept] if known else x.new_zeros(len(x), sae.d_out)
        got = explain(sae, x, y)
        check = LoadCheck(
            tokens=len(x),
            l0=got.l0,
            variance_explained=got.variance_explained if known else None,
            dead_share=got.dead_share,
            median_norm=median,
            sink_threshold=sink_threshold,
        )
        measured.append(Measured(check, got.counts))
    return measured


def judge(
    name: str,
    model: LoadedModel,
    reading: Reading,
    check: LoadCheck,
    sample: SampleTokens,
    note: Callable[[str], None],
) -> None:
    """Raises `LoadCheckError` when the SAE does not explain what it reads, or explains another
    reading clearly better; says what is likely wrong where that can be told.

    note: told, in a line, what is doubtful but no ground for refusal.
    """
    sae, place = reading.sae, reading.hook.name
    assert check.variance_explained is not None, "fit has refused what cannot be measured"
    figures = f"{check.variance_explained:.2f} on {check.tokens} tokens, L0 {check.l0:.1f}"
    wrong, causes = None, _CAUSES
    if not check.variance_explained > 0:
        wrong = f"explains none of the variance at {place} ({figures})"
    elif sae.stated_l0 and check.l0 > L0_FACTOR * sae.stated_l0:
        wrong = f"has L0 {check.l0:.1f} at {place} where its files state {sae.stated_l0:g}"
        causes = _LOUD_CAUSES
    found = suspects(model, reading, sample, refused=wrong is not None)
    if wrong is not None:
        raise LoadCheckError(
            f"SAE {name} {wrong}: {found[0].sentence() if found else causes}; {_OVERRIDE}"
        )
    if found:
        best = suspects(model, reading, sample, refused=False, everywhere=True)[:1] or found
        raise LoadCheckError(
            f"SAE {name} explains {check.variance_explained:.2f} of the variance at {place}, but "
            f"{best[0].sentence()}; {_OVERRIDE}"
        )
    if sample.bos is None and sae.prepend_bos is None:
        states = read_states(
            model,
            [reading.hook],
            sample.first(SAMPLE_TOKENS // 8),
            DeviceMemory(SAMPLE_TOKENS // 8, lambda _: None),
        )[place]
        if begins_with_sinks(states, _SINK_THRESHOLD):
            fix = (
                'set "prepend_bos": true in its cfg.json'
                if sae.format == "saelens"
                else "give the model a tokenizer that puts one first"
            )
            note(
                f"contexts have no BOS and begin with tokens of enormous norm at {place}: "
                f"if SAE {name} was trained with a BOS, {fix}, and ingest to another path"
            )
