"""Every question answered slowly and directly, from dense arrays of stored values.

Shares no code with the store. It loops over every context, token and feature, so that a reader can
compare it with the definitions (`featuredb.store.schemas`) line by line.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from featuredb.store import schemas
from tests.make_store import MadeSae, World, stored

Row = dict[str, Any]


class Oracle:
    """Answers about one `World`, as the rows that `.table.to_pylist()` of an answer gives."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dense = {s.name: stored(world, s) for s in world.saes}
        self.contexts = world.contexts
        self.document_of = [d for d, cs in enumerate(world.documents) for _ in cs]
        self.first = int(world.bos is not None)
        self._statistics: dict[tuple[str, int], Row] = {}

    def sae(self, name: str) -> MadeSae:
        return next(s for s in self.world.saes if s.name == name)

    def top_contexts(
        self,
        sae: str,
        feature: int,
        k: int,
        window: int,
        keep: Callable[[Row], bool] = lambda metadata: True,
        low: float = -math.inf,
        high: float = math.inf,
        counts: Callable[[str, int], bool] = lambda token, index: True,
    ) -> list[Row]:
        """keep: decides on a document's metadata. counts: whether a token's activation counts for
        the context's maximum, by its text and index."""
        found = []
        for context_id, dense in enumerate(self.dense[sae]):
            values = [float(v) for v in dense[:, feature]]
            words = [self.world.vocabulary[t] for t in self.contexts[context_id]]
            places = [i for i, v in enumerate(values) if v != 0 and counts(words[i], i)]
            active = [values[i] for i in places]
            metadata = self._metadata(self.document_of[context_id])
            if active and low <= max(active) <= high and keep(metadata):
                peak = next(i for i in places if values[i] == max(active))
                found.append((-max(active), context_id, peak, values, metadata))
        found.sort(key=lambda entry: entry[:2])
        rows = []
        for rank, (minus, context_id, peak, values, metadata) in enumerate(found[:k], 1):
            tokens = [self.world.vocabulary[t] for t in self.contexts[context_id]]
            start, stop = max(0, peak - window), min(len(tokens), peak + window + 1)
            answer = {
                "sae": sae,
                "feature_id": feature,
                "rank": rank,
                "context_id": context_id,
                "document_id": self.document_of[context_id],
                "activation": -minus,
                "token_index": peak,
                "token": tokens[peak],
                "window_start": start,
                "tokens": tokens[start:stop],
                "activations": values[start:stop],
            }
            # A corpus column is renamed if the answer has a column of that name.
            extra = {f"document_{n}" if n in answer else n: v for n, v in metadata.items()}
            rows.append(answer | extra)
        return rows

    def activations(self, sae: str, feature: int) -> list[tuple[int, int, float]]:
        """(context_id, token_index, activation) of every active token, in text order."""
        return [
            (context_id, token, float(value))
            for context_id, dense in enumerate(self.dense[sae])
            for token, value in enumerate(dense[:, feature])
            if value != 0
        ]

    def near(self, sae: str, feature: int, k: int, by: str) -> list[Row]:
        """By ``decoder`` or ``encoder``: float64 cosines among the SAEs of the same hook."""
        own = self.sae(sae)
        query = _unit(getattr(own, by)[feature])
        found = []
        for order, other in enumerate(self.world.saes):
            directions = getattr(other, by)
            if other.hook != own.hook or directions.shape[1] != len(query):
                continue
            for i, direction in enumerate(directions):
                if (other.name, i) != (sae, feature):
                    score = float(np.float32(np.dot(_unit(direction), query)))
                    found.append((-score, order, i, other.name))
        return self._of(sae, feature, self._named(sorted(found)[:k], "score"))

    def coactive(self, sae: str, feature: int, k: int) -> list[Row]:
        """Jaccard index of the sets of active tokens. Pairs that never fire together are left
        out."""
        active: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for context_id, dense in enumerate(self.dense[sae]):
            for token, other in np.argwhere(dense != 0):
                active[int(other)].add((context_id, int(token)))
        order = [s.name for s in self.world.saes].index(sae)
        own = active[feature]
        found = []
        for other, tokens in active.items():
            if other != feature and own & tokens:
                score = float(np.float32(len(own & tokens) / len(own | tokens)))
                found.append((-score, order, other, sae))
        return self._of(sae, feature, self._named(sorted(found)[:k], "score"))

    def fires_in(self, context_id: int, k: int) -> list[Row]:
        tokens = self.contexts[context_id]
        return self._fires({s: d[context_id] for s, d in self.dense.items()}, tokens, k)

    def fires_in_document(self, document: int, k: int) -> list[Row]:
        """Its contexts one after the other, BOS left out."""
        own = [c for c, d in enumerate(self.document_of) if d == document]
        tokens = [t for c in own for t in self.contexts[c][self.first :]]
        dense: dict[str, Any] = {
            s: np.concatenate([d[c][self.first :] for c in own]) if own else []
            for s, d in self.dense.items()
        }
        return self._fires(dense, tokens, k)

    def recorded_tokens(self) -> int:
        return sum(len(c) - self.first for c in self.contexts)

    def statistics(self, sae: str, feature: int) -> Row:
        """The columns of ``features`` that come from activations."""
        key = (sae, feature)
        if key not in self._statistics:
            self._statistics[key] = self._feature_statistics(sae, feature)
        return self._statistics[key]

    def _feature_statistics(self, sae: str, feature: int) -> Row:
        found = self.activations(sae, feature)
        values = sorted(v for _, _, v in found)
        n = len(values)
        row: Row = {
            "count": n,
            "density": n / max(1, self.recorded_tokens()),
            "n_contexts": len({c for c, _, _ in found}),
            "n_documents": len({self.document_of[c] for c, _, _ in found}),
            "min_activation": min(values, default=None),
            "max_activation": max(values, default=None),
            "mean_activation": math.fsum(values) / n if n else None,
            "std_activation": None,
            "quantiles": [],
            "histogram": [],
            "top_tokens": self._top_tokens(found),
        }
        if n:
            mean = math.fsum(values) / n
            row["std_activation"] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n)
            row["quantiles"] = [
                {"q": q, "value": _quantile(values, Fraction(str(q)))} for q in schemas.QUANTILES
            ]
            row["histogram"] = _histogram(values)
        return row

    def _top_tokens(self, found: list[tuple[int, int, float]]) -> list[Row]:
        by_token: dict[int, list[float]] = defaultdict(list)
        for context_id, token, value in found:
            by_token[self.contexts[context_id][token]].append(value)
        ordered = sorted(by_token.items(), key=lambda item: (-math.fsum(item[1]), item[0]))
        return [
            {
                "token": self.world.vocabulary[token],
                "count": len(values),
                "mean_activation": math.fsum(values) / len(values),
            }
            for token, values in ordered[: schemas.TOP_TOKENS]
        ]

    def _fires(self, dense: dict[str, Any], tokens: list[int], k: int) -> list[Row]:
        found = []
        for order, sae in enumerate(self.world.saes):
            values = dense[sae.name]
            statistics = (self.statistics(sae.name, f) for f in range(len(sae.decoder)))
            maxima = sorted(s["max_activation"] for s in statistics if s["count"])
            typical = _quantile(maxima, Fraction(1, 2)) if maxima else 1.0
            for feature in range(len(sae.decoder)):
                column = [float(v) for v in values[:, feature]] if len(values) else []
                active = [v for v in column if v != 0]
                if not active:
                    continue
                known = self.statistics(sae.name, feature)
                n, largest = known["count"], known["max_activation"] or 0.0
                reach = max(largest, (n * largest + 30 * typical) / (n + 30))
                share = max(active) / reach
                rarity = np.log2((self.recorded_tokens() + 1) / (known["count"] + 1))
                score = float(np.float32(share * rarity))
                found.append((-score, order, feature, sae.name, column, active))
        found.sort(key=lambda entry: entry[:3])
        rows = self._named([entry[:4] for entry in found[:k]], "specificity")
        for row, (*_, column, active) in zip(rows, found, strict=False):
            peak = column.index(max(active))
            row |= {
                "activation": max(active),
                "token_index": peak,
                "token": self.world.vocabulary[tokens[peak]],
                "n_tokens": len(active),
                "activations": column,
            }
        return rows

    @staticmethod
    def _of(sae: str, feature: int, rows: list[Row]) -> list[Row]:
        """The rows of an answer about one feature."""
        return [{"of_sae": sae, "of_feature_id": feature} | row for row in rows]

    def _named(self, found: list[tuple[float, int, int, str]], score: str) -> list[Row]:
        rows = []
        for rank, (minus, _, feature, sae) in enumerate(found, 1):
            known = self.statistics(sae, feature)
            rows.append(
                {
                    "rank": rank,
                    "sae": sae,
                    "feature_id": feature,
                    score: -minus,
                    "density": known["density"],
                    "max_activation": known["max_activation"],
                    "top_tokens": [t["token"] for t in known["top_tokens"]],
                    "promoted_tokens": [],
                    "label": None,
                }
            )
        return rows

    def _metadata(self, document: int) -> Row:
        return {"source": "made", **{n: v[document] for n, v in self.world.metadata.items()}}


def _unit(direction: Any) -> Any:
    wide = np.asarray(direction, np.float64)
    norm = np.linalg.norm(wide)
    return wide / norm if norm else wide


def _quantile(ordered: list[float], q: Fraction) -> float:
    """The smallest value with at least q of the values at or below it."""
    for value in ordered:
        if Fraction(sum(v <= value for v in ordered), len(ordered)) >= q:
            return value
    raise AssertionError("the largest value has all of them at or below it")


def _histogram(values: list[float]) -> list[int]:
    """Equal bins from min(0, min) to max(0, max). A value on an edge is in the lower bin."""
    low, high = Fraction(min(0.0, *values, 0.0)), Fraction(max(0.0, *values, 0.0))
    bins = schemas.HISTOGRAM_BINS
    cells = Counter(
        max(0, math.ceil((Fraction(v) - low) * bins / (high - low)) - 1) for v in values
    )
    return [cells[i] for i in range(bins)]
