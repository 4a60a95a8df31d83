"""Which strength works: concept, fluency and closeness over a range of strengths.

The scheme of AxBench (arXiv 2501.17148), with measures in place of its judge. Each axis is from 0
to 1, their harmonic mean is the score, the strength is chosen on every other prompt and reported on
the rest:

- concept: the mean of the largest share of its stored maximum at which an edited feature fires when
  the unsteered model reads the text, at most 1, and of whether the text has one of the tokens that
  it fires on most;
- fluency: 1 where the unsteered model finds the text no more perplexing than its own, 0 where 100
  times as much, linear in the logarithm; times 1 minus the share of 3-grams that are repeated more
  than in its own;
- closeness: the cosine of the sentence embeddings of both texts, where an encoder is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.steering.edits import Edit, Edits, parse_edits
from featuredb.steering.generation import GeneratedBatch, Sampling, generate
from featuredb.steering.hooks import held
from featuredb.steering.intervals import Interval
from featuredb.steering.judge import Judge
from featuredb.steering.opened import SteeringOptions, ready
from featuredb.steering.prompts import EncodedPrompt, Prompts, encode_prompts
from featuredb.steering.scoring import Floats, Target, TextScores, score
from featuredb.steering.sentences import SentenceEncoder
from featuredb.steering.steer import batches, edited_labels, refuse_beyond, with_roles
from featuredb.steering.swept import STRENGTHS, SWEPT_TEXTS, Swept
from featuredb.store.store import Store
from queries.strength import Strength

Strengths: TypeAlias = "str | Sequence[str | float]"

_WORST = math.log(100)
"""The rise of the negative log-likelihood at which fluency is 0."""

_WORKS = 0.8
"""Share of the best score that the working range has at least."""


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is measured. encoder, judge, judge_model: as of `Database.sweep`."""

    encoder: str | None = None
    judge: str | None = None
    judge_model: str | None = None


def parse_strengths(strengths: Strengths) -> list[Strength]:
    """From `0,1,2,5,10x`, or a list. Those without a unit have the last one's.

    Raises:
        QueryError: One is no strength, one is given twice, or there are fewer than two.
    """
    given = strengths.split(",") if isinstance(strengths, str) else list(strengths)
    parsed = [Strength.parse(str(each)) for each in given]
    if len(parsed) < 2:
        raise QueryError("a sweep needs at least two strengths, such as 0,1,2,5,10x")
    unit = parsed[-1].unit
    found = [s if s.unit != "activation" else Strength(s.value, unit) for s in parsed]
    if unit == "quantile" and any(not 0 <= s.value <= 1 for s in found):
        raise QueryError("quantiles are from 0 to 1: give each strength its own unit")
    if len(set(found)) < len(found):
        raise QueryError("a strength is given twice: give each once")
    return found


def sweep(
    store: Store,
    prompts: Prompts,
    edits: Edits,
    strengths: Strengths,
    where: str | None,
    options: SteeringOptions,
    sampling: Sampling,
    how: SweepOptions,
) -> Swept:
    """See `featuredb.Database.sweep`."""
    sampling.check()
    range_ = parse_strengths(strengths)
    given = parse_edits(edits, options.method)
    judge = Judge.of(how.judge, how.judge_model)
    encoder = None if judge else SentenceEncoder.find(how.encoder)
    # All are resolved before the model runs: a strength that cannot be fails at once.
    made = [ready(store, _at(given, strength), where, options) for strength in range_]
    model, target = made[0].model, Target.of(made[0])
    encoded = encode_prompts(store, model, prompts)
    refuse_beyond(made[0], encoded, sampling)
    about = ", ".join(edit.name for edit in made[0].resolved)
    rows: list[dict[str, Any]] = []
    with held(model) as it:
        first = 0
        for batch in batches(made[0], encoded):
            chunk = encoded[first : first + len(batch.ids)]
            with it.editing([], with_roles(made[0], batch).facts):
                plain = generate(it, batch, sampling)
            own = score(it, made[0], plain, None, target)
            own_texts = _texts(model.tokenizer, plain)
            for strength, each in zip(range_, made, strict=True):
                with it.editing(each.applied, with_roles(each, batch).facts, each.saes):
                    text = generate(it, batch, sampling)
                found = score(it, each, text, each.applied, target)
                texts = _texts(model.tokenizer, text)
                if judge is not None:
                    axes = judge.rate(_about(store, made[0].resolved), chunk, texts)
                else:
                    close = None if encoder is None else encoder.closeness(own_texts, texts)
                    axes = _axes(found, own, close)
                rows += _rows(first, chunk, strength, texts, found, axes)
            first += len(batch.ids)
    answer = _answer(rows, range_, about, "judge" if judge else None, encoder is not None)
    return replace(answer, labels=edited_labels(made[0]))


