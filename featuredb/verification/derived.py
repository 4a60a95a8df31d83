"""The derived tables against the activations they were computed from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.store import schemas
from featuredb.store.by_feature import SegmentByFeature
from featuredb.store.files.parquet import chunk_to_numpy
from featuredb.store.positions import context_of, token_of
from featuredb.store.snapshot import File, Sae, SaeTables
from featuredb.store.statistics import summaries_of
from featuredb.verification.activations import Profile
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem
from featuredb.verification.scope import Scope

SAMPLE = 32
"""Features per SAE with examples recomputed from all their activations."""

_ROW_BYTES = 256
"""Memory taken per row of a feature while its contexts are looked for."""

Ints = npt.NDArray[np.int64]


def check_features(scope: Scope, profiles: Mapping[str, Profile]) -> Iterator[Problem]:
    """Every feature's statistics against what its activations add up to."""
    snapshot = scope.snapshot
    path = snapshot.derived.features.path
    columns = [
        *("sae", "feature_id", "count", "density", "n_contexts", "n_documents"),
        *("min_activation", "max_activation", "mean_activation", "histogram"),
    ]
    names = [sae.name for sae in snapshot.saes]
    place = np.repeat(np.arange(len(names)), [sae.d_sae for sae in snapshot.saes])
    ids = np.concatenate([np.arange(sae.d_sae) for sae in snapshot.saes])
    row = 0
    for group in range(scope.files.metadata(path).num_row_groups):
        table = scope.files.read(path, [group], columns)
        stop = row + len(table)
        sae_numbers = _places(table.column("sae"), names)
        features = chunk_to_numpy(table.column("feature_id"))
        if not (
            np.array_equal(sae_numbers, place[row:stop]) and np.array_equal(features, ids[row:stop])
        ):
            yield Problem(path, "has not one row for each feature, in order", remedy(path))
            return
        for sae in np.unique(sae_numbers):
            name = names[int(sae)]
            if name in profiles:
                mine = table.filter(pa.array(sae_numbers == sae))
                recorded = snapshot.recorded_tokens(name)
                wrong = _wrong_statistics(mine, profiles[name], recorded)
                if wrong:
                    what = f"{', '.join(wrong)} of {name} disagree with its activations"
                    yield Problem(path, what, remedy(path))
                    return
        row = stop
    if row != len(ids):
        yield Problem(path, "has not one row for each feature", remedy(path))


def check_summaries(scope: Scope, file: File) -> Iterator[Problem]:
    """They say what the features do."""
    features = scope.snapshot.derived.features.path
    row = 0
    for group in range(scope.files.metadata(file.path).num_row_groups):
        table = scope.files.read(file.path, [group])
        stop = row + len(table)
        whole = scope.files.rows(features, row, stop, schemas.SUMMARIES.names)
        if not table.cast(schemas.SUMMARIES).equals(summaries_of(whole)):
            yield Problem(file.path, "and features.parquet disagree", remedy(file.path))
            return
        row = stop
    if row != sum(sae.d_sae for sae in scope.snapshot.saes):
        yield Problem(file.path, "has not one row for each feature", remedy(file.path))


def _wrong_statistics(table: pa.Table, profile: Profile, recorded: int) -> list[str]:
    features = chunk_to_numpy(table.column("feature_id"))
    count = profile.count[features]
    fires = count > 0
    mean = np.where(fires, profile.total[features] / np.maximum(count, 1), np.nan)
    expected: dict[str, npt.NDArray[Any]] = {
        "count": count,
        "n_contexts": profile.contexts[features],
        "min_activation": np.where(fires, profile.low[features], np.nan),
        "max_activation": np.where(fires, profile.high[features], np.nan),
        "mean_activation": mean,
        "density": count / max(1, recorded),
    }
    wrong = []
    for name, want in expected.items():
        column = table.column(name)
        empty = pc.is_null(column).to_numpy()
        have = pc.fill_null(column, 0).to_numpy()
        if name in ("mean_activation", "density"):  # sums may have been taken in another order
            same = np.isclose(have, np.nan_to_num(want), rtol=1e-6, atol=1e-12)
        else:
            same = have == np.nan_to_num(want)
        if not (same & (empty == np.isnan(want.astype(np.float64)))).all():
            wrong.append(name)
    bins = table.column("histogram").combine_chunks()
    totals = [sum(counts or ()) for counts in bins.to_pylist()]
    if not np.array_equal(totals, count):
        wrong.append("histogram")
    return wrong


