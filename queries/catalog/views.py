"""Views over the snapshot's files, and small tables from the snapshot itself.

Each says what it is (`Relation.about`), and `queries.catalog.columns` what its columns are:
`queries.schema` shows both, and `catalog.duckdb` has them as comments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from featuredb.store import schemas, user_data
from featuredb.store.names import corpus_columns
from featuredb.store.positions import token_mask
from featuredb.store.snapshot import Snapshot
from featuredb.store.user_data import UserTable
from queries.catalog import literals
from queries.catalog.literals import file, files, name, text


@dataclass(frozen=True)
class Relation:
    """A view or a table of the catalog, and what it is in one line.

    statements: DDL that makes it, of what comes before it in `RELATIONS`.
    """

    name: str
    about: str
    statements: Callable[[Snapshot], Sequence[str]]
    kind: str = "view"


def views(snapshot: Snapshot) -> list[str]:
    """DDL of every view and table, each usable by those after it."""
    return [statement for relation in RELATIONS for statement in relation.statements(snapshot)]


def _view(title: str, branches: Sequence[str], empty: str = "SELECT NULL WHERE false") -> list[str]:
    body = "\nUNION ALL BY NAME\n".join(branches) if branches else empty
    return [f"CREATE VIEW {title} AS {body}"]


def _file(title: str, path: Callable[[Snapshot], str]) -> Callable[[Snapshot], list[str]]:
    """What makes a view of one file."""
    return lambda snapshot: _view(title, [f"FROM {file(path(snapshot))}"])


def _documents(snapshot: Snapshot) -> list[str]:
    corpus, corpus_id = map(name, corpus_columns(snapshot))
    return _view(
        "documents",
        [
            f"SELECT *, {text(c.called)} AS {corpus}, {text(c.id)} AS {corpus_id} "
            f"FROM {file(c.documents.path)}"
            for c in snapshot.corpora
        ],
    )


def _contexts(snapshot: Snapshot) -> list[str]:
    return _view("contexts", [f"FROM {file(c.contexts.path)}" for c in snapshot.corpora])


def _vocabulary(snapshot: Snapshot) -> list[str]:
    # A table, not a view: every answer with tokens looks words up here, and scanning a table
    # costs a third of decoding the Parquet file again.
    return [f"CREATE TABLE vocabulary AS FROM {file(snapshot.vocabulary.path)}"]


def _tokens(snapshot: Snapshot) -> list[str]:
    """Every token of every context: ``tokens(context_id, token_index, token_id, token, role)``.

    role is NULL in corpora that are no chats. Needs the table `vocabulary`.
    """
    branches = []
    for corpus in snapshot.corpora:
        role = "unnest(roles)" if corpus.roles is not None else "NULL::VARCHAR"
        branches.append(
            "SELECT context_id, unnest(range(len(token_ids)))::INTEGER AS token_index, "
            f"unnest(token_ids)::BIGINT AS token_id, {role} AS role "
            f"FROM {file(corpus.contexts.path)}"
        )
    each = "\nUNION ALL\n".join(branches)
    return [
        "CREATE VIEW tokens AS "
        "SELECT context_id, token_index, t.token_id, v.text AS token, role "
        f"FROM ({each}) AS t LEFT JOIN vocabulary AS v ON v.token_id = t.token_id"
    ]


def _activations(snapshot: Snapshot) -> list[str]:
    mask = token_mask(snapshot.position_bits)
    branches = []
    for segment in snapshot.segments:
        by_stride: dict[int, list[str]] = {}
        for part in segment.feature_files:
            by_stride.setdefault(part.stride, []).append(part.file.path)
        for stride, paths in by_stride.items():
            position = literals.position(str(stride))
            branches.append(
                f"SELECT {text(segment.sae)} AS sae, feature_id, "
                f"{segment.first_context} + ({position} >> {snapshot.position_bits}) "
                f"AS context_id, CAST({position} & {mask} AS INTEGER) AS token_index, "
                f"CAST(activation AS FLOAT) AS activation FROM {files(paths)}"
            )
    empty = (
        "SELECT NULL::VARCHAR AS sae, NULL::UINTEGER AS feature_id, NULL::BIGINT AS context_id, "
        "NULL::INTEGER AS token_index, NULL::FLOAT AS activation WHERE false"
    )
    return _view("activations", branches, empty)


def _pooled(unit: str) -> Callable[[Snapshot], list[str]]:
    """What makes the view of activations per document, or per context."""
    contexts = (
        ""
        if unit == "context"
        else (" JOIN (SELECT context_id, document_id FROM contexts) USING (context_id)")
    )
    return lambda _snapshot: _view(
        f"{unit}_features",
        [
            f"SELECT sae, feature_id, {unit}_id, max(activation) AS max_activation, "
            "sum(CAST(activation AS DOUBLE)) AS sum_activation, count(*) AS n_tokens "
            f"FROM activations{contexts} GROUP BY ALL"
        ],
    )


def _examples(snapshot: Snapshot) -> list[str]:
    return _view(
        "examples",
        [
            f"SELECT {text(t.sae)} AS sae, * FROM {file(t.examples.path)}"
            for t in snapshot.derived.saes
        ],
    )


def _windows(snapshot: Snapshot) -> list[str]:
    peak = f"1 + least({schemas.WINDOW}, token_index)"
    return _view(
        "windows",
        [
            f"SELECT {text(t.sae)} AS sae, feature_id, rank, context_id, document_id, "
            f"CAST(activations[{peak}] AS FLOAT) AS activation, token_index, "
            f"tokens[{peak}] AS token, "
            f"CAST(greatest(0, token_index - {schemas.WINDOW}) AS INTEGER) AS window_start, "
            "tokens, CAST(activations AS FLOAT[]) AS activations "
            f"FROM {files([w.file.path for w in t.windows])}"
            for t in snapshot.derived.saes
        ],
    )


def _sinks(snapshot: Snapshot) -> list[str]:
    return _view(
        "sinks",
        [f"SELECT {text(s.sae)} AS sae, * FROM {file(s.sinks.path)}" for s in snapshot.segments],
    )


def _saes(snapshot: Snapshot) -> list[str]:
    fields = {
        "sae_index": "INTEGER",
        "sae": "VARCHAR",
        "hook": "VARCHAR",
        "hook_out": "VARCHAR",
        "d_in": "INTEGER",
        "d_out": "INTEGER",
        "d_sae": "INTEGER",
        "architecture": "VARCHAR",
        "format": "VARCHAR",
        "encode_dtype": "VARCHAR",
        "source": "VARCHAR",
        "sha256": "VARCHAR",
        "recorded_tokens": "BIGINT",
        "rows": "BIGINT",
        "l0": "DOUBLE",
        "variance_explained": "DOUBLE",
        "hooks_out": "VARCHAR[]",
    }
    rows = [
        [
            index,
            *(getattr(sae, f) for f in ("name", "hook", "hook_out", "d_in", "d_out", "d_sae")),
            *(getattr(sae, f) for f in ("architecture", "format", "encode_dtype", "source")),
            sae.sha256,
            snapshot.recorded_tokens(sae.name),
            snapshot.rows(sae.name),
            snapshot.rows(sae.name) / max(1, snapshot.recorded_tokens(sae.name)),
            snapshot.variance_explained(sae),
            list(sae.writes),
        ]
        for index, sae in enumerate(snapshot.saes)
    ]
    return _table("saes", fields, rows)


def _ingests(snapshot: Snapshot) -> list[str]:
    fields = {
        "ingest": "INTEGER",
        "started": "VARCHAR",
        "finished": "VARCHAR",
        "featuredb": "VARCHAR",
        "corpus": "VARCHAR",
        "saes": "VARCHAR[]",
        "tokens": "BIGINT",
        "activations": "BIGINT",
        "seconds": "DOUBLE",
        "device": "VARCHAR",
        "host": "VARCHAR",
    }
    rows = [
        [
            r.number,
            r.started,
            r.finished,
            r.featuredb,
            r.corpus,
            list(r.saes),
            r.tokens,
            r.activations,
            r.seconds,
            r.device,
            r.host,
        ]
        for r in snapshot.ingests
    ]
    return _table("ingests", fields, rows)


def _runs(_snapshot: Snapshot) -> list[str]:
    return ["CREATE VIEW runs AS SELECT ingest AS run, * EXCLUDE (ingest) FROM ingests"]


def _effects(snapshot: Snapshot) -> list[str]:
    """Both tables of effects side by side, a row for every feature that either has."""
    measured, ablated = (_user_rows(snapshot, t) for t in (user_data.MEASURED, user_data.ABLATED))
    return [
        "CREATE VIEW effects AS "
        "SELECT coalesce(m.sae, a.sae) AS sae, coalesce(m.feature_id, a.feature_id) AS feature_id, "
        "m.* EXCLUDE (sae, feature_id, author, created), "
        "a.* EXCLUDE (sae, feature_id, author, created), m.author AS measured_by, "
        "m.created AS measured, a.author AS ablated_by, a.created AS ablated "
        f"FROM ({measured}) AS m FULL JOIN ({ablated}) AS a "
        "ON m.sae = a.sae AND m.feature_id = a.feature_id"
    ]


def _feature_map(snapshot: Snapshot) -> list[str]:
    rows = _user_rows(snapshot, user_data.MAP)
    return [f"CREATE VIEW feature_map AS SELECT sae, feature_id, x, y, created FROM ({rows})"]


def _labels(snapshot: Snapshot) -> list[str]:
    columns = "sae, feature_id, text, method, model, author, created, votes, preferred, label_id"
    rows = _user_rows(snapshot, user_data.LABELS)
    return [f"CREATE VIEW labels AS SELECT {columns} FROM ({rows})"]


def _scores(snapshot: Snapshot) -> list[str]:
    columns = "sae, feature_id, label_id, scorer, value, model, details, author, created"
    rows = _user_rows(snapshot, user_data.SCORES)
    return [f"CREATE VIEW scores AS SELECT {columns} FROM ({rows})"]


def _monitors(snapshot: Snapshot) -> list[str]:
    """The last version of every monitor that is not removed."""
    return [
        "CREATE VIEW monitors AS SELECT * FROM monitor_history "
        "QUALIFY version = max(version) OVER (PARTITION BY monitor) AND state <> 'removed' "
        "ORDER BY monitor"
    ]


def _alarms(snapshot: Snapshot) -> list[str]:
    """No alarms, in their columns: `queries.macros.of_user_data` puts those of monitors there."""
    columns = ", ".join(f"NULL::{kind} AS {name}" for name, kind in ALARM.items())
    return [f"CREATE VIEW alarms AS SELECT {columns} WHERE false"]


ALARM = {
    "monitor": "VARCHAR",
    "sae": "VARCHAR",
    "feature_id": "BIGINT",
    "context_id": "BIGINT",
    "document_id": "BIGINT",
    "token_index": "INTEGER",
    "n_tokens": "INTEGER",
    "strength": "FLOAT",
    "quantile": "DOUBLE",
    "score": "DOUBLE",
    "before": "VARCHAR",
    "text": "VARCHAR",
    "after": "VARCHAR",
    "label": "VARCHAR",
}
"""The columns of an alarm: `queries.replay.Alarms`."""


def _monitor_history(snapshot: Snapshot) -> list[str]:
    rows = _table_rows(snapshot, user_data.MONITORS)
    return [
        "CREATE VIEW monitor_history AS SELECT * EXCLUDE (features, tree, author, created), "
        f"list_transform(features, lambda f: concat(f['sae'], '/', f['feature_id'])) AS features, "
        f"author, created FROM {rows} ORDER BY monitor, version"
    ]


def _user_rows(snapshot: Snapshot, table: UserTable) -> str:
    """The rows about features of the snapshot's SAEs, with the SAE's name for what it is."""
    return (
        f"SELECT s.sae, u.* EXCLUDE (sae_sha256, hook) FROM {_table_rows(snapshot, table)} AS u "
        "JOIN saes AS s ON s.sha256 = u.sae_sha256 AND s.hook = u.hook"
    )


def _table_rows(snapshot: Snapshot, table: UserTable) -> str:
    """All rows of a table of user data."""
    path = next((d.file.path for d in snapshot.user_data if d.table == table.name), None)
    if path is not None:
        return file(path)
    columns = ", ".join(f"NULL::{_sql_type(f.type)} AS {name(f.name)}" for f in table.schema)
    return f"(SELECT {columns} WHERE false)"


_SQL_TYPES = {"int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT", "string": "VARCHAR"}


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"{_sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{name(f.name)} {_sql_type(f.type)}' for f in kind)})"
    return _SQL_TYPES.get(str(kind), str(kind).upper())


def _corpora(snapshot: Snapshot) -> list[str]:
    fields = {
        "corpus": "VARCHAR",
        "corpus_id": "VARCHAR",
        "source": "VARCHAR",
        "fingerprint": "VARCHAR",
        "context_size": "INTEGER",
        "first_document": "BIGINT",
        "n_documents": "BIGINT",
        "first_context": "BIGINT",
        "n_contexts": "BIGINT",
        "n_tokens": "BIGINT",
        "metadata": "VARCHAR[]",
    }
    rows = [
        [
            c.called,
            c.id,
            c.source,
            c.fingerprint,
            c.context_size,
            c.first_document,
            c.n_documents,
            c.first_context,
            c.n_contexts,
            c.n_tokens,
            list(c.metadata),
        ]
        for c in snapshot.corpora
    ]
    return _table("corpora", fields, rows)


def _table(title: str, fields: dict[str, str], rows: Sequence[Sequence[object]]) -> list[str]:
    columns = ", ".join(f"{name(k)} {v}" for k, v in fields.items())
    made = [f"CREATE TABLE {title} ({columns})"]
    if rows:
        values = ", ".join("(" + ", ".join(map(_value, row)) + ")" for row in rows)
        made.append(f"INSERT INTO {title} VALUES {values}")
    return made


def _value(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return literals.text(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]::VARCHAR[]"
    if isinstance(value, float):
        return f"{literals.text(repr(value))}::DOUBLE"
    return json.dumps(value)


RELATIONS = (
    Relation("vocabulary", "one row per token of the model's vocabulary", _vocabulary, "table"),
    Relation(
        "documents",
        "one row per document, with the corpora's own columns, null where a corpus lacks one, "
        "and its corpus",
        _documents,
    ),
    Relation(
        "contexts",
        "one row per context, the window of a document's tokens that the model read at once",
        _contexts,
    ),
    Relation(
        "tokens",
        "every token of every context, BOS included, with its text and, in chats, its role",
        _tokens,
    ),
    Relation(
        "activations",
        "every stored activation of every feature (of one feature: feature_activations)",
        _activations,
    ),
    Relation(
        "document_features",
        "activations pooled per feature and document: maximum, sum, number",
        _pooled("document"),
    ),
    Relation(
        "context_features",
        "activations pooled per feature and context: maximum, sum, number",
        _pooled("context"),
    ),
    Relation(
        "features",
        "one row per feature: how often and how strongly it fires, on which tokens, and which "
        "tokens it promotes",
        _file("features", lambda s: s.derived.features.path),
    ),
    Relation(
        "windows",
        "the 50 top contexts of every feature, with the 16 tokens either side of the peak",
        _windows,
    ),
    Relation(
        "examples",
        "the 50 top contexts of every feature and a sample of each fifth of its contexts, with "
        "all active tokens",
        _examples,
    ),
    Relation(
        "neighbors",
        "the 50 features nearest to each by decoder direction",
        _file("neighbors", lambda s: s.derived.neighbors_decoder.path),
    ),
    Relation(
        "neighbors_encoder",
        "the 50 features nearest to each by encoder direction",
        _file("neighbors_encoder", lambda s: s.derived.neighbors_encoder.path),
    ),
    Relation(
        "coactivation",
        "the 50 features that fire most on the same tokens as each, by Jaccard index",
        _file("coactivation", lambda s: s.derived.coactivation.path),
    ),
    Relation("sinks", "the positions left out for their enormous norm", _sinks),
    Relation("saes", "the SAEs, in the order that breaks ties", _saes, "table"),
    Relation("ingests", "what was ingested, when, and how long it took", _ingests, "table"),
    Relation("runs", "an alias of ingests, with its number as run", _runs),
    Relation("corpora", "the corpora, with the range of ids that each has", _corpora, "table"),
    Relation(
        "effects",
        "what features do: when steered with (featuredb measure), when ablated (featuredb effect)",
        _effects,
    ),
    Relation(
        "feature_map", "where features are on the map (featuredb measure --map)", _feature_map
    ),
    Relation("labels", "what people and programs say that features mean", _labels),
    Relation("scores", "how well labels say it, by scorer", _scores),
    Relation(
        "monitor_history",
        "every version of every monitor, those that were removed too",
        _monitor_history,
    ),
    Relation("monitors", "the monitors: rules over features (featuredb monitor add)", _monitors),
    Relation(
        "alarms", "the alarms of every monitor that is enabled, on everything stored", _alarms
    ),
)
"""Every view and table, in the order in which they are made."""
