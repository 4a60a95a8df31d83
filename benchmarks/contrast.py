"""Are the p-values of contrasts honest, and what do they cost: `python -m benchmarks.contrast DB`.

**Nothing.** The documents of the database are split at random many times, in halves and in a small
set against the rest. Nothing tells the parts apart, so the share of splits in which any feature has
q < 0.05 should be 0.05. Beside it the naive test, which counts tokens: two proportions of active
tokens, with the same adjustment. Likewise targets that are random: numbers, ones among zeros, and
numbers of five documents.

**Planted effects.** In random halves, features made to fire in more documents of A, with values of
their own. Counted is how many have q < 0.05 among all the others.

**Cost.** Seconds and peak memory of a contrast in a process of its own, cold and warm, of the dense
way: a matrix of documents by features, and scipy's test of each column (`--dense`), and of peers on
the same activations (`--peers`, see `benchmarks.peers`). `--documents N` makes the database, of 100
million activations in N documents, unless it is there.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import featuredb
from benchmarks.made_store import build
from benchmarks.synthetic import World
from featuredb.database import Database
from queries.association import q_values
from queries.contrasts.trend import midranks, trend, trends
from queries.contrasts.two_sets import Sides, difference, joined
from queries.pooled import Pairs, Pooled, pairs_of
from queries.tails import two_sided
from queries.units import units_of

SMALL = 100
SIZES = (0.02, 0.05, 0.1, 0.2)
PLANTED = 25
BATCHES = 8


class Documents:
    """The documents of a database with recorded tokens, and the pairs of its first SAE."""

    def __init__(self, db: Database) -> None:
        store, sae = db._store, db.saes[0]
        units = units_of(store, "document")
        self.length = units.lengths(sae)
        self.places = np.flatnonzero(self.length)
        self.d_sae = sae.d_sae
        self.pieces: list[Pairs] = list(Pooled(store, sae, units, "max").map(lambda p: p))
        self.counts: list[Pairs] = list(Pooled(store, sae, units, "count").map(lambda p: p))
        units_active = [np.diff(p.offsets) for p in self.pieces]
        self.active = np.concatenate(units_active).astype(np.float64)

    def split(self, rng: np.random.Generator, n: int) -> npt.NDArray[np.uint8]:
        """n documents at random, and the others."""
        side = np.zeros(len(self.length), np.uint8)
        side[self.places] = 2
        side[rng.choice(self.places, n, replace=False)] = 1
        return side

    def tested(self, n: int) -> npt.NDArray[np.bool_]:
        """As `queries.contrasts.scores.Scores.tested` has it. n: documents of the smaller set."""
        return self.active >= max(5, 0.01 * n)

    def naive(self, side: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """p of two proportions of active tokens, per feature."""
        tokens = [float(self.length[side == which].sum()) for which in (1, 2)]
        fired = []
        for which in (1, 2):
            parts = []
            for p in self.counts:
                weights = p.value.astype(np.float64) * (side[p.unit] == which)
                parts.append(np.bincount(p.feature, weights, minlength=p.end - p.first))
            fired.append(np.concatenate(parts))
        a, b = fired
        pooled = (a + b) / sum(tokens)
        error = np.sqrt(pooled * (1 - pooled) * (1 / tokens[0] + 1 / tokens[1]))
        gap = a / tokens[0] - b / tokens[1]
        return two_sided(np.divide(gap, error, out=np.zeros_like(gap), where=error > 0))


def calibration(documents: Documents, splits: int) -> None:
    """Print how often nothing is found to be something."""
    n = len(documents.places)
    print(f"{splits} random splits of {n:,} documents, {documents.d_sae:,} features")
    print("share of splits with any q < 0.05:")
    print(f"{'':24}{'contrast':>10}{'without correction':>20}{'by tokens':>11}")
    for name, size in (
        ("halves", n // 2),
        *((f"{few} against the rest", few) for few in (SMALL, 1)),
    ):
        rng = np.random.default_rng(0)
        found = np.zeros(3)
        tested = documents.tested(min(size, n - size))
        for _ in range(splits):
            side = documents.split(rng, size)
            sides = Sides.of(side)
            d = joined([difference(p, sides) for p in documents.pieces])
            safe = np.maximum(two_sided(d.corrected(sides)), d.least_p())
            every = safe[tested], d.p(sides)[tested], documents.naive(side)[tested]
            found += [(q_values(each) < 0.05).any() for each in every]
        shares = found / splits
        print(f"{name:24}{shares[0]:>10.3f}{shares[1]:>20.3f}{shares[2]:>11.3f}")


def calibration_of_targets(documents: Documents, splits: int) -> None:
    """Print how often a target that is random goes with something."""
    rng, places = np.random.default_rng(0), documents.places
    print("share of random targets with any q < 0.05:")
    print(f"{'':24}{'contrast':>10}{'without correction':>20}")
    for name, n, ones in (
        ("a number each", len(places), None),
        ("0, and 1 of 30", len(places), 30),
        ("0, and 1 of 1", len(places), 1),
        ("a number each of 5", 5, None),
    ):
        found = np.zeros(2)
        for _ in range(splits):
            y = np.full(len(documents.length), np.nan)
            own = rng.permutation(places)[:n]
            y[own] = rng.normal(size=n) if ones is None else np.arange(n) < ones
            ranks = np.zeros(len(y))
            ranks[own] = midranks(y[own])
            every = trends([trend(p, y, ranks) for p in documents.pieces])
            tested = every.active >= max(5, 0.01 * n)
            plain = np.nan_to_num(every.p(n), nan=1.0)
            safe = np.maximum(two_sided(every.evidence(n)), every.least_p)
            found += [(q_values(p[tested]) < 0.05).any() for p in (safe, plain)]
        print(f"{name:24}{found[0] / splits:>10.3f}{found[1] / splits:>20.3f}")


def planted(documents: Documents) -> None:
    """Print how many planted effects are found."""
    n = len(documents.places)
    print("planted in halves: share of A that a feature fires in besides, and share found")
    rng = np.random.default_rng(1)
    tested = documents.tested(n // 2)
    common = np.flatnonzero(tested & (documents.active < 0.3 * n))
    for size in SIZES:
        found = 0
        for _ in range(BATCHES):
            side = documents.split(rng, n // 2)
            sides = Sides.of(side)
            d = joined([difference(p, sides) for p in documents.pieces])
            evidence = d.corrected(sides)
            for feature in rng.choice(common, PLANTED, replace=False):
                changed = _with_effect(documents, int(feature), side, size, rng)
                one = evidence.copy()
                one[feature] = difference(changed, sides).corrected(sides)[0]
                own = int(np.count_nonzero(tested[:feature]))
                found += bool(q_values(two_sided(one[tested]))[own] < 0.05)
        print(f"  {size:>6.0%}  {found / (PLANTED * BATCHES):.3f}")


def _with_effect(
    documents: Documents,
    feature: int,
    side: npt.NDArray[np.uint8],
    size: float,
    rng: np.random.Generator,
) -> Pairs:
    """A feature's pairs, and more in A."""
    piece = next(p for p in documents.pieces if p.first <= feature < p.end)
    low, high = piece.offsets[feature - piece.first : feature - piece.first + 2]
    unit, value = piece.unit[low:high], piece.value[low:high]
    silent = np.setdiff1d(np.flatnonzero(side == 1), unit)
    more = rng.choice(silent, min(len(silent), round(size * int((side == 1).sum()))), replace=False)
    unit = np.concatenate([unit, more.astype(np.int32)])
    value = np.concatenate([value, rng.choice(value, len(more))])
    return pairs_of(range(1), np.zeros(len(unit), np.int64), unit, value)


