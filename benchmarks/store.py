"""Build and query a store of 100 million or a billion activations, and compare with the targets.

Activations are made up with the distribution of real ones (`benchmarks.synthetic`), written through
the real write path and published. Then every question is asked many times, warm, of features of
four classes by density: the five densest, the densest 1 % (head), those around the median, and the
rarest tenth (tail). The same questions are put, in the same process, to the layouts people use
(`benchmarks.baselines`).

With ``--keep DIR`` an existing store is reused. Figures are saved there as JSON, and with two sizes
each latency is compared with that of the smaller one. Run
``python -m benchmarks.store --help``.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

import featuredb
from benchmarks.baselines import Baseline, open_all
from benchmarks.made_store import Built, build
from benchmarks.queries import cold
from benchmarks.synthetic import World
from featuredb.database import Database
from featuredb.store.files.memory import Budget
from featuredb.store.snapshot import Snapshot
from queries.activations import feature_activations

SLOWER = 1.5
"""At most this many times the time of a tenth of the activations."""


class Figure(msgspec.Struct):
    """One measurement. p95: of as many as `times`. least: the target is a lower bound."""

    what: str
    value: float
    unit: str
    target: float | None = None
    p95: float | None = None
    times: int = 1
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met, None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.least else self.value <= self.target


class Compared(msgspec.Struct):
    """Median milliseconds of one question asked of one layout, over so many activations."""

    question: str
    layout: str
    milliseconds: float
    activations: int


class Results(msgspec.Struct):
    """All measurements of one store."""

    activations: int
    tokens: int
    figures: list[Figure] = []
    compared: list[Compared] = []
    notes: list[str] = []


class Asked(msgspec.Struct):
    """Features and contexts to query."""

    top: list[int]
    head: list[int]
    median: list[int]
    tail: list[int]
    contexts: list[int]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of dense features, adjacent by density."""
        return list(pairwise(self.head))[::2]


