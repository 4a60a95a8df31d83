"""Build a store of synthetic activations through the real write path, timing each step."""

from __future__ import annotations

import logging
import multiprocessing
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.synthetic import BITS, CONTEXT, VOCABULARY, World
from featuredb.render.progress import log
from featuredb.store import schemas
from featuredb.store.feature_order import read_feature_order
from featuredb.store.files.atomic import folder_in_place
from featuredb.store.files.memory import Budget
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.snapshot import (
    Draft,
    File,
    IngestRecord,
    LoadCheck,
    Model,
    Recording,
    Sae,
    Segment,
    Snapshot,
)
from featuredb.store.unreferenced import clean_up
from featuredb.store.vectors.directions import Directions, write_vectors
from ingest.extract.feature_orders import with_feature_orders
from ingest.extract.runs import Extent, Sinks, write_run
from ingest.publish import publish
from ingest.tokens.bos import Bos
from ingest.tokens.store import CorpusHeader, store_corpus

SAE = "made"
_EVERY_S = 0.1


class Stage(msgspec.Struct):
    """A step of publishing: wall-clock seconds, CPU seconds of all processes, peak bytes.

    The peak is of anonymous memory, of the process and those it started together.
    """

    name: str
    wall: float
    cpu: float
    peak: int = 0


class Built(msgspec.Struct):
    """Statistics of building a store. write_cpu: CPU seconds of sorting and writing all runs."""

    activations: int
    tokens: int
    write_cpu: float
    write_wall: float
    write_peak: int
    stages: list[Stage]


def build(
    folder: Path, world: World, *, processes: int, memory: int, note: Callable[[str], None]
) -> Built:
    """Make the store at `folder`, its runs written by `processes` processes, then published.

    memory: bytes for publishing to work in. note: called with progress messages.
    """
    layout = Layout(folder)
    note("storing the corpus and the directions")
    draft = store_texts(layout, world)
    firsts = world.first_contexts()
    note(f"writing {world.partitions} runs")
    began = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        work = partial(write_partition, folder, world)
        written = list(pool.map(work, range(world.partitions), firsts[:-1].tolist()))
    write_wall = time.perf_counter() - began
    runs = [segment for segment, _, _ in written]
    stages = _published(layout, draft, runs, world, memory, note)
    return Built(
        activations=sum(s.rows for s in runs),
        tokens=sum(s.recorded_tokens for s in runs),
        write_cpu=sum(seconds for _, seconds, _ in written),
        write_wall=write_wall,
        write_peak=max(peak for _, _, peak in written),
        stages=stages,
    )


def store_texts(layout: Layout, world: World) -> Draft:
    """Store everything except the activations."""
    layout.root.mkdir(parents=True)
    # How often each feature fires in a billion tokens.
    counts = (world.density * 1e9).astype(np.int64)
    return with_feature_orders(layout, _draft(layout, world), {SAE: counts})


