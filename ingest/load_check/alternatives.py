"""Other ways to read an SAE, tried when the asked one is doubtful: the likely mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from featuredb.errors import HookError, ModelError
from ingest.extract.device import DeviceMemory
from ingest.load_check.sample import Explained, SampleTokens, States, explain, read_states
from ingest.model.hooks import HookPoint, layer_count
from ingest.model.load import LoadedModel, bos_token_id
from ingest.sae import LoadedSae
from ingest.sae.activations import JumpReLU, ReLU
from ingest.sae.normalize import Normalization

SUSPECT_TOKENS = 1_024
"""Tokens each other way is tried on: enough to tell 0.80 from 0.76."""

CLEARLY_LESS = 0.9
"""Another way explains clearly more when it leaves less than this share of what the asked one
leaves unexplained. Measured on the demo's SAE: a layer away it leaves 0.81 to 0.88."""

NO_WORSE = 0.99
"""Half of its activations, the weaker ones, are worth a lot to an SAE that is read as it was
trained: on the demo's, leaving them out leaves 1.73 times as much unexplained. Where it leaves
less, they were never meant to be there: 0.91 once the demo's threshold is lost, although that
alone costs it next to nothing (0.868 of the variance instead of 0.869, at an L0 of 204)."""

_RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
_OTHERS = ("hook_attn_out", "hook_mlp_out", "ln1.hook_normalized", "ln2.hook_normalized")


@dataclass(frozen=True)
class Suspect:
    """A way of reading that explains more. said: completes "it does explain 0.83 of it …"."""

    said: str
    explained: Explained

    def sentence(self) -> str:
        """What is likely wrong, in a clause."""
        return f"it does explain {self.explained.variance_explained:.2f} {self.said}"


@dataclass(frozen=True)
class Reading:
    """The asked way: an SAE, the hook it reads, the hook it rebuilds if that is another one."""

    sae: LoadedSae
    hook: HookPoint
    hook_out: HookPoint | None
    sink_threshold: float | None


def suspects(
    model: LoadedModel,
    reading: Reading,
    sample: SampleTokens,
    *,
    refused: bool,
    everywhere: bool = False,
) -> list[Suspect]:
    """Ways to read the SAE that explain clearly more than the asked one, best first.

    Hooks one and three layers away, other normalisations, and only the largest activations are
    tried always; hooks `everywhere` when asked for, and once the asked way is `refused`, as are
    contexts with or without a BOS then.
    To count, another way must not buy what it explains with many more active features.
    """
    sample = sample.first(SUSPECT_TOKENS)
    memory = DeviceMemory(SUSPECT_TOKENS, lambda _: None)
    hooks = _hooks(model, reading.hook, everywhere=everywhere or refused)
    wanted = [reading.hook, *hooks]
    if reading.hook_out is not None:
        wanted.append(reading.hook_out)
    states = read_states(model, _distinct(wanted), sample, memory)
    asked = _try(reading, reading.sae, states, reading.hook)
    found = []
    for hook in hooks:
        other = _try(reading, reading.sae, states, hook)
        if _better(other, asked, features=1.25, refused=refused):
            found.append(Suspect(f"at {hook.name}: was it trained there?", other))
    x, y = _pair(reading, states, reading.hook)
    for said, other in _normalised(reading, x, y):
        if _better(other, asked, features=1.0, refused=refused):
            found.append(Suspect(said, other))
    for said, other, limit in _fewer(reading.sae, x, y, asked.l0):
        if _better(other, asked, features=1.0, refused=refused, limit=limit):
            found.append(Suspect(said, other))
    if refused:
        found += _other_bos(model, reading, sample, memory, asked)
    return sorted(found, key=lambda s: -s.explained.variance_explained)


def begins_with_sinks(states: States, sink_threshold: float) -> bool:
    """Whether most contexts begin with a token of enormous norm, as models do without a BOS."""
    ordinary, _ = states.ordinary(sink_threshold)
    first = ~ordinary[states.first]
    return len(first) > 0 and float(first.float().mean()) > 0.5


def _better(
    other: Explained,
    asked: Explained,
    *,
    features: float,
    refused: bool,
    limit: float = CLEARLY_LESS,
) -> bool:
    left, left_asked = 1 - other.variance_explained, 1 - asked.variance_explained
    enough = other.variance_explained > 0.1 and other.l0 > 0
    # A refused reading may have next to no active features: then any number is an improvement.
    sparse = refused or other.l0 <= features * asked.l0
    return enough and sparse and left < limit * left_asked