def check_examples(
    scope: Scope, sae: Sae, tables: SaeTables, profile: Profile
) -> Iterator[Problem]:
    """A sample of features: their top contexts, found again among all their activations."""
    path = tables.examples.path
    directory = np.load(scope.layout.root / tables.examples_directory.path, mmap_mode="r")
    if len(directory) != sae.d_sae + 1 or int(directory[-1]) != tables.examples.rows:
        where = tables.examples_directory.path
        yield Problem(where, "does not match the examples", remedy(path))
        return
    readers = [
        SegmentByFeature(scope.layout.root, s, scope.files)
        for s in scope.snapshot.segments_of(sae.name)
    ]
    for feature in _sampled(profile):
        start, stop = int(directory[feature]), int(directory[feature + 1])
        schema = schemas.examples("float32")
        table = schema.empty_table()
        if start < stop:
            table = scope.files.rows(path, start, stop).cast(schema)
        wrong = _wrong_examples(table, feature, readers, scope)
        if wrong:
            yield Problem(path, f"the examples of feature {feature} {wrong}", remedy(path))
            return


def _sampled(profile: Profile) -> list[int]:
    """The densest feature, one that never fires, and others at random but always the same."""
    fires = np.flatnonzero(profile.count)
    silent = np.flatnonzero(profile.count == 0)[:1]
    some = np.random.default_rng(0).permutation(fires)[:SAMPLE]
    densest = [int(np.argmax(profile.count))] if len(fires) else []
    return sorted({*densest, *silent.tolist(), *some.tolist()})


def _wrong_examples(
    table: pa.Table, feature: int, readers: list[SegmentByFeature], scope: Scope
) -> str | None:
    contexts = chunk_to_numpy(table.column("context_id"))
    best, rows = _looked_up(feature, readers, scope, np.unique(contexts))
    kinds = chunk_to_numpy(table.column("kind"))
    values = chunk_to_numpy(table.column("activation"))
    ranks = chunk_to_numpy(table.column("rank"))
    if not (chunk_to_numpy(table.column("feature_id")) == feature).all():
        return "are not where the directory says"
    top = kinds == 0
    if ranks[top].tolist() != list(range(1, int(top.sum()) + 1)):
        return "are not ranked from 1"
    if list(zip(contexts[top].tolist(), values[top].tolist(), strict=True)) != best:
        return "are not its top contexts"
    for i, context in enumerate(contexts.tolist()):
        index, activations = rows.get(context, (np.empty(0, np.int64), np.empty(0, np.float32)))
        if (
            len(activations) == 0
            or table.column("token_indexes")[i].as_py() != index.tolist()
            or table.column("activations")[i].as_py() != activations.tolist()
            or values[i] != activations.max()
            or table.column("token_index")[i].as_py() != index[int(np.argmax(activations))]
        ):
            return f"disagree with its activations in context {context}"
    return None


