"""The host's side of an ingest alone: ready activations at a set rate, and nothing but writing.

No model runs. The activations of one partition are made once and handed over batch by batch, as a
GPU would give them, to the code that an ingest writes with: gathered, sorted both ways, written,
hashed. Each row of the table is one number of writing threads. Its files must be those of the first
row, byte for byte. CPU time is that of the whole process, so it can be read on a busy machine.

Run ``python -m benchmarks.feed --help``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.made_store import SAE, store_texts
from benchmarks.synthetic import BITS, World
from featuredb.store.files.memory import keep_freed_memory
from featuredb.store.layout import Layout
from featuredb.store.positions import context_of, token_of
from featuredb.store.snapshot import Draft
from ingest.attached import AttachedSae
from ingest.extract.batches import Batch, cut
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import Recorded
from ingest.extract.partition import Extractor, gather
from ingest.extract.writers import Writers
from ingest.run_plan import Partition, RunPlan, Summary, write_plan
from ingest.tokens.contexts import ranges

_BATCH_TOKENS = 32_768

Fed = list[tuple[Batch, list[Recorded]]]


class Measured(NamedTuple):
    """One run. seconds, cpu: of all of it. waiting: seconds that the feed waited for writers."""

    activations: int
    seconds: float
    cpu: float
    waiting: float
    hashes: list[str]


def ready(world: World, saes: int) -> list[Fed]:
    """The batches of one partition, with the same activations for each SAE."""
    codes, documents = world.codes(0), world.documents(0)
    context = context_of(codes.position, BITS).astype(np.int64)
    starts = np.searchsorted(context, np.arange(int(documents.n_contexts.sum()) + 1))
    # Tokens of each context that fire: where a batch ends matters little here.
    last = np.maximum.reduceat(token_of(codes.position, BITS), starts[:-1]) + 1
    lengths = last.astype(np.int64)
    none = np.empty(0, np.int64)
    fed: list[Fed] = []
    for rows in cut(lengths, _BATCH_TOKENS):
        counts = np.diff(starts)[rows]
        at = ranges(starts[rows], counts)
        recorded = Recorded(
            np.arange(len(at), dtype=np.int32),
            np.repeat(np.arange(len(rows)), counts),
            token_of(codes.position[at], BITS).astype(np.int64),
            codes.feature_id[at].astype(np.uint32),
            codes.activation[at],
            int(lengths[rows].sum()),
            none,
            none,
            none.astype(np.float32),
        )
        batch = Batch(rows, lengths[rows], np.empty((0, 0), np.int64))
        fed.append([(batch, [recorded] * saes)])
    return fed


def extractor_of(folder: Path, draft: Draft, saes: int, partitions: int) -> Extractor:
    """An extractor without a model, whose partitions are all the same contexts."""
    layout = Layout(folder)
    (made,) = draft.saes
    names = [f"{SAE}{number}" for number in range(saes)]
    draft = msgspec.structs.replace(
        draft, saes=tuple(msgspec.structs.replace(made, name=name) for name in names)
    )
    n_contexts = draft.corpora[0].n_contexts
    plan = RunPlan(
        id="feed",
        identity={},
        started="",
        batch_tokens=_BATCH_TOKENS,
        sink_norms=dict.fromkeys(names),
        draft=draft,
        corpora=(draft.corpora[0].id,),
        saes=tuple(names),
        partitions=(Partition(0, n_contexts),) * partitions,
    )
    layout.staging.mkdir(parents=True, exist_ok=True)
    write_plan(layout, plan)
    sae: Any = SimpleNamespace(d_sae=made.d_sae)
    hook: Any = None
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    attached = [AttachedSae(name, sae, hook) for name in names]
    return Extractor(layout, plan, model, attached, (), DeviceMemory(_BATCH_TOKENS))


class Feed:
    """Hands over batches at a rate. rate: activations per second, 0 for as fast as taken."""

    def __init__(self, fed: Sequence[Fed], rate: float) -> None:
        self._fed = fed
        self._rate = rate
        self.given = 0
        self._due = time.perf_counter()

    def batches(self) -> Iterator[Fed]:
        """The batches of one partition, none before its time."""
        for batch in self._fed:
            count = sum(len(recorded.place) for _, each in batch for recorded in each)
            if self._rate:
                self._due = max(self._due, time.perf_counter() - 0.1) + count / self._rate
                time.sleep(max(0.0, self._due - time.perf_counter()))
            self.given += count
            yield batch


def run(extractor: Extractor, fed: Sequence[Fed], threads: int, rate: float) -> Measured:
    """Feed every partition and write it with so many threads."""
    feed, waiting = Feed(fed, rate), 0.0
    summaries: list[Summary] = []
    began, cpu = time.perf_counter(), time.process_time()
    with Writers(extractor, threads) as writers:
        pending: deque[Future[Summary]] = deque()
        for number in range(len(extractor.plan.partitions)):
            packed = (
                [(part, [extractor.pack(n, part, each) for n, each in enumerate(recorded)])]
                for parts in feed.batches()
                for part, recorded in parts
            )
            collected = gather(extractor, number, packed, time.monotonic(), lambda *_: None)
            waits = time.perf_counter()
            if len(pending) == writers.partitions:
                summaries.append(pending.popleft().result())
            waiting += time.perf_counter() - waits
            pending.append(writers.submit(collected))
            del collected
        summaries += [future.result() for future in pending]
    seconds = time.perf_counter() - began
    segments = [segment for summary in summaries for segment in summary.segments]
    files = [file.file.sha256 for segment in segments for file in segment.feature_files]
    files += [file.file.sha256 for segment in segments for file in segment.token_files]
    return Measured(feed.given, seconds, time.process_time() - cpu, waiting, files)


@click.command()
@click.option("--activations", default=4_000_000, help="In a partition, of one SAE.")
@click.option("--partitions", default=6)
@click.option("--saes", default=1)
@click.option("--features", default=16_384, help="Of an SAE.")
@click.option("--l0", default=50.0)
@click.option("--rate", default=0.0, help="Million activations/s to feed, 0 for as fast as taken.")
@click.option("--writers", default="1,2,3", help="Numbers of writing threads, one a row.")
@click.option("--rounds", default=2, help="How often each row runs, in turn; the best is shown.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write. Default: /tmp.")
def main(
    activations: int,
    partitions: int,
    saes: int,
    features: int,
    l0: float,
    rate: float,
    writers: str,
    rounds: int,
    folder: Path | None,
) -> None:
    """Print what the host sustains, by number of writing threads."""
    keep_freed_memory()  # as an ingest does
    world = World(1, round(activations / l0), features=features, l0=l0)
    own = Path(tempfile.mkdtemp(prefix="featuredb-feed-", dir=folder))
    rows: dict[int, list[Measured]] = {int(n): [] for n in writers.split(",")}
    try:
        draft = store_texts(Layout(own / "feed.fdb"), world)
        extractor = extractor_of(own / "feed.fdb", draft, saes, partitions)
        fed = ready(world, saes)
        for _ in range(rounds):
            for threads, measured in rows.items():
                measured.append(run(extractor, fed, threads, rate * 1e6))
    finally:
        shutil.rmtree(own)
    show(rows, rate)


def show(rows: dict[int, list[Measured]], rate: float) -> None:
    """One row for each number of writing threads."""
    first = next(iter(rows.values()))[0]
    table = Table("writers", "M activations/s", "ns CPU each", "cores busy", "waiting", "files")
    for threads, measured in rows.items():
        best = min(measured, key=lambda each: each.seconds)
        cpu = min(each.cpu for each in measured)
        table.add_row(
            str(threads),
            f"{best.activations / best.seconds / 1e6:.1f}",
            f"{cpu / best.activations * 1e9:.0f}",
            f"{best.cpu / best.seconds:.2f}",
            f"{best.waiting / best.seconds:.0%}",
            "same" if all(each.hashes == first.hashes for each in measured) else "DIFFER",
        )
    fed = f"{rate:g} M activations/s" if rate else "as fast as taken"
    out = Console()
    out.print(table)
    out.print(f"{first.activations:,} activations, fed {fed}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
