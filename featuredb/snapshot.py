"""The snapshot: one JSON file that names everything a reader of the database may see.

A database is the snapshot that ``CURRENT`` names. Files are written first, then the snapshot,
then ``CURRENT`` by an atomic rename, so a reader sees all of a change or none of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from featuredb import schemas
from featuredb.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseNotFoundError,
    DatabaseNotReadyError,
    FormatVersionError,
)
from featuredb.files import fsync_path, sha256_of, write_atomically
from featuredb.layout import Layout
from featuredb.pointer import Pointer
from featuredb.rounding import Values

_SNAPSHOT = re.compile(r"[0-9]{6,}\.json")


class File(msgspec.Struct, frozen=True):
    """A file the snapshot stands on. path is relative to the database folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


class FeatureFile(msgspec.Struct, frozen=True):
    """One feature-major file: features first_feature <= id < end_feature, rows from first_row.

    stride: its column has position + feature_id * stride, modulo 2**32; 0 in format 1.
    """

    file: File
    first_feature: int
    end_feature: int
    first_row: int
    stride: int = 0


class TokenFile(msgspec.Struct, frozen=True):
    """One token-major file: contexts first_context <= id < end_context.

    Its positions count from base_context, so merging segments moves these files unread. order:
    path of the feature order that its lists are gaps along; None, as in format 1, where they are
    plain feature ids.
    """

    file: File
    first_context: int
    end_context: int
    base_context: int
    order: str | None = None


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
    """What the SAE did on the first tokens of the corpus, before it was trusted.

    variance_explained: None for a transcoder of which nobody says where it writes.
    """

    tokens: int
    l0: float
    variance_explained: float | None
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
    """Provenance and shape of one SAE.

    order: its features by frequency, as its token-major files count them; None in format 1.
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


class Corpus(msgspec.Struct, frozen=True):
    """Provenance and extent of one corpus. Its ids follow those of the corpora before it.

    roles: for chats, a uint8 for each token of `tokens`, an index into role_names. text_hashes:
    see `featuredb.texts.text_hash`; None where no document has a text, and in older databases.
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


class Recording(msgspec.Struct, frozen=True):
    """Which positions are recorded and how. At most one of exact and log8 is true."""

    keep_bos: bool
    keep_sinks: bool
    exact: bool
    log8: bool = False

    @property
    def values(self) -> Values:
        """What activations are rounded to."""
        if self.exact:
            return "float32"
        return "log8" if self.log8 else "float16"


class Vectors(msgspec.Struct, frozen=True):
    """The directions of one SAE: a LanceDB table, and its float16 matrices.

    files: LanceDB's own files at that version; empty in format 1.
    """

    sae: str
    table: str
    version: int
    decoder: File
    encoder: File
    files: tuple[File, ...] = ()


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
    """Examples of one SAE: read through a directory of row offsets, and as answers show them.

    windows: by feature, covering all of them; empty in format 1.
    """

    sae: str
    examples: File
    examples_directory: File
    windows: tuple[FeatureFile, ...] = ()