def ask_about(db: Database, each: int = 40) -> Asked:
    """About `each` features a class and as many contexts, the same on every run."""
    ranked = db.sql("SELECT feature_id FROM features WHERE count > 0 ORDER BY count DESC")
    alive = [int(f) for (f,) in ranked.fetchall()]
    rng = np.random.default_rng(0)
    n_contexts = sum(c.n_contexts for c in db.snapshot.corpora)

    def some(of: Sequence[int]) -> list[int]:
        chosen = rng.choice(len(of), min(each, len(of)), replace=False)
        return [of[i] for i in chosen]

    middle = len(alive) // 2
    return Asked(
        top=alive[:5] * 3,
        head=some(alive[: max(6, len(alive) // 100)]),
        median=some(alive[middle - each : middle + each]),
        tail=some(alive[-len(alive) // 10 :]),
        contexts=[int(c) for c in rng.integers(0, n_contexts, each)],
    )


def timed(question: Callable[[Any], object], about: Iterable[Any]) -> list[float]:
    """Milliseconds of each call, warm: every call is made once before."""
    arguments = list(about)
    for argument in arguments:
        question(argument)
    times = []
    for argument in arguments:
        began = time.perf_counter()
        question(argument)
        times.append(1_000 * (time.perf_counter() - began))
    return times


def figure(what: str, times: Sequence[float], target: float | None = None) -> Figure:
    """The median, with the 95th percentile."""
    slow = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    return Figure(what, statistics.median(times), "ms", target, slow, len(times))


def ask_store(db: Database, asked: Asked) -> list[Figure]:
    """Every question of the store, in Python and SQL."""
    store, sae = db._store, db.saes[0]

    def rows(query: str) -> Callable[[int], object]:
        return lambda f: db.sql(query.format(f)).to_arrow_table()

    def together(pair: tuple[int, int]) -> object:
        return db.sql(
            "SELECT context_id, token_index, a.activation, b.activation "
            f"FROM feature_activations({pair[0]}) AS a "
            f"JOIN feature_activations({pair[1]}) AS b USING (context_id, token_index)"
        ).to_arrow_table()

    classes = {
        "top 5": asked.top,
        "densest 1 %": asked.head,
        "median": asked.median,
        "tail": asked.tail,
    }
    found = []
    for name, features in classes.items():
        found.append(
            figure(f"top contexts from examples, {name}",
                   timed(lambda f: db.top_contexts(f, k=20), features), 3)
        )  # fmt: skip
    targets = {"densest 1 %": 40.0, "median": 5.0}
    for name, features in classes.items():
        times = timed(lambda f: db.top_contexts(f, k=100), features)
        found.append(figure(f"top contexts on the fly, {name}", times, targets.get(name)))
    for name, features in classes.items():
        times = timed(rows("FROM top_contexts({})"), features)
        found.append(figure(f"SQL top_contexts, {name}", times, 10))
    for name, features in classes.items():
        times = timed(lambda f: feature_activations(store, sae, f), features)
        target = 5.0 if name == "median" else None
        found.append(figure(f"all activations, {name}", times, target))
    for name, features in classes.items():
        times = timed(rows("FROM feature_activations({})"), features)
        target = 5.0 if name == "median" else None
        found.append(figure(f"SQL feature_activations, {name}", times, target))
    return [
        *found,
        figure("what fires in a stored context", timed(db.fires_in, asked.contexts), 5),
        figure("SQL fires_in", timed(rows("FROM fires_in({})"), asked.contexts)),
        figure("A and B on the same token, both densest 1 %", timed(together, asked.pairs), 100),
        figure("near, from the graph", timed(db.near, asked.median), 3),
        figure("SQL near", timed(rows("FROM near({})"), asked.median)),
        figure("everything about a feature", timed(db.feature, asked.median)),
        figure("CLI lookup, a new process", cold(str(db.path), f"top {asked.median[0]}"), 500),
    ]


def sizes(snapshot: Snapshot, world: World) -> list[Figure]:
    """Bytes per activation, against the entropy of what was drawn."""
    rows = sum(s.rows for s in snapshot.segments)
    primary = sum(f.file.bytes for s in snapshot.segments for f in s.feature_files) / rows
    second = sum(f.file.bytes for s in snapshot.segments for f in s.token_files) / rows
    other = sum(f.bytes for f in snapshot.files()) / rows - primary - second
    floor = (world.entropies().position + world.entropies().value) / 8
    return [
        Figure("primary copy, by-feature", primary, "B/act", 2.8),
        Figure("primary copy against its entropy floor", primary / floor, "×", 1.25),
        Figure("second copy, by-token", second, "B/act"),
        Figure("both copies", primary + second, "B/act", 5.8),
        Figure("everything else, texts and directions among it", other, "B/act"),
    ]


def building(built: Built, memory: int) -> list[Figure]:
    """Rates of the write path and of publishing, per second of CPU time, which is a core's."""
    millions = built.activations / 1e6
    found = [
        Figure("write path, sort and both copies", millions / built.write_cpu, "M act/s/core",
               5, least=True)
    ]  # fmt: skip
    merging = [s for s in built.stages if s.name.startswith("merging")]
    if merging:
        cpu = sum(s.cpu for s in merging)
        found.append(Figure("compaction", millions / cpu, "M act/s/core", 10, least=True))
        peak = max(s.peak for s in merging) / memory
        found.append(Figure("compaction, peak of own memory to --memory", peak, "×", 1))
    for stage in built.stages:
        found.append(Figure(f"publishing: {stage.name}", stage.wall, "s"))
    peak = max(s.peak for s in built.stages) / memory
    found.append(Figure("publishing, peak of own memory to --memory", peak, "×", 1))
    return found


def ask_baseline(layout: Baseline, asked: Asked, few: int = 3) -> list[Compared]:
    """The questions that any layout can answer, asked a few times, as they may take seconds."""
    questions: list[tuple[str, Callable[[], list[float]]]] = [
        ("all activations, densest 1 %", lambda: timed(layout.activations_of, asked.head[:few])),
        ("all activations, median", lambda: timed(layout.activations_of, asked.median[:few])),
        ("top contexts, densest 1 %", lambda: timed(layout.top_contexts, asked.head[:few])),
        ("top contexts, median", lambda: timed(layout.top_contexts, asked.median[:few])),
        ("what fires in a context", lambda: timed(layout.fires_in, asked.contexts[:few])),
        ("A and B on the same token",
         lambda: timed(lambda pair: layout.together(*pair), asked.pairs[:few])),
    ]  # fmt: skip
    return [
        Compared(name, layout.name, statistics.median(ask()), layout.activations)
        for name, ask in questions
    ]


_OURS = {
    "all activations, densest 1 %": "all activations, densest 1 %",
    "all activations, median": "all activations, median",
    "top contexts, densest 1 %": "top contexts from examples, densest 1 %",
    "top contexts, median": "top contexts from examples, median",
    "what fires in a context": "what fires in a stored context",
    "A and B on the same token": "A and B on the same token, both densest 1 %",
}
"""The figure of the store that answers each question of the baselines. Its top contexts come with
their tokens and documents. Those of the others are ids and values."""


def table_maker(db: Database) -> Callable[[Path], None]:
    """Writes all activations, in the order of the primary copy, as a table of a DuckDB file."""

    def make(path: Path) -> None:
        connection = db._store.connection().cursor()
        connection.execute(f"ATTACH '{path}' AS native")
        connection.execute(
            "CREATE TABLE native.activations AS SELECT context_id, token_index, "
            "CAST(feature_id AS INTEGER) AS feature_id, activation FROM activations"
        )
        connection.execute("DETACH native")

    return make


def check_same(db: Database, layout: Baseline, feature: int) -> None:
    """Check that a baseline over all activations gives the store's answers."""
    everything = sum(s.rows for s in db.snapshot.segments)
    ours = len(feature_activations(db._store, db.saes[0], feature)[0])
    if layout.activations == everything and layout.activations_of(feature) != ours:
        raise RuntimeError(f"{layout.name} and the store disagree about feature {feature}")


def parse_count(text: str) -> int:
    """``100M`` or ``1B``. Raises `click.BadParameter`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a number such as 100M")
    return round(float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[match[2].upper()])


@click.command()
@click.option("--activations", default="100M", help="About how many, as in 100M or 1B.")
@click.option("--keep", type=click.Path(path_type=Path), help="Make it here, or ask what is here.")
@click.option("--memory", default="4GB", help="What publishing is given to work in.")
@click.option("--processes", default=2, help="How many write runs at a time.")
@click.option("--baselines/--no-baselines", default=True, help="Ask other layouts too.")
@click.option("--json", "json_to", type=click.Path(path_type=Path), help="Write figures here.")
def main(
    activations: str,
    keep: Path | None,
    memory: str,
    processes: int,
    baselines: bool,
    json_to: Path | None,
) -> None:
    """Build a store, ask it, and print each target as measured."""
    world = World.of(parse_count(activations))
    bound = Budget.parse(memory).bytes
    folder = Path(tempfile.mkdtemp(prefix="featuredb-bench-")) if keep is None else keep
    own = folder.absolute() / activations.upper()
    out = Console(width=110)
    began = time.perf_counter()

    def note(text: str) -> None:
        Console(stderr=True).print(f"{time.perf_counter() - began:7.1f} s  {text}")

    try:
        built = _built(own, world, processes, bound, note)
        results = measure(own, world, built, bound, processes if baselines else 0, note)
        for smaller in _others(folder, results):
            results.figures += grown(results, smaller)
        data = msgspec.json.encode(results)
        (own / "results.json").write_bytes(data)
        if json_to is not None:
            json_to.write_bytes(data)
    finally:
        if keep is None:
            shutil.rmtree(folder)
    show(results, world, out)
    note("done")


def _built(
    own: Path, world: World, processes: int, memory: int, note: Callable[[str], None]
) -> Built:
    """The store below `own`, made unless it was made before."""
    record = own / "built.json"
    if record.exists():
        return msgspec.json.decode(record.read_bytes(), type=Built)
    shutil.rmtree(own, ignore_errors=True)
    built = build(own / "store.fdb", world, processes=processes, memory=memory, note=note)
    record.write_bytes(msgspec.json.encode(built))
    return built


def measure(
    own: Path,
    world: World,
    built: Built,
    memory: int,
    processes: int,
    note: Callable[[str], None],
) -> Results:
    """Ask the store, and the baselines unless `processes`, which make them, is 0."""
    results = Results(built.activations, built.tokens)
    results.figures += building(built, memory)
    with featuredb.open(own / "store.fdb") as db:
        results.figures += sizes(db.snapshot, world)
        note("asking the store")
        asked = ask_about(db)
        results.figures += ask_store(db, asked)
        if not processes:
            return results
        for opened in open_all(own / "baselines", world, processes, table_maker(db), note):
            layout = opened()
            note(f"asking {layout.name}")
            check_same(db, layout, asked.median[0])
            results.compared += ask_baseline(layout, asked)
            results.notes.append(
                f"{layout.name}: {layout.activations / 1e6:,.0f} M activations, "
                f"{layout.bytes / layout.activations:.2f} bytes each, "
                f"{layout.load_s:,.1f} s to load"
            )
            layout.close()
    return results


def _others(folder: Path, results: Results) -> list[Results]:
    """What was measured on smaller stores below the same folder, the largest of them."""
    found = [
        msgspec.json.decode(path.read_bytes(), type=Results)
        for path in folder.glob("*/results.json")
    ]
    smaller = [r for r in found if r.activations < results.activations * 0.9]
    return sorted(smaller, key=lambda r: r.activations)[-1:]


def grown(results: Results, smaller: Results) -> list[Figure]:
    """Ratios to the times on fewer activations, for questions that should not depend on the
    corpus."""
    before = {f.what: f.value for f in smaller.figures if f.unit == "ms"}
    names = ("top contexts from examples, median", "SQL top_contexts, median")
    millions = smaller.activations / 1e6
    return [
        Figure(f"{f.what}: to that at {millions:,.0f} M", f.value / before[f.what], "×", SLOWER)
        for f in results.figures
        if f.what in names and f.what in before
    ]


def show(results: Results, world: World, out: Console) -> None:
    """The targets, then the same questions in other layouts."""
    entropies = world.entropies()
    out.print(
        f"{results.activations:,} activations, {results.tokens:,} tokens, {world.features:,} "
        f"features; {os.cpu_count()} cores. Entropy: position {entropies.position:.2f} bits "
        f"({entropies.position_in_documents:.2f} knowing documents), value {entropies.value:.2f}"
    )
    table = Table("what", "measured", "95 %", "target", "met")
    for f in results.figures:
        unit = f" {f.unit}"
        sign = "≥" if f.least else "≤"
        met = {None: "", True: "yes", False: "NO"}[f.met]
        target = f"{sign} {f.target:g}{unit}" if f.target is not None else ""
        p95 = f"{f.p95:,.1f}" if f.p95 is not None else ""
        table.add_row(f.what, f"{f.value:,.2f}{unit}", p95, target, met)
    out.print(table)
    if not results.compared:
        return
    ours = {f.what: f.value for f in results.figures}
    layouts = list(dict.fromkeys(c.layout for c in results.compared))
    table = Table("milliseconds, and times featuredb's", "featuredb", *layouts)
    for question, name in _OURS.items():
        cells = [
            f"{c.milliseconds:,.0f} ({c.milliseconds / ours[name]:,.0f} ×)"
            for layout in layouts
            for c in results.compared
            if (c.question, c.layout) == (question, layout)
        ]
        table.add_row(question, f"{ours[name]:,.1f}", *cells)
    out.print(table)
    for line in results.notes:
        out.print(line)


if __name__ == "__main__":
    main()
