"""Measure what steering with each feature does, over neutral prompts.

A feature is set to its stored maximum at the last token of each prompt. Many features are rows of
one batch, which runs only the layers after the hook.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from featuredb.errors import QueryError
from featuredb.render.progress import log, progress
from featuredb.steering.forecast import CollateralForecast
from featuredb.steering.forward import ResumedModel
from featuredb.steering.neutral import NeutralPrompt
from featuredb.steering.output_score import AMPLIFICATION, output_scores
from featuredb.steering.resolve import ResolvedEdit
from featuredb.steering.rows import SaeEdits
from featuredb.steering.token_changes import ROWS, TokenChanges
from featuredb.store import schemas
from featuredb.store.names import parse_feature
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from featuredb.store.user_data import MEASURED, rows_of_sae, user_rows
from ingest.attached import AttachedSae
from ingest.derive.logits import strongest_tokens
from ingest.extract.recorded import recorded
from ingest.model.hooks import HookPoint
from ingest.model.load import LoadedModel, unembedding
from ingest.operations.user_data import refuse_no_writing, write_user_data
from ingest.tokens.vocabulary import known_ids
from queries.arguments import one_or_several

MOVED = 0.1
"""A feature counts as moved if it changes by this share of its own stored maximum."""

_CHUNK = 128
"""Features that are rows of one batch."""

_SAVE_SECONDS = 60.0
"""Results are published this often: what a kill may lose."""


def measure_features(
    path: Path,
    features: Sequence[int | str] | None,
    prompts: Sequence[str],
    where: str | None = None,
) -> list[tuple[str, int]]:
    """See `featuredb.measure`. where: the model is now. Returns SAE and number of each feature."""
    if not prompts or isinstance(prompts, str):
        raise QueryError("give prompts as a list of at least one text")
    store = Store.open(path)
    chosen = _chosen(store, features)
    refuse_no_writing(path, "measure")
    loaded = recorded(store, where)
    with progress("features", "tokens") as bar:
        for attached in loaded.saes:
            record = store.snapshot.sae(attached.name)
            wanted = chosen.get(attached.name, [])
            todo = _not_there(store, record, wanted, len(prompts))
            if len(todo) < len(wanted):
                log.info(f"{len(wanted) - len(todo):,} features are measured already")
            if not todo:
                continue
            measurement = _Measurement(store, loaded.model, loaded.saes, attached, prompts)
            bar.start(f"measuring {attached.name}", len(todo))
            for rows in _saved_up(measurement, todo, bar):
                write_user_data(path, MEASURED, rows, "measure")
    store.close()
    return [(name, feature) for name, numbers in chosen.items() for feature in numbers]


def _chosen(store: Store, features: Sequence[int | str] | None) -> dict[str, list[int]]:
    """The features to measure that ever fire, by SAE. None for all."""
    chosen: dict[str, list[int]] = {}
    if features is None:
        for sae in store.snapshot.saes:
            chosen[sae.name] = np.flatnonzero(store.features.count(sae)).tolist()
        return chosen
    for feature in one_or_several(features):
        sae, number = parse_feature(store.snapshot, feature)
        if store.features.count(sae)[number] == 0:
            raise QueryError(
                f"feature {sae.name}/{number} never fires, so it has no maximum to be set to"
            )
        chosen.setdefault(sae.name, []).append(number)
    return {name: sorted(set(numbers)) for name, numbers in chosen.items()}


def _not_there(store: Store, record: Sae, wanted: Sequence[int], n_prompts: int) -> list[int]:
    """Those that are not measured yet, at their maximum as it is now, over as many prompts."""
    rows = rows_of_sae(user_rows(store.files, store.snapshot, MEASURED), record)
    maxima = store.features.max_activation(record)
    columns = (rows.column(name).to_pylist() for name in ("feature_id", "strength", "n_prompts"))
    there = {f for f, at, n in zip(*columns, strict=True) if at == maxima[f] and n == n_prompts}
    return [feature for feature in wanted if feature not in there]


def _saved_up(measurement: _Measurement, todo: Sequence[int], bar: Any) -> Iterator[pa.Table]:
    """Rows in pieces of about a minute's work. Interrupted, what there is comes first."""
    pending: list[pa.Table] = []
    saved = time.monotonic()
    try:
        for start in range(0, len(todo), _CHUNK):
            chunk = todo[start : start + _CHUNK]
            pending.append(measurement.rows(chunk))
            bar.advance(len(chunk), f"{len(chunk):,} features")
            if time.monotonic() - saved > _SAVE_SECONDS:
                yield pa.concat_tables(pending)
                pending, saved = [], time.monotonic()
    except KeyboardInterrupt:
        log.info("interrupted: saving what is measured; the same command goes on from there")
        if pending:
            yield pa.concat_tables(pending)
        raise
    if pending:
        yield pa.concat_tables(pending)


