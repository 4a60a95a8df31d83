"""Other readings of an SAE that would explain more: what the likely mistakes look like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from featuredb.errors import HookError, ModelError
from ingest.attached import AttachedSae
from ingest.extract.device import DeviceMemory
from ingest.load_check.sample import ExplainedVariance, SampleTokens, States, explain, read_states
from ingest.model.hooks import HookPoint, layer_count
from ingest.model.load import LoadedModel, bos_token_id
from ingest.sae import LoadedSae
from ingest.sae.activations import JumpReLU, ReLU
from ingest.sae.normalize import Normalization

TRIAL_TOKENS = 1_024
"""Tokens that each alternative is tried on: enough to tell 0.80 from 0.76."""

CLEARLY_LESS = 0.9
"""A reading explains clearly more if it leaves less than this share of what the given one leaves
unexplained. A layer away the demo's SAE leaves 0.81 to 0.88."""

NO_WORSE = 0.99
"""Without the weaker half of its activations an SAE that is read as it was trained explains much
less: the demo's leaves 1.73 times as much unexplained. If it explains no less, they were never
meant to be there: the share is 0.91 if the demo's threshold is lost, although that alone changes
the explained variance by only 0.001."""

_RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
_OTHERS = ("hook_attn_out", "hook_mlp_out", "ln1.hook_normalized", "ln2.hook_normalized")


@dataclass(frozen=True)
class Alternative:
    """A reading that explains more. how: completes "it does explain 0.83 of it …"."""

    how: str
    explained: ExplainedVariance

    def sentence(self) -> str:
        """What is likely wrong, in a clause."""
        return f"it does explain {self.explained.variance_explained:.2f} {self.how}"


@dataclass(frozen=True)
class _Trial:
    """An SAE and the hidden states that readings of it are tried on, by hook name."""

    attached: AttachedSae
    states: Mapping[str, States]
    sink_threshold: float | None

    def pair(self, hook: HookPoint) -> tuple[Tensor, Tensor]:
        """What the SAE reads at `hook` and what it should rebuild, without sinks."""
        read, write = self.states[hook.name], self.attached.hook_out
        rebuilt = self.states[write.name] if write is not None else read
        read, rebuilt = (each.without(self.attached.excluded) for each in (read, rebuilt))
        ordinary = read.ordinary(self.sink_threshold)
        return read.x[ordinary], rebuilt.x[ordinary]

    def at(self, hook: HookPoint) -> ExplainedVariance:
        """How well the SAE does when it reads at `hook`."""
        return explain(self.attached.sae, *self.pair(hook))


def find_alternatives(
    model: LoadedModel,
    attached: AttachedSae,
    sample: SampleTokens,
    sink_threshold: float | None,
    *,
    refused: bool,
    everywhere: bool = False,
) -> list[Alternative]:
    """Readings of the SAE that explain clearly more than the given one, best first.

    Hooks one and three layers away, other normalizations and only the largest activations are
    always tried. Hooks in every layer are tried if `everywhere` or `refused`, and contexts with or
    without a BOS if `refused`. A reading that needs many more active features does not count.
    """
    sample = sample.spread(TRIAL_TOKENS)
    memory = DeviceMemory(TRIAL_TOKENS, lambda _: None)
    hooks = _hooks(model, attached.hook, everywhere=everywhere or refused)
    wanted = [attached.hook, *hooks]
    if attached.hook_out is not None:
        wanted.append(attached.hook_out)
    states = read_states(model, _distinct(wanted), sample, memory)
    trial = _Trial(attached, states, sink_threshold)
    given = trial.at(attached.hook)
    better = []
    for hook in hooks:
        other = trial.at(hook)
        if _better(other, given, features=1.25, refused=refused):
            better.append(
                Alternative(f"at {_named_as(attached.hook, hook)}: was it trained there?", other)
            )
    x, y = trial.pair(attached.hook)
    for how, other in _normalized(attached, x, y):
        if _better(other, given, features=1.0, refused=refused):
            better.append(Alternative(how, other))
    for how, other, limit in _fewer(attached.sae, x, y, given.l0):
        if _better(other, given, features=1.0, refused=refused, limit=limit):
            better.append(Alternative(how, other))
    if refused:
        better += _other_bos(model, trial, sample, memory, given)
    return sorted(better, key=lambda each: -each.explained.variance_explained)


def begins_with_sinks(states: States, sink_threshold: float) -> bool:
    """Whether most contexts begin with a token of enormous norm, as happens without a BOS."""
    first = ~states.ordinary(sink_threshold)[states.first]
    return len(first) > 0 and float(first.float().mean()) > 0.5


def _better(
    other: ExplainedVariance,
    given: ExplainedVariance,
    *,
    features: float,
    refused: bool,
    limit: float = CLEARLY_LESS,
) -> bool:
    left, left_given = 1 - other.variance_explained, 1 - given.variance_explained
    enough = other.variance_explained > 0.1 and other.l0 > 0
    # A refused reading may have almost no active features. Then more are no reason to object.
    sparse = refused or other.l0 <= features * given.l0
    return enough and sparse and left < limit * left_given


