"""Add a corpus or SAEs to an existing database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import IngestError, SaeError
from featuredb.render.progress import log, shown
from featuredb.store.corpora import common, rounds, unite
from featuredb.store.files.atomic import storage_errors
from featuredb.store.files.lock import write_lock
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import refuse_nothing_to_write_to
from featuredb.store.layout import Layout
from featuredb.store.outcomes import Outcome
from featuredb.store.snapshot import Snapshot
from ingest.attached import ModelWithSaes
from ingest.change import after_the_last_writer, take_back, tidy
from ingest.corpus.stored_texts import StoredTexts
from ingest.corpus.tables import exceeds
from ingest.engines import engine_for
from ingest.extract.recorded import (
    load_recorded_model,
    model_place,
    recorded_saes,
    refuse_another_model,
    refuse_another_sae,
)
from ingest.inputs import Inputs, load_inputs, load_model_with_saes
from ingest.operations.ingest import carry_out, done_already, unfinished_plan
from ingest.options import IngestOptions
from ingest.prepare import RunSettings, plan_append, plan_saes
from ingest.tokens.bos import Bos, check_bos, refuse_other_bos


def append(path: str | Path, corpus: Any, *, skip_stored: bool = False, **options: Any) -> Outcome:
    """Add a corpus to the database at `path`, for all of its SAEs. Resumable.

    options: the arguments of `IngestOptions` about a corpus or about how to compute. The model is
    the database's, found where it was at the first ingest unless model says where it is now. The
    SAEs are those that the database keeps, unless saes says where they are. An existing corpus is
    not added again. skip_stored: leave out documents whose texts are stored. Raises
    `FeatureDBError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    base = _at_rest(layout, "append")
    settings = _complete(base, {"corpus": corpus} | options)
    with shown(settings.progress):
        inputs = load_inputs(
            settings,
            partial(_load, layout, base, kept=options.get("saes") is None),
            Bos.of(base.corpora[0]),
        )
        with _adding(layout, "append") as base:
            _same_saes(base, inputs.loaded)
            _fits(base, inputs)
            _same_types(layout, base, inputs)
            identity = {"operation": "append"} | inputs.identity(settings)
            if skip_stored:
                identity["stored texts"] = "skipped"
            if done_already(base, identity):
                tidy(layout, base)
                return Outcome(base, fresh=False)
            plan = unfinished_plan(layout, identity)
            if plan is None:
                _not_there_yet(base, inputs)
                if skip_stored:
                    _skip_stored(layout, base, inputs)
                run = RunSettings.of(settings, inputs.loaded.model.device)
                plan = plan_append(layout, base, inputs, run, identity)
            backend = engine_for(layout, plan, inputs.loaded, settings)
            del inputs
            return Outcome(carry_out(layout, plan, backend, settings.budget(), base), fresh=True)


def add_saes(
    path: str | Path, saes: Sequence[str], names: Sequence[str] | None = None, **options: Any
) -> Outcome:
    """Run more SAEs over the corpora of the database at `path`. Resumable.

    The corpora's files are not needed. names: one per SAE. Default: taken from the files. options:
    the arguments of `IngestOptions` about hooks or about how to compute, and model, where the model
    is now. Raises `FeatureDBError`.
    """
    layout = Layout(Path(path).expanduser().resolve())
    base = _at_rest(layout, "add-sae")
    given = {"saes": saes, "names": names, "corpus": None} | _OWN_HOOKS | options
    settings = _complete(base, given)
    with shown(settings.progress):
        loaded = load_model_with_saes(settings, base.model.revision)
        with _adding(layout, "add-sae") as base:
            refuse_another_model(base.model, loaded.model)
            added = [attached.name for attached in loaded.saes]
            identity = {
                "operation": "add-sae",
                "SAEs": ", ".join(added),
                "corpora": ", ".join(corpus.id for corpus in base.corpora),
            } | loaded.identity()
            if done_already(base, identity):
                tidy(layout, base)
                return Outcome(base, fresh=False)
            _free_names(base, added)
            check_bos(loaded, Bos.of(base.corpora[0]), settings.bos)
            plan = unfinished_plan(layout, identity)
            if plan is None:
                run = RunSettings.of(settings, loaded.model.device)
                plan = plan_saes(layout, base, loaded, run, identity)
            backend = engine_for(layout, plan, loaded, settings)
            del loaded
            return Outcome(carry_out(layout, plan, backend, settings.budget(), base), fresh=True)


def _at_rest(layout: Layout, purpose: str) -> Snapshot:
    """The live snapshot, if no other process writes. Called before loading a model, to fail
    early."""
    refuse_nothing_to_write_to(layout)
    with write_lock(layout, purpose), storage_errors(layout.root):
        return after_the_last_writer(layout)


@contextmanager
def _adding(layout: Layout, purpose: str) -> Iterator[Snapshot]:
    """Lock the database and give its live snapshot. A failure before the plan leaves no files."""
    with write_lock(layout, purpose), storage_errors(layout.root):
        base = after_the_last_writer(layout)
        try:
            yield base
        except BaseException:
            take_back(layout)
            raise


def _complete(base: Snapshot, options: Mapping[str, Any]) -> IngestOptions:
    """The given options, and the rest as the database has it. All its corpora have one BOS."""
    first, recording = base.corpora[0], base.recording
    refuse_other_bos(Bos.of(first), options.get("bos"))
    check = base.saes[0].check
    stored: dict[str, Any] = {
        "model": options.get("model") or model_place(base.model),
        "saes": [sae.source for sae in base.saes],
        "names": [sae.name for sae in base.saes],
        "hook": [sae.hook for sae in base.saes],
        "hook_out": [sae.hook_out for sae in base.saes],
        "dtype": base.model.dtype,
        "torch_compile": base.model.compiled,
        "context_size": first.context_size,
        "sink_threshold": check.sink_threshold or IngestOptions.sink_threshold,
        "keep_sinks": recording.keep_sinks,
        "keep_bos": recording.keep_bos,
        "values": recording.values,
    }
    given = {name: value for name, value in options.items() if value is not None or name in _OPEN}
    if options["corpus"] is not None and len(given.get("saes", base.saes)) != len(base.saes):
        raise IngestError(
            f"this database has {len(base.saes)} SAEs: say of each where it is now, in the order "
            f"{', '.join(stored['names'])}"
        )
    return IngestOptions(**(stored | given))


_OWN_HOOKS: dict[str, Any] = {"hook": None, "hook_out": None}
_OPEN = {*_OWN_HOOKS, "names", "corpus"}
"""Options for which None has a meaning."""


def _load(layout: Layout, base: Snapshot, options: IngestOptions, *, kept: bool) -> ModelWithSaes:
    """The model and the SAEs of the database. kept: the SAEs as it keeps them, if it does."""
    if not kept or any(sae.weights is None for sae in base.saes):
        return load_model_with_saes(options, base.model.revision)
    model = load_recorded_model(base.model, options.model, options.device)
    return ModelWithSaes(model, recorded_saes(model, layout.root, base))


def _same_saes(base: Snapshot, loaded: ModelWithSaes) -> None:
    refuse_another_model(base.model, loaded.model)
    if [record.name for record in base.saes] != [attached.name for attached in loaded.saes]:
        raise IngestError(
            "the SAEs of this database have changed since the command began: run it again"
        )
    for record, attached in zip(base.saes, loaded.saes, strict=True):
        refuse_another_sae(record, attached.sae)
        if attached.excluded != record.excluded_tokens:
            raise SaeError(
                f"the files of SAE {record.name} exclude other tokens than when this database was "
                "made (exclude_special_tokens): put them back as they were, or ingest anew"
            )


def _fits(base: Snapshot, inputs: Inputs) -> None:
    most = 1 << base.position_bits
    if inputs.context_size > most:
        raise IngestError(
            f"context size {inputs.context_size} is more than the {most} that this database's "
            "positions have room for: give a smaller --context-size"
        )


def _same_types(layout: Layout, base: Snapshot, inputs: Inputs) -> None:
    """Read columns as the stored ones of their names need it, and refuse those that do not unite.

    Python and SQL would not unite them in the same way, or would round integers. What is text in
    the database is read as text, but for lists. Names that differ only in case are one in SQL.
    """
    files = ParquetFiles(layout.root)
    for corpus in base.corpora:
        metadata = files.metadata(corpus.documents.path)
        stored = metadata.schema.to_arrow_schema()
        names = {name.casefold(): name for name in corpus.metadata}
        for field in inputs.corpus.metadata_schema:
            name = names.get(field.name.casefold())
            if name is None:
                continue
            before, here = stored.field(name).type, field.type
            wider = common(before, here)
            stays_text = pa.types.is_string(before) and not pa.types.is_list(here)
            if stays_text and not unite(before, here):
                inputs.corpus.keep_as(field.name, before)
                continue
            bound = rounds(before, wider)
            if not unite(before, here) or (bound and exceeds(metadata, name, bound)):
                raise IngestError(
                    f"the column {field.name!r} is {here} here and {before} in corpus "
                    f"{corpus.called}: give it another name, or leave it out"
                )
            if rounds(here, wider):
                inputs.corpus.keep_as(field.name, wider)
    files.close()


def _not_there_yet(base: Snapshot, inputs: Inputs) -> None:
    fingerprint = inputs.corpus.fingerprint()
    for corpus in base.corpora:
        if corpus.fingerprint == fingerprint:
            raise IngestError(
                f"{inputs.corpus.source} is in the database already, as corpus {corpus.called}: "
                "drop that one first, or give other documents"
            )


def _skip_stored(layout: Layout, base: Snapshot, inputs: Inputs) -> None:
    """Leave out the documents that are stored. Raises `IngestError` where none is left."""
    corpus = inputs.corpus
    if corpus.column.role != "text":
        raise IngestError(
            f"--skip-stored compares texts, and {corpus.source} has {corpus.column.role}: "
            "leave it out"
        )
    stored = StoredTexts(layout, base.corpora)
    texts = (batch.column(0).to_pylist() for batch in corpus.batches())
    counts = [(len(each), int(stored.has(each).sum())) for each in texts]
    total, skipped = (sum(column) for column in zip(*counts, strict=True))
    if skipped == total:
        raise IngestError(
            f"all {total:,} texts of {corpus.source} are stored already: there is nothing to append"
        )
    log.info(f"{skipped:,} of {total:,} texts are stored already and are left out")
    corpus.leave_out(stored.has)


def _free_names(base: Snapshot, names: Sequence[str]) -> None:
    taken = {sae.name for sae in base.saes}.intersection(names)
    if taken:
        raise IngestError(
            f"the database has an SAE named {sorted(taken)[0]!r}: give another --name, or drop "
            "that one first"
        )