def cost(path: str, condition: str) -> None:
    """Print seconds of a first and of later contrasts, and the process's peak memory."""
    seconds, cpu = [], []
    with featuredb.open(path) as db:
        for _ in range(4):
            began, used = time.perf_counter(), time.process_time()
            answer = db.contrast(condition)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"contrast of {answer.n_a:,} and {answer.n_b:,} documents, {answer.tested:,} features "
        f"tested: first {seconds[0]:.2f} s ({cpu[0]:.2f} s of CPU), then {min(seconds[1:]):.2f} s "
        f"({min(cpu[1:]):.2f}), {peak:.2f} GB"
    )


def dense(path: str, condition: str) -> None:
    """Print the cost of the way of others: all in one matrix, then scipy."""
    from scipy import stats

    with featuredb.open(path) as db:
        began = time.perf_counter()
        documents = Documents(db)
        chosen = db.sql(f"SELECT document_id FROM documents WHERE {condition}").fetchall()
        inside = np.zeros(len(documents.length), np.bool_)
        inside[[document for (document,) in chosen]] = True
        matrix = np.zeros((len(inside), documents.d_sae), np.float32)
        for p in documents.pieces:
            matrix[p.unit, p.first + p.feature] = p.value
        filled = time.perf_counter() - began
        began = time.perf_counter()
        test = partial(stats.mannwhitneyu, method="asymptotic")
        test(matrix[inside].astype(np.float64), matrix[~inside].astype(np.float64))
        tested = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"dense: {filled:.2f} s to fill, {tested:.2f} s to test, {peak:.2f} GB")


