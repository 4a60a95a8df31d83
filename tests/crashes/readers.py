"""Processes that query while others write, and check each answer against its snapshot."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import featuredb
from featuredb.database import Database
from tests.content import activations

K = 60
"""More than the stored examples, so that both code paths are used."""


@dataclass(frozen=True)
class Truth:
    """Dense activations of one SAE on each corpus, float32 [contexts, tokens, features], by the
    corpus's source."""

    dense: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def of(cls, databases: dict[str, Path], sae: str) -> Truth:
        """From databases of one corpus each."""
        dense = {}
        for source, path in databases.items():
            with featuredb.open(path) as database:
                corpus, d_sae = database.snapshot.corpora[0], database.snapshot.sae(sae).d_sae
            table = activations(path, sae)
            whole = np.zeros((corpus.n_contexts, corpus.context_size, d_sae), np.float32)
            at = [table.column(i).to_numpy() for i in (1, 2, 0)]
            whole[tuple(at)] = table.column("activation").to_numpy()
            dense[source] = whole
        return cls(dense)

    def top_contexts(self, database: Database, feature: int) -> list[tuple[int, float]]:
        """(context id, maximum) of the K strongest contexts in the reader's snapshot."""
        found = []
        for corpus in database.snapshot.corpora:
            peaks = self.dense[corpus.source][:, :, feature].max(axis=1)
            fired = np.flatnonzero(peaks)
            found += [(float(peaks[i]), corpus.first_context + int(i)) for i in fired]
        found.sort(key=lambda pair: (-pair[0], pair[1]))
        return [(context, peak) for peak, context in found[:K]]

    def fires_in(self, database: Database, context: int) -> dict[int, float]:
        """Feature id to maximum in a context."""
        for corpus in database.snapshot.corpora:
            row = context - corpus.first_context
            if 0 <= row < corpus.n_contexts:
                peaks = self.dense[corpus.source][row].max(axis=0)
                return {int(f): float(peaks[f]) for f in np.flatnonzero(peaks)}
        raise KeyError(context)

    def count(self, database: Database) -> int:
        """Activations of the SAE."""
        held = [self.dense[c.source] for c in database.snapshot.corpora]
        return sum(int((dense != 0).sum()) for dense in held)


def read_on(path: Path, truth: Truth, sae: str, seed: int, stop: Any, told: Any) -> None:
    """Open, query, compare, and open again, until asked to stop. Sends (answers, snapshots seen) or
    the error."""
    chance = random.Random(seed)
    answers, seen = 0, set()
    try:
        while not stop.is_set():
            with featuredb.open(path) as database:
                seen.add(database.snapshot.number)
                # A while with one snapshot: others publish meanwhile.
                until = time.monotonic() + chance.uniform(0.1, 1.5)
                while time.monotonic() < until and not stop.is_set():
                    _ask(database, truth, sae, chance)
                    answers += 1
        told.send((answers, sorted(seen)))
    except BaseException as error:  # the test reports any error
        told.send(f"{type(error).__name__}: {error}")


def _ask(database: Database, truth: Truth, sae: str, chance: random.Random) -> None:
    several = len(database.saes) > 1
    d_sae = database.snapshot.sae(sae).d_sae
    number = chance.randrange(d_sae)
    feature = f"{sae}/{number}" if several else number
    question = chance.randrange(4)
    if question == 0:
        k = chance.choice([5, K])
        got = [(r["context_id"], r["activation"]) for r in database.top_contexts(feature, k=k)]
        assert got == truth.top_contexts(database, number)[:k], (database, feature, k)
    elif question == 1:
        corpus = chance.choice(database.snapshot.corpora)
        context = corpus.first_context + chance.randrange(corpus.n_contexts)
        rows = [r for r in database.fires_in(context, k=10_000) if r["sae"] == sae]
        got_in = {r["feature_id"]: r["activation"] for r in rows}
        assert got_in == truth.fires_in(database, context), (database, context)
    elif question == 2:
        (row,) = database.sql("SELECT count(*) FROM activations WHERE sae = ?", [sae]).fetchall()
        assert row[0] == truth.count(database), database
    else:
        card = database.feature(feature).statistics
        wanted = truth.top_contexts(database, number)
        assert card["max_activation"] == (wanted[0][1] if wanted else None), (database, feature)