def write_partition(
    folder: Path, world: World, number: int, first_context: int
) -> tuple[Segment, float, int]:
    """Write a run. Gives it, the CPU seconds it took, and the process's peak of memory so far."""
    layout = Layout(folder)
    codes = world.codes(number)
    documents = world.documents(number)
    none = Sinks(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    end = first_context + int(documents.n_contexts.sum())
    extent = Extent(first_context, end, int(documents.n_tokens.sum()))
    began = time.process_time()
    path = layout.relative(layout.feature_order(SAE, 1))
    order = read_feature_order(ParquetFiles(layout.root), path)
    segment = write_run(
        layout, f"r000001-{number:06d}-0", SAE, world.features, codes, none, extent, order
    )
    seconds = time.process_time() - began
    return segment, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _draft(layout: Layout, world: World) -> Draft:
    header = CorpusHeader(
        id="0",
        source="made",
        fingerprint=str(world.seed),
        context_size=CONTEXT,
        stride=None,
        bos=Bos(None, None),
        metadata=pa.schema([("topic", pa.string())]),
        first_document=0,
        first_context=0,
        vocab_size=VOCABULARY,
    )
    corpus = store_corpus(layout, header, map(world.batch, range(world.partitions)))
    decoder, encoder = world.directions()
    sae = Sae(
        name=SAE,
        source="made",
        format="made",
        architecture="relu",
        sha256="0",
        hook="blocks.0.hook_resid_post",
        hook_out=None,
        d_in=world.dimensions,
        d_out=world.dimensions,
        d_sae=world.features,
        encode_dtype="float32",
        check=LoadCheck(0, world.l0, 1.0, 0.0, 1.0, None),
    )
    return Draft(
        number=1,
        position_bits=BITS,
        model=Model(
            "made", "made", None, "0", "0", "Made", "float32", world.dimensions, 1, VOCABULARY
        ),
        recording=Recording(keep_bos=False, keep_sinks=False, values="float16"),
        vocabulary=_vocabulary(layout, world),
        corpora=(corpus,),
        saes=(sae,),
        vectors=(write_vectors(layout, SAE, Directions(decoder, encoder)),),
    )


def _vocabulary(layout: Layout, world: World) -> File:
    final = layout.corpora / "vocabulary"
    words = pa.array(world.words, pa.string())
    with folder_in_place(final) as folder:
        table = pa.table(
            [
                pa.array(range(VOCABULARY), pa.uint32()),
                words.cast(pa.binary()),
                words,
                pa.array([False] * VOCABULARY),
            ],
            schema=schemas.VOCABULARY,
        )
        pq.write_table(table, folder / "vocabulary.parquet")
        return file_entry(layout, folder / "vocabulary.parquet", folder, final, VOCABULARY)


def _published(
    layout: Layout,
    draft: Draft,
    runs: list[Segment],
    world: World,
    memory: int,
    note: Callable[[str], None],
) -> list[Stage]:
    """Publish in a separate process, so that only its memory is measured."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_publish, args=(layout.root, draft, runs, world, memory, theirs)
    )
    process.start()
    theirs.close()
    stages: list[Stage] = []
    began, cpu = time.perf_counter(), 0.0
    peak = 0
    name = ""
    while True:
        peak = max(peak, own_memory(process.pid or 0))
        if not ours.poll(_EVERY_S):
            continue
        try:
            told, at, spent = ours.recv()
        except EOFError:
            break
        if name:
            stages.append(Stage(name, at - began, spent - cpu, peak))
        name, began, cpu, peak = told, at, spent, 0
        note(told)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"publishing failed with exit status {process.exitcode}")
    return stages


def _publish(
    root: Path, draft: Draft, runs: list[Segment], world: World, memory: int, told: Any
) -> None:
    layout = Layout(root)
    log.setLevel(logging.INFO)
    log.addHandler(_Stages(told))
    log.info("reading the directions")
    snapshot = publish_runs(layout, draft, runs, world, memory)
    log.info("cleaning up")
    clean_up(layout, snapshot)
    log.info("done")
    told.close()


class _Stages(logging.Handler):
    """Sends what is logged, with the times at which it was."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        # perf_counter is one clock for all processes here.
        self._pipe.send((record.getMessage(), time.perf_counter(), _cpu()))


def publish_runs(
    layout: Layout,
    draft: Draft,
    runs: list[Segment],
    world: World,
    memory: int,
) -> Snapshot:
    """Publish the runs that `write_partition` wrote."""
    n = world.features
    empty = pa.array([[]] * n, pa.list_(schemas.TOKEN_LOGIT))
    logits = pa.table([pa.array(range(n), pa.int64()), empty, empty], schema=schemas.LOGITS)
    rows = sum(s.rows for s in runs)
    tokens = draft.corpora[0].n_tokens
    record = IngestRecord(1, "made", "", "", "", "0", (SAE,), tokens, rows, 0.0, "cpu", "here")
    return publish(layout, draft, {SAE: runs}, {SAE: logits}, [record], memory=Budget(memory))


def _cpu() -> float:
    """CPU seconds of this process, all threads, and of those it started that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def own_memory(pid: int) -> int:
    """Bytes of anonymous memory of a process and those it started. 0 once it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        status = (folder / "status").read_text(encoding="ascii")
        children = [
            int(child)
            for task in (folder / "task").iterdir()
            for child in (task / "children").read_text(encoding="ascii").split()
        ]
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    own = int(found[1]) * 1024 if found else 0
    return own + sum(map(own_memory, children))
