"""A model and the SAEs attached to its hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featuredb.store.snapshot import CorpusCheck, File, LoadCheck, Sae
from ingest.model.hooks import HookPoint
from ingest.model.load import LoadedModel
from ingest.options import EncodeDtype
from ingest.sae import LoadedSae


@dataclass(frozen=True)
class AttachedSae:
    """An SAE at the hook it reads.

    hook_out: hook point that its output matches, None if unknown or the same. source: the reference
    it was loaded from. sink_norm: positions of a larger norm are sinks, None to record all.
    hooks_out: by place of its set, what is written there matches, for an SAE that writes to several
    layers together with others. excluded: token ids, ascending, at which nothing is recorded.
    encoding: how an ingest encodes it, None for in the dtype of its weights.
    """

    name: str
    sae: LoadedSae
    hook: HookPoint
    hook_out: HookPoint | None = None
    source: str = ""
    sink_norm: float | None = None
    hooks_out: Mapping[int, HookPoint] = field(default_factory=dict)
    excluded: tuple[int, ...] = ()
    encoding: EncodeDtype | None = None

    def record(self, check: LoadCheck, checks: tuple[CorpusCheck, ...], weights: File) -> Sae:
        """What the snapshot keeps. weights: the file of `ingest.sae.stored`."""
        sae = self.sae
        return Sae(
            name=self.name,
            source=self.source,
            format=sae.format,
            architecture=sae.architecture,
            sha256=sae.hash,
            hook=self.hook.name,
            hook_out=self.hook_out.name if self.hook_out else None,
            d_in=sae.d_in,
            d_out=sae.d_out,
            d_sae=sae.d_sae,
            encode_dtype=self.encoding or str(sae.dtype).removeprefix("torch."),
            check=check,
            hooks_out=tuple(
                self.hooks_out[place].name for place in sae.places_out if place in self.hooks_out
            ),
            excluded_tokens=self.excluded,
            weights=weights,
            checks=checks,
        )


def hooks_written(model: LoadedModel, sae: LoadedSae) -> dict[int, HookPoint]:
    """By place of its set, where an SAE writes that is one of several which write to several
    layers together."""
    sites = sae.cross_layer.sites if sae.cross_layer is not None else ()
    return {place: model.hook(site) for place, site in enumerate(sites) if site is not None}


@dataclass(frozen=True)
class ModelWithSaes:
    """A model and its SAEs: what running a partition takes."""

    model: LoadedModel
    saes: tuple[AttachedSae, ...]

    def identity(self) -> dict[str, str]:
        """The part of an ingest's identity that is in the model's and the SAEs' files, by name."""
        identity = {
            "model weights": self.model.weights_hash,
            "tokenizer": self.model.tokenizer_hash,
            "model dtype": f"{self.model.dtype}{', compiled' if self.model.compiled else ''}",
        }
        for attached in self.saes:
            text = f"{attached.sae.hash} at {attached.hook.canonical}"
            for hook in (attached.hook_out, *attached.hooks_out.values()):
                text += f" to {hook.canonical}" if hook is not None else ""
            if attached.encoding is not None:
                text += f" in {attached.encoding}"
            if attached.excluded:
                text += f" without tokens {', '.join(map(str, attached.excluded))}"
            identity[f"SAE {attached.name}"] = text
        return identity
