"""What a generated text is worth: under the unsteered model, and against it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featuredb.steering.generation import GeneratedBatch
from featuredb.steering.hooks import EditCounts, HeldModel
from featuredb.steering.opened import ReadyEdits
from featuredb.steering.rows import CodeReader, SaeEdits
from ingest.attached import AttachedSae

Floats = npt.NDArray[np.float64]

N_GRAM = 3
"""Length of the n-grams whose repetition is measured."""

_ROWS = 4
"""Texts whose logits are held at a time."""


@dataclass(frozen=True, eq=False)
class TextScores:
    """Measures of a batch of texts, float64 [B] unless said otherwise.

    kl: of the steered next-token distribution from the unsteered one, in nats, the mean over the
    places new tokens came from. nll: mean negative log-likelihood of the new tokens under the
    unsteered model. repetition: share of 3-grams among them that came before. target: largest share
    of its stored maximum at which an edited feature fires in the unsteered model reading the new
    tokens. hits: share of them that are among the stored tokens of the edited features.
    next_before, next_after: [B, vocab], the probabilities of the first new token. moved: by SAE the
    mean activations [B, d_sae] over these places, unsteered and steered. counts: of the edits.
    """

    kl: Floats
    nll: Floats
    repetition: Floats
    target: Floats
    hits: Floats
    next_before: Floats
    next_after: Floats
    moved: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    counts: EditCounts | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """The edited features, and the tokens that they fire on most: what a text is to be about."""

    readers: list[tuple[AttachedSae, CodeReader, Floats]]
    tokens: frozenset[int]

    @classmethod
    def of(cls, made: ReadyEdits) -> Target:
        """Of edits. Features that never fire have no maximum: 1 stands for it."""
        readers, words = [], set()
        store = made.store
        for each in made.applied:
            record = store.snapshot.sae(each.attached.name)
            maxima = store.features.max_activation(record)[each.features].astype(np.float64)
            maxima = np.where(np.isfinite(maxima) & (maxima > 0), maxima, 1.0)
            readers.append((each.attached, each.reader, maxima))
            rows = [store.features.row(record, feature) for feature in each.features]
            for tokens in store.features.summaries(rows).column("top_tokens").to_pylist():
                words |= set(tokens or ())
        texts = store.texts.token_texts
        return cls(readers, frozenset(i for i, text in enumerate(texts) if text in words))


def score(
    held: HeldModel,
    made: ReadyEdits,
    texts: GeneratedBatch,
    edits: Sequence[SaeEdits] | None,
    target: Target,
    watched: Sequence[AttachedSae] = (),
) -> TextScores:
    """Measure texts that edits, or no edits, have given.

    watched: SAEs of which it is measured how their features moved.
    """
    parts = [
        _scored(held, made, _rows(texts, start), edits, target, watched)
        for start in range(0, len(texts.ids), _ROWS)
    ]
    names = ("kl", "nll", "repetition", "target", "hits", "next_before", "next_after")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    moved = {
        sae.name: tuple(np.concatenate([p.moved[sae.name][side] for p in parts]) for side in (0, 1))
        for sae in watched
    }
    counts = EditCounts([edit for each in edits or () for edit in each.edits])
    for part in parts:
        assert part.counts is not None
        for number in range(len(counts.edits)):
            counts.add(number, part.counts.prompt[number], part.counts.generated[number])
    return TextScores(**joined, moved=moved, counts=counts)  # type: ignore[arg-type]


def _rows(texts: GeneratedBatch, start: int) -> GeneratedBatch:
    rows = slice(start, start + _ROWS)
    roles = None if texts.roles is None else texts.roles[rows]
    return GeneratedBatch(texts.ids[rows], texts.real[rows], texts.prompt, roles)


class _Passed(NamedTuple):
    """Of a pass: log-probabilities [B, N, vocab] of new tokens, values at hooks, counts."""

    logp: Tensor
    values: dict[str, Tensor]
    counts: EditCounts


@torch.inference_mode()
def _scored(
    held: HeldModel,
    made: ReadyEdits,
    texts: GeneratedBatch,
    edits: Sequence[SaeEdits] | None,
    target: Target,
    watched: Sequence[AttachedSae],
) -> TextScores:
    device = held.loaded.device
    # The last token of each text is predicted, never read.
    places = (texts.real[:, 1:] & texts.real[:, :-1]).to(device)
    new = places[:, texts.prompt - 1 :]
    count = new.sum(1).clamp_min(1)
    wanted = texts.ids[:, texts.prompt :].to(device)
    read = [attached for attached, _, _ in target.readers]
    before = _pass(held, made, texts, places, (), [*read, *watched])
    after = before if edits is None else _pass(held, made, texts, places, edits, watched)
    likelihood = before.logp.gather(2, wanted[..., None])[..., 0]
    kl = (after.logp.exp() * (after.logp - before.logp)).sum(2).clamp_min(0)
    token_lists = [texts.new_ids(row) for row in range(len(texts.ids))]
    return TextScores(
        kl=_array((kl * new).sum(1) / count),
        nll=_array(-(likelihood * new).sum(1) / count),
        repetition=np.array([repetition(tokens) for tokens in token_lists]),
        target=_largest(target, before, new, texts.prompt),
        hits=np.array([_share(tokens, target.tokens) for tokens in token_lists]),
        next_before=_array(before.logp[:, 0].exp()),
        next_after=_array(after.logp[:, 0].exp()),
        moved={
            sae.name: (_means(sae, before, new, texts), _means(sae, after, new, texts))
            for sae in watched
        },
        counts=after.counts,
    )


def _pass(
    held: HeldModel,
    made: ReadyEdits,
    texts: GeneratedBatch,
    places: Tensor,
    edits: Sequence[SaeEdits],
    recorded: Sequence[AttachedSae],
) -> _Passed:
    model = held.loaded.model
    hooks = list({sae.hook.canonical: sae.hook for sae in recorded}.values())
    facts = replace(made.facts, roles=texts.roles)
    kept = texts.ids.shape[1] - texts.prompt
    with held.editing(edits, facts, made.saes, hooks) as counts, held.prompt_of(texts.prompt):
        logits = model(
            input_ids=texts.ids[:, :-1].to(held.loaded.device),
            attention_mask=places.long(),
            use_cache=False,
            **positions_of(model, places),
        ).logits
        values = dict(held.recorded)
    return _Passed(torch.log_softmax(logits[:, -kept:].float(), 2), values, counts)


def positions_of(model: Any, real: Tensor) -> dict[str, Tensor]:
    """What a model is told so that padding on the left counts for nothing, as in `generate`."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (real.long().cumsum(1) - 1).clamp_min(0)}


