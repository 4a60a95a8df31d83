"""The functions of `featuredb`: open, create, change, check and copy databases.

Importing this module is cheap: the command line reads its options' defaults from the signatures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featuredb.errors import OptionError, QueryError
from featuredb.extras import ingest_extra
from featuredb.render.progress import shown
from featuredb.store.files.memory import Budget
from featuredb.store.files.remote import local_folder
from featuredb.store.units import duration_of

if TYPE_CHECKING:
    import torch

    from featuredb.database import Database
    from featuredb.explorer.static.write import WrittenSite
    from featuredb.monitors.listed import Monitors
    from featuredb.steering.effects import Measured
    from featuredb.store.outcomes import Compacted, Explained, Labeled, Outcome, Vacuumed
    from featuredb.store.snapshot import Snapshot
    from featuredb.store.values import Values
    from featuredb.transfer.push_pull import Transfer
    from featuredb.verification import Report
    from ingest.options import EncodeDtype, EngineName, Hooks
    from ingest.sae import LoadedSae
    from queries.answers import Info, Rows


def open(
    path: str | os.PathLike[str],
    *,
    snapshot: int | None = None,
    model: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    memory: str | None = None,
) -> Database:
    """Open a database read-only, pinned to one snapshot.

    Args:
        path: A folder, or a URL that fsspec reads, such as ``s3://bucket/my.fdb``. URLs are read
            in place, by byte ranges.
        snapshot: The number of an older snapshot, see `snapshots`. Default: the newest.
        model: Where the database's model is now: a folder, a GGUF file or a hub name. Only new
            text needs it. Its weights and tokenizer must be those of the ingest. Default: where
            it was then.
        storage_options: Passed to fsspec.
        memory: Memory limit for SQL, such as ``2GB``, not counting the answer. What does not fit
            spills to a temporary folder. Default: 80 % of the machine's.

    Raises:
        OptionError: `memory` is not a size, or is less than 100MB, or `snapshot` is no number.
        DatabaseNotFoundError: There is no database at `path`.
        DatabaseNotReadyError: Its first ingest is unfinished.
        FormatVersionError: It was written by a newer featuredb.
        CorruptDatabaseError: A file is missing or damaged.
        MissingExtraError: The package for the URL's scheme is not installed.
        RemoteError: The URL's server cannot be reached or refuses.
    """
    from featuredb.database import Database
    from featuredb.store.store import Store

    bound = None if memory is None else Budget.parse(memory).bytes
    store = Store.open(path, snapshot, storage_options, bound)
    return Database(store, None if model is None else os.fspath(model))


def demo(
    path: str | os.PathLike[str] = "demo.fdb", *, documents: int = 3_000, rebuild: bool = False
) -> Database:
    """Open the demo database. Creates it first if it does not exist.

    Downloads SmolLM2-135M-Instruct and Wikipedia summaries (98 MB, cached) and ingests them with
    the sparse autoencoder that featuredb brings. Takes a few minutes on two CPU cores. Progress is
    shown on standard error.

    Args:
        path: Where to create it.
        documents: Number of summaries to ingest.
        rebuild: Delete an existing demo database first.

    Raises:
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        FetchError: A download failed.
        IngestError: `documents` is less than 1, or `rebuild` would delete another folder.
    """
    folder = local_folder(path, "the demo")
    with ingest_extra("the demo"):
        from ingest.demo.run import make_demo

    make_demo(folder, documents=documents, rebuild=rebuild)
    return open(folder)


def ingest(
    path: str | os.PathLike[str],
    *,
    corpus: Any,
    model: str,
    saes: Sequence[str],
    names: Sequence[str] | None = None,
    hook: Hooks = None,
    hook_out: Hooks = None,
    text_column: str = "text",
    tokens_column: str | None = None,
    messages_column: str | None = None,
    id_column: str | None = None,
    corpus_name: str | None = None,
    max_documents: int | None = None,
    context_size: int | None = None,
    bos: bool | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    encode_dtype: EncodeDtype = "float32",
    torch_compile: bool = False,
    memory: str = "4GB",
    sink_threshold: float = 10.0,
    keep_sinks: bool = False,
    keep_bos: bool = False,
    values: Values = "float16",
    exact: bool = False,
    check: bool = True,
    progress: bool = False,
    engine: EngineName = "local",
    workers: int | None = None,
    gpus_per_worker: float = 1.0,
    ray_address: str | None = None,
) -> Outcome:
    """Run a corpus through a model and SAEs and store all activations.

    Resumable: after an interruption, the same call continues. If the database is already complete,
    nothing is done.

    Args:
        path: The database folder.
        corpus: A file, folder or glob, ``hf:DATASET``, ``-`` for standard input, a frame or table,
            a dictionary of columns or of splits, or an iterable of texts or rows.
        model: A folder or a hub name.
        saes: Folders, files or hub references, see `load_sae`. The folder of a cross-layer
            transcoder or crosscoder is one SAE for each layer.
        names: One per SAE. Default: taken from the files.
        hook: Hook point to read the SAEs at, instead of their own. A list gives one per SAE.
        hook_out: Hook point a transcoder's output should match. A list gives one per SAE.
        text_column: Column with the document's text.
        tokens_column: Column with token ids, to read instead of text.
        messages_column: Column with chat messages, to read instead of text.
        id_column: Column with the document's id.
        corpus_name: What the corpus is called, as in ``where="corpus = 'mail'"``. Default: after
            its source.
        max_documents: Stop after this many documents.
        context_size: Tokens per context, including BOS. Default: the SAE's own, at most the
            model's, else 256.
        bos: Whether contexts begin with a BOS token. Default: what the SAEs' files say. An SAE
            whose files do not say takes either, and if none says the tokenizer decides.
        stride: Tokens between the starts of two contexts of a document. Default: no overlap.
        max_tokens: Stop after the document that reaches this many tokens.
        batch_tokens: Tokens per forward pass, including padding. Default: by device.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        dtype: What the model computes in: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        encode_dtype: What SAEs encode in: ``float32``; on an NVIDIA GPU ``bfloat16x3``, several
            times faster with three to five times its rounding error; or on a CPU ``screened``,
            which finds the same active features and may differ in a value's last bit
            (docs/scaling.md).
        torch_compile: Compile the model's layers with ``torch.compile``. Its sums are then rounded
            otherwise, so activations near their threshold differ (docs/scaling.md).
        memory: Host memory to aim for.
        sink_threshold: A position whose norm at the hook exceeds this many times the median is a
            sink. Activations at sinks are not stored.
        keep_sinks: Store activations at sinks too.
        keep_bos: Store activations at BOS too.
        values: Round activations to ``float16``, ``float32`` or ``log8`` (16 values per octave, 8
            bits in most files, error at most 2.2 %).
        exact: Same as ``values="float32"``.
        check: Refuse SAEs that do not explain the model's activations.
        progress: Show progress on standard error.
        engine: Where partitions run: ``local`` (this process), ``processes`` (several on this
            machine, one per GPU) or ``ray`` (a Ray cluster).
        workers: Number of workers. Default: one per GPU, or per four cores without a GPU.
        gpus_per_worker: GPUs each Ray worker requests. A fraction shares one.
        ray_address: The Ray cluster. Default: ``RAY_ADDRESS``, else one on this machine.

    Raises:
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        IngestError: An option, the corpus, the model or an SAE is invalid.
        OptionError: `memory` is not a size.
        DatabaseLockedError: Another process is writing.
        StorageError: The disk is full or read-only.
    """
    options = locals().copy()
    folder = local_folder(options.pop("path"), "ingesting")
    with ingest_extra("ingesting"):
        from ingest.operations.given import check_paths

        check_paths(corpus=corpus, model=model, saes=saes)
        from ingest.operations.ingest import ingest as run_ingest
        from ingest.options import IngestOptions

    return run_ingest(folder, IngestOptions(**options))


def plan(
    path: str | os.PathLike[str],
    *,
    corpus: Any,
    model: str,
    saes: Sequence[str],
    names: Sequence[str] | None = None,
    hook: Hooks = None,
    hook_out: Hooks = None,
    text_column: str = "text",
    tokens_column: str | None = None,
    messages_column: str | None = None,
    id_column: str | None = None,
    corpus_name: str | None = None,
    max_documents: int | None = None,
    context_size: int | None = None,
    bos: bool | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    encode_dtype: EncodeDtype = "float32",
    torch_compile: bool = False,
    memory: str = "4GB",
    sink_threshold: float = 10.0,
    keep_sinks: bool = False,
    keep_bos: bool = False,
    values: Values = "float16",
    exact: bool = False,
    check: bool = True,
    progress: bool = False,
    engine: EngineName = "local",
    workers: int | None = None,
    gpus_per_worker: float = 1.0,
    ray_address: str | None = None,
) -> Info:
    """Estimate the size and duration of an ingest, without writing anything at `path`.

    Tokenizes the corpus and runs the model over a sample of it. Takes the arguments of `ingest`.

    Raises:
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        IngestError: An option, the corpus, the model or an SAE is invalid.
        OptionError: `memory` is not a size.
    """
    options = locals().copy()
    folder = local_folder(options.pop("path"), "planning an ingest")
    with ingest_extra("planning an ingest"):
        from ingest.operations.given import check_paths

        check_paths(corpus=corpus, model=model, saes=saes)
        from ingest.operations.plan import estimate
        from ingest.options import IngestOptions

    return estimate(folder, IngestOptions(**options))


def append(
    path: str | os.PathLike[str],
    corpus: Any,
    *,
    model: str | None = None,
    saes: Sequence[str] | None = None,
    text_column: str = "text",
    tokens_column: str | None = None,
    messages_column: str | None = None,
    id_column: str | None = None,
    corpus_name: str | None = None,
    skip_stored: bool = False,
    max_documents: int | None = None,
    context_size: int | None = None,
    bos: bool | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    memory: str = "4GB",
    check: bool = True,
    progress: bool = False,
    engine: EngineName = "local",
    workers: int | None = None,
    gpus_per_worker: float = 1.0,
    ray_address: str | None = None,
) -> Outcome:
    """Add a corpus to an existing database, for all of its SAEs. Resumable.

    Args:
        path: The database folder.
        corpus: As of `ingest`.
        model: Where the database's model is now. Default: where it was at the first ingest.
        saes: The database's SAEs, all of them, in order. Default: as the database keeps them, or
            where they were if it was made before databases kept them.
        context_size: Tokens per context, including BOS. Default: that of the first corpus.
        skip_stored: Leave out documents whose texts are stored already. By default they are stored
            again, with a warning.
        bos: Refuse to go on unless the database's contexts begin with BOS, or do not.

    The other arguments are those of `ingest`.

    Raises:
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        DatabaseError: There is no database, or another process is writing.
        ModelError: The model is missing or has changed.
        SaeError: An SAE is missing or has changed.
        IngestError: An option or the corpus is invalid, or the corpus is already there.
        StorageError: The disk is full or read-only.
    """
    options = locals().copy()
    folder = local_folder(options.pop("path"), "appending")
    with ingest_extra("ingesting"):
        from ingest.operations.given import check_paths

        check_paths(database=folder, corpus=corpus, model=model, saes=saes)
        from ingest.operations.append import append as append_corpus

    return append_corpus(folder, **options)


def add_saes(
    path: str | os.PathLike[str],
    saes: Sequence[str],
    names: Sequence[str] | None = None,
    *,
    model: str | None = None,
    hook: Hooks = None,
    hook_out: Hooks = None,
    bos: bool | None = None,
    batch_tokens: int | None = None,
    device: str = "auto",
    memory: str = "4GB",
    check: bool = True,
    progress: bool = False,
    engine: EngineName = "local",
    workers: int | None = None,
    gpus_per_worker: float = 1.0,
    ray_address: str | None = None,
) -> Outcome:
    """Add SAEs to an existing database, over all of its corpora. Resumable.

    The corpora's files are not needed: their tokens are stored.

    Args:
        path: The database folder.
        saes: Folders, files or hub references, see `load_sae`.
        names: One per SAE. Default: taken from the files.
        model: Where the database's model is now. Default: where it was at the first ingest.
        bos: What the database's contexts have, to add SAEs whose files say otherwise.

    The other arguments are those of `ingest`.

    Raises:
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        DatabaseError: There is no database, or another process is writing.
        ModelError: The model is missing or has changed.
        SaeError: An SAE cannot be loaded.
        IngestError: An option is invalid, or a name is taken.
        StorageError: The disk is full or read-only.
    """
    options = locals().copy()
    folder = local_folder(options.pop("path"), "adding an SAE")
    with ingest_extra("ingesting"):
        from ingest.operations.given import check_paths

        check_paths(database=folder, model=model, saes=saes)
        from ingest.operations.append import add_saes as add

    return add(folder, **options)


def drop(
    path: str | os.PathLike[str],
    *,
    sae: str | None = None,
    corpus: str | None = None,
    memory: str = "4GB",
    progress: bool = False,
) -> Snapshot:
    """Drop an SAE or a corpus from a database, as a new snapshot.

    Ids of what is left do not change. `vacuum` frees the space.

    Args:
        path: The database folder.
        sae: The name of the SAE to drop.
        corpus: The name of the corpus to drop, or its id.
        memory: Memory limit.
        progress: Show progress on standard error.

    Returns:
        The new snapshot.

    Raises:
        QueryError: Neither or both of `sae` and `corpus` are given.
        UnknownFeatureError: There is no such SAE.
        DatabaseError: There is no such corpus, or it is the last corpus or SAE.
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
    """
    if (sae is None) == (corpus is None):
        raise QueryError("drop either an SAE or a corpus: give sae= or corpus=")
    folder = local_folder(path, "dropping")
    with ingest_extra("dropping"):
        from ingest.operations.drop import drop_corpus, drop_sae

    with shown(progress):
        if sae is not None:
            return drop_sae(folder, sae, memory=memory)
        assert corpus is not None
        return drop_corpus(folder, corpus, memory=memory)


def compact(
    path: str | os.PathLike[str], *, memory: str = "4GB", progress: bool = False
) -> Compacted:
    """Merge a database's segments, so that queries open fewer files. Answers do not change.

    Args:
        path: The database folder.
        memory: Memory limit.
        progress: Show progress on standard error.

    Raises:
        DatabaseError: There is no database, or another process is writing.
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
    """
    folder = local_folder(path, "compacting")
    with ingest_extra("compacting"):
        from ingest.operations.compact import compact as merge

    with shown(progress):
        return merge(folder, memory=memory)


def vacuum(
    path: str | os.PathLike[str], *, grace: timedelta | str = "1h", unfinished: bool = False
) -> Vacuumed:
    """Remove older snapshots and the files that only they use. Needs no extra.

    Args:
        path: The database folder.
        grace: Keep a snapshot this long after it was replaced, so that open readers can finish: a
            timedelta, or a text such as ``0s``, ``30m``, ``1h`` or ``2d``.
        unfinished: Also discard an unfinished ingest.

    Raises:
        OptionError: `grace` is not a duration, or is negative.
        UnfinishedError: There is an unfinished ingest and `unfinished` is false.
        DatabaseError: There is no database, or another process is writing.
    """
    from ingest.operations.vacuum import vacuum as remove_older

    wait = grace if isinstance(grace, timedelta) else duration_of(grace)
    return remove_older(local_folder(path, "vacuuming"), grace=wait, unfinished=unfinished)


def measure(
    path: str | os.PathLike[str],
    features: Sequence[int | str] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Measured:
    """Measure what steering with features does, over neutral prompts, and store it.

    Each feature is set to its stored maximum at the last token of each prompt. Stored as a new
    snapshot about once a minute, in the view ``effects``: the output score of arXiv 2505.20063, how
    far the next token's distribution moves, which tokens gain and lose, how far other features
    move, and a forecast of that from stored statistics. Resumable: features that are measured
    already, at the same maximum and over as many prompts, are left out.

    Args:
        path: The database folder.
        features: Which. Default: all that ever fire.
        prompts: Short texts. Default: `featuredb.steering.neutral.PROMPTS`.
        model: Where the database's model is now. Default: where it was at the ingest.
        progress: Show progress on standard error.

    Returns:
        One row per feature, measured now or before.

    Raises:
        UnknownFeatureError: There is no such feature.
        QueryError: A feature never fires, or there is no prompt.
        DatabaseError: There is no database, or another process is writing.
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        ModelError: The model is gone, has changed, or predicts no next token.
        StorageError: The database can only be read.
    """
    from featuredb.steering.effects import measured
    from featuredb.store.store import Store
    from queries.connection import Reader

    folder = local_folder(path, "measuring")
    with ingest_extra("measuring"):
        from featuredb.steering.measure import measure_features
        from featuredb.steering.neutral import PROMPTS

    where = None if model is None else os.fspath(model)
    with shown(progress):
        chosen = measure_features(folder, features, PROMPTS if prompts is None else prompts, where)
    reader = Reader(Store.open(folder))
    try:
        return measured(reader, None if features is None else chosen)
    finally:
        reader.close()


def map_features(path: str | os.PathLike[str], *, progress: bool = False) -> int:
    """Place all features in the plane, near ones together, and store where they are.

    By UMAP (McInnes, Healy, Melville 2018) from the stored neighbors of decoder directions, started
    at their principal components. The same database gives the same map. Stored as a new snapshot,
    in the view ``feature_map``, which the page ``/map`` shows. Places that are there are replaced.

    Args:
        path: The database folder.
        progress: Show progress on standard error.

    Returns:
        How many features were placed.

    Raises:
        DatabaseError: There is no database, or another process is writing.
        StorageError: The database can only be read.
    """
    folder = local_folder(path, "placing its features")
    with ingest_extra("placing features"):
        from ingest.operations.map import map_features as place
    with shown(progress):
        return place(folder)


def import_labels(
    path: str | os.PathLike[str],
    file: str | os.PathLike[str],
    format: str | None = None,
    *,
    sae: str | None = None,
    method: str | None = None,
) -> Labeled:
    """Store the labels that a file has, and their scores, as one snapshot.

    Labels that are there already are skipped and counted. Nothing is written where a row is wrong.

    Args:
        path: The database folder.
        file: A file or folder.
        format: A name in `featuredb.labels.formats.FORMATS`. Default: by the file's ending.
        sae: The SAE of rows that do not say which. Default: the database's only one.
        method: How labels were made that do not say it. Default: ``imported``.

    Returns:
        How many labels and scores were written.

    Raises:
        LabelError: The file cannot be read, or is about other features or another SAE.
        DatabaseError: There is no database, or another process is writing.
        StorageError: The database can only be read.
    """
    from featuredb.labels.formats import read_labels
    from featuredb.labels.write import add_labels

    folder = local_folder(path, "importing labels")
    return add_labels(folder, read_labels(folder, Path(file), format, sae, method))


def make_labels(path: str | os.PathLike[str]) -> Labeled:
    """Label every feature that fires, by rules, from what is stored. No language model is asked.

    The labels have the method ``automatic`` and give way to any other. They replace those that were
    made so before.

    Args:
        path: The database folder.

    Returns:
        How many labels are new.

    Raises:
        DatabaseError: There is no database, or another process is writing.
        StorageError: The database can only be read.
    """
    from featuredb.labels.automatic import label_automatically

    return label_automatically(local_folder(path, "labeling"))


def export_labels(
    path: str | os.PathLike[str],
    file: str | os.PathLike[str],
    format: str | None = None,
    *,
    sae: str | None = None,
) -> int:
    """Write the labels of a database, with their scores, to a file.

    Args:
        path: The database, a folder or a URL.
        file: Where to write. There must be nothing.
        format: A name in `featuredb.labels.formats.FORMATS`. Default: by the file's ending.
        sae: Only labels of this SAE.

    Returns:
        How many labels were written.

    Raises:
        LabelError: The format is unknown.
        UnknownFeatureError: There is no such SAE.
        StorageError: There is something already, or it cannot be written.
    """
    from featuredb.labels.formats import write_labels

    with open(path) as database:
        labels = database.labels().table
        return write_labels(labels, database.snapshot, Path(file), format, sae)


def add_monitor(
    path: str | os.PathLike[str],
    name: str,
    rule: str,
    *,
    note: str = "",
    owner: str | None = None,
    rate: str | None = None,
    where: str | None = None,
    replace: bool = False,
) -> Monitors:
    """Store a rule over features under a name, as a new snapshot.

    Args:
        path: The database folder.
        name: Letters, digits, ``_``, ``-`` and ``.``, beginning with a letter.
        rule: Such as ``"f12 > 5 and not f40"`` (`docs/guide/monitoring.md`). Quantiles and
            multiples of a maximum become numbers now, and stay what they are.
        note: What it is for.
        owner: Who answers for it. Default: the user's name.
        rate: At most so many alarms per token on what is stored, such as ``"5/M"``: it sets the
            number that the rule leaves open, as in ``"f12 > ?"``.
        where: With `rate`, a SQL condition on the documents that count.
        replace: Make the next version of a monitor of that name.

    Returns:
        Every version of the monitor, the last first. `notes` says how often it fires.

    Raises:
        RuleError: The rule cannot be read, can never fire, or always does.
        UnknownFeatureError: There is no such feature.
        QueryError: The name is taken, or the rate cannot be kept.
        DatabaseError: There is no database, or another process is writing.
        StorageError: The database can only be read.
    """
    from featuredb.monitors.changes import add_monitor as add

    folder = local_folder(path, "adding a monitor")
    return add(
        folder, name, rule, note=note, owner=owner, rate=rate, where=where, replace_old=replace
    )


def set_monitor(path: str | os.PathLike[str], name: str, state: str) -> Monitors:
    """Enable, disable or remove a monitor, as a new snapshot. Its history is kept.

    Args:
        path: The database folder.
        name: Of the monitor.
        state: ``"enabled"``, ``"disabled"`` (not run unless it is named) or ``"removed"``.

    Raises:
        QueryError: There is no such monitor, or that is its state already.
        DatabaseError: There is no database, or another process is writing.
        StorageError: The database can only be read.
    """
    from featuredb.monitors.changes import set_monitor as set_state

    return set_state(local_folder(path, "changing a monitor"), name, state)


def import_activations(
    path: str | os.PathLike[str],
    source: str | os.PathLike[str],
    format: str,
    *,
    name: str | None = None,
    hook: str = "",
    model_name: str = "",
    features: int | None = None,
    tokenizer: str | None = None,
    values: Values = "float16",
    memory: str = "4GB",
    progress: bool = False,
) -> Outcome:
    """Make a database of activations that another program recorded. Resumable.

    No model and no SAE is run. Stored questions are answered as in any database. It has no
    directions, so `near` answers by coactivation, and new text cannot be read.

    Args:
        path: The database folder.
        source: A file or folder.
        format: ``"goodfire"``, ``"delphi"``, ``"neuronpedia"``, ``"parquet"``, ``"csv"`` or
            ``"arrow"`` (`featuredb.interchange`).
        name: What to call the SAE. Default: what the source calls it, or its file's name.
        hook: Where the SAE reads, as `ingest` names hooks.
        model_name: The language model's name.
        features: How many features the SAE has. Default: up to the last that the source shows.
        tokenizer: A folder with the tokenizer, for token ids without texts (``"delphi"``).
        values: What activations are rounded to, as of `ingest`. ``"float32"`` keeps them.
        memory: Memory limit.
        progress: Show progress on standard error.

    Raises:
        OptionError: The format is unknown, or an argument is invalid.
        IngestError: The source cannot be read or is inconsistent, the SAE cannot be called so, or
            the folder holds another database.
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        StorageError: The disk is full or read-only.
    """
    folder = local_folder(path, "importing into it")
    with ingest_extra("importing activations"):
        from featuredb.interchange.formats import opened
        from featuredb.interchange.reading import Reading
        from ingest.operations.import_activations import import_activations as run
    budget = Budget.parse(memory)
    reading = Reading(name, hook, model_name, features, tokenizer, budget.bytes // 2)
    return run(folder, opened(Path(source), format, reading), values, budget, progress=progress)


def export_activations(
    path: str | os.PathLike[str],
    file: str | os.PathLike[str],
    format: str,
    *,
    sae: str | None = None,
    snapshot: int | None = None,
) -> int:
    """Write the activations of an SAE for another program.

    Args:
        path: The database, a folder or a URL.
        file: Where to write. There must be nothing.
        format: ``"goodfire"``, ``"delphi"``, ``"neuronpedia"``, ``"circuit-tracer"``,
            ``"parquet"``, ``"csv"`` or ``"arrow"`` (`featuredb.interchange`).
        sae: Which. Default: the database's only one.
        snapshot: The number of an older snapshot. Default: the newest.

    Returns:
        How many activations were written. Of ``"neuronpedia"`` and ``"circuit-tracer"``, how many
        examples.

    Raises:
        OptionError: The format is unknown.
        UnknownFeatureError: There is no such SAE, or there are several.
        StorageError: There is something already, or it cannot be written.
    """
    from featuredb.store.names import only_sae

    with ingest_extra("exporting activations"):
        from featuredb.interchange.formats import write
    with open(path, snapshot=snapshot) as database:
        return write(database, only_sae(database.snapshot, sae), Path(file), format)


def explain(
    path: str | os.PathLike[str],
    features: int | str | Iterable[int | str] | None = None,
    *,
    endpoint: str,
    model_name: str,
    scores: Sequence[str] = ("detection",),
    existing: bool = False,
    embedding_model: str | None = None,
    rate: float | None = None,
    parallel: int = 4,
    seed: int = 0,
    price: tuple[float, float] | None = None,
    dry_run: bool = False,
    progress: bool = False,
) -> Explained:
    """Let a language model label features, and score how well the labels say it.

    The model gets examples chosen and marked by Delphi's scheme (`featuredb.autointerp`). What is
    written are labels of the method ``explained``, with scores. Resumable: features that have such
    a label of the model are left out, unless it lacks scores that are asked for, and what was
    answered is kept, whatever ends the run. A feature that fires in fewer than 10 contexts is left
    out. The key is taken from the environment variable ``OPENAI_API_KEY``.

    Args:
        path: The database folder.
        features: One or several. Default: all that fire.
        endpoint: Address of an OpenAI-compatible server, such as ``http://localhost:8000/v1``.
        model_name: The model to ask.
        scores: Of ``"detection"``, ``"fuzz"``, ``"intruder"`` and ``"embedding"``. None: ``()``.
        existing: Write no labels, and score the preferred ones that there are.
        embedding_model: The model for ``"embedding"``, at the same endpoint.
        rate: Requests per minute at most, those for embeddings among them.
        parallel: Features at a time.
        seed: Draw other examples.
        price: Of a million tokens in and of a million out, for the estimate.
        dry_run: Only say what it would take.
        progress: Show progress, and the estimate before it begins, on standard error.

    Returns:
        What was asked, answered and written.

    Raises:
        QueryError: The endpoint gives no answer, or an argument is wrong.
        UnknownFeatureError: There is no such feature.
        DatabaseError: There is no database, or another process writes.
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        StorageError: The database can only be read.
    """
    from featuredb.endpoint import Endpoint, check_model

    folder = local_folder(path, "explaining")
    with ingest_extra("explaining"):
        from featuredb.autointerp.explain import Request
        from featuredb.autointerp.explain import explain as run
        from featuredb.autointerp.scores import Answers
    request = Request(tuple(scores), existing, seed, parallel, price, dry_run)
    if "embedding" in request.scores and embedding_model is None:
        raise QueryError("the score embedding needs the name of an embedding model")
    if embedding_model is not None:
        check_model(embedding_model)
    answers = Answers(Endpoint(endpoint, model_name, rate), embedding=embedding_model)
    with shown(progress), open(folder) as database:
        return run(database, folder, features, answers, request)


def snapshots(path: str | os.PathLike[str]) -> Rows:
    """List the snapshots in a database, oldest first.

    Returns:
        One row per snapshot: snapshot, created, operation, live, corpora, saes, activations, and
        bytes. bytes counts all files of the snapshot, also those it shares with others.

    Raises:
        DatabaseError: There is no database at `path`.
    """
    from queries.snapshots import list_snapshots

    return list_snapshots(local_folder(path, "listing snapshots"))


def verify(
    path: str | os.PathLike[str],
    *,
    memory: str = "1GB",
    all_snapshots: bool = False,
    source: int = 0,
    model: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Report:
    """Check every file of a database: sizes, SHA-256, and whether the contents agree.

    Args:
        path: The database folder.
        memory: Memory limit.
        all_snapshots: Also check older snapshots.
        source: Run this many random contexts through the model and the SAEs again, and compare
            with what is stored. Needs the extra ``featuredb[ingest]``.
        model: With `source`, where the database's model is now. Default: as of `open`.
        progress: Show a progress bar if standard error is a terminal.

    Returns:
        What was checked, and the problems found. Damage does not raise.

    Raises:
        DatabaseError: There is no database at `path`, or it was written by a newer featuredb.
        OptionError: `memory` is not a size.
        MissingExtraError: With `source`, the extra is not installed.
        ModelError: With `source`, the model is missing or is another.
        SaeError: With `source`, as `Database.fires_on`.
    """
    from featuredb.verification import verify as verify_database
    from featuredb.verification.source import compare

    folder = local_folder(path, "verifying")
    if source:  # a missing extra is reported before hours of reading
        with ingest_extra("comparing with the model"):
            from ingest.operations.given import check_paths

            check_paths(model=model)
            from ingest.extract.new_text import encode_contexts
    report = verify_database(
        folder, memory=Budget.parse(memory).bytes, all_snapshots=all_snapshots, progress=progress
    )
    if not (source and report.ok):
        return report
    where = None if model is None else os.fspath(model)
    return compare(folder, report, source, partial(encode_contexts, where=where))


def push(
    path: str | os.PathLike[str],
    url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Upload the live snapshot of a database, skipping files already there. Resumable.

    Readers of the URL see the old snapshot or the new one, never a mixture.

    Args:
        path: The database folder.
        url: Where to, such as ``s3://bucket/my.fdb``.
        storage_options: Passed to fsspec.
        report: Called with (bytes done, total bytes) as files arrive.

    Raises:
        DatabaseError: There is nothing to upload, or the URL holds another database or a newer
            snapshot.
        MissingExtraError: The package for the URL's scheme is not installed.
        RemoteError: The server cannot be reached or refuses.
    """
    from featuredb.store.files.remote import RemoteFiles
    from featuredb.transfer.push_pull import push as push_database

    folder = local_folder(path, "pushing from it")
    return push_database(folder, RemoteFiles(url, storage_options), report)