class NextIds(msgspec.Struct, frozen=True):
    """The first corpus, document and context id that were never used: a dropped corpus's are not
    given again."""

    corpus: int = 0
    document: int = 0
    context: int = 0


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot will say before its activations exist."""

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
    """An approximate index over the directions of SAEs that may be compared.

    saes: whose rows it counts through, in this order. recall: the share of the 10 nearest that it
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
    """What was computed from the segments when the snapshot was made.

    summaries: what of `features` answers about others show; None in older databases.
    """

    features: File
    neighbors_decoder: File
    neighbors_encoder: File
    coactivation: File
    saes: tuple[SaeTables, ...]
    indexes: tuple[VectorIndex, ...] = ()
    summaries: File | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything live at one moment.

    operation: what made it: ``ingest``, ``append``, ``add-sae``, ``drop`` or ``compact``.
    catalog: ``catalog.duckdb`` as it was published. older: the snapshots before this one that
    were still kept when it was written. Both are empty in format 1.
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
    runs: tuple[Run, ...]
    operation: str = "ingest"
    next_ids: NextIds = NextIds()
    catalog: File | None = None
    older: tuple[File, ...] = ()

    def sae(self, name: str) -> Sae:
        """The SAE of that name. Raises KeyError."""
        for sae in self.saes:
            if sae.name == name:
                return sae
        raise KeyError(name)

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
        found = [s for s in self.segments if s.sae == sae]
        return tuple(sorted(found, key=lambda s: s.first_context))

    def recorded_tokens(self, sae: str) -> int:
        """Positions at which this SAE's activations were recorded."""
        return sum(s.recorded_tokens for s in self.segments if s.sae == sae)

    def rows(self, sae: str) -> int:
        """Stored activations of one SAE."""
        return sum(s.rows for s in self.segments if s.sae == sae)

    def files(self) -> list[File]:
        """Every file this snapshot stands on, but the catalog, which only the live one has."""
        listed = [self.vocabulary]
        for corpus in self.corpora:
            listed += [corpus.documents, corpus.contexts, corpus.tokens, corpus.index]
            listed += [f for f in (corpus.roles, corpus.text_hashes) if f is not None]
        for segment in self.segments:
            listed += [f.file for f in segment.feature_files]
            listed += [f.file for f in segment.token_files]
            listed += [segment.directory, segment.sinks]
        listed += [sae.order for sae in self.saes if sae.order is not None]
        for vectors in self.vectors:
            listed += [vectors.decoder, vectors.encoder, *vectors.files]
        derived = self.derived
        listed += [derived.features, derived.neighbors_decoder, derived.neighbors_encoder]
        listed.append(derived.coactivation)
        listed += [derived.summaries] if derived.summaries is not None else []
        for tables in derived.saes:
            listed += [tables.examples, tables.examples_directory]
            listed += [part.file for part in tables.windows]
        for index in derived.indexes:
            listed += [index.centroids, index.lists]
        return listed


class _Stamp(msgspec.Struct):
    format: int
    featuredb: str = "?"


def write_snapshot(layout: Layout, snapshot: Snapshot, catalog: Path | None = None) -> Snapshot:
    """Make `snapshot` the live one. Everything it names must be on the disk.

    catalog: its catalog under a temporary name, to be put in place; by default the one that is
    there. Between that rename and the one of ``CURRENT`` other DuckDB clients see the new snapshot
    and featuredb the old one, both of them whole; a writer killed there is followed by
    `finish_publication`. Returns the snapshot as written: with the catalog's checksum, and those
    of the snapshots before it.
    """
    path = layout.snapshot(snapshot.number)
    snapshot = msgspec.structs.replace(
        snapshot,
        catalog=_catalog(layout, catalog or layout.catalog),
        older=_older(layout, snapshot.number),
    )
    data = msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n"
    write_atomically(path, data)
    if catalog is not None:
        os.replace(catalog, layout.catalog)
        fsync_path(layout.root)
    write_atomically(layout.current, Pointer(path.stem, sha256(data).hexdigest()).line())
    return snapshot


def unfinished_publication(layout: Layout) -> bytes | None:
    """The snapshot after the live one, as its file has it, where all of it is in place but
    ``CURRENT``: the catalog is that snapshot's already."""
    number = read_snapshot(layout).number if layout.current.exists() else 0
    try:
        raw = layout.snapshot(number + 1).read_bytes()
        catalog = msgspec.json.decode(raw, type=Snapshot).catalog
    except (OSError, msgspec.MsgspecError):
        return None
    if catalog is None or not layout.catalog.exists():
        return None
    return raw if sha256_of(layout.catalog) == catalog.sha256 else None


def finish_publication(layout: Layout) -> None:
    """Publish what a writer was killed publishing, if all but the last step was done.

    To be called under the write lock.
    """
    raw = unfinished_publication(layout)
    if raw is not None:
        name = layout.snapshot(msgspec.json.decode(raw, type=Snapshot).number).stem
        fsync_path(layout.root)  # the catalog's name, which the writer may not have come to
        write_atomically(layout.current, Pointer(name, sha256(raw).hexdigest()).line())