def _largest(target: Target, passed: _Passed, new: Tensor, prompt: int) -> Floats:
    """At the places behind the prompt: those that read new tokens."""
    reading = new[:, 1:]
    best = torch.zeros(len(new), device=new.device)
    for attached, reader, maxima in target.readers:
        values = passed.values[attached.hook.canonical][:, prompt:]
        if values.shape[1] == 0:
            continue
        codes = reader.codes(values.reshape(-1, values.shape[-1])).reshape(*values.shape[:2], -1)
        share = codes / torch.tensor(maxima, dtype=codes.dtype).to(codes.device)
        share = torch.where(reading[..., None], share, torch.zeros_like(share))
        best = torch.maximum(best, share.amax((1, 2)))
    return _array(best)


def _means(sae: AttachedSae, passed: _Passed, new: Tensor, texts: GeneratedBatch) -> Floats:
    """float64 [B, d_sae], the mean activations at the places new tokens came from."""
    values = passed.values[sae.hook.canonical][:, texts.prompt - 1 :]
    means = []
    for row, chosen in zip(values, new, strict=True):
        codes = sae.sae.encode(row[chosen])
        means.append(codes.mean(0) if len(codes) else codes.new_zeros(codes.shape[1]))
    return _array(torch.stack(means))


def _share(tokens: Sequence[int], among: frozenset[int]) -> float:
    return sum(token in among for token in tokens) / len(tokens) if tokens else 0.0


def _array(tensor: Tensor) -> Floats:
    return tensor.cpu().double().numpy()  # Apple's GPUs have no float64


def repetition(tokens: Sequence[int]) -> float:
    """Share of the n-grams of `N_GRAM` tokens that came before. 0 where there is none."""
    grams = [tuple(tokens[i : i + N_GRAM]) for i in range(len(tokens) - N_GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
