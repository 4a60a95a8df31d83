"""The verification of a whole database."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

from featuredb.errors import CorruptDatabaseError
from featuredb.render.progress import Progress, shown
from featuredb.render.progress import progress as progress_of
from featuredb.store.current import read_pointer
from featuredb.store.files.memory import return_freed_memory
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import (
    kept_snapshots,
    read_snapshot,
    snapshot_numbers,
    unfinished_publication,
)
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Sae, Snapshot
from featuredb.store.unreferenced import unreferenced
from featuredb.verification.activations import Lengths, Profile, check_segment
from featuredb.verification.catalog import check_catalog
from featuredb.verification.checksums import check_file
from featuredb.verification.corpora import check_corpus, check_vocabulary
from featuredb.verification.derived import (
    check_examples,
    check_features,
    check_neighbors,
    check_summaries,
)
from featuredb.verification.directions import check_directions
from featuredb.verification.indexes import check_index
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem, Report, counted
from featuredb.verification.scope import Scope
from featuredb.verification.sinks import check_sinks
from featuredb.verification.user_data import check_user_data

MEMORY = 10**9
"""Default memory of a verification in bytes."""

_OPEN_FILES = 16


def verify(
    path: str | Path,
    *,
    memory: int = MEMORY,
    all_snapshots: bool = False,
    progress: bool = False,
) -> Report:
    """Check the live snapshot of the database at `path`, or all with `all_snapshots`.

    First the bytes of every file: ``CURRENT``, the snapshot, the catalog, and all that the snapshot
    names, by size and SHA-256. Then the content of sound files: sort order, directory and agreement
    of both copies of the activations, ids, tokens and lengths of the corpora, statistics, neighbors
    and a sample of examples against the activations, LanceDB's directions against the unit rows,
    and the catalog's views. memory: bytes to work in, beyond what the interpreter and its libraries
    take. progress: a bar on standard error where that is a terminal.

    All problems are in the report. Raises `DatabaseNotFoundError`, `DatabaseNotReadyError` and
    `FormatVersionError` as opening the database would.
    """
    layout = Layout(Path(path).expanduser().absolute())
    with shown(progress), progress_of("", "bytes", transient=True) as bar:
        live, problems = _live(layout)
        if live is None:
            return Report(1, 0, 0, tuple(problems))
        return _report(layout, live, problems, memory, all_snapshots, bar)


def _report(
    layout: Layout,
    live: Snapshot,
    problems: list[Problem],
    memory: int,
    all_snapshots: bool,
    bar: Progress,
) -> Report:
    sound = not problems
    # Checksums report a damaged one, if older snapshots are checked.
    readable = kept_snapshots(layout, skip_damaged=True)
    older = [snapshot for snapshot in readable if snapshot.number < live.number]
    listed = [live.catalog] if live.catalog is not None else []
    checked = [live]
    if all_snapshots:
        listed += live.older
        checked += older
    listed += [file for snapshot in checked for file in snapshot.files()]
    files = {file.path: file for file in listed if _is_kept(layout, live, file)}
    size = sum(file.bytes for file in files.values())
    bar.start("checksums", size)
    problems_by_file = {p: list(check_file(layout, f, bar)) for p, f in files.items()}
    damaged = {path for path, wrong in problems_by_file.items() if wrong}
    problems += [problem for wrong in problems_by_file.values() for problem in wrong]
    bar.start("contents", size)
    parquet = ParquetFiles(layout.root, _OPEN_FILES, memory_map=False)
    known: dict[str, Profile | None] = {}
    seen: set[str] = set()
    try:
        for snapshot in checked:
            scope = Scope(layout, snapshot, parquet, memory, bar, damaged)
            for problem in _contents(scope, known):
                if str(problem) not in seen:  # snapshots share files
                    seen.add(str(problem))
                    problems.append(problem)
    finally:
        parquet.close()
    return_freed_memory()
    if layout.catalog.name not in damaged:
        problems += check_catalog(layout, live, memory, ask=not damaged)
    orphaned = [p.stat().st_size for p in unreferenced(layout, [live, *older]) if p.exists()]
    notes = []
    if sound and (now := _published_since(layout, live)) is not None:
        notes.append(f"snapshot {now} was published meanwhile; this is about {live.number}")
        problems = [p for p in problems if p.where != layout.catalog.name]
    elif (
        sound
        and layout.catalog.name in damaged
        and (unfinished := unfinished_publication(layout)) is not None
    ):
        notes.append(
            f"the catalog is that of snapshot {int(unfinished.name)} already, whose writer was "
            "killed before its last step: repeat its command, or any that writes, to finish it"
        )
        problems = [p for p in problems if p.where != layout.catalog.name]
    if orphaned:
        notes.append(
            f"{counted(len(orphaned), 'file')} of {sum(orphaned):,} bytes "
            f"{'is' if len(orphaned) == 1 else 'are'} named by no snapshot; "
            "`featuredb vacuum` removes them"
        )
    metadata = [layout.current, layout.snapshot(live.number)]
    rows = {s.id: s.rows for snapshot in checked for s in snapshot.segments}
    return Report(
        files=len(files) + sum(path.exists() for path in metadata),
        bytes=size + sum(path.stat().st_size for path in metadata if path.exists()),
        activations=sum(rows.values()),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _live(layout: Layout) -> tuple[Snapshot | None, list[Problem]]:
    """The live snapshot and the problems of it and of ``CURRENT``.

    If only ``CURRENT`` is wrong, the newest existing snapshot replaces the live one.
    """
    newest = max(snapshot_numbers(layout), default=None)
    current = layout.current.name

    def instead(what: str) -> tuple[Snapshot | None, list[Problem]]:
        wrong = [Problem(current, what, remedy(current))]
        if newest is None:
            return None, wrong
        try:
            return read_snapshot(layout, newest), wrong
        except CorruptDatabaseError:
            where = layout.relative(layout.snapshot(newest))
            return None, [*wrong, Problem(where, "cannot be read", remedy(where))]

    try:
        pointer = read_pointer(layout)
    except FileNotFoundError:
        if newest is None or layout.staging.is_dir():
            return read_snapshot(layout), []  # whose error says what exists instead
        return instead("is missing")
    except CorruptDatabaseError:
        return instead("is damaged")
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        return None, [Problem(current, what, remedy(current))]
    named = layout.snapshots / f"{pointer.name}.json"
    where = layout.relative(named)
    if not named.exists():
        if pointer.sha256 is None and newest is not None:
            return instead(f"names {where}, which is not there")
        return None, [Problem(where, "is missing", remedy(where))]
    try:
        return read_snapshot(layout), []
    except CorruptDatabaseError:
        what = "is not the snapshot that was published (SHA-256)"
        return None, [Problem(where, what, remedy(where))]


def _is_kept(layout: Layout, live: Snapshot, file: File) -> bool:
    """All but an older snapshot that was removed, as it may be."""
    return file not in live.older or (layout.root / file.path).exists()


def _published_since(layout: Layout, live: Snapshot) -> str | None:
    try:
        name = read_pointer(layout).name
    except (OSError, CorruptDatabaseError):
        return None
    return name if name != layout.snapshot(live.number).stem else None


def _contents(scope: Scope, known: dict[str, Profile | None]) -> Iterator[Problem]:
    """What the files of one snapshot say.

    known: by id, the totals of each segment checked before, None for an unsound one. Those of this
    snapshot are added.
    """
    snapshot, derived = scope.snapshot, scope.snapshot.derived
    vocabulary = snapshot.vocabulary
    yield from scope.guarded(vocabulary.path, partial(check_vocabulary, scope), vocabulary)
    for corpus in snapshot.corpora:
        files = [corpus.documents, corpus.contexts, corpus.tokens, corpus.index]
        files += [f for f in (corpus.roles, corpus.text_hashes) if f is not None]
        where = f"corpus/{corpus.id}"
        yield from scope.guarded(where, partial(check_corpus, scope, corpus), *files)
    profiles: dict[str, Profile] = {}
    for sae in snapshot.saes:
        whole = yield from _activations(scope, sae, known)
        if whole is not None:
            profiles[sae.name] = whole
    check = partial(check_features, scope, profiles)
    yield from scope.guarded(derived.features.path, check, derived.features)
    summaries = derived.summaries
    check = partial(check_summaries, scope, summaries)
    yield from scope.guarded(summaries.path, check, summaries, derived.features)
    for tables in derived.saes:
        if tables.sae in profiles:
            sae = snapshot.sae(tables.sae)
            look = partial(check_examples, scope, sae, tables, profiles[sae.name])
            files = [tables.examples, tables.examples_directory]
            yield from scope.guarded(tables.examples.path, look, *files)
    for file in (derived.neighbors_decoder, derived.neighbors_encoder, derived.coactivation):
        yield from scope.guarded(file.path, partial(check_neighbors, scope, file), file)
    known_rows = {v.sae: v for v in snapshot.vectors}
    for index in derived.indexes:
        files = [
            f
            for name in index.saes
            for f in (*known_rows[name].unit_files, *known_rows[name].files)
        ]
        look = partial(check_index, scope, index)
        yield from scope.guarded(index.lists.path, look, index.centroids, index.lists, *files)
    for vectors in snapshot.vectors:
        compare = partial(check_directions, scope, snapshot.sae(vectors.sae), vectors)
        files = [*vectors.unit_files, *vectors.files]
        yield from scope.guarded(f"vectors.lance/{vectors.table}.lance", compare, *files)
    for data in snapshot.user_data:
        yield from scope.guarded(data.file.path, partial(check_user_data, scope, data), data.file)


def _activations(
    scope: Scope, sae: Sae, known: dict[str, Profile | None]
) -> Generator[Problem, None, Profile | None]:
    """The segments of one SAE. Returns their totals, None unless all are sound."""
    lengths = Lengths(scope)
    indexes = [corpus.index for corpus in scope.snapshot.corpora]
    for segment in scope.snapshot.segments_of(sae.name):
        if segment.id in known:
            continue
        needs = [segment.directory, *indexes]
        needs += [sae.order] if sae.order is not None else []
        needs += [entry.file for entry in segment.feature_files]
        needs += [entry.file for entry in segment.token_files]
        profile = Profile(sae.d_sae)
        sound = not scope.damaged & {file.path for file in needs}
        check = partial(check_segment, scope, segment, lengths, profile)
        for problem in scope.guarded(f"segments/{segment.id}", check, *needs):
            sound = False
            yield problem
        known[segment.id] = profile if sound else None
        look = partial(check_sinks, scope, segment, lengths)
        yield from scope.guarded(segment.sinks.path, look, segment.sinks, *indexes)
    total = Profile(sae.d_sae)
    for segment in scope.snapshot.segments_of(sae.name):
        part = known[segment.id]
        if part is None:
            return None
        total.join(part)
    return total