def tokens(path: str, condition: str, out: Path) -> None:
    """Write all activations of a database by token, and which documents are in A."""
    with featuredb.open(path) as db:
        chosen = db.sql(f"SELECT document_id FROM documents WHERE {condition}").fetchall()
        lengths = db.sql(
            "SELECT sum(n_tokens)::INT64 FROM contexts GROUP BY document_id ORDER BY document_id"
        ).to_arrow_table()[0]
        active = db.sql(
            "SELECT c.first + token_index AS token, feature_id, activation FROM activations JOIN "
            "(SELECT context_id, sum(n_tokens) OVER (ORDER BY context_id) - n_tokens AS first "
            f"FROM contexts) AS c USING (context_id) WHERE sae = '{db.saes[0].name}' ORDER BY token"
        ).to_arrow_table()
        in_a = np.zeros(len(lengths), np.bool_)
        in_a[[document for (document,) in chosen]] = True
        first = np.concatenate(([0], np.cumsum(lengths.to_numpy())))
        token = active["token"].to_numpy()
        np.savez(
            out,
            first_token=first,
            offsets=np.searchsorted(token, np.arange(first[-1] + 1)),
            feature=active["feature_id"].to_numpy().astype(np.int32),
            activation=active["activation"].to_numpy(),
            in_a=in_a,
            d_sae=db.saes[0].d_sae,
        )


def made(path: str, documents: int) -> None:
    """A database of 100 million activations, unless it is there."""
    if not Path(path).exists():
        world = World.of(100_000_000, documents=documents)
        build(Path(path), world, processes=os.cpu_count() or 1, memory=4 << 30, note=print)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("db", nargs="?", default="demo.fdb")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--where", default="topic = 'History'", help="A, of the cost")
    parser.add_argument("--only", choices=("cost", "dense"), help="one part, in this process")
    parser.add_argument("--dense", action="store_true", help="the dense way too")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment that has them")
    parser.add_argument("--documents", type=int, help="make the database, of so many")
    given = parser.parse_args()
    if given.documents:
        made(given.db, given.documents)
    if given.only:
        {"cost": cost, "dense": dense}[given.only](given.db, given.where)
        return
    command = [sys.executable, "-m", "benchmarks.contrast", given.db]
    for part in ("cost", *(("dense",) if given.dense else ())):
        subprocess.run(
            [*command, "--only", part, "--where", given.where],
            check=True,
        )
    if given.peers:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokens.npz"
            tokens(given.db, given.where, path)
            for peer in ("interp_embed", "hypothesaes"):
                subprocess.run([given.peers, "benchmarks/peers.py", peer, path], check=True)
    if given.splits:
        with featuredb.open(given.db) as db:
            documents = Documents(db)
        calibration(documents, given.splits)
        calibration_of_targets(documents, given.splits)
        planted(documents)


if __name__ == "__main__":
    main()
