"""Run an ingest end to end. Resumable."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import DatabaseNotFoundError, DatabaseNotReadyError, IngestError
from featuredb.render.progress import log, progress, shown
from featuredb.store.files.atomic import sweep
from featuredb.store.files.memory import Budget
from featuredb.store.history import now
from featuredb.store.layout import Layout
from featuredb.store.outcomes import Outcome
from featuredb.store.snapshot import WRITER, IngestRecord, Segment, Snapshot
from featuredb.store.unreferenced import clean_up
from ingest.change import after_the_last_writer, tidy, writing
from ingest.engines import Engine, engine_for
from ingest.inputs import load_inputs
from ingest.model.device import release
from ingest.options import IngestOptions
from ingest.prepare import RunSettings, logits_path, plan_ingest
from ingest.publish import publish
from ingest.run_plan import (
    RunPlan,
    Summary,
    check_identity,
    differences,
    read_plan,
    read_summaries,
)


def ingest(path: str | Path, options: IngestOptions) -> Outcome:
    """Create the database at `path`, or continue an interrupted ingest.

    An interrupted ingest ends with the same logical content. A database that this ingest already
    finished is left as it is. Raises `FeatureDBError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    with shown(options.progress):
        inputs = load_inputs(options)
        identity = inputs.identity(options)
        with writing(layout, "ingest"):
            there = published(layout)
            if there is not None:
                if done_already(there, identity):
                    tidy(layout, there)
                    return Outcome(there, fresh=False)
                raise IngestError(
                    f"{layout.root} already holds a database of other inputs"
                    f"{_other_bos(there, identity)}: add a corpus with `featuredb append`, "
                    "an SAE with `featuredb add-sae`, or give another path"
                )
            plan = unfinished_plan(layout, identity)
            if plan is None:
                sweep(layout.root)
                settings = RunSettings.of(options, inputs.loaded.model.device)
                plan = plan_ingest(layout, inputs, settings, identity)
            backend = engine_for(layout, plan, inputs.loaded, options)
            # If others do the work, this process's copy of the model would only take up memory.
            del inputs
            return Outcome(carry_out(layout, plan, backend, options.budget(), None), fresh=True)


def _other_bos(snapshot: Snapshot, identity: Mapping[str, str]) -> str:
    """What a user may change to have a database without noticing, in words."""
    stored = {"BOS": str(snapshot.corpora[0].bos_token_id)}
    return "".join(f" ({change})" for change in differences(stored, {"BOS": identity["BOS"]}))


def unfinished_plan(layout: Layout, identity: Mapping[str, str]) -> RunPlan | None:
    """The plan to continue with, None if there is none.

    Raises `PlanMismatchError` if it is the plan of something else.
    """
    plan = read_plan(layout)
    if plan is not None:
        check_identity(layout, plan.identity, identity)
    return plan


def carry_out(
    layout: Layout,
    plan: RunPlan,
    backend: AbstractContextManager[Engine],
    memory: Budget,
    base: Snapshot | None,
) -> Snapshot:
    """Run what is left of a plan and publish it on top of `base`, the snapshot before."""
    release()  # where others do the work, the caller has just dropped its model
    with backend as engine:
        summaries = _run_partitions(layout, plan, engine)
        return _finalize(layout, plan, summaries, engine, memory, base)


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
    """Whether an ingest is of a corpus, with any SAEs."""
    return identity.get("operation") == "append"


def _as_run(saes: Iterable[str], identity: Mapping[str, str]) -> set[tuple[str, str]]:
    """Names and weights, since another SAE may have the name of one that was dropped."""
    return {(name, identity[f"SAE {name}"].split()[0]) for name in saes}


def published(layout: Layout) -> Snapshot | None:
    """The live snapshot, None for a database that is not there yet."""
    try:
        return after_the_last_writer(layout)
    except (DatabaseNotFoundError, DatabaseNotReadyError):
        return None


def _digest(identity: Mapping[str, str]) -> str:
    items = sorted(
        (name, value)
        for name, value in identity.items()
        if not (_of_every_sae(identity) and name.startswith("SAE"))
    )
    return hashlib.sha256(msgspec.json.encode(dict(items))).hexdigest()


@dataclass
class _Rates:
    """Tokens and activations so far, with their rates."""

    tokens: int = 0
    activations: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, tokens: int, activations: int) -> str:
        """Count more. Returns tokens per second, activations per second and L0 as text."""
        self.tokens += tokens
        self.activations += activations
        seconds = max(time.monotonic() - self.started, 1e-9)
        return (
            f"{self.tokens / seconds:,.0f} tokens/s  "
            f"{self.activations / seconds:,.0f} activations/s  "
            f"L0 {self.activations / max(1, self.tokens):.1f}"
        )


def _run_partitions(layout: Layout, plan: RunPlan, engine: Engine) -> list[Summary]:
    """Run every partition that is not done. Returns all summaries in the plan's order."""
    done = read_summaries(layout, plan)
    if done:
        log.info(f"continuing: {len(done)} of {len(plan.partitions)} partitions are done")
    missing = [number for number in range(len(plan.partitions)) if number not in done]
    rates = _Rates()
    with progress("ingesting", "tokens") as bar:
        bar.start("ingesting", _tokens(plan), sum(summary.tokens for summary in done.values()))

        def report(tokens: int, activations: int) -> None:
            bar.advance(tokens, rates.add(tokens, activations))

        for summary in engine.run(missing, report):
            done[summary.partition] = summary
    return [done[number] for number in range(len(plan.partitions))]


def _tokens(plan: RunPlan) -> int:
    """Tokens to run, including BOS."""
    return sum(corpus.tokens.rows for corpus in plan.draft.corpora if corpus.id in plan.corpora)


def _finalize(
    layout: Layout,
    plan: RunPlan,
    summaries: list[Summary],
    engine: Engine,
    memory: Budget,
    base: Snapshot | None,
) -> Snapshot:
    unmerged = {
        name: [summary.segments[index] for summary in summaries]
        for index, name in enumerate(plan.saes)
    }
    before: dict[str, tuple[Segment, ...]] = (
        {} if base is None else {sae.name: base.segments_of(sae.name) for sae in base.saes}
    )
    segments = {
        sae.name: [*before.get(sae.name, ()), *unmerged.get(sae.name, ())]
        for sae in plan.draft.saes
    }
    logits: dict[str, pa.Table] = {
        name: pq.read_table(logits_path(layout, name)) for name in unmerged if name not in before
    }
    record = IngestRecord(
        number=plan.draft.number,
        identity=_digest(plan.identity),
        started=plan.started,
        finished=now(),
        featuredb=WRITER,
        corpus=",".join(plan.corpora),
        saes=plan.saes,
        tokens=sum(s.tokens for s in summaries),
        activations=sum(s.rows for parts in unmerged.values() for s in parts),
        seconds=sum(s.seconds for s in summaries),
        device=engine.device,
        host=platform.node(),
    )
    snapshot = publish(
        layout,
        plan.draft,
        segments,
        logits,
        [*(() if base is None else base.ingests), record],
        engine.merge,
        base=base,
        changed=plan.saes,
        memory=memory,
    )
    clean_up(layout, snapshot)
    return snapshot
