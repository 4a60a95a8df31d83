"""Monitors over new texts: only the features they watch are encoded, where the SAE allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.monitors.new_alarms import SCHEMA, NewAlarms
from featuredb.steering.rows import encoder_of
from featuredb.store.store import Store
from ingest.attached import AttachedSae, ModelWithSaes
from ingest.corpus.chat import Chat
from ingest.extract.new_text import (
    EncodedText,
    encode_tokenized,
    tokenized_chats,
    tokenized_texts,
)
from ingest.extract.recorded import recorded_model, recorded_saes
from queries.activations import feature_activations
from queries.arguments import check_window
from queries.rules import evaluate
from queries.rules.alarms_sql import TEXT_TOKENS
from queries.rules.stored import Monitor
from queries.rules.tree import Compare, reach

Floats = npt.NDArray[np.float64]
Feature = tuple[str, int]

BATCH = 256
"""Texts that go through the model together."""


class NewText(NamedTuple):
    """A text, or a chat, that a monitor reads."""

    id: str | None
    content: str | Chat


class WatchedFeatures:
    """The features of some monitors, read from a model that runs.

    features: all of them. encoders: of each SAE that has any, at its hook, as few rows as give
    exactly their activations.
    """

    def __init__(self, store: Store, monitors: Sequence[Monitor], where: str | None) -> None:
        self.features: list[Feature] = list(
            dict.fromkeys(feature for monitor in monitors for feature in monitor.rule.features)
        )
        self.store = store
        by_sae: dict[str, list[int]] = {}
        for name, number in self.features:
            by_sae.setdefault(name, []).append(number)
        model = recorded_model(store.snapshot.model, where)
        saes = recorded_saes(model, store.root, store.snapshot, set(by_sae))
        pairs = [_watching(sae, sorted(by_sae[sae.name])) for sae in saes]
        self.loaded = ModelWithSaes(model, tuple(sae for sae, _ in pairs))
        self._columns = [
            {place: self.features.index((sae.name, number)) for place, number in ids.items()}
            for sae, ids in pairs
        ]
        self._stored: dict[Feature, tuple[Floats, Floats]] = {}
        self.labels = {
            (name, number): store.labels.preferred(store.snapshot.sae(name), number)
            for name, number in self.features
        }
        self.maxima = np.array(
            [
                store.features.max_activation(store.snapshot.sae(name))[number]
                for name, number in self.features
            ],
            np.float64,
        )

    def columns(self, number: int, features: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The column of each feature that an SAE's encoder gives, -1 for one not watched."""
        known = self._columns[number]
        return np.array([known.get(int(f), -1) for f in features], np.int64)

    def dense(self, text: EncodedText) -> Floats:
        """The activations of a text, float64 [features, tokens]."""
        grid = np.zeros((len(self.features), len(text.tokens)))
        for number, encoded in enumerate(text.encoded):
            column = self.columns(number, encoded.feature_id)
            kept = column >= 0
            grid[column[kept], encoded.token_index[kept]] = encoded.activation[kept]
        return grid

    def quantile(self, feature: Feature, strength: float) -> float | None:
        """The share of a feature's stored activations that are at most this."""
        if feature not in self._stored:
            name, number = feature
            values = feature_activations(self.store, self.store.snapshot.sae(name), number)[2]
            levels, counts = np.unique(values, return_counts=True)
            shares = np.cumsum(counts) / max(1, len(values))
            self._stored[feature] = levels.astype(np.float64), shares
        known, shares = self._stored[feature]
        at = int(np.searchsorted(known, strength, side="right"))
        if not len(known):
            return None
        return float(shares[at - 1]) if at else 0.0


def _watching(attached: AttachedSae, features: list[int]) -> tuple[AttachedSae, dict[int, int]]:
    """An SAE that encodes as little as gives these features, and what it calls each."""
    sae = attached.sae
    import torch

    encoder = encoder_of(sae.encoder, torch.tensor(features, device=sae.device))
    if encoder is sae.encoder:  # what is active depends on all features
        return attached, {number: number for number in features}
    small = replace(attached, sae=replace(sae, encoder=encoder))
    return small, dict(enumerate(features))