def _catalog(layout: Layout, path: Path) -> File | None:
    if not path.exists():
        return None
    return File(layout.relative(layout.catalog), 0, path.stat().st_size, sha256_of(path))


def _older(layout: Layout, number: int) -> tuple[File, ...]:
    """The snapshots below `number` that are kept, with the checksums they were published with."""
    if not layout.current.exists():
        return ()
    pointer = read_pointer(layout)
    live = read_snapshot(layout)
    path = layout.snapshot(live.number)
    own = File(layout.relative(path), 0, path.stat().st_size, pointer.sha256 or sha256_of(path))
    known = [f for f in (*live.older, own) if f.path != layout.relative(layout.snapshot(number))]
    return tuple(f for f in known if (layout.root / f.path).exists())


def _recorded(layout: Layout, number: int) -> Pointer:
    """A snapshot by number, with its checksum as far as the live one can be read for it."""
    path = layout.snapshot(number)
    try:
        pointer = read_pointer(layout)
        if pointer.name == path.stem:
            return pointer
        told = {f.path: f.sha256 for f in read_snapshot(layout).older}
    except (OSError, DatabaseError):
        told = {}
    return Pointer(path.stem, told.get(layout.relative(path)))


def read_pointer(layout: Layout) -> Pointer:
    """What ``CURRENT`` says. Raises `CorruptDatabaseError` where it is damaged, and OSError."""
    try:
        return Pointer.parse(layout.current.read_bytes())
    except ValueError as error:
        raise CorruptDatabaseError(
            f"{layout.current} cannot be read ({error}): restore it from a copy, or write the "
            "name of the newest file in snapshots/ into it, as 000001 and a line break"
        ) from error


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
        pointer = read_pointer(layout) if number is None else _recorded(layout, number)
    except FileNotFoundError:
        if layout.staging.is_dir() or layout.lock.exists():
            raise DatabaseNotReadyError(
                f"{root} is still being ingested and has nothing to read yet: wait for it, "
                "or run the same `featuredb ingest` again to continue it"
            ) from None
        raise DatabaseNotFoundError(
            f"{root} is not a featuredb database (it has no CURRENT file): check the path"
        ) from None
    if number is not None and number not in (kept := kept_numbers(layout)):
        raise DatabaseNotFoundError(f"{root} has no snapshot {number}: it keeps {_listed(kept)}")
    path = layout.snapshots / f"{pointer.name}.json"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorruptDatabaseError(
            f"the snapshot {path} cannot be read ({error}): restore it from a copy"
        ) from error
    return decode_snapshot(raw, pointer, str(path), str(root))


def snapshot_numbers(layout: Layout) -> list[int]:
    """The numbers of the snapshots on the disk, ascending. One above the live one is of a
    publication that is under way, or was killed."""
    names = (path.name for path in layout.snapshots.glob("*.json"))
    return sorted(int(name[:-5]) for name in names if _SNAPSHOT.fullmatch(name))


def kept_numbers(layout: Layout) -> list[int]:
    """The numbers of the published snapshots that are kept, ascending; of all on the disk where
    ``CURRENT`` names none of them."""
    numbers = snapshot_numbers(layout)
    try:
        live = int(read_pointer(layout).name)
    except (OSError, DatabaseError):
        return numbers
    return [number for number in numbers if number <= live or live not in numbers]


def _listed(numbers: Sequence[int]) -> str:
    """``3, 5 to 8`` for 3, 5, 6, 7 and 8."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans) or "none"


def decode_snapshot(raw: bytes, pointer: Pointer, path: str, root: str) -> Snapshot:
    """A snapshot from the bytes of its file. path, root: what messages name.

    Raises `FormatVersionError` for a newer format, `CorruptDatabaseError`.
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
