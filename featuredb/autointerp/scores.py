"""Scores of a label, as Delphi has them, and at the density that the store knows.

Delphi's examples are half active. A feature is active in a small share p of all contexts, so a
label that seems precise on them may be wrong most of the time. With the share t of active contexts
that are found (each example weighted by the contexts it stands for), and the share f of silent
contexts, drawn at random, that are taken for active::

    precision = p t / (p t + (1 - p) f)        F1 = 2 precision t / (precision + t)
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, NamedTuple

from featuredb.autointerp import prompts
from featuredb.autointerp.examples import NEGATIVES, Evidence, Example
from featuredb.endpoint import Endpoint
from featuredb.errors import QueryError
from featuredb.labels.delphi import above
from queries.tails import wilson

SHOWN = 5
"""Passages per question, as Delphi's default."""

INTRUSIONS = 20
"""Questions for an intruder."""


class Score(NamedTuple):
    """One number of a label. details: how it came about."""

    scorer: str
    value: float
    details: dict[str, Any]

    @property
    def spelled(self) -> str:
        """The details as JSON."""
        return json.dumps(self.details, ensure_ascii=False, allow_nan=False)


@dataclass
class Answers:
    """What an endpoint said so far. malformed: answers that could not be read. embedding: the
    name of its model for embeddings."""

    endpoint: Endpoint
    malformed: int = 0
    embedding: str | None = None

    def choices(self, messages: prompts.Messages, n: int) -> list[bool | None]:
        """Yes or no for each of n passages, None for each where the answer cannot be read."""
        answer = prompts.read_choices(self.endpoint.ask(messages), n)
        if answer is None:
            self.malformed += 1
            return [None] * n
        return list(answer)

    def number(self, messages: prompts.Messages, n: int) -> int | None:
        """One of n passages, None where the answer cannot be read."""
        answer = prompts.read_number(self.endpoint.ask(messages), n)
        self.malformed += answer is None
        return answer


Scorer = Callable[[str, Evidence, Answers, random.Random], list[Score]]


def detection(label: str, evidence: Evidence, answers: Answers, rng: random.Random) -> list[Score]:
    """Does a passage have what the label says?"""
    examples = _shuffled([*evidence.test, *evidence.negatives], rng)
    said: list[bool | None] = []
    for some in _batches(examples):
        said += answers.choices(prompts.detection(label, some), len(some))
    return _judged("detection", examples, said, evidence.share)


def fuzz(label: str, evidence: Evidence, answers: Answers, rng: random.Random) -> list[Score]:
    """Are the marked words what the label says? In silent contexts as many are marked at random."""
    marks = [sum(example.marked) for example in evidence.test]
    usual = max(1, round(sum(marks) / max(1, len(marks))))
    examples = _shuffled([*evidence.test, *evidence.negatives], rng)
    passages = [_marked(example, usual, rng) for example in examples]
    said: list[bool | None] = []
    for some in _batches(passages):
        said += answers.choices(prompts.fuzzing(label, some), len(some))
    return _judged("fuzz", examples, said, evidence.share)


def intruder(_: str, evidence: Evidence, answers: Answers, rng: random.Random) -> list[Score]:
    """Which of five passages is the silent one? Needs no label: how alike are active ones?"""
    tenths = sorted({example.tenth for example in evidence.test})
    right, asked = 0, 0
    silent = _shuffled(evidence.negatives, rng)[:INTRUSIONS]
    for number, stranger in enumerate(silent):
        own = _alike(evidence.test, tenths[number % len(tenths)])
        shown = [e.spelled(e.marked) for e in rng.sample(own, SHOWN - 1)]
        marks = max(1, round(sum(sum(e.marked) for e in own) / len(own)))
        place = rng.randrange(len(shown) + 1)
        shown.insert(place, _marked(stranger, marks, rng))
        answer = answers.number(prompts.intrusion(shown), len(shown))
        if answer is not None:
            asked += 1
            right += answer == place + 1
    if not asked:
        return []
    low, high = wilson(right, asked)[1:]
    return [Score("intruder", right / asked, {"n": asked, "low": low, "high": high})]