def _at(edits: Sequence[Edit], strength: Strength) -> list[Edit]:
    """The edits with another value."""
    return [replace(edit, value=strength.value, unit=strength.unit) for edit in edits]


def _about(store: Store, resolved: Sequence[Any]) -> str:
    """The tokens that the edited features fire on, for a judge."""
    rows = [store.features.row(edit.sae, edit.feature) for edit in resolved]
    lists = store.features.summaries(rows).column("top_tokens").to_pylist()
    return ", ".join(token.strip() for tokens in lists for token in (tokens or ())[:8])


def _texts(tokenizer: Any, texts: GeneratedBatch) -> list[str]:
    return [
        str(tokenizer.decode(texts.new_ids(row), skip_special_tokens=True))
        for row in range(len(texts.ids))
    ]


def _axes(found: TextScores, own: TextScores, closeness: Floats | None) -> dict[str, Floats]:
    """By name, float64 [B] from 0 to 1."""
    concept = (np.clip(found.target, 0, 1) + (found.hits > 0)) / 2
    fluent = np.clip(1 - np.maximum(found.nll - own.nll, 0) / _WORST, 0, 1)
    repeated = np.maximum(found.repetition - own.repetition, 0)
    axes = {"concept": concept, "fluency": fluent * (1 - repeated)}
    return axes if closeness is None else {**axes, "closeness": closeness}


def harmonic(axes: Sequence[Floats]) -> Floats:
    """The harmonic mean, 0 where one is 0."""
    stacked = np.stack(axes)
    with np.errstate(divide="ignore"):
        return np.where((stacked > 0).all(0), len(axes) / (1 / stacked).sum(0), 0.0)


def _rows(
    first: int,
    prompts: Sequence[EncodedPrompt],
    strength: Strength,
    texts: Sequence[str],
    found: TextScores,
    axes: dict[str, Floats],
) -> list[dict[str, Any]]:
    total = harmonic(list(axes.values()))
    return [
        {
            "prompt_index": first + row,
            "prompt": prompts[row].text,
            "held_out": bool((first + row) % 2),
            "strength": str(strength),
            "text": text,
            **{name: float(values[row]) for name, values in axes.items()},
            "score": float(total[row]),
            "perplexity": float(np.exp(min(found.nll[row], 700))),
            "repetition": float(found.repetition[row]),
            "target": float(found.target[row]),
            "hits": float(found.hits[row]),
        }
        for row, text in enumerate(texts)
    ]


def _answer(
    rows: list[dict[str, Any]],
    strengths: Sequence[Strength],
    about: str,
    judged: str | None,
    has_closeness: bool,
) -> Swept:
    def mean(name: str, strength: str, held_out: bool | None = None) -> Interval | None:
        values = [
            row[name]
            for row in rows
            if row["strength"] == strength
            and held_out in (None, row["held_out"])
            and row.get(name) is not None
        ]
        return Interval.of(np.array(values)) if values else None

    names = [str(strength) for strength in strengths]
    chosen_by = [mean("score", name, False) for name in names]
    means = [0.0 if interval is None else interval.mean for interval in chosen_by]
    best = int(np.argmax(means))
    low = high = best
    if means[best] > 0:
        while low > 0 and means[low - 1] >= _WORKS * means[best]:
            low -= 1
        while high + 1 < len(means) and means[high + 1] >= _WORKS * means[best]:
            high += 1
    table = []
    for number, name in enumerate(names):
        out = mean("score", name, True)
        entry: dict[str, Any] = {"strength": name}
        for axis in ("concept", "fluency", "closeness", "score"):
            interval = mean(axis, name)
            entry[axis] = None if interval is None else interval.mean
            if axis == "score" and interval is not None:
                entry |= {"score_low": interval.low, "score_high": interval.high}
        entry |= {
            "choosing_score": means[number],
            "held_out_score": None if out is None else out.mean,
            "held_out_low": None if out is None else out.low,
            "held_out_high": None if out is None else out.high,
            "best": means[best] > 0 and number == best,
            "works": means[best] > 0 and low <= number <= high,
        }
        table.append(entry)
    return Swept(
        pa.Table.from_pylist(table, schema=STRENGTHS),
        texts=pa.Table.from_pylist(rows, schema=SWEPT_TEXTS),
        features=about,
        judged=judged is not None,
        has_closeness=has_closeness or judged is not None,
    )
