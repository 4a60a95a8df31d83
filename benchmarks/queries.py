"""Latency of each query, warm, on a finished database: median and 95th percentile.

Run ``python -m benchmarks.queries demo.fdb``. Features are drawn from those that fire, evenly
over their order by count, so that dense and rare ones are both measured.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import click
from rich.console import Console
from rich.table import Table

import featuredb

Question = Callable[[int], object]


def timed(question: Question, arguments: list[int]) -> list[float]:
    """Milliseconds of each call, after one call that is not counted."""
    question(arguments[0])
    times = []
    for argument in arguments:
        began = time.perf_counter()
        question(argument)
        times.append(1_000 * (time.perf_counter() - began))
    return times


def cold(database: str, feature: int, rounds: int = 5) -> list[float]:
    """Milliseconds of ``featuredb top`` in a new process."""
    command = [sys.executable, "-m", "featuredb.cli", "top", database, str(feature)]
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(1_000 * (time.perf_counter() - began))
    return times


@click.command()
@click.argument("database")
@click.option("--features", default=40, help="Features asked of each question.")
def main(database: str, features: int) -> None:
    """Print the time of each question on DATABASE, one with a single SAE."""
    db = featuredb.open(database)
    ranked = db.sql("SELECT feature_id FROM features WHERE count > 0 ORDER BY count DESC")
    alive = [f for (f,) in ranked.fetchall()]
    asked = [alive[i * len(alive) // features] for i in range(features)]
    n_contexts = sum(c.n_contexts for c in db.snapshot.corpora)
    contexts = [i * n_contexts // features for i in range(features)]
    questions: list[tuple[str, Question, list[int]]] = [
        ("top contexts, kept ready", lambda f: db.top_contexts(f, k=20), asked),
        ("top contexts, from all activations", lambda f: db.top_contexts(f, k=100), asked),
        ("near, from the graph", lambda f: db.near(f, k=20), asked),
        ("near, exact", lambda f: db.near(f, k=60), asked[:10]),
        ("what fires in a context", lambda c: db.fires_in(c, k=20), contexts),
        ("feature", db.feature, asked),
        ("SQL top_contexts", lambda f: db.sql(f"FROM top_contexts({f})").fetchall(), asked),
        ("SQL feature_activations", lambda f: db.sql(
            f"SELECT count(*) FROM feature_activations({f})").fetchall(), asked),
        ("SQL fires_in", lambda c: db.sql(f"FROM fires_in({c})").fetchall(), contexts),
        ("SQL near", lambda f: db.sql(f"FROM near({f})").fetchall(), asked),
    ]  # fmt: skip
    table = Table("question", "median ms", "95 % ms")
    for name, question, arguments in questions:
        times = timed(question, arguments)
        slow = statistics.quantiles(times, n=20)[-1]
        table.add_row(name, f"{statistics.median(times):.1f}", f"{slow:.1f}")
    times = cold(database, asked[0])
    table.add_row("featuredb top, a new process", f"{statistics.median(times):.0f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
