"""The whole ingest: corpus, check, plan, partitions, finalise. Run it again and it goes on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

import featuredb
from featuredb.errors import DatabaseNotFoundError, IngestError
from featuredb.files import sweep
from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Run, Snapshot, read_snapshot
from featuredb.texts import Texts
from ingest.engines import Workers, workers_for
from ingest.inputs import load_inputs
from ingest.options import IngestOptions
from ingest.plan import (
    Plan,
    Summary,
    check_identity,
    read_plan,
    read_summaries,
)
from ingest.prepare import logits_path, make_plan
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
        workers = workers_for(layout, plan, inputs, options)
        # Where others do the work, this process's copy of the model would only take up memory.
        del inputs
        with workers:
            summaries = _run_partitions(layout, plan, workers, options)
            return Outcome(_finalise(layout, plan, summaries, workers, options), fresh=True)


def _published(layout: Layout) -> Snapshot | None:
    if not layout.current.exists():
        return None
    try:
        return read_snapshot(layout)
    except DatabaseNotFoundError:
        return None


def _digest(identity: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(dict(sorted(identity.items())))).hexdigest()


def _run_partitions(
    layout: Layout, plan: Plan, workers: Workers, options: IngestOptions
) -> list[Summary]:
    """Every partition that is not done yet; all summaries, in the plan's order."""
    done = read_summaries(layout, plan)
    before = sum(s.tokens for s in done.values())
    if done:
        say(f"continuing: {len(done)} of {len(plan.partitions)} partitions are done",
            show=options.progress)  # fmt: skip
    missing = [number for number in range(len(plan.partitions)) if number not in done]
    with meter(_tokens(layout, plan), before, show=options.progress) as gauge:
        for summary in workers.run(missing, gauge.report):
            done[summary.partition] = summary
    return [done[number] for number in range(len(plan.partitions))]


def _tokens(layout: Layout, plan: Plan) -> int:
    """Tokens of the corpus as stored, BOS included."""
    texts = Texts(layout.root, plan.draft, ParquetFiles(layout.root))
    return int(texts.index(plan.draft.corpora[-1])[-1, 1])


def _finalise(
    layout: Layout,
    plan: Plan,
    summaries: list[Summary],
    workers: Workers,
    options: IngestOptions,
) -> Snapshot:
    names = [sae.name for sae in plan.draft.saes]
    runs = {
        name: [summary.segments[index] for summary in summaries] for index, name in enumerate(names)
    }
    logits: dict[str, pa.Table] = {name: pq.read_table(logits_path(layout, name)) for name in names}
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
        device=workers.device,
        host=platform.node(),
    )
    note = partial(say, show=options.progress)
    snapshot = publish(layout, plan.draft, runs, logits, [history], note, workers.merge)
    clean_up(layout, snapshot)
    return snapshot
