"""The whole ingest: corpus, check, plan, partitions, finalise. Run it again and it goes on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import DatabaseNotFoundError, DatabaseNotReadyError, IngestError
from featuredb.store.files.atomic import sweep
from featuredb.store.layout import Layout
from featuredb.store.snapshot import WRITER, IngestRecord, Segment, Snapshot
from featuredb.store.unreferenced import clean_up
from ingest.change import after_the_last_writer, tidy, writing
from ingest.engines import Workers, workers_for
from ingest.inputs import load_inputs
from ingest.options import IngestOptions
from ingest.prepare import logits_path, make_plan
from ingest.progress import meter, say
from ingest.publish import now, publish
from ingest.run_plan import Plan, Summary, check_identity, read_plan, read_summaries


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
            if done_already(published, identity):
                tidy(layout, published)
                return Outcome(published, fresh=False)
            raise IngestError(
                f"{layout.root} already holds a database of other inputs: add a corpus with "
                "`featuredb append`, an SAE with `featuredb add-sae`, or give another path"
            )
        plan = read_plan(layout)
        if plan is None:
            sweep(layout.root)
            plan = make_plan(layout, inputs, options, identity)
        else:
            check_identity(layout, plan.identity, identity)
        workers = workers_for(layout, plan, inputs.reader, options)
        # Where others do the work, this process's copy of the model would only take up memory.
        del inputs
        return Outcome(carry_out(layout, plan, workers, options, None), fresh=True)


def carry_out(
    layout: Layout,
    plan: Plan,
    backend: AbstractContextManager[Workers],
    options: IngestOptions,
    base: Snapshot | None,
) -> Snapshot:
    """Run what is left of a plan and publish it, on top of `base`, the snapshot before."""
    with backend as workers:
        summaries = _run_partitions(layout, plan, workers, options)
        return _finalise(layout, plan, summaries, workers, options, base)


def done_already(snapshot: Snapshot, identity: Mapping[str, str]) -> bool:
    """Whether an ingest of these inputs is in the database, and still all of it."""
    corpora = {corpus.id for corpus in snapshot.corpora}
    saes = {(sae.name, sae.sha256) for sae in snapshot.saes}
    return any(
        record.identity == _digest(identity)
        and corpora.issuperset(record.corpus.split(","))
        and (_of_every_sae(identity) or saes.issuperset(_as_run(record.saes, identity)))
        for record in snapshot.ingests
    )


def _of_every_sae(identity: Mapping[str, str]) -> bool:
    """Whether an ingest is of a corpus, with whatever SAEs the database has."""
    return identity.get("operation") == "append"


def _as_run(saes: Iterable[str], identity: Mapping[str, str]) -> set[tuple[str, str]]:
    """Names and weights: another SAE may have the name of one that was dropped."""
    return {(name, identity[f"SAE {name}"].split()[0]) for name in saes}


def _published(layout: Layout) -> Snapshot | None:
    try:
        return after_the_last_writer(layout)
    except (DatabaseNotFoundError, DatabaseNotReadyError):
        return None


def _digest(identity: Mapping[str, str]) -> str:
    told = sorted(
        (name, value)
        for name, value in identity.items()
        if not (_of_every_sae(identity) and name.startswith("SAE"))
    )
    return hashlib.sha256(msgspec.json.encode(dict(told))).hexdigest()


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
    with meter(_tokens(plan), before, show=options.progress) as gauge:
        for summary in workers.run(missing, gauge.report):
            done[summary.partition] = summary
    return [done[number] for number in range(len(plan.partitions))]


def _tokens(plan: Plan) -> int:
    """Tokens to run, BOS included."""
    return sum(corpus.tokens.rows for corpus in plan.draft.corpora if corpus.id in plan.corpora)


def _finalise(
    layout: Layout,
    plan: Plan,
    summaries: list[Summary],
    workers: Workers,
    options: IngestOptions,
    base: Snapshot | None,
) -> Snapshot:
    runs = {
        name: [summary.segments[index] for summary in summaries]
        for index, name in enumerate(plan.saes)
    }
    before: dict[str, tuple[Segment, ...]] = (
        {} if base is None else {sae.name: base.segments_of(sae.name) for sae in base.saes}
    )
    segments = {
        sae.name: [*before.get(sae.name, ()), *runs.get(sae.name, ())] for sae in plan.draft.saes
    }
    logits: dict[str, pa.Table] = {
        name: pq.read_table(logits_path(layout, name)) for name in runs if name not in before
    }
    history = IngestRecord(
        number=plan.draft.number,
        identity=_digest(plan.identity),
        started=plan.started,
        finished=now(),
        featuredb=WRITER,
        corpus=",".join(plan.corpora),
        saes=plan.saes,
        tokens=sum(s.tokens for s in summaries),
        activations=sum(s.rows for own in runs.values() for s in own),
        seconds=sum(s.seconds for s in summaries),
        device=workers.device,
        host=platform.node(),
    )
    snapshot = publish(
        layout,
        plan.draft,
        segments,
        logits,
        [*(() if base is None else base.ingests), history],
        partial(say, show=options.progress),
        workers.merge,
        base=base,
        changed=plan.saes,
        memory=options.memory_bytes(),
    )
    clean_up(layout, snapshot)
    return snapshot
