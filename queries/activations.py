"""Every stored activation of one feature: one by one, or grouped by context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.render.view import Column, Heading, Table, View
from featuredb.store.names import parse_feature
from featuredb.store.positions import context_of, token_mask, token_of
from featuredb.store.snapshot import Sae, Snapshot
from featuredb.store.store import Store
from queries.answers import FeatureAnswer
from queries.catalog import literals
from queries.catalog.documents import metadata
from queries.catalog.naming import first_rows
from queries.connection import Reader
from queries.question import Macro, Question
from queries.show import counted, number_column

_SHOWN = 10


@dataclass(frozen=True, repr=False)
class Activations(FeatureAnswer):
    """Every stored activation of a feature, by context id, then token index.

    Columns: sae dictionary of strings, feature_id i64, context_id i64, token_index i32 (index in
    the context, BOS counted), activation f32.
    """

    kind: ClassVar[str] = "activations"

    def view(self) -> View:
        """The first rows, under a heading that says of which feature."""
        heading = Heading("feature ", self.titled, f" · {counted(len(self), 'activation')}")
        if not len(self):
            return View([[heading]])
        rows = list(self[:_SHOWN])
        columns = [
            Column("context", [str(row.context_id) for row in rows], right=True),
            Column("token", [str(row.token_index) for row in rows], right=True),
            number_column("activation", rows, "activation"),
        ]
        return View([[heading, Table(columns, more=len(self) - len(rows))]])


class FeatureContexts(NamedTuple):
    """A feature's contexts, ascending by id, and its active tokens in them.

    context_id: int64 [c]. peak: float32 [c], the context's maximum. offsets: int64 [c + 1]:
    context i owns entries offsets[i] to offsets[i+1] of token_index uint32 [n] (ascending within a
    context) and activation float32 [n].
    """

    context_id: npt.NDArray[np.int64]
    peak: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    token_index: npt.NDArray[np.uint32]
    activation: npt.NDArray[np.float32]

    def tokens(self, i: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """(token_index, activation) of the active tokens of context i."""
        rows = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.token_index[rows], self.activation[rows]


def activations(reader: Reader, feature: int | str) -> Activations:
    """See `featuredb.Database.activations`."""
    store = reader.store
    sae, number = parse_feature(store.snapshot, feature)
    context, token, activation = feature_activations(store, sae, number)
    rows = len(context)
    # There may be hundreds of millions of rows: the name is kept once.
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), [sae.name])
    table = pa.table(
        {
            "sae": names,
            "feature_id": pa.array(np.full(rows, number), pa.int64()),
            "context_id": pa.array(context, pa.int64()),
            "token_index": pa.array(token.astype(np.int32), pa.int32()),
            "activation": pa.array(activation, pa.float32()),
        }
    )
    label = store.labels.preferred(sae, number)
    return Activations(table, sae=sae.name, feature_id=number, label=label)


def feature_activations(
    store: Store, sae: Sae, feature: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(context_id int64, token_index int64, activation float32), all [n], in text order."""
    bits = store.snapshot.position_bits
    contexts, tokens, values = [], [], []
    for segment in store.by_feature(sae):
        if segment.count(feature) == 0:
            continue
        position, activation = segment.feature(feature)
        contexts.append(context_of(position, bits).astype(np.int64))
        contexts[-1] += segment.segment.first_context
        tokens.append(token_of(position, bits).astype(np.int64))
        values.append(activation.astype(np.float32))
    if not contexts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    return np.concatenate(contexts), np.concatenate(tokens), np.concatenate(values)


