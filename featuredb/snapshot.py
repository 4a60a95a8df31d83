"""The snapshot: one JSON file that names everything a reader of the database may see.

A database is the snapshot that ``CURRENT`` names. Files are written first, then the snapshot,
then ``CURRENT`` by an atomic rename, so a reader sees all of a change or none of it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from featuredb import schemas
from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    FormatVersionError,
)
from featuredb.files import write_atomically
from featuredb.layout import Layout


class File(msgspec.Struct, frozen=True):
    """A file the snapshot stands on. path is relative to the database folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


class FeatureFile(msgspec.Struct, frozen=True):
    """One feature-major file: features first_feature <= id < end_feature, rows from first_row."""

    file: File
    first_feature: int
    end_feature: int
    first_row: int


class TokenFile(msgspec.Struct, frozen=True):
    """One token-major file: contexts first_context <= id < end_context.

    Its positions count from base_context, so merging segments moves these files unread.
    """

    file: File
    first_context: int
    end_context: int
    base_context: int


class Segment(msgspec.Struct, frozen=True):
    """The activations of one SAE over contexts first_context <= id < end_context."""

    id: str
    sae: str
    level: int
    first_context: int
    end_context: int
    rows: int
    values: Literal["float16", "float32"]
    recorded_tokens: int
    feature_files: tuple[FeatureFile, ...]
    token_files: tuple[TokenFile, ...]
    directory: File
    sinks: File


class LoadCheck(msgspec.Struct, frozen=True):
    """What the SAE did on the first tokens of the corpus, before it was trusted."""

    tokens: int
    l0: float
    variance_explained: float
    dead_share: float
    median_norm: float
    sink_threshold: float | None


class Model(msgspec.Struct, frozen=True):
    """Provenance of the language model."""

    id: str
    path: str
    revision: str | None
    sha256: str
    tokenizer_sha256: str
    architecture: str
    dtype: str
    d_model: int
    n_layers: int
    vocab_size: int


class Sae(msgspec.Struct, frozen=True):
    """Provenance and shape of one SAE."""

    name: str
    source: str
    format: str
    architecture: str
    sha256: str
    hook: str
    hook_out: str | None
    d_in: int
    d_out: int
    d_sae: int
    encode_dtype: str
    check: LoadCheck


class Corpus(msgspec.Struct, frozen=True):
    """Provenance and extent of one corpus. Its ids follow those of the corpora before it.

    roles: for chats, a uint8 for each token of `tokens`, an index into role_names.
    """

    id: str
    source: str
    fingerprint: str
    context_size: int
    stride: int | None
    bos_token_id: int | None
    first_document: int
    n_documents: int
    first_context: int
    n_contexts: int
    n_tokens: int
    metadata: tuple[str, ...]
    documents: File
    contexts: File
    tokens: File
    index: File
    roles: File | None = None
    role_names: tuple[str, ...] = ()


class Recording(msgspec.Struct, frozen=True):
    """Which positions are recorded and how."""

    keep_bos: bool
    keep_sinks: bool
    exact: bool


class Vectors(msgspec.Struct, frozen=True):
    """The directions of one SAE: a LanceDB table, and its float16 matrices."""

    sae: str
    table: str
    version: int
    decoder: File
    encoder: File


class Run(msgspec.Struct, frozen=True):
    """One ingest, for the record."""

    number: int
    identity: str
    started: str
    finished: str
    featuredb: str
    corpus: str
    saes: tuple[str, ...]
    tokens: int
    activations: int
    seconds: float
    device: str
    host: str


