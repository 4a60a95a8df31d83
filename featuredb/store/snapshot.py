"""The snapshot: one JSON file that names everything a reader of the database may see.

A database is the snapshot that ``CURRENT`` names.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

import msgspec

from featuredb.errors import CorruptDatabaseError, FormatVersionError
from featuredb.store import schemas
from featuredb.store.current import Pointer
from featuredb.store.values import Values
from featuredb.version import __version__

BosFrom = Literal["option", "sae", "tokenizer"]
"""What decided whether contexts begin with BOS: the user, the SAEs' files, or the tokenizer."""

WRITER = __version__
"""The featuredb that writes, as snapshots and plans record it."""


class File(msgspec.Struct, frozen=True):
    """A file of the snapshot. path is relative to the database folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


class FeatureFile(msgspec.Struct, frozen=True):
    """One by-feature file: features first_feature <= id < end_feature, rows from first_row.

    stride: its column has position + feature_id * stride, modulo 2**32.
    """

    file: File
    first_feature: int
    end_feature: int
    first_row: int
    stride: int


class TokenFile(msgspec.Struct, frozen=True):
    """One by-token file: contexts first_context <= id < end_context.

    Its positions count from base_context, so merging segments moves these files unread. order:
    path of the feature order that its lists are gaps along.
    """

    file: File
    first_context: int
    end_context: int
    base_context: int
    order: str


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
    """Measurements of the SAE on a sample of the corpora it was first run on, before that.

    variance_explained: None for a transcoder with unknown output. median_norm: of the sample of
    the first of these corpora.
    """

    tokens: int
    l0: float
    variance_explained: float | None
    dead_share: float
    median_norm: float
    sink_threshold: float | None


SPREAD = (0.1, 0.9)
"""The quantiles over contexts that a `CorpusCheck` calls low and high."""


class CorpusCheck(msgspec.Struct, frozen=True):
    """Measurements of an SAE on a sample of one corpus, before the ingest.

    *_low, *_high: quantiles `SPREAD` over the sample's contexts. variance_explained*: None for a
    transcoder with unknown output, and where the hidden states do not vary.
    """

    corpus: str
    contexts: int
    tokens: int
    l0: float
    l0_low: float
    l0_high: float
    variance_explained: float | None
    variance_explained_low: float | None
    variance_explained_high: float | None


class Model(msgspec.Struct, frozen=True):
    """Provenance of the language model. compiled: whether torch compiled its layers."""

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
    compiled: bool = False


class Sae(msgspec.Struct, frozen=True):
    """Provenance and shape of one SAE.

    order: its features by frequency, as its by-token files count them. None only in a draft,
    before the first run. hooks_out: where an SAE writes that is one of several which write to
    several layers together, else empty. excluded_tokens: token ids, ascending, at which nothing is
    recorded. weights: what it computes with besides its directions. None before databases kept it.
    checks: by corpus, in order. Empty before they were recorded.
    """

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
    order: File | None = None
    hooks_out: tuple[str, ...] = ()
    excluded_tokens: tuple[int, ...] = ()
    weights: File | None = None
    checks: tuple[CorpusCheck, ...] = ()

    def __repr__(self) -> str:
        return f"<SAE {self.name}: {self.d_sae:,} features at {self.hook}>"

    @property
    def writes(self) -> tuple[str, ...]:
        """Where it writes, apart from where it reads. Empty for an autoencoder."""
        return self.hooks_out or ((self.hook_out,) if self.hook_out is not None else ())

    @property
    def places(self) -> tuple[str, tuple[str, ...]]:
        """Where it reads and writes. Directions of SAEs may be compared if these are the same."""
        return self.hook, self.writes


class Corpus(msgspec.Struct, frozen=True):
    """Provenance and extent of one corpus. Its ids follow those of the corpora before it.

    roles: for chats, a uint8 for each token of `tokens`, an index into role_names. text_hashes:
    see `featuredb.store.corpora.text_hash`. None if no document has a text. bos_from: what decided
    bos_token_id, None if it was not recorded. name: None if it was not recorded, see `called`.
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
    text_hashes: File | None = None
    bos_from: BosFrom | None = None
    name: str | None = None

    @property
    def called(self) -> str:
        """Its name. That of a corpus stored without one is its id."""
        return self.id if self.name is None else self.name