class Watch:
    """Monitors ready to read texts."""

    def __init__(self, store: Store, monitors: Sequence[Monitor], where: str | None) -> None:
        self.monitors = list(monitors)
        self.watched = WatchedFeatures(store, self.monitors, where)
        self._rows = [
            [self.watched.features.index(feature) for feature in monitor.rule.features]
            for monitor in self.monitors
        ]

    def read(self, texts: Sequence[NewText], first: int = 0, window: int = 8) -> NewAlarms:
        """The alarms of some texts. first: the number of the first of them."""
        rows: list[dict[str, Any]] = []
        tokens = 0
        for number, encoded in enumerate(self._encoded(texts)):
            tokens += len(encoded.tokens)
            where = {"text_index": first + number, "text_id": texts[number].id}
            grid = self.watched.dense(encoded)
            for alarm in self.alarms(grid, encoded.roles):
                rows.append(where | alarm | _around(encoded, alarm, window))
        return NewAlarms(pa.Table.from_pylist(rows, SCHEMA), n_texts=len(texts), n_tokens=tokens)

    def alarms(self, grid: Floats, roles: Sequence[str | None] | None) -> Iterator[dict[str, Any]]:
        """The alarms of one text, from the activations [features, tokens] of the watched."""
        if not grid.shape[1]:
            return
        for monitor, own in zip(self.monitors, self._rows, strict=True):
            tokens = _tokens(grid[own], roles)
            held = evaluate.holds(monitor.rule.tree, tokens)
            if not held.any():
                continue
            score = _score(monitor, tokens)
            edges = np.flatnonzero(np.diff(np.concatenate(([0], held.view(np.int8), [0]))))
            for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                inside = slice(start, end)
                yield {
                    "monitor": monitor.name,
                    "token_index": start,
                    "n_tokens": end - start,
                    "role": None if roles is None else roles[start],
                    "score": None if score is None else float(score[inside].max()),
                    **self._strongest(grid[own, inside], [self.watched.features[i] for i in own]),
                }

    def firing(self, grid: Floats, roles: Sequence[str | None] | None, new: int) -> list[str]:
        """The monitors that hold at any of the last `new` tokens of a text, see `alarms`."""
        found = []
        for monitor, own in zip(self.monitors, self._rows, strict=True):
            far = reach(monitor.rule.tree)
            start = 0 if far is None else max(0, grid.shape[1] - new - far)
            tokens = _tokens(grid[own, start:], None if roles is None else roles[start:])
            if evaluate.holds(monitor.rule.tree, tokens)[-new:].any():
                found.append(monitor.name)
        return found

    def _strongest(self, grid: Floats, features: Sequence[Feature]) -> dict[str, Any]:
        """The feature that is largest relative to its maximum, the first of ties."""
        maxima = self.watched.maxima[[self.watched.features.index(f) for f in features]]
        shares = np.nan_to_num(grid / maxima[:, None], nan=0.0)
        token, row = divmod(int(shares.T.argmax()), len(features))
        if shares[row, token] <= 0:
            return dict.fromkeys(("sae", "feature_id", "label", "strength", "quantile"))
        strength = float(grid[row, token])
        return {
            "sae": features[row][0],
            "feature_id": features[row][1],
            "label": self.watched.labels[features[row]],
            "strength": strength,
            "quantile": self.watched.quantile(features[row], strength),
        }

    def _encoded(self, texts: Sequence[NewText]) -> Iterator[EncodedText]:
        """The activations of texts and chats, in order."""
        store, loaded = self.watched.store, self.watched.loaded
        found: dict[int, EncodedText] = {}
        kinds: list[tuple[type, Callable[..., Any]]] = [(str, tokenized_texts)]
        kinds.append((list, tokenized_chats))
        for kind, tokenize in kinds:
            places = [
                i for i, text in enumerate(texts) if isinstance(text.content, str) == (kind is str)
            ]
            if places:
                tokenized = tokenize(store, loaded.model, [texts[i].content for i in places])
                found |= zip(places, encode_tokenized(store, loaded, tokenized), strict=True)
        return (found[i] for i in range(len(texts)))


def watch(
    store: Store,
    monitors: Sequence[Monitor],
    texts: Iterable[NewText],
    where: str | None,
    batch: int = BATCH,
    window: int = 8,
    first: int = 0,
) -> Iterator[NewAlarms]:
    """The alarms of each batch of texts, as they are read. first: the number of the first text."""
    if batch < 1:
        raise QueryError(f"a batch has at least one text, not {batch}")
    check_window(window)
    reading = iter(texts)
    for text in islice(reading, 1):  # the model is loaded once there is something to read
        waiting, reading = Watch(store, monitors, where), chain([text], reading)
        while chunk := list(islice(reading, batch)):
            yield waiting.read(chunk, first, window)
            first += len(chunk)


def _tokens(grid: Floats, roles: Sequence[str | None] | None) -> evaluate.Tokens:
    """The tokens of one text, from the activations [features, tokens] of a rule's features."""
    spoken = None if roles is None else np.array(roles, object)
    return evaluate.Tokens(grid, np.zeros(grid.shape[1], np.int64), spoken)


def _score(monitor: Monitor, tokens: evaluate.Tokens) -> Floats | None:
    """The left side of a rule that is one comparison."""
    tree = monitor.rule.tree
    if not isinstance(tree, Compare) or tree.sign not in (">", ">="):
        return None
    return evaluate.value(tree.left, tokens)


def _around(text: EncodedText, alarm: dict[str, Any], window: int) -> dict[str, str]:
    start = alarm["token_index"]
    shown = min(alarm["n_tokens"], TEXT_TOKENS)
    end = start + shown
    return {
        "before": "".join(text.tokens[max(0, start - window) : start]),
        "text": "".join(text.tokens[start:end]) + ("…" if alarm["n_tokens"] > shown else ""),
        "after": "".join(text.tokens[end : end + window]),
    }
