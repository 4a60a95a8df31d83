"""The whole ingest: corpus, check, plan, partitions, finalise. Run it again and it goes on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

import featuredb
from featuredb.errors import DatabaseNotFoundError, IngestError
from featuredb.files import sweep
from featuredb.layout import Layout
from featuredb.snapshot import Run, Snapshot, read_snapshot
from ingest.inputs import Inputs, load_inputs
from ingest.options import IngestOptions
from ingest.partition import Engine, collect, write
from ingest.plan import (
    Plan,
    Summary,
    check_identity,
    read_plan,
    read_summaries,
)
from ingest.prepare import engine_of, logits_path, make_plan
from ingest.progress import meter, say
from ingest.publish import clean_up, now, publish
from ingest.traces import writing


@dataclass(frozen=True)
class Outcome:
    """How an ingest ended: the published snapshot, and whether there was anything to do."""

    snapshot: Snapshot
    fresh: bool


def ingest(path: str | Path, options: IngestOptions) -> Outcome:
    """Make the database at `path`, or continue making it.

    Interrupted at any moment, the same call continues and ends with the same logical content. A
    database that this very ingest already finished is left as it is. Raises `FeatureDBError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    inputs = load_inputs(options)
    identity = inputs.identity(options)
    with writing(layout, "ingest"):
        published = _published(layout)
        if published is not None:
            if any(run.identity == _digest(identity) for run in published.runs):
                clean_up(layout, published)
                return Outcome(published, fresh=False)
            raise IngestError(
                f"{layout.root} already holds a database of other inputs: "
                "give another path, or delete that one first"
            )
        plan = read_plan(layout)
        if plan is None:
            sweep(layout.root)
            plan = make_plan(layout, inputs, options, identity)
        else:
            check_identity(layout, plan.identity, identity)
        engine = engine_of(layout, plan, inputs, show=options.progress)
        summaries = _run_partitions(engine, options)
        return Outcome(_finalise(layout, plan, summaries, inputs, options), fresh=True)


def _published(layout: Layout) -> Snapshot | None:
    if not layout.current.exists():
        return None
    try:
        return read_snapshot(layout)
    except DatabaseNotFoundError:
        return None


def _digest(identity: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(dict(sorted(identity.items())))).hexdigest()


def _run_partitions(engine: Engine, options: IngestOptions) -> list[Summary]:
    """Every partition, in order; one is written while the next one runs."""
    layout, plan = engine.layout, engine.plan
    done = read_summaries(layout, plan)
    before = sum(s.tokens for s in done.values())
    if done:
        say(f"continuing: {len(done)} of {len(plan.partitions)} partitions are done",
            show=options.progress)  # fmt: skip
    with (
        meter(int(engine.starts[-1]), before, show=options.progress) as gauge,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        writing: Future[Summary] | None = None
        for number in range(len(plan.partitions)):
            if number in done:
                continue
            collected = collect(engine, number, gauge.report)
            if writing is not None:
                finished = writing.result()
                done[finished.partition] = finished
            writing = writer.submit(write, engine, collected)
        if writing is not None:
            finished = writing.result()
            done[finished.partition] = finished
    return [done[number] for number in range(len(plan.partitions))]


def _finalise(
    layout: Layout,
    plan: Plan,
    summaries: list[Summary],
    inputs: Inputs,
    options: IngestOptions,
) -> Snapshot:
    runs = {
        placed.name: [summary.segments[index] for summary in summaries]
        for index, placed in enumerate(inputs.saes)
    }
    logits: dict[str, pa.Table] = {
        p.name: pq.read_table(logits_path(layout, p.name)) for p in inputs.saes
    }
    history = Run(
        number=plan.draft.number,
        identity=_digest(plan.identity),
        started=plan.started,
        finished=now(),
        featuredb=featuredb.__version__,
        corpus=plan.draft.corpora[-1].id,
        saes=tuple(runs),
        tokens=sum(s.tokens for s in summaries),
        activations=sum(s.rows for own in runs.values() for s in own),
        seconds=sum(s.seconds for s in summaries),
        device=str(inputs.model.device),
        host=platform.node(),
    )
    snapshot = publish(
        layout, plan.draft, runs, logits, [history], lambda t: say(t, show=options.progress)
    )
    clean_up(layout, snapshot)
    return snapshot