class Recording(msgspec.Struct, frozen=True):
    """Which positions are recorded, and what their activations are rounded to."""

    keep_bos: bool
    keep_sinks: bool
    values: Values


class DirectionColumn(msgspec.Struct, frozen=True):
    """The directions of one kind: a column of a LanceDB table.

    values: ``float16`` where that holds every number exactly. offset: bytes before the first row in
    `Vectors.data`, if the rows are contiguous there. Otherwise None, because LanceDB packs
    rows of fewer than 256 bytes. unit: the rows normalized to length 1, in float16, to scan. None
    if they are few and computed on first use.
    """

    rows: int
    width: int
    values: Literal["float16", "float32"]
    offset: int | None = None
    unit: File | None = None


class Vectors(msgspec.Struct, frozen=True):
    """The directions of one SAE.

    table, version: of LanceDB. files: LanceDB's own files at that version. data: the one of them
    with uncompressed rows.
    """

    sae: str
    table: str
    version: int
    decoder: DirectionColumn
    encoder: DirectionColumn
    files: tuple[File, ...]
    data: str | None = None

    def column(self, kind: str) -> DirectionColumn:
        """The column of a kind, ``decoder`` or ``encoder``."""
        return self.decoder if kind == "decoder" else self.encoder

    @property
    def unit_files(self) -> list[File]:
        """Files of unit rows."""
        return [c.unit for c in (self.decoder, self.encoder) if c.unit is not None]


class IngestRecord(msgspec.Struct, frozen=True):
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
    """Examples of one SAE: read through a directory of row offsets, and as answers show them.

    windows: by feature, covering all of them.
    """

    sae: str
    examples: File
    examples_directory: File
    windows: tuple[FeatureFile, ...]