class _Measurement:
    """One SAE's features over the prompts."""

    def __init__(
        self,
        store: Store,
        model: LoadedModel,
        saes: Sequence[AttachedSae],
        attached: AttachedSae,
        prompts: Sequence[str],
    ) -> None:
        self._record = store.snapshot.sae(attached.name)
        self._attached, self._model = attached, model
        self._maxima = store.features.max_activation(self._record)
        self._texts = store.texts.token_texts
        self._known = known_ids(model.tokenizer, model.vocab_size)
        self._lens = unembedding(model)
        self._forecast = CollateralForecast(store, self._record, attached.sae)
        self._tenths = {sae.name: _tenth(store, sae) for sae in saes}
        writes = SaeEdits(attached, [self._edit(0, "add", 1.0)]).writes
        with model.lock:
            resumed = ResumedModel(model, writes)
            self._later = [sae for sae in saes if resumed.reaches(sae.hook)]
            hooks = {each.hook.name: each.hook for each in (attached, *self._later)}
            bos = store.snapshot.corpora[0].bos_token_id
            self._prompts = [
                NeutralPrompt(resumed, text, bos, list(hooks.values())) for text in prompts
            ]
        self._inputs = [prompt.values[attached.hook.name] for prompt in self._prompts]
        self._codes = [attached.sae.encode(x)[0] for x in self._inputs]

    @torch.no_grad()
    def rows(self, features: Sequence[int]) -> pa.Table:
        """Rows of `schemas.MEASURED`, without author and time, in the order of `features`."""
        n = len(features)
        ids = torch.tensor(features, device=self._attached.sae.device)
        strengths = torch.from_numpy(self._maxima[np.asarray(features)])
        edits = [self._edit(f, "set", float(v)) for f, v in zip(features, strengths, strict=True)]
        kl, kl_per_unit = torch.zeros(n), torch.zeros(n)
        moved = {sae.name: torch.zeros(n) for sae in self._later}
        spread = {sae.name: torch.zeros(n) for sae in self._later}
        tokens = TokenChanges(n, len(self._known))
        for number, prompt in enumerate(self._prompts):
            per_unit = 1 / (strengths - self._codes[number][ids].cpu()).abs().clamp_min(1e-6)
            with self._model.lock:
                logits, values = prompt.changed(self._deltas(edits, self._inputs[number]))
            divergence = tokens.add(logits, prompt.log_probabilities)
            kl += divergence
            kl_per_unit += divergence * per_unit
            for sae in self._later:
                before = sae.sae.encode(prompt.values[sae.hook.name])
                by = (sae.sae.encode(values[sae.hook.name]) - before).abs()
                if sae.name == self._attached.name:
                    by[torch.arange(n, device=by.device), ids] = 0
                moved[sae.name] += ((by >= self._tenths[sae.name]) & (by > 0)).sum(dim=1).cpu()
                spread[sae.name] += by.sum(dim=1).cpu() * per_unit
        mean = 1.0 / len(self._prompts)
        own = self._attached.name
        others = [sae.name for sae in self._later if sae.name != own]
        return pa.table(
            {
                "sae_sha256": [self._record.sha256] * n,
                "hook": [self._record.hook] * n,
                "feature_id": list(features),
                "strength": strengths.numpy(),
                "n_prompts": [len(self._prompts)] * n,
                "output_score": self._output_scores(features, strengths),
                "kl": (kl * mean).numpy(),
                "kl_per_unit": (kl_per_unit * mean).numpy(),
                "moved": (moved.get(own, torch.zeros(n)) * mean).numpy(),
                "collateral": (spread.get(own, torch.zeros(n)) * mean).numpy(),
                "collateral_forecast": self._forecast.of(features),
                "collateral_others": pa.array(
                    [
                        [
                            {
                                "sae": name,
                                "moved": float(moved[name][row]) * mean,
                                "collateral": float(spread[name][row]) * mean,
                            }
                            for name in others
                        ]
                        for row in range(n)
                    ],
                    pa.list_(schemas.SAE_CHANGE),
                ),
                "raised_tokens": tokens.listed(raised=True, known=self._known, texts=self._texts),
                "lowered_tokens": tokens.listed(raised=False, known=self._known, texts=self._texts),
            },
        )

    def _deltas(self, edits: Sequence[ResolvedEdit], x: Tensor) -> dict[HookPoint, Tensor]:
        """What setting each feature adds to its own row, by the hook it is written at."""
        applied = SaeEdits(self._attached, edits)
        rows = x.expand(len(edits), -1)
        chosen = torch.eye(len(edits), dtype=torch.bool, device=x.device)
        change = applied.change(rows, chosen)
        deltas = {hook: applied.delta(rows, change, hook) for hook in applied.writes}
        nothing = rows.new_zeros(len(edits), self._attached.sae.d_out)
        return {hook: nothing if delta is None else delta for hook, delta in deltas.items()}

    def _output_scores(self, features: Sequence[int], strengths: Tensor) -> pa.Array:
        """Over the first prompt. Null without a logit lens."""
        sae = self._attached.sae
        if self._lens is None or sae.d_out != self._lens.weight.shape[1]:
            return pa.nulls(len(features), pa.float32())
        directions = sae.W_dec[torch.tensor(features, device=sae.device)]
        _, promoted = strongest_tokens(directions, self._lens, self._known)[True]
        value = AMPLIFICATION * float(self._codes[0].max())
        edits = [self._edit(feature, "add", value) for feature in features]
        with self._model.lock:
            logits, _ = self._prompts[0].changed(self._deltas(edits, self._inputs[0]))
        ids = torch.from_numpy(promoted).to(logits.device)
        scores = [
            output_scores(logits[start : start + ROWS], ids[start : start + ROWS])
            for start in range(0, len(logits), ROWS)
        ]
        return pa.array(torch.cat(scores).cpu().numpy())

    def _edit(self, feature: int, op: str, value: float) -> ResolvedEdit:
        return ResolvedEdit.anywhere(self._record, feature, op, value)


def _tenth(store: Store, attached: AttachedSae) -> Tensor:
    """What each feature must change by to count as moved, [d_sae]. 0 where it never fires."""
    maxima = store.features.max_activation(store.snapshot.sae(attached.name))
    tenth = torch.from_numpy(np.abs(np.nan_to_num(maxima, nan=0.0))) * MOVED
    return tenth.to(attached.sae.device)