def _distinct(hooks: Sequence[HookPoint]) -> list[HookPoint]:
    return list({hook.name: hook for hook in hooks}.values())


def _hooks(model: LoadedModel, given: HookPoint, *, everywhere: bool) -> list[HookPoint]:
    """Other hooks of the same width: near `given`, or in every layer."""
    layer = 0 if given.layer is None else given.layer
    layers = range(layer_count(model.model))
    near = [n for n in (layer - 1, layer, layer + 1) if n in layers]
    # What an SAE explains falls slowly with the distance. Three layers are enough to show it.
    far = layers if everywhere else [n for n in (layer - 3, layer + 3) if n in layers]
    names = [f"blocks.{n}.hook_resid_post" for n in sorted({*near, *far})]
    names += [f"blocks.{n}.{what}" for n in near for what in _RESIDUAL]
    if everywhere:
        names += [f"blocks.{n}.{what}" for n in near for what in _OTHERS]
    if given.layer is not None:
        # The same hook in the layers around it, in any spelling.
        number = re.compile(rf"(?<=\.){layer}(?=\.|$)")
        names += [number.sub(str(n), given.name, count=1) for n in near]
    hooks: dict[str, HookPoint] = {}
    for name in names:
        try:
            hook = model.hook(name)
        except HookError:
            continue
        # One name for a place is enough.
        place = _place(hook)
        if hook.width == given.width and place != _place(given):
            hooks.setdefault(place, hook)
    return list(hooks.values())


def _place(hook: HookPoint) -> str:
    """Where a hook is, however it is named: what enters a layer is what leaves the one before."""
    stack, _, number = hook.module.rpartition(".")
    if hook.side == "input" and hook.layer and number == str(hook.layer):
        return f"{stack}.{hook.layer - 1}.output"
    return hook.canonical


def _named_as(given: HookPoint, hook: HookPoint) -> str:
    """The hook's name in the vocabulary of the given one's."""
    return hook.name if given.name.startswith(("blocks.", "hook_")) else hook.canonical


def _normalized(
    attached: AttachedSae, x: Tensor, y: Tensor
) -> Iterator[tuple[str, ExplainedVariance]]:
    """With the input normalized other than the SAE's files say."""
    sae, same_place = attached.sae, attached.hook_out is None
    stated_kind = sae.encoder.normalization
    otherwise = "otherwise" if stated_kind == "none" else stated_kind
    for kind in get_args(Normalization):
        if kind != stated_kind:
            undoes: Normalization = kind if same_place else "none"
            other = replace(
                sae,
                encoder=replace(sae.encoder, normalization=kind),
                decoder=replace(sae.decoder, undoes=undoes),
            )
            how = "without normalization" if kind == "none" else f"with normalization {kind}"
            yield f"{how}: its files state {otherwise}", explain(other, x, y)
    if len(x) and same_place and stated_kind == "none":
        # One factor for the whole data set, lost or applied twice.
        factor = x.shape[1] ** 0.5 / float(x.norm(dim=1).mean())
        for scale in (factor, 1 / factor):
            yield (
                f"with its input scaled by {scale:.3g}: its normalization was lost or made twice",
                explain(sae, x * scale, y * scale),
            )


def _fewer(
    sae: LoadedSae, x: Tensor, y: Tensor, l0: float
) -> Iterator[tuple[str, ExplainedVariance, float]]:
    """With only the largest activations, as after a top-k rule or a threshold. The last item is the
    `limit` of `_better`."""
    counts = [sae.stated_l0] if sae.stated_l0 else [l0 / 4, l0 / 16, l0 / 64]
    tried = [(count, CLEARLY_LESS) for count in counts]
    if isinstance(sae.encoder.activation, ReLU | JumpReLU):
        # An SAE that has a top-k rule cannot have lost it.
        tried.append((l0 / 2, NO_WORSE))
    for count, limit in tried:
        top = round(count)
        if 1 <= top < l0:
            yield (
                f"with only the {top} largest activations of each token: "
                "a TopK SAE read as ReLU, or a threshold that was lost",
                explain(sae, x, y, top=top),
                limit,
            )


def _other_bos(
    model: LoadedModel,
    trial: _Trial,
    sample: SampleTokens,
    memory: DeviceMemory,
    given: ExplainedVariance,
) -> list[Alternative]:
    if sample.bos is not None:
        changed, how = sample.without_bos(), "without a BOS token: ingest with --no-bos"
    else:
        try:
            bos = bos_token_id(model, True)
        except ModelError:
            return []
        if bos is None:
            return []
        changed = sample.with_bos(bos)
        how = "once each context begins with a BOS token: ingest with --bos"
    attached = trial.attached
    hooks = _distinct([attached.hook, *([attached.hook_out] if attached.hook_out else [])])
    trial = replace(trial, states=read_states(model, hooks, changed, memory))
    other = trial.at(attached.hook)
    better = _better(other, given, features=1.25, refused=True)
    return [Alternative(how, other)] if better else []