class NextIds(msgspec.Struct, frozen=True):
    """The first unused corpus, document and context ids. Ids of a dropped corpus are not
    reused."""

    corpus: int = 0
    document: int = 0
    context: int = 0


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a snapshot that is known before its activations exist."""

    number: int
    operation: str = "ingest"
    next_ids: NextIds = NextIds()
    position_bits: int
    model: Model
    recording: Recording
    vocabulary: File
    corpora: tuple[Corpus, ...]
    saes: tuple[Sae, ...]
    vectors: tuple[Vectors, ...]


class VectorIndex(msgspec.Struct, frozen=True):
    """An approximate index over the directions of comparable SAEs.

    saes: their rows are counted in this order. recall: the share of the 10 nearest that it
    finds, over `sample` stored directions, at that many probes.
    """

    kind: str
    saes: tuple[str, ...]
    centroids: File
    lists: File
    probes: int
    recall: float
    sample: int


class Derived(msgspec.Struct, frozen=True):
    """The tables computed from the segments when the snapshot was made.

    summaries: the columns of `features` that answers show of other features.
    """

    features: File
    neighbors_decoder: File
    neighbors_encoder: File
    coactivation: File
    saes: tuple[SaeTables, ...]
    summaries: File
    indexes: tuple[VectorIndex, ...] = ()


class UserData(msgspec.Struct, frozen=True):
    """A table of user data (`featuredb.store.user_data`)."""

    table: str
    file: File


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything live at one moment.

    operation: the one that made it: ``ingest``, ``append``, ``add-sae``, ``drop``, ``compact``, or
    what wrote user data: ``measure``, ``effect`` or ``label``.
    catalog: ``catalog.duckdb`` as it was published. older: the older snapshots that
    existed when it was written. mark: a file in a folder that no other publication has. The paths
    of the catalog lead through that folder, so that a moved database never reads another one that
    lies where it was. None before there were marks. user_data: by table.
    """

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
    ingests: tuple[IngestRecord, ...]
    operation: str = "ingest"
    next_ids: NextIds = NextIds()
    catalog: File | None = None
    older: tuple[File, ...] = ()
    mark: File | None = None
    user_data: tuple[UserData, ...] = ()

    def sae(self, name: str) -> Sae:
        """The SAE of that name. Raises KeyError."""
        for sae in self.saes:
            if sae.name == name:
                return sae
        raise KeyError(name)

    def variance_explained(self, sae: Sae) -> float | None:
        """The mean over the corpora, weighted by their tokens, if all were measured. Else that of
        the SAE's first ingest."""
        shares = {check.corpus: check.variance_explained for check in sae.checks}
        weighted = [(shares.get(corpus.id), corpus.n_tokens) for corpus in self.corpora]
        known = [(share, tokens) for share, tokens in weighted if share is not None]
        if len(known) < len(weighted):
            return sae.check.variance_explained
        return sum(s * n for s, n in known) / sum(n for _, n in known)

    def unused_ids(self) -> NextIds:
        """The ids that the next corpus begins with."""
        corpora = self.corpora
        return NextIds(
            max([self.next_ids.corpus, *(int(c.id) + 1 for c in corpora)]),
            max([self.next_ids.document, *(c.first_document + c.n_documents for c in corpora)]),
            max([self.next_ids.context, *(c.first_context + c.n_contexts for c in corpora)]),
        )

    def segments_of(self, sae: str) -> tuple[Segment, ...]:
        """Segments of one SAE, by first context."""
        segments = [s for s in self.segments if s.sae == sae]
        return tuple(sorted(segments, key=lambda s: s.first_context))

    def recorded_tokens(self, sae: str) -> int:
        """Positions at which this SAE's activations were recorded."""
        return sum(s.recorded_tokens for s in self.segments if s.sae == sae)

    def rows(self, sae: str) -> int:
        """Stored activations of one SAE."""
        return sum(s.rows for s in self.segments if s.sae == sae)

    def files(self) -> list[File]:
        """Every file of this snapshot, except the catalog, which only the live one has."""
        listed = [self.vocabulary]
        listed += [self.mark] if self.mark is not None else []
        for corpus in self.corpora:
            listed += [corpus.documents, corpus.contexts, corpus.tokens, corpus.index]
            listed += [f for f in (corpus.roles, corpus.text_hashes) if f is not None]
        for segment in self.segments:
            listed += [f.file for f in segment.feature_files]
            listed += [f.file for f in segment.token_files]
            listed += [segment.directory, segment.sinks]
        for sae in self.saes:
            listed += [f for f in (sae.order, sae.weights) if f is not None]
        for vectors in self.vectors:
            listed += [*vectors.unit_files, *vectors.files]
        derived = self.derived
        listed += [derived.features, derived.neighbors_decoder, derived.neighbors_encoder]
        listed += [derived.coactivation, derived.summaries]
        for tables in derived.saes:
            listed += [tables.examples, tables.examples_directory]
            listed += [part.file for part in tables.windows]
        for index in derived.indexes:
            listed += [index.centroids, index.lists]
        return listed + [data.file for data in self.user_data]


class _Stamp(msgspec.Struct):
    format: int
    featuredb: str = "?"


def decode_snapshot(raw: bytes, pointer: Pointer, path: str, root: str) -> Snapshot:
    """A snapshot from the bytes of its file. path, root: what messages name.

    Raises `FormatVersionError` for another format, `CorruptDatabaseError`.
    """
    if pointer.sha256 not in (None, sha256(raw).hexdigest()):
        raise CorruptDatabaseError(
            f"the snapshot {path} has changed since it was written (SHA-256): "
            "restore it from a copy"
        )
    try:
        stamp = msgspec.json.decode(raw, type=_Stamp)
    except msgspec.MsgspecError as error:
        raise CorruptDatabaseError(
            f"the snapshot {path} cannot be read ({error}): restore it from a copy"
        ) from error
    if stamp.format < schemas.OLDEST_FORMAT:
        raise FormatVersionError(
            f"{root} has format {stamp.format}, this featuredb reads format "
            f"{schemas.FORMAT_VERSION}: create the database again with `featuredb ingest`"
        )
    if stamp.format > schemas.FORMAT_VERSION:
        raise FormatVersionError(
            f"{root} has format {stamp.format}, written by featuredb {stamp.featuredb}; this one "
            f"reads format {schemas.FORMAT_VERSION}: upgrade featuredb to open it"
        )
    try:
        return msgspec.json.decode(raw, type=Snapshot)
    except msgspec.MsgspecError as error:
        raise CorruptDatabaseError(
            f"the snapshot {path} is damaged ({error}): restore it from a copy"
        ) from error
