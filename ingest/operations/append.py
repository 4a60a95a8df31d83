"""More for a database that there is: another corpus, or more SAEs over the corpora it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featuredb.errors import IngestError, ModelError, SaeError
from featuredb.store.corpora import unite
from featuredb.store.files.atomic import storage_errors
from featuredb.store.files.lock import write_lock
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import refuse_nothing_to_write_to
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from ingest.change import after_the_last_writer, take_back, tidy
from ingest.engines import workers_for
from ingest.inputs import Inputs, Reader, bos_of, load_inputs, reader_for
from ingest.operations.ingest import Outcome, carry_out, done_already
from ingest.options import IngestOptions
from ingest.prepare import plan_append, plan_saes
from ingest.run_plan import check_identity, read_plan


def append(path: str | Path, corpus: Any, **told: Any) -> Outcome:
    """Add a corpus to the database at `path`: every SAE it has, over all of it.

    told: the arguments of `IngestOptions` that are about a corpus or about how to compute; model
    and SAEs are those of the database, found where they were at the first ingest unless model
    and saes say where they are now. Interrupted at any moment, the same call continues; a corpus
    that is there already is left as it is. Raises `FeatureDBError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    base = _at_rest(layout, "append")
    options = _options(base, {"corpus": corpus} | told)
    inputs = load_inputs(options, base.model.revision)
    with _adding(layout, "append") as base:
        _same_reader(base, inputs.reader)
        _fits(base, inputs)
        _same_kinds(layout, base, inputs)
        identity = {"operation": "append"} | inputs.identity(options)
        if done_already(base, identity):
            tidy(layout, base)
            return Outcome(base, fresh=False)
        plan = read_plan(layout)
        if plan is None:
            _not_there_yet(base, inputs)
            plan = plan_append(layout, base, inputs, options, identity)
        else:
            check_identity(layout, plan.identity, identity)
        workers = workers_for(layout, plan, inputs.reader, options)
        del inputs
        return Outcome(carry_out(layout, plan, workers, options, base), fresh=True)


def add_saes(
    path: str | Path, saes: Sequence[str], names: Sequence[str] | None = None, **told: Any
) -> Outcome:
    """Run more SAEs over the corpora that the database at `path` has; their texts are not needed.

    names: one per SAE, else taken from the files. told: other arguments of `IngestOptions`:
    hook, hook_out, check, how to compute; model says where the model is now. Interrupted at any
    moment, the same call continues. Raises `FeatureDBError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    base = _at_rest(layout, "add-sae")
    options = _options(base, {"saes": saes, "names": names, "corpus": None} | _OWN_HOOKS | told)
    reader = reader_for(options, base.model.revision)
    with _adding(layout, "add-sae") as base:
        _same_model(base, reader)
        names_now = [placed.name for placed in reader.saes]
        identity = {
            "operation": "add-sae",
            "SAEs": ", ".join(names_now),
            "corpora": ", ".join(corpus.id for corpus in base.corpora),
        } | reader.identity()
        if done_already(base, identity):
            tidy(layout, base)
            return Outcome(base, fresh=False)
        _free_names(base, names_now)
        _same_bos(base, reader)
        plan = read_plan(layout)
        if plan is None:
            plan = plan_saes(layout, base, reader, options, identity)
        else:
            check_identity(layout, plan.identity, identity)
        workers = workers_for(layout, plan, reader, options)
        del reader
        return Outcome(carry_out(layout, plan, workers, options, base), fresh=True)


def _at_rest(layout: Layout, purpose: str) -> Snapshot:
    """The live snapshot while nobody else writes: who would be refused is, before a model is
    loaded."""
    refuse_nothing_to_write_to(layout)
    with write_lock(layout, purpose), storage_errors(layout.root):
        return after_the_last_writer(layout)


@contextmanager
def _adding(layout: Layout, purpose: str) -> Iterator[Snapshot]:
    """The live snapshot, while nobody else writes; what fails before its plan leaves nothing."""
    with write_lock(layout, purpose), storage_errors(layout.root):
        base = after_the_last_writer(layout)
        try:
            yield base
        except BaseException:
            take_back(layout)
            raise


