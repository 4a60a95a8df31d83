"""The load check: how well the SAEs explain a sample of the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import HookError, LoadCheckError
from featuredb.render.progress import log
from featuredb.store.snapshot import CorpusCheck, LoadCheck
from ingest.attached import AttachedSae, ModelWithSaes
from ingest.extract.device import DeviceMemory
from ingest.load_check.alternatives import begins_with_sinks, find_alternatives
from ingest.load_check.by_corpus import corpus_checks
from ingest.load_check.sample import Errors, SampleTokens, explain, read_states
from ingest.load_check.together import explain_together
from ingest.model.hooks import HookPoint
from ingest.model.load import LoadedModel
from ingest.sae import LoadedSae

SAMPLE_TOKENS = 8_192
"""Enough for two digits of L0 and of explained variance, in a few seconds on a CPU."""

L0_FACTOR = 5.0
"""An L0 of this many times the stated one is a wrong load. A TopK SAE read as ReLU, a lost
normalization and a wrong layer all exceed it."""

_SINK_THRESHOLD = 10.0
_OVERRIDE = "--no-check goes on all the same"
_CAUSES = (
    "the usual causes are a wrong layer, resid_pre read as resid_post (off by one), "
    "a missing BOS, a wrong normalization, or another model"
)
_LOUD_CAUSES = (
    "the usual causes are a TopK SAE read as ReLU, a threshold that was lost, "
    "a wrong normalization, or a wrong layer"
)


class CheckedSae(NamedTuple):
    """The measurement. corpora: the same by corpus. counts: int64 [d_sae], tokens on which each
    feature was active."""

    check: LoadCheck
    corpora: tuple[CorpusCheck, ...]
    counts: npt.NDArray[np.int64]


def fit(
    sae: LoadedSae,
    name: str,
    hook: HookPoint,
    hooks_out: Sequence[HookPoint] = (),
    *,
    check: bool = True,
) -> None:
    """Raise `HookError`, naming both widths, if the SAE cannot read or write at these hooks.

    check: also raise if its output's place is unknown, so that it could not be checked.
    """
    if sae.d_in != hook.width:
        raise HookError(
            f"SAE {name} reads {sae.d_in} dimensions but {hook.name} gives {hook.width}: "
            "give the hook it was trained on with --hook, or the model it was trained on"
        )
    if check and not hooks_out and sae.d_out != sae.d_in:
        raise HookError(
            f"SAE {name} reads {sae.d_in} dimensions and writes {sae.d_out}, and its files do not "
            f"say where what it writes belongs: give the place with --hook-out; {_OVERRIDE}"
        )
    for hook_out in hooks_out:
        if sae.d_out != hook_out.width:
            raise HookError(
                f"SAE {name} writes {sae.d_out} dimensions but {hook_out.name} has "
                f"{hook_out.width}: give the place it writes to with --hook-out, or the model it "
                "was trained on"
            )


def check_load(
    loaded: ModelWithSaes,
    sample: SampleTokens,
    *,
    memory: DeviceMemory,
    sink_threshold: float | None,
    refuse: bool,
    bos_chosen: bool = False,
    medians: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, CheckedSae]:
    """Measure every SAE on a sample of the corpora, by name.

    Args:
        loaded: The model and the SAEs.
        sample: Contexts of the corpora.
        memory: How much the device takes at once.
        sink_threshold: As in `IngestOptions`, None if sinks are recorded.
        refuse: Raise if an SAE does not explain what it reads.
        bos_chosen: Do not advise a BOS where none is stated.
        medians: The median norms that decide what a sink is, by SAE, where they are fixed already.

    Raises:
        LoadCheckError: With `refuse`, if an SAE seems to be loaded wrongly.
        ModelError: If hidden states are NaN or infinite.
    """
    measured = measure(loaded, sample, sink_threshold, memory, medians)
    for attached, each in zip(loaded.saes, measured, strict=True):
        _report(attached, each)
        if refuse:
            judge(loaded.model, attached, each.check, sample, sink_threshold, bos_chosen=bos_chosen)
    return {attached.name: each for attached, each in zip(loaded.saes, measured, strict=True)}


def _report(attached: AttachedSae, measured: CheckedSae) -> None:
    check = measured.check
    log.info(
        f"{attached.name} at {attached.hook.name}: variance explained "
        f"{_spelled(check.variance_explained)}, L0 {check.l0:.1f} on {check.tokens:,} tokens"
    )
    for each in measured.corpora:
        where = "" if len(measured.corpora) == 1 else f" of corpus {each.corpus}"
        shares = ""
        if each.variance_explained_low is not None:
            low, high = (
                _spelled(each.variance_explained_low),
                _spelled(each.variance_explained_high),
            )
            shares = f"variance explained {low} to {high}, "
        log.info(
            f"in 80 % of {each.contexts:,} contexts{where}: {shares}"
            f"L0 {each.l0_low:.1f} to {each.l0_high:.1f}"
        )


def _spelled(share: float | None) -> str:
    return "not measured" if share is None else format(share, ".3f")


def measure(
    loaded: ModelWithSaes,
    sample: SampleTokens,
    sink_threshold: float | None,
    memory: DeviceMemory,
    medians: Mapping[str, float] = MappingProxyType({}),
) -> list[CheckedSae]:
    """Measure each SAE on a sample.

    Sinks, BOS and the tokens that an SAE excludes are left out, as of the database. Sinks are
    decided by the median norm of all recorded positions of the sample's first corpus, or by
    `medians`, so that they do not depend on what was appended before an SAE was added. Variance
    explained is 1 - Σ‖y - ŷ‖² / Σ‖y - ȳ‖², with y the hook that the SAE rebuilds, None if that is
    unknown and the widths differ. SAEs that write to several layers are measured together, see
    `explain_together`. Raises `ModelError` for NaN or infinite hidden states.
    """
    hooks = {
        hook.name: hook
        for attached in loaded.saes
        for hook in (attached.hook, attached.hook_out, *attached.hooks_out.values())
        if hook is not None
    }
    states = read_states(loaded.model, list(hooks.values()), sample, memory)
    first = int(np.count_nonzero(sample.from_corpus == 0))
    medians = {
        attached.name: states[attached.hook.name].without(attached.excluded).before(first).median
        for attached in loaded.saes
    } | dict(medians)
    together = explain_together(loaded.saes, states, sink_threshold, medians)
    measured = []
    for attached in loaded.saes:
        trained_on = {name: each.without(attached.excluded) for name, each in states.items()}
        sae, at_hook = attached.sae, trained_on[attached.hook.name]
        ordinary = at_hook.ordinary(sink_threshold, medians[attached.name])
        x, context = at_hook.x[ordinary], at_hook.context[ordinary]
        known = attached.hook_out is not None or sae.d_out == sae.d_in
        known = known and sae.cross_layer is None
        y = trained_on[(attached.hook_out or attached.hook).name].x[ordinary] if known else None
        explained = explain(sae, x, y)
        errors = together.get(attached.name)
        if y is not None:
            errors = Errors(explained.squared, y, context)
        check = LoadCheck(
            tokens=len(x),
            l0=explained.l0,
            variance_explained=None if errors is None else errors.share_explained,
            dead_share=explained.dead_share,
            median_norm=medians[attached.name],
            sink_threshold=sink_threshold,
        )
        by_corpus = corpus_checks(sample, explained.active, context, errors)
        measured.append(CheckedSae(check, by_corpus, explained.counts))
    return measured


def judge(
    model: LoadedModel,
    attached: AttachedSae,
    check: LoadCheck,
    sample: SampleTokens,
    sink_threshold: float | None,
    *,
    bos_chosen: bool = False,
) -> None:
    """Raise `LoadCheckError` if the SAE explains nothing, or another reading of it clearly more.

    The error names the likely cause if it is known. What is doubtful but no ground for refusal
    is logged.
    """
    sae, name, place = attached.sae, attached.name, attached.hook.name
    target = place
    if sae.cross_layer is not None:
        target = sae.cross_layer.sites[sae.cross_layer.place] or place
        if check.variance_explained is None:
            log.info(
                f"SAE {name} is not checked: what is written to {target} is the sum of several "
                f"SAEs, and not all of them are here (give the whole set, {sae.cross_layer.group})"
            )
            return
    assert check.variance_explained is not None, "fit has refused what cannot be measured"
    figures = f"{check.variance_explained:.2f} on {check.tokens} tokens, L0 {check.l0:.1f}"
    wrong, causes = None, _CAUSES
    if not check.variance_explained > 0:
        wrong = f"explains none of the variance at {target} ({figures})"
    elif sae.stated_l0 and check.l0 > L0_FACTOR * sae.stated_l0:
        wrong = f"has L0 {check.l0:.1f} at {place} where its files state {sae.stated_l0:g}"
        causes = _LOUD_CAUSES
    better = []
    if sae.cross_layer is None:
        better = find_alternatives(
            model, attached, sample, sink_threshold, refused=wrong is not None
        )
    if wrong is not None:
        raise LoadCheckError(
            f"SAE {name} {wrong}: {better[0].sentence() if better else causes}; {_OVERRIDE}"
        )
    if better:
        everywhere = find_alternatives(
            model, attached, sample, sink_threshold, refused=False, everywhere=True
        )
        best = (everywhere or better)[0]
        raise LoadCheckError(
            f"SAE {name} explains {check.variance_explained:.2f} of the variance at {target}, but "
            f"{best.sentence()}; {_OVERRIDE}"
        )
    if sample.bos is None and sae.prepend_bos is None and not bos_chosen:
        tokens = SAMPLE_TOKENS // 8
        memory = DeviceMemory(tokens, lambda _: None)
        states = read_states(model, [attached.hook], sample.spread(tokens), memory)[place]
        states = states.without(attached.excluded)
        if begins_with_sinks(states, _SINK_THRESHOLD):
            log.info(
                f"contexts have no BOS and begin with tokens of enormous norm at {place}: "
                f"if SAE {name} was trained with a BOS, ingest to another path with --bos"
            )
