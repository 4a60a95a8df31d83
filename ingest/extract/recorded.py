"""The model and the SAEs of a database, each loaded once per process."""

from __future__ import annotations

import threading
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from featuredb.errors import ModelError, SaeError
from featuredb.store.files.location import Root
from featuredb.store.snapshot import Draft, Model, Sae, Snapshot, Vectors
from featuredb.store.store import Store
from ingest.attached import AttachedSae, ModelWithSaes, hooks_written
from ingest.model.load import LoadedModel, load_model
from ingest.sae import LoadedSae, load_sae
from ingest.sae.centered_weights import on_plain_weights
from ingest.sae.stored import stored_sae

_LOADING = threading.RLock()
"""A model or an SAE is loaded once, however many threads ask for it first."""

_SAES: dict[Sae, LoadedSae] = {}
_MOST_SAES = 64


def recorded(store: Store, where: str | None = None) -> ModelWithSaes:
    """The model and the SAEs of a database. Arguments and errors as of the two functions below."""
    model = recorded_model(store.snapshot.model, where)
    return ModelWithSaes(model, recorded_saes(model, store.root, store.snapshot))


def recorded_model(record: Model, where: str | None = None, *, other: bool = False) -> LoadedModel:
    """The model of a snapshot.

    Args:
        record: What the snapshot says of it.
        where: A folder, a GGUF file or a hub name. Default: where it was at the ingest, else its
            hub name.
        other: Allow another model, such as a fine-tuned one.

    Raises:
        ModelError: It is not there, or is another.
    """
    with _LOADING:
        return _load_model(record, where, other)


@lru_cache(maxsize=1)
def _load_model(record: Model, where: str | None, other: bool) -> LoadedModel:
    return load_recorded_model(record, where, other=other)


def load_recorded_model(
    record: Model, where: str | None, device: str = "auto", *, other: bool = False
) -> LoadedModel:
    """As `recorded_model`, on a device of one's own, loaded anew."""
    if not record.sha256:
        raise ModelError(
            "this database was imported: it has neither the model nor the SAE that new text needs"
        )
    place = model_place(record) if where is None else where
    revision = None if where not in (None, record.id) else record.revision
    try:
        model = load_model(
            place,
            device=device,
            dtype=record.dtype,
            revision=revision,
            torch_compile=record.compiled,
        )
    except ModelError as error:
        if where is None and place == record.id:
            raise ModelError(f"{error}: {_SAY_WHERE}") from error
        raise
    if not other:
        refuse_another_model(record, model)
    return model


_SAY_WHERE = "say where it is now with --model, or model= in Python"


def model_place(record: Model) -> str:
    """Where the model was at the ingest, else its hub name. Raises `ModelError` without one."""
    if Path(record.path).exists():
        return record.path
    if record.revision is None:
        raise ModelError(f"the model {record.id} is no longer at {record.path}: {_SAY_WHERE}")
    return record.id


def refuse_another_model(record: Model, model: LoadedModel) -> None:
    """Raise `ModelError` unless the weights and the tokenizer of `model` are the recorded ones."""
    for part, wanted, found in (
        ("weights have", record.sha256, model.weights_hash),
        ("tokenizer has", record.tokenizer_sha256, model.tokenizer_hash),
    ):
        if found != wanted:
            raise ModelError(
                f"the model at {model.path} is not the one this database was ingested with "
                f"({record.id}): its {part} SHA-256 {found[:12]}…, not {wanted[:12]}…"
            )


def recorded_saes(
    model: LoadedModel, root: Root, content: Draft | Snapshot, names: Collection[str] | None = None
) -> tuple[AttachedSae, ...]:
    """SAEs of a database at their hooks of its model, in the snapshot's order.

    Args:
        model: The database's own.
        root: The database, a folder or a URL.
        content: Its snapshot, or the draft of one.
        names: Those SAEs. Default: all.

    Raises:
        CorruptDatabaseError: A file is missing or damaged.
        SaeError: The database keeps no weights of an SAE, as before databases did, and its files
            are gone or have changed.
    """
    vectors = {v.sae: v for v in content.vectors}
    keep_sinks = content.recording.keep_sinks
    return tuple(
        _attached(model, root, record, vectors[record.name], keep_sinks)
        for record in content.saes
        if names is None or record.name in names
    )


def _attached(
    model: LoadedModel, root: Root, record: Sae, vectors: Vectors, keep_sinks: bool
) -> AttachedSae:
    hook = model.hook(record.hook)
    sae = _load_sae(root, record, vectors)
    if record.weights is None:
        sae = on_plain_weights(sae, model, hook)
    check = record.check
    sink_norm = None
    if not keep_sinks and check.sink_threshold is not None:
        sink_norm = check.sink_threshold * check.median_norm
    return AttachedSae(
        record.name,
        sae.to(device=model.device),
        hook,
        model.hook(record.hook_out) if record.hook_out is not None else None,
        record.source,
        sink_norm,
        hooks_written(model, sae),
        record.excluded_tokens,
    )


def _load_sae(root: Root, record: Sae, vectors: Vectors) -> LoadedSae:
    with _LOADING:
        if record not in _SAES:
            if len(_SAES) == _MOST_SAES:
                _SAES.pop(next(iter(_SAES)))
            kept = record.weights is not None
            _SAES[record] = stored_sae(root, record, vectors) if kept else _from_files(record)
        return _SAES[record]


def _from_files(record: Sae) -> LoadedSae:
    """An SAE that its database does not keep."""
    try:
        sae = load_sae(record.source)
    except SaeError as error:
        raise SaeError(
            f"{error}; this database was made before SAEs were kept in it: put the files of "
            f"{record.name} back there, or append a corpus with --sae, which keeps them"
        ) from error
    refuse_another_sae(record, sae)
    return sae


def refuse_another_sae(record: Sae, sae: LoadedSae) -> None:
    """Raise `SaeError` unless the weights of `sae` are the recorded ones."""
    if sae.hash != record.sha256:
        raise SaeError(
            f"the SAE at {sae.source} is not the {record.name} this database was ingested with: "
            f"its weights have SHA-256 {sae.hash[:12]}…, not {record.sha256[:12]}…"
        )