def _options(base: Snapshot, told: Mapping[str, Any]) -> IngestOptions:
    """What the database decides, and what the user says."""
    first, recording = base.corpora[0], base.recording
    check = base.saes[0].check
    kept: dict[str, Any] = {
        "model": _where(base.model.path, base.model.id),
        "saes": [sae.source for sae in base.saes],
        "names": [sae.name for sae in base.saes],
        "hook": [sae.hook for sae in base.saes],
        "hook_out": [sae.hook_out for sae in base.saes],
        "dtype": base.model.dtype,
        "context_size": first.context_size,
        "sink_threshold": check.sink_threshold or IngestOptions.sink_threshold,
        "keep_sinks": recording.keep_sinks,
        "keep_bos": recording.keep_bos,
        "values": recording.values,
    }
    given = {name: value for name, value in told.items() if value is not None or name in _OPEN}
    if told["corpus"] is not None and len(given.get("saes", kept["saes"])) != len(base.saes):
        raise IngestError(
            f"this database has {len(base.saes)} SAEs: say of each where it is now, in the order "
            f"{', '.join(kept['names'])}"
        )
    return IngestOptions(**(kept | given))


_OWN_HOOKS: dict[str, Any] = {"hook": None, "hook_out": None}
_OPEN = {*_OWN_HOOKS, "names", "corpus"}
"""Settings for which None says something."""


def _where(path: str, name: str) -> str:
    return path if Path(path).exists() else name


def _same_model(base: Snapshot, reader: Reader) -> None:
    wanted, found = base.model, reader.model
    if found.weights_hash != wanted.sha256 or found.tokenizer_hash != wanted.tokenizer_sha256:
        raise ModelError(
            f"the model at {found.path} is not the one this database was ingested with "
            f"({wanted.id}): give the one whose weights have SHA-256 {wanted.sha256[:12]}…"
        )


def _same_reader(base: Snapshot, reader: Reader) -> None:
    _same_model(base, reader)
    if [record.name for record in base.saes] != [placed.name for placed in reader.saes]:
        raise IngestError(
            "the SAEs of this database have changed since the command began: run it again"
        )
    for record, placed in zip(base.saes, reader.saes, strict=True):
        if placed.sae.hash != record.sha256:
            raise SaeError(
                f"the SAE at {placed.source} is not the {record.name} of this database: "
                f"give the one whose weights have SHA-256 {record.sha256[:12]}…"
            )


def _fits(base: Snapshot, inputs: Inputs) -> None:
    most = 1 << base.position_bits
    if inputs.context_size > most:
        raise IngestError(
            f"context size {inputs.context_size} is more than the {most} that this database's "
            "positions have room for: give a smaller --context-size"
        )


def _same_kinds(layout: Layout, base: Snapshot, inputs: Inputs) -> None:
    """What Python and SQL would not make the same one column of is refused: SQL could not read the
    documents at all, or would spell their values otherwise. Names that differ in case alone are one
    in SQL."""
    files = ParquetFiles(layout.root)
    for corpus in base.corpora:
        stored = files.metadata(corpus.documents.path).schema.to_arrow_schema()
        types = {name.casefold(): stored.field(name).type for name in corpus.metadata}
        for field in inputs.corpus.metadata_schema:
            before = types.get(field.name.casefold(), field.type)
            if not unite(before, field.type):
                raise IngestError(
                    f"the column {field.name!r} is {field.type} here and {before} in corpus "
                    f"{corpus.id}: give it another name, or leave it out"
                )
    files.close()


def _not_there_yet(base: Snapshot, inputs: Inputs) -> None:
    fingerprint = inputs.corpus.fingerprint()
    for corpus in base.corpora:
        if corpus.fingerprint == fingerprint:
            raise IngestError(
                f"{inputs.corpus.source} is in the database already, as corpus {corpus.id}: drop "
                "that one first, or give other documents"
            )


def _free_names(base: Snapshot, names: Sequence[str]) -> None:
    taken = {sae.name for sae in base.saes}.intersection(names)
    if taken:
        raise IngestError(
            f"the database has an SAE named {sorted(taken)[0]!r}: give another --name, or drop "
            "that one first"
        )


def _same_bos(base: Snapshot, reader: Reader) -> None:
    """The corpora are tokenised, with BOS or without, as their first SAEs wanted it."""
    wanted = bos_of(reader)
    for corpus in base.corpora:
        if corpus.bos_token_id != wanted:
            raise IngestError(
                f"{reader.saes[0].name} was trained {_bos(wanted)} and corpus {corpus.id} is "
                f"stored {_bos(corpus.bos_token_id)}: ingest it into a database of its own"
            )


def _bos(token: int | None) -> str:
    return "without a BOS token" if token is None else f"with BOS token {token}"