def pull(
    url: str,
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Download the live snapshot of a database, skipping existing files. Resumable.

    Every file is checked against its SHA-256.

    Args:
        url: Where from, such as ``s3://bucket/my.fdb``.
        path: The database folder.
        storage_options: Passed to fsspec.
        report: Called with (bytes done, total bytes) as files arrive.

    Raises:
        DatabaseError: There is nothing to download, or the folder holds another database or a
            newer snapshot.
        DatabaseLockedError: Another process is writing.
        MissingExtraError: The package for the URL's scheme is not installed.
        RemoteError: The server cannot be reached or refuses.
        StorageError: The disk is full or read-only.
    """
    from featuredb.store.files.remote import RemoteFiles
    from featuredb.transfer.push_pull import pull as pull_database

    folder = local_folder(path, "pulling into it")
    return pull_database(RemoteFiles(url, storage_options), folder, report)


def serve(
    path: str | os.PathLike[str],
    *,
    port: int = 8765,
    host: str = "127.0.0.1",
    snapshot: int | None = None,
    model: str | os.PathLike[str] | None = None,
    open_browser: bool = True,
    site: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Answer a browser's questions about a database until interrupted.

    Prints the address, with a token in it that a browser keeps in a cookie. Nothing is written but
    labels, and nothing but the database's own files is read.

    Args:
        path: A folder or a URL, as of `open`.
        port: Port to listen at. 0 for any that is free.
        host: Address to listen at. Another than loopback lets other machines in.
        snapshot: The number of an older snapshot. Default: the newest.
        model: Where the database's model is now, as of `open`.
        open_browser: Open a browser too.
        site: `path` is a folder that `featuredb.site` wrote.
        storage_options: Passed to fsspec.

    Raises:
        MissingExtraError: The extra ``featuredb[serve]`` is not installed.
        OptionError: The port is taken, or `path` is no site.
        DatabaseNotFoundError: There is no database at `path`.
    """
    from featuredb.database import Database
    from featuredb.extras import extra
    from featuredb.store.store import Store

    with extra("serve", "serving a database"):
        from featuredb.explorer import server
    if site:
        server.serve_site(Path(path), host, port, open_browser=open_browser)
        return
    store = Store.open(path, snapshot, storage_options, None)
    where = None if model is None else os.fspath(model)
    with Database(store, where, confined=True) as database:
        server.serve(database, store, host, port, open_browser=open_browser)


def mcp(
    path: str | os.PathLike[str],
    *,
    rows: int = 200,
    seconds: float = 30.0,
    snapshot: int | None = None,
    model: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Answer a language model's questions about a database, as an MCP server, until it hangs up.

    Speaks the Model Context Protocol on standard input and output. Every question is a tool.
    Nothing is written, and nothing but the database's own files is read.

    Args:
        path: A folder or a URL, as of `open`.
        rows: Most rows of an answer.
        seconds: Longest time that an answer takes.
        snapshot: The number of an older snapshot. Default: the newest.
        model: Where the database's model is now, as of `open`.
        storage_options: Passed to fsspec.

    Raises:
        MissingExtraError: The extra ``featuredb[mcp]`` is not installed.
        OptionError: `rows` or `seconds` is not positive.
        DatabaseNotFoundError: There is no database at `path`.
    """
    from featuredb.database import Database
    from featuredb.explorer.console import Console
    from featuredb.extras import extra
    from featuredb.store.store import Store

    if rows < 1 or not seconds > 0:
        raise OptionError(f"an answer needs room: rows is {rows} and seconds {seconds:g}")
    with extra("mcp", "answering agents"):
        from featuredb.agents import server
        from featuredb.agents.tools import question_tools
    store = Store.open(path, snapshot, storage_options, None)
    where = None if model is None else os.fspath(model)
    with Database(store, where, confined=True) as database:
        server.serve(question_tools(database, Console(store)), rows, seconds)


def site(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    snapshot: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> WrittenSite:
    """Write pages that any host of files serves, and that read the database by ranges.

    Home, search, a page for every feature, what is near it. All that a page shows is in the
    folder, so it says what the database says, and cannot be asked anything else.

    Args:
        path: A folder or a URL, as of `open`.
        out: A new or empty folder, or one with a site, which is replaced.
        snapshot: The number of an older snapshot. Default: the newest.
        storage_options: Passed to fsspec.
        progress: Say on standard error what is being written.

    Returns:
        The folder, how many files it has, and how many bytes.

    Raises:
        OptionError: `out` has something else, is in the database, or empty.
        StorageError: `out` cannot be written.
    """
    from featuredb.explorer.static.write import write_site

    if not os.fspath(out):
        raise OptionError("out is empty: give a folder")
    say = _say if progress else lambda _: None
    with open(path, snapshot=snapshot, storage_options=storage_options) as database:
        return write_site(database, database._store, Path(out), say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def card(
    path: str | os.PathLike[str],
    features: Sequence[int | str],
    *,
    snapshot: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Cards of features as one HTML file: no script, nothing fetched, to mail or to print.

    Args:
        path: A folder or a URL, as of `open`.
        features: Numbers, or ``"sae_name/1234"``.
        snapshot: The number of an older snapshot. Default: the newest.
        storage_options: Passed to fsspec.

    Returns:
        The file's text, at most 200 KB a feature.

    Raises:
        UnknownFeatureError: There is no such feature.
        OptionError: No feature is given.
    """
    from featuredb.explorer.card import card as draw

    with open(path, snapshot=snapshot, storage_options=storage_options) as database:
        return draw(database, features)


def load_sae(
    reference: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> LoadedSae:
    """Load an SAE.

    Args:
        reference: A folder or weight file in a supported format, ``hf:owner/repo/path[@revision]``,
            or ``sae-lens:release/id``.
        device: Where to put its weights.
        dtype: What it computes in. Default: float32.
        revision: For hub references that do not name one.

    Raises:
        MissingExtraError: The extra ``featuredb[ingest]`` is not installed.
        SaeError: There is no SAE, there are several, or its files are damaged.
    """
    with ingest_extra("loading an SAE"):
        from ingest.sae import load_sae as load

    ref = reference if isinstance(reference, str) else Path(reference)
    return load(ref, device=device, dtype=dtype, revision=revision)