def _looked_up(
    feature: int, readers: list[SegmentByFeature], scope: Scope, wanted: Ints
) -> tuple[list[tuple[int, float]], dict[int, tuple[Ints, npt.NDArray[np.float32]]]]:
    """The feature's top contexts with their maxima, and its (token_index, activation) in `wanted`.

    One piece at a time. Between pieces only the best contexts so far are kept, and the last one,
    which may continue in the next.
    """
    bits, step = scope.snapshot.position_bits, max(1, scope.memory // _ROW_BYTES)
    best_context, best_value = np.empty(0, np.int64), np.empty(0, np.float32)
    pieces: dict[int, list[tuple[Ints, npt.NDArray[np.float32]]]] = {}
    for reader in readers:
        start, stop = (int(reader.directory[feature + i]) for i in (0, 1))
        for low in range(start, stop, step):
            piece = reader.rows(low, min(stop, low + step), with_features=False)
            position = piece.position.astype(np.int64)
            value = piece.activation.astype(np.float32)
            context = context_of(position, bits) + reader.segment.first_context
            for context_id in np.intersect1d(context, wanted).tolist():
                a, b = np.searchsorted(context, [context_id, context_id + 1])
                rows = token_of(position[a:b], bits), value[a:b]
                pieces.setdefault(context_id, []).append(rows)
            last = int(context[-1])
            context = np.concatenate((best_context, context))
            value = np.concatenate((best_value, value))
            order = np.lexsort((-value, context))
            context, value = context[order], value[order]
            first = np.ones(len(context), bool)
            first[1:] = context[1:] != context[:-1]
            context, value = context[first], value[first]
            order = np.lexsort((context, -value))
            keep = np.zeros(len(order), bool)
            keep[order[: schemas.EXAMPLES_TOP]] = True
            keep |= context == last
            best_context, best_value = context[keep], value[keep]
    order = np.lexsort((best_context, -best_value))[: schemas.EXAMPLES_TOP]
    best = list(zip(best_context[order].tolist(), best_value[order].tolist(), strict=True))
    joined = {
        context: (
            np.concatenate([i for i, _ in context_id]),
            np.concatenate([v for _, v in context_id]),
        )
        for context, context_id in pieces.items()
    }
    return best, joined


def check_neighbors(scope: Scope, file: File) -> Iterator[Problem]:
    """Order, ranks and ids of a neighbor table, for any score."""
    sizes = np.array([sae.d_sae for sae in scope.snapshot.saes])
    names = [sae.name for sae in scope.snapshot.saes]
    before = (-1, -1, 0, np.inf)
    for group in range(scope.files.metadata(file.path).num_row_groups):
        table = scope.files.read(file.path, [group])
        if len(table) == 0:
            continue
        sae, other = (_places(table.column(c), names) for c in ("sae", "neighbor_sae"))
        feature, rank, neighbor, score = (
            chunk_to_numpy(table.column(c)) for c in ("feature_id", "rank", "neighbor_id", "score")
        )
        wrong = _wrong_ids(sae, feature, sizes) or _wrong_ids(other, neighbor, sizes)
        if not wrong and ((sae == other) & (feature == neighbor)).any():
            wrong = "has a feature next to itself"
        same = np.empty(len(sae), bool)
        same[0] = (int(sae[0]), int(feature[0])) == before[:2]
        same[1:] = (sae[1:] == sae[:-1]) & (feature[1:] == feature[:-1])
        earlier = np.concatenate(([before[2]], rank[:-1]))
        higher = np.concatenate(([before[3]], score[:-1]))
        ranked = np.where(same, rank == earlier + 1, rank == 1) & (rank <= schemas.NEIGHBORS_KEPT)
        ascending = np.lexsort((rank, feature, sae)) == np.arange(len(sae))
        later = same[0] or (int(sae[0]), int(feature[0])) > before[:2]
        if not wrong and not (ranked.all() and ascending.all() and later):
            wrong = "is not sorted by (SAE, feature, rank)"
        if not wrong and not np.where(same, score <= higher, np.isfinite(score)).all():
            wrong = "has scores that do not descend"
        if wrong:
            yield Problem(file.path, wrong, remedy(file.path))
            return
        before = int(sae[-1]), int(feature[-1]), int(rank[-1]), float(score[-1])
    scope.bar.advance(file.bytes)


def _wrong_ids(sae: Ints, feature: Ints, sizes: Ints) -> str:
    if (sae < 0).any() or (feature < 0).any() or (feature >= sizes[sae]).any():
        return "names a feature that does not exist"
    return ""


def _places(column: pa.ChunkedArray, names: list[str]) -> Ints:
    """The number of each SAE in the snapshot, int64 [n], -1 for an unknown one."""
    places = pc.fill_null(pc.index_in(column, value_set=pa.array(names, pa.string())), -1)
    return chunk_to_numpy(places).astype(np.int64)