class SaeTables(msgspec.Struct, frozen=True):
    """Derived tables of one SAE that are read through a directory of row offsets."""

    sae: str
    examples: File
    examples_directory: File


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot will say before its activations exist."""

    number: int
    position_bits: int
    model: Model
    recording: Recording
    vocabulary: File
    corpora: tuple[Corpus, ...]
    saes: tuple[Sae, ...]
    vectors: tuple[Vectors, ...]


class Derived(msgspec.Struct, frozen=True):
    """What was computed from the segments when the snapshot was made."""

    features: File
    neighbors_decoder: File
    neighbors_encoder: File
    coactivation: File
    saes: tuple[SaeTables, ...]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything live at one moment."""

    format: int
    featuredb: str
    number: int
    created: str
    position_bits: int
    model: Model
    recording: Recording
    vocabulary: File
    corpora: tuple[Corpus, ...]
    saes: tuple[Sae, ...]
    segments: tuple[Segment, ...]
    vectors: tuple[Vectors, ...]
    derived: Derived
    runs: tuple[Run, ...]

    def sae(self, name: str) -> Sae:
        """The SAE of that name. Raises KeyError."""
        for sae in self.saes:
            if sae.name == name:
                return sae
        raise KeyError(name)

    def segments_of(self, sae: str) -> tuple[Segment, ...]:
        """Segments of one SAE, by first context."""
        found = [s for s in self.segments if s.sae == sae]
        return tuple(sorted(found, key=lambda s: s.first_context))

    def recorded_tokens(self, sae: str) -> int:
        """Positions at which this SAE's activations were recorded."""
        return sum(s.recorded_tokens for s in self.segments if s.sae == sae)

    def rows(self, sae: str) -> int:
        """Stored activations of one SAE."""
        return sum(s.rows for s in self.segments if s.sae == sae)

    def files(self) -> list[File]:
        """Every file this snapshot stands on, LanceDB's own and the catalog apart."""
        listed = [self.vocabulary]
        for corpus in self.corpora:
            listed += [corpus.documents, corpus.contexts, corpus.tokens, corpus.index]
            listed += [corpus.roles] if corpus.roles is not None else []
        for segment in self.segments:
            listed += [f.file for f in segment.feature_files]
            listed += [f.file for f in segment.token_files]
            listed += [segment.directory, segment.sinks]
        for vectors in self.vectors:
            listed += [vectors.decoder, vectors.encoder]
        derived = self.derived
        listed += [derived.features, derived.neighbors_decoder, derived.neighbors_encoder]
        listed.append(derived.coactivation)
        for tables in derived.saes:
            listed += [tables.examples, tables.examples_directory]
        return listed


class _Stamp(msgspec.Struct):
    format: int
    featuredb: str = "?"


def write_snapshot(layout: Layout, snapshot: Snapshot) -> None:
    """Make `snapshot` the live one. Everything it names must already be on the disk."""
    path = layout.snapshot(snapshot.number)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n")
    write_atomically(layout.current, f"{path.stem}\n".encode())


def read_snapshot(layout: Layout, number: int | None = None) -> Snapshot:
    """The live snapshot, or the one of that number while it is kept.

    Raises `DatabaseNotFoundError`, `DatabaseNotReadyError` while a first ingest is unfinished,
    `FormatVersionError` for a newer format, `CorruptDatabaseError` for an unreadable snapshot.
    """
    root = layout.root
    if not root.is_dir():
        raise DatabaseNotFoundError(
            f"there is no database at {root}: check the path, or make one with `featuredb ingest`"
        )
    try:
        name = layout.current.read_text().strip() if number is None else f"{number:06d}"
    except FileNotFoundError:
        if layout.staging.is_dir() or layout.lock.exists():
            raise DatabaseNotReadyError(
                f"{root} is still being ingested and has nothing to read yet: wait for it, "
                "or run the same `featuredb ingest` again to continue it"
            ) from None
        raise DatabaseNotFoundError(
            f"{root} is not a featuredb database (it has no CURRENT file): check the path"
        ) from None
    path = layout.snapshots / f"{name}.json"
    try:
        raw = path.read_bytes()
        stamp = msgspec.json.decode(raw, type=_Stamp)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptDatabaseError(
            f"the snapshot {path} cannot be read ({error}): restore it from a copy"
        ) from error
    if stamp.format > schemas.FORMAT_VERSION:
        raise FormatVersionError(
            f"{root} has format {stamp.format}, written by featuredb {stamp.featuredb}; this one "
            f"reads up to format {schemas.FORMAT_VERSION}: upgrade featuredb to open it"
        )
    try:
        return msgspec.json.decode(raw, type=Snapshot)
    except msgspec.MsgspecError as error:
        raise CorruptDatabaseError(
            f"the snapshot {path} is damaged ({error}): restore it from a copy"
        ) from error
