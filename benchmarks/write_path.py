"""The write path alone: writing both copies of a run, merging runs, and counting co-activation.

No model: activations are made up, with the shape that real ones have. Each of 16,384 features has
a density drawn log-normally and cut to between 1e-6 and 0.2, scaled so that 39 features are active
per token. Features are bursty: one that fires in a context fires there some twenty times as often
as elsewhere, so of a token's features most have fired in the same context before. Values are
log-normal, rounded to float16. Contexts have 256 tokens.

Rates are per second of CPU time, all threads counted, which is what a core does; the wall clock is
shown beside them. Merging includes the statistics and examples that are made on the way. Writing
and merging are repeated and medians taken. Run ``python -m benchmarks.write_path --help``.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from featuredb import schemas
from featuredb.layout import Layout
from featuredb.snapshot import Segment
from ingest.compact import Compaction, Merged, Place, compact_segments, write_bucket
from ingest.derive.coactivation import coactivation
from ingest.derive.statistics import TokenLookUp
from ingest.merge import MergedSegments
from ingest.runs import Codes, Extent, Sinks, write_run

CONTEXT = 256
BITS = schemas.position_bits(CONTEXT)
VOCABULARY = 50_000
BURST = 20.0


class Timed(NamedTuple):
    """Seconds of one round."""

    cpu: float
    wall: float


def densities(d_sae: int, l0: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Share of tokens on which each feature fires, float64 [d_sae]; they sum to `l0`."""
    drawn = np.exp(rng.normal(np.log(4e-4), 2.2, d_sae))
    for _ in range(20):
        drawn = np.clip(drawn * (l0 / drawn.sum()), 1e-6, 0.2)
    return drawn


def made_codes(contexts: int, density: npt.NDArray[np.float64], rng: np.random.Generator) -> Codes:
    """Activations of `contexts` contexts, in token order, as a partition collects them."""
    here = np.minimum(1.0, density * BURST)
    positions, features = [], []
    for context in range(contexts):
        on = np.flatnonzero(rng.random(len(density)) < here)
        fires = rng.random((CONTEXT, len(on)), np.float32) < (density[on] / here[on])
        token, which = np.nonzero(fires)
        positions.append(((context << BITS) | token).astype(np.uint32))
        features.append(on[which].astype(np.uint16 if len(density) <= 1 << 16 else np.uint32))
    position = np.concatenate(positions)
    value = np.exp(rng.normal(0.5, 0.8, len(position))).astype(np.float32)
    return Codes(position, np.concatenate(features), schemas.stored(value))


def timed(work: Callable[[], Any]) -> tuple[Any, Timed]:
    """What `work` gives, and how long it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, Timed(time.process_time() - cpu, time.perf_counter() - wall)


def look_up(contexts: int, rng: np.random.Generator) -> TokenLookUp:
    """Tokens by Zipf's law; four contexts to a document."""
    tokens = (rng.zipf(1.3, contexts * CONTEXT) - 1) % VOCABULARY
    return TokenLookUp(
        lambda context_id: context_id // 4,
        lambda context_id, index: tokens[context_id * CONTEXT + index],
        [f"token{i}" for i in range(VOCABULARY)],
    )


def merge_with(
    layout: Layout, found: TokenLookUp, job: Compaction, folder: Path, places: Sequence[Place]
) -> Iterator[Merged]:
    """`ingest.compact.merge_here`, with tokens that are in no corpus."""
    source = MergedSegments(layout, job.segments, job.d_sae, job.bits)
    yield from map(partial(write_bucket, layout, job, source, found, folder), places)
    source.close()


@click.command()
@click.option("--activations", default=10_000_000, help="Activations of each run.")
@click.option("--runs", default=2, help="Runs that are merged.")
@click.option("--rounds", default=3, help="Times each step is measured.")
@click.option("--features", default=16_384, help="Features of the SAE.")
@click.option("--l0", default=39.0, help="Active features per token.")
def main(activations: int, runs: int, rounds: int, features: int, l0: float) -> None:
    """Print millions of activations per second and core, bytes per activation, peak memory."""
    rng = np.random.default_rng(0)
    density = densities(features, l0, rng)
    contexts = max(1, round(activations / l0 / CONTEXT))
    made = [made_codes(contexts, density, rng) for _ in range(runs)]
    found = look_up(contexts * runs, rng)
    none = Sinks(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    folder = Path(tempfile.mkdtemp(prefix="featuredb-bench-"))
    layout = Layout(folder)
    writing: list[Timed] = []
    merging: list[Timed] = []
    try:
        for _ in range(rounds):
            segments: list[Segment] = []
            for number, codes in enumerate(made):
                extent = Extent(number * contexts, (number + 1) * contexts, contexts * CONTEXT)
                segment, seconds = timed(
                    partial(write_run, layout, f"r{number}", "made", features, codes, none, extent)
                )
                segments.append(segment)
                writing.append(seconds)
            job = Compaction("c0", "made", features, BITS, tuple(segments))
            (merged, _), seconds = timed(
                partial(compact_segments, layout, job, partial(merge_with, layout, found))
            )
            merging.append(seconds)
        counting = timed(partial(coactivation, layout, "made", features, [merged], BITS))[1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    each = sum(len(codes.position) for codes in made) / runs
    steps = {
        "sort and write both copies of a run": (each, writing),
        f"merge {runs} runs": (float(merged.rows), merging),
        "co-activation": (float(merged.rows), [counting]),
    }
    _print(segments, merged, steps)


def _print(
    segments: Sequence[Segment],
    merged: Segment,
    steps: Mapping[str, tuple[float, Sequence[Timed]]],
) -> None:
    table = Table("step", "M activations/s per core", "by the wall clock", "cores busy")
    for name, (rows, rounds) in steps.items():
        cpu = statistics.median(t.cpu for t in rounds)
        wall = statistics.median(t.wall for t in rounds)
        table.add_row(
            name, f"{rows / cpu / 1e6:.1f}", f"{rows / wall / 1e6:.1f}", f"{cpu / wall:.2f}"
        )
    out = Console(width=110)
    out.print(table)
    stored = sum(s.rows for s in segments)
    size = {
        "feature-major, runs": sum(f.file.bytes for s in segments for f in s.feature_files)
        / stored,
        "feature-major, merged": sum(f.file.bytes for f in merged.feature_files) / stored,
        "token-major": sum(f.file.bytes for f in merged.token_files) / stored,
    }
    told = ", ".join(f"{name} {value:.2f}" for name, value in size.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.print(f"{stored:,} activations; bytes per activation: {told}; peak memory {peak:,.0f} MB")


if __name__ == "__main__":
    main()