def _alike(test: Sequence[Example], tenth: int) -> list[Example]:
    """Those of a tenth, and where they are too few for a question those of the nearest tenths."""
    nearest = sorted(test, key=lambda example: abs(example.tenth - tenth))
    return nearest[: max(SHOWN - 1, sum(example.tenth == tenth for example in test))]


def embedding(label: str, evidence: Evidence, answers: Answers, _: random.Random) -> list[Score]:
    """How much more alike to the label's embedding the active passages are than the silent."""
    if answers.embedding is None:
        raise QueryError("the score embedding needs the name of an embedding model")
    examples = [*evidence.test, *evidence.negatives]
    texts = [label, *(example.text for example in examples)]
    first, *others = answers.endpoint.embed(texts, answers.embedding)
    alike = [_cosine(first, other) for other in others]
    active = [a for a, e in zip(alike, examples, strict=True) if e.kind == "active"]
    details: dict[str, Any] = {"n": len(alike)}
    for kind in NEGATIVES:
        silent = [a for a, e in zip(alike, examples, strict=True) if e.kind == kind]
        details[f"auroc_{kind}"] = above(active, silent)
    silent = [a for a, e in zip(alike, examples, strict=True) if e.kind != "active"]
    value = above(active, silent)
    return [] if value is None else [Score("embedding", value, details)]


SCORERS: dict[str, Scorer] = {
    "detection": detection,
    "fuzz": fuzz,
    "intruder": intruder,
    "embedding": embedding,
}


def _judged(
    name: str, examples: Sequence[Example], said: Sequence[bool | None], share: float
) -> list[Score]:
    """Delphi's figure, and the one at the true density beside it."""
    answered = [(e, yes) for e, yes in zip(examples, said, strict=True) if yes is not None]
    active = [(e, yes) for e, yes in answered if e.kind == "active"]
    silent = [(e, yes) for e, yes in answered if e.kind != "active"]
    if not active or not silent:
        return []
    found, wrong = (sum(yes for _, yes in side) for side in (active, silent))
    recall, alarms = found / len(active), wrong / len(silent)
    precision = found / (found + wrong) if found + wrong else 0.0
    details: dict[str, Any] = {
        "n_active": len(active),
        "n_silent": len(silent),
        "unanswered": len(examples) - len(answered),
        "accuracy": (found + len(silent) - wrong) / len(answered),
        "precision": precision,
        "recall": recall,
        "f1": _f1(precision, recall),
    }
    for kind in NEGATIVES:
        own = [yes for e, yes in silent if e.kind == kind]
        details[f"false_alarms_{kind}"] = sum(own) / len(own) if own else None
    scores = [Score(name, (recall + 1 - alarms) / 2, details)]
    at_random = [yes for e, yes in silent if e.kind == "random"]
    if at_random:
        weight = sum(e.weight for e, _ in active)
        recall = sum(e.weight * yes for e, yes in active) / weight
        low, high = (
            _precision(share, recall, rate)
            for rate in reversed(wilson(sum(at_random), len(at_random))[1:])
        )
        precision = _precision(share, recall, sum(at_random) / len(at_random))
        details = {
            "density": share,
            "n_silent": len(at_random),
            "precision": precision,
            "precision_low": low,
            "precision_high": high,
            "recall": recall,
        }
        scores.append(Score(f"{name}_at_density", _f1(precision, recall), details))
    return scores


def _precision(share: float, recall: float, alarms: float) -> float:
    found, wrong = share * recall, (1 - share) * alarms
    return found / (found + wrong) if found + wrong else 0.0


def _f1(precision: float, recall: float) -> float:
    both = precision + recall
    return 2 * precision * recall / both if both else 0.0


def _shuffled(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    return rng.sample(examples, len(examples))


def _batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + SHOWN] for start in range(0, len(items), SHOWN)]


def _marked(example: Example, usual: int, rng: random.Random) -> str:
    """A passage with its active tokens marked, or `usual` ones at random where it is silent."""
    if example.kind == "active":
        return example.spelled(example.marked)
    n = len(example.tokens)
    chosen = set(rng.sample(range(n), min(usual, n)))
    return example.spelled([place in chosen for place in range(n)])


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / lengths if lengths else 0.0