def _pair(reading: Reading, states: dict[str, States], hook: HookPoint) -> tuple[Tensor, Tensor]:
    """What the SAE reads at `hook` and what it should rebuild, sinks left out."""
    own = states[hook.name]
    ordinary, _ = own.ordinary(reading.sink_threshold)
    out = states[reading.hook_out.name] if reading.hook_out is not None else own
    return own.x[ordinary], out.x[ordinary]


def _try(reading: Reading, sae: LoadedSae, states: dict[str, States], hook: HookPoint) -> Explained:
    return explain(sae, *_pair(reading, states, hook))


def _distinct(hooks: Sequence[HookPoint]) -> list[HookPoint]:
    return list({hook.name: hook for hook in hooks}.values())


def _hooks(model: LoadedModel, asked: HookPoint, *, everywhere: bool) -> list[HookPoint]:
    """Other places of the same width: near `asked`, or in every layer."""
    layer = 0 if asked.layer is None else asked.layer
    layers = range(layer_count(model.model))
    near = [n for n in (layer - 1, layer, layer + 1) if n in layers]
    # What an SAE explains falls off with the distance, slowly far away: three layers show it there.
    far = layers if everywhere else [n for n in (layer - 3, layer + 3) if n in layers]
    names = [f"blocks.{n}.hook_resid_post" for n in sorted({*near, *far})]
    names += [f"blocks.{n}.{what}" for n in near for what in _RESIDUAL]
    if everywhere:
        names += [f"blocks.{n}.{what}" for n in near for what in _OTHERS]
    if asked.layer is not None:
        # The same place in the layers around it, whatever it is and however it is spelled.
        number = re.compile(rf"(?<=\.){layer}(?=\.)")
        names += [number.sub(str(n), asked.name, count=1) for n in near]
    found: dict[str, HookPoint] = {}
    for name in names:
        try:
            hook = model.hook(name)
        except HookError:
            continue
        # resid_pre of a layer is resid_post of the one before: one of the two is enough.
        place = _place(hook, name)
        if hook.width == asked.width and place != _place(asked, asked.name):
            found.setdefault(place, hook)
    return list(found.values())


def _place(hook: HookPoint, name: str) -> str:
    before = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", name)
    if before and int(before[1]) > 0:
        return f"blocks.{int(before[1]) - 1}.hook_resid_post"
    return name if name.endswith("hook_resid_post") else hook.canonical


def _normalised(reading: Reading, x: Tensor, y: Tensor) -> Iterator[tuple[str, Explained]]:
    """The input normalised as the SAE's files do not say."""
    sae, same_place = reading.sae, reading.hook_out is None
    own = sae.encoder.normalization
    stated = "its files state otherwise" if own == "none" else f"its files state {own}"
    for kind in get_args(Normalization):
        if kind != own:
            undoes: Normalization = kind if same_place else "none"
            other = replace(
                sae,
                encoder=replace(sae.encoder, normalization=kind),
                decoder=replace(sae.decoder, undoes=undoes),
            )
            how = "without normalisation" if kind == "none" else f"with normalisation {kind}"
            yield f"{how}: {stated}", explain(other, x, y)
    if len(x) and same_place and own == "none":
        # One factor for the whole data set: left out, or folded into weights that had it already.
        factor = x.shape[1] ** 0.5 / float(x.norm(dim=1).mean())
        for scale in (factor, 1 / factor):
            yield (
                f"with its input scaled by {scale:.3g}: its normalisation was lost or made twice",
                explain(sae, x * scale, y * scale),
            )


def _fewer(
    sae: LoadedSae, x: Tensor, y: Tensor, l0: float
) -> Iterator[tuple[str, Explained, float]]:
    """Only the largest activations: what a top-k rule or a threshold would have left; and the
    share of what is unexplained that this may leave to count."""
    counts = [sae.stated_l0] if sae.stated_l0 else [l0 / 4, l0 / 16, l0 / 64]
    tried = [(count, CLEARLY_LESS) for count in counts]
    if isinstance(sae.encoder.activation, ReLU | JumpReLU):
        # A top-k rule cannot have been lost where there is one.
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
    reading: Reading,
    sample: SampleTokens,
    memory: DeviceMemory,
    asked: Explained,
) -> list[Suspect]:
    if sample.bos is not None:
        changed, said = sample.without_bos(), "without a BOS token: its files ask for one"
    else:
        try:
            bos = bos_token_id(model, True)
        except ModelError:
            return []
        if bos is None:
            return []
        changed = sample.with_bos(bos)
        said = 'once each context begins with a BOS token: set "prepend_bos": true in its files'
    hooks = _distinct([reading.hook, *([reading.hook_out] if reading.hook_out else [])])
    states = read_states(model, hooks, changed, memory)
    other = _try(reading, reading.sae, states, reading.hook)
    better = _better(other, asked, features=1.25, refused=True)
    return [Suspect(said, other)] if better else []
