"""What monitors cost and find: `python -m benchmarks.monitors demo.fdb`.

`--throughput` times 64 watched features over a bare forward pass of the same batches. `--replay`
times replays of rules over all that a database stores; it needs no model. Without either, spam is
the example, see `benchmarks.spam`. What was encoded for it is kept in the cache of the demo.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import torch

import featuredb
from featuredb.monitors.watching import NewText, Watch, WatchedFeatures
from ingest.extract.batches import batches
from ingest.extract.forward import forward
from ingest.extract.new_text import tokenized_texts
from queries.rules.rule import FeatureRule
from queries.rules.stored import Monitor


def throughput(db: featuredb.Database, features: int, rounds: int) -> None:
    """Print tokens per second of a bare forward pass to the hook, and with features watched."""
    sae = db.saes[0].name
    rule = FeatureRule.parse(db._store, f"max({', '.join(f'f{i}' for i in range(features))}) > 20")
    monitors = [Monitor("m", 1, "enabled", rule, "", None, "", "")]
    watched = WatchedFeatures(db._store, monitors, None)
    (attached,) = watched.loaded.saes
    rows = db.sql("SELECT text FROM documents ORDER BY document_id LIMIT 32").fetchall()
    texts = [text for (text,) in rows]
    watch = Watch(db._store, monitors, None)
    tokenized = tokenized_texts(db._store, watched.loaded.model, texts)
    starts = np.concatenate(([0], np.cumsum(tokenized.context_lengths))).astype(np.int64)
    tokens = int(starts[-1])

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches(tokenized.token_ids, starts, 4_096):
                forward(watched.loaded.model, [attached.hook], batch)

    def with_monitor() -> None:
        watch.read([NewText(None, text) for text in texts])

    ratios = []
    for number in range(rounds + 1):
        spent = {}
        for run in (bare, with_monitor) if number % 2 else (with_monitor, bare):
            start, cpu = time.perf_counter(), time.process_time()
            run()
            spent[run.__name__] = time.perf_counter() - start, time.process_time() - cpu
        if number:  # the first round warms up
            pairs = zip(spent["with_monitor"], spent["bare"], strict=True)
            ratios.append([watched / bare for watched, bare in pairs])
            print({name: round(tokens / s) for name, (s, _) in spent.items()}, flush=True)
    wall, cpu = np.median(ratios, axis=0)
    print(f"{sae}: {features} watched features take {wall:.3f} x the time of the bare pass")
    print(f"and {cpu:.3f} x its CPU time; rounds {np.round(np.array(ratios)[:, 1], 3)}")


def replays(db: featuredb.Database, rounds: int) -> None:
    """Print seconds of replays: of features about the median by how often they fire, and of one
    that fires more often than 999 of 1,000."""
    sae = db.saes[0].name
    by_count = "SELECT feature_id, count FROM features WHERE sae = $sae AND count > 0 ORDER BY 2, 1"
    rows = db.sql(by_count, params={"sae": sae}).fetchall()
    middle, dense = len(rows) // 2, rows[int(len(rows) * 0.999)][0]
    counts = dict(rows)
    five = [feature for feature, _ in rows[middle : middle + 5]]
    rules = {
        "a median feature": f"f{five[0]}",
        "a median feature above its 0.99 quantile": f"f{five[0]} > q0.99",
        "two features": f"f{five[0]} > q0.99 or f{five[1]} > q0.99",
        "five features": f"any({', '.join(f'f{f} > q0.99' for f in five)})",
        "a dense feature above its 0.9999 quantile": f"f{dense} > q0.9999",
        "a dense feature": f"f{dense}",
    }
    print(f"{len(rows):,} live features of {sae}\n")
    print("| rule of | activations read | alarms | replay | the first 20 | count |")
    print("| --- |" + " --: |" * 5)
    for name, rule in rules.items():
        asks = (
            partial(db.replay, rule),
            partial(db.replay, rule, k=20),
            partial(db.calibrate, rule),
        )
        seconds: list[list[float]] = [[], [], []]
        for _ in range(rounds + 1):
            for own, ask in zip(seconds, asks, strict=True):
                start = time.perf_counter()
                ask()
                own.append(time.perf_counter() - start)
        read = sum(counts[f] for _, f in FeatureRule.parse(db._store, rule).features)
        alarms = db.replay(rule, k=20).total
        figures = " | ".join(f"{np.median(own[1:]):.2f} s" for own in seconds)
        print(f"| {name} | {read:,} | {alarms:,} | {figures} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("db")
    parser.add_argument("--most", type=int, default=10_000, help="mails of each set")
    parser.add_argument("--tokens", type=int, default=128, help="of each mail")
    parser.add_argument("--stored", type=int, default=500, help="texts of the database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with featuredb.open(given.db) as database:
        if given.throughput:
            throughput(database, given.features, given.rounds)
        elif given.replay:
            replays(database, given.rounds)
        else:
            from benchmarks.spam import example

            how = (given.most, given.tokens, given.stored, given.seed)
            example(database, *how)