def feature_contexts(store: Store, sae: Sae, feature: int) -> FeatureContexts:
    """Every context of a feature. All arrays empty (offsets [0]) when it never fires."""
    bits = store.snapshot.position_bits
    pieces: list[FeatureContexts] = []
    rows = 0
    # A dense feature has millions of rows: what a row costs is kept to a few narrow passes, and a
    # context is in one segment only, so segments need not be joined first.
    for segment in store.by_feature(sae):
        if segment.count(feature) == 0:
            continue
        position, stored = segment.feature(feature)
        local, activation = context_of(position, bits), stored.astype(np.float32)
        starts = np.concatenate(([0], np.flatnonzero(local[1:] != local[:-1]) + 1))
        context = local[starts].astype(np.int64) + segment.segment.first_context
        peak = np.maximum.reduceat(activation, starts)
        token = token_of(position, bits)
        pieces.append(FeatureContexts(context, peak, starts + rows, token, activation))
        rows += len(position)
    end = np.array([rows], np.int64)
    if not pieces:
        none = np.empty(0, np.float32)
        return FeatureContexts(np.empty(0, np.int64), none, end, np.empty(0, np.uint32), none)
    context, peak, starts, token, activation = map(np.concatenate, zip(*pieces, strict=True))
    return FeatureContexts(context, peak, np.concatenate((starts, end)), token, activation)


def _calls(snapshot: Snapshot) -> str:
    """For each file the range of its features, and the call that reads one of them."""
    firsts = first_rows(snapshot)
    calls = [
        (
            firsts[s.sae] + f.first_feature,
            firsts[s.sae] + f.end_feature - 1,
            f"FROM featuredb_part({literals.text('/' + f.file.path)}, {s.first_context}, "
            f"{f.stride}, {literals.text(sae.name)}, {literals.HERE})",
        )
        for sae in snapshot.saes
        for s in snapshot.segments_of(sae.name)
        for f in s.feature_files
    ]
    # Null if there are none.
    return (
        f"replace(list_aggregate({literals.texts('row', calls)}, 'string_agg', ' UNION ALL '), "
        f"'{literals.HERE}', featuredb_number(feature))"
    )


def _part(snapshot: Snapshot) -> str:
    bits = snapshot.position_bits
    position = literals.position("stride", "id")
    return (
        "SELECT of_sae AS sae, CAST(id AS BIGINT) AS feature_id, "
        f"base + ({position} >> {bits}) AS context_id, "
        f"CAST({position} & {token_mask(bits)} AS INTEGER) AS token_index, "
        "CAST(activation AS FLOAT) AS activation "
        f"FROM {literals.below_root('path')} WHERE feature_id = id"
    )


def _by_context(snapshot: Snapshot) -> str:
    return (
        "SELECT f.sae, f.feature_id, c.context_id, c.document_id, f.activation, f.token_index"
        f"{metadata(snapshot, 'd')} "
        "FROM featuredb_contexts_of(feature) AS f JOIN contexts AS c USING (context_id) "
        "JOIN documents AS d USING (document_id)"
    )


_NOTHING = (
    "SELECT NULL::VARCHAR AS sae, NULL::BIGINT AS feature_id, NULL::BIGINT AS context_id, "
    "NULL::INTEGER AS token_index, NULL::FLOAT AS activation WHERE false"
)

# Each opens only the files that hold its feature, chosen while the statement is planned from the
# ranges written into the macro.
QUESTION = Question(
    "activations",
    Activations,
    macros=(
        Macro("featuredb_parts(row, feature)", _calls, table=False),
        Macro("featuredb_part(path, base, stride, of_sae, id)", _part),
        Macro(
            "featuredb_activations_named(feature)",
            "FROM query(coalesce(featuredb_parts(featuredb_row(feature), "
            f"CAST(featuredb_number(feature) AS BIGINT)), {literals.text(_NOTHING)}))",
        ),
        Macro(
            "feature_activations(feature)",
            "FROM query(coalesce(featuredb_parts(featuredb_plain_row(feature), feature), "
            f"concat('FROM featuredb_activations_named(', {literals.FEATURE}, ')')))",
            about="all activations of a feature: sae, feature_id, context_id, token_index, "
            "activation",
        ),
        Macro(
            "featuredb_contexts_of(feature)",
            "SELECT any_value(sae) AS sae, any_value(feature_id) AS feature_id, context_id, "
            "max(activation) AS activation, "
            "arg_min(token_index, (-activation, token_index)) AS token_index, "
            "list(token_index ORDER BY token_index) AS token_indexes, "
            "list(activation ORDER BY token_index) AS activations "
            "FROM feature_activations(feature) GROUP BY context_id",
        ),
        Macro(
            "feature_contexts(feature)",
            _by_context,
            about="all contexts of a feature: sae, feature_id, document, maximum, metadata",
        ),
    ),
)
