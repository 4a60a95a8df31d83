"""docs/format.md matches the code: columns, types, files, snapshot fields, SQL names."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featuredb
from featuredb.store import schemas, snapshot, values
from featuredb.store.files.atomic import temporary_name
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.store import Store
from ingest.prepare import logits_path
from ingest.run_plan import plan_path, summary_path
from queries.connection import Reader
from tests.docs.pages import FORMAT, ROOT, section, table

TEXT = FORMAT.read_text(encoding="utf-8")

TABLES: dict[str, list[pa.Schema]] = {
    "documents": [pa.schema(schemas.DOCUMENT_FIELDS)],
    "contexts": [
        schemas.contexts(1 << 16, roles=True),
        schemas.contexts((1 << 16) + 1, roles=True),
    ],
    "vocabulary": [schemas.VOCABULARY],
    "by-feature": [schemas.by_feature("float16"), schemas.by_feature("float32")],
    "by-token": [
        schemas.by_token("float16", 1 << 16),
        schemas.by_token("float32", (1 << 16) + 1),
    ],
    "feature order": [schemas.FEATURE_ORDER],
    "sinks": [schemas.SINKS],
    "features": [schemas.FEATURES],
    "summaries": [schemas.SUMMARIES],
    "logits": [schemas.LOGITS],
    "examples": [schemas.examples("float32"), schemas.examples("float16")],
    "windows": [schemas.windows("float32"), schemas.windows("float16")],
    "neighbors": [schemas.NEIGHBORS],
    "measured": [schemas.MEASURED],
    "ablated": [schemas.ABLATED],
    "map": [schemas.MAP],
    "labels": [schemas.LABELS],
    "scores": [schemas.SCORES],
    "monitors": [schemas.MONITORS],
}
STRUCTS = [
    *(
        "Snapshot",
        "File",
        "Model",
        "Recording",
        "Corpus",
        "Sae",
        "LoadCheck",
        "CorpusCheck",
        "Segment",
    ),
    *(
        "FeatureFile",
        "TokenFile",
        "Vectors",
        "DirectionColumn",
        "Derived",
        "VectorIndex",
        "SaeTables",
        "IngestRecord",
    ),
    "NextIds",
    "UserData",
]


def spelled(kind: pa.DataType) -> str:
    """An Arrow type as the page writes it."""
    if pa.types.is_list(kind):
        return f"list<{spelled(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{f.name}: {spelled(f.type)}' for f in kind)}>"
    names = {"halffloat": "float16", "float": "float32", "double": "float64"}
    return names.get(str(kind), str(kind))


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_listed_with_its_type(name: str) -> None:
    rows = table(section(TEXT, name))
    plain, *variants = TABLES[name]
    assert [row[:3] for row in rows] == [
        [f.name, spelled(f.type), "yes" if f.nullable else "no"] for f in plain
    ]
    for variant in variants:
        for row, field in zip(rows, variant, strict=True):
            assert spelled(field.type) in " ".join(row)


def test_every_schema_of_the_code_has_a_table() -> None:
    known = {str(s) for variants in TABLES.values() for s in variants}
    for value in vars(schemas).values():
        if isinstance(value, pa.Schema):
            assert str(value) in known


@pytest.mark.parametrize("name", STRUCTS)
def test_every_snapshot_field_is_listed(name: str) -> None:
    kind = getattr(snapshot, name)
    found = re.search(rf"^\*\*{name}\*\*(.*?)(?=^\*\*|^## )", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert [row[0] for row in table(found[1])] == list(kind.__struct_fields__)


def test_every_snapshot_struct_has_a_table() -> None:
    own = {
        name
        for name, kind in vars(snapshot).items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not name.startswith("_")
    }
    assert own - {"Draft"} == set(STRUCTS)


def test_constants() -> None:
    for name, value, _ in table(section(TEXT, "Constants")):
        module = values if name.startswith("LOG8") else schemas
        assert getattr(module, name) == int(value.replace(",", ""))
    assert ", ".join(f"{q:g}" for q in schemas.QUANTILES) in TEXT
    assert f"- **{schemas.FORMAT_VERSION}**" in section(TEXT, "Versions")


def tree() -> list[re.Pattern[str]]:
    """A pattern for every file that the page's tree allows."""
    block = section(TEXT, "The folder").split("```text\n")[1].split("```")[0]
    patterns, folders = [], [""]
    for line in block.splitlines()[1:]:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        if not name.endswith("/"):
            # A placeholder matches one name without a slash, two stars anything below.
            parts = re.split(r"(<\w+>|\*\*)", "".join(folders))
            spelled_out = [
                ".+" if p == "**" else "[^/]+" if p.startswith("<") else re.escape(p) for p in parts
            ]
            patterns.append(re.compile("".join(spelled_out)))
    return patterns


def _matched(path: Path, root: Path) -> bool:
    relative = path.relative_to(root).as_posix()
    return any(p.fullmatch(relative) for p in tree())


def _databases(made: Path) -> Iterator[Path]:
    yield made
    demo = ROOT / "demo.fdb"
    if (demo / "CURRENT").exists():
        yield demo


def test_every_file_of_a_store_is_in_the_tree(made_store: Path) -> None:
    for root in _databases(made_store):
        files = [p for p in root.rglob("*") if p.is_file()]
        assert files
        assert [p for p in files if not _matched(p, root)] == []


def test_paths_of_an_unfinished_ingest_are_in_the_tree(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    staged = [plan_path(layout), summary_path(layout, 7), logits_path(layout, "an sae")]
    run = layout.segment("r000001-000007-0")
    for path in [*staged, layout.lock, run / "fm.parquet", run / "tm.parquet"]:
        assert _matched(path, tmp_path), path


def test_the_tree_names_nothing_that_is_never_written(made_store: Path) -> None:
    """Each line matches a file of a real store, of a running ingest, of chats or a large SAE."""
    names = [p.relative_to(made_store).as_posix() for p in made_store.rglob("*") if p.is_file()]
    passing = ["LOCK", "staging/plan.json", "staging/p000000.json", "staging/logits.x.parquet"]
    passing += ["segments/r/fm.parquet", "segments/r/tm.parquet", "corpus/0/roles.bin"]
    passing += [f"saes/{'0' * 64}.safetensors", f"user/measured.{'0' * 64}.parquet"]
    passing += [f"matrices/large/{kind}.npy" for kind in ("decoder", "encoder")]
    passing += [f"derived/1/ivf.decoder.0.{part}.npy" for part in ("centroids", "lists")]
    for pattern in tree():
        assert any(pattern.fullmatch(name) for name in [*names, *passing]), pattern.pattern


def test_temporary_names_are_as_described() -> None:
    assert re.fullmatch(r"\.NAME\.[0-9a-f]{8}\.tmp", temporary_name(Path("NAME")).name)


def test_sql_names(made_store: Path) -> None:
    listed = {row[0].split("(")[0]: row[1] for row in table(section(TEXT, "catalog.duckdb"))}
    connection = Reader(Store.open(made_store)).cursor()
    found = dict.fromkeys(_names(connection, "duckdb_views() WHERE NOT internal", "view"), "view")
    found |= dict.fromkeys(_names(connection, "duckdb_tables()", "table"), "table")
    for kind, called in (("table_macro", "table macro"), ("macro", "scalar macro")):
        source = f"duckdb_functions() WHERE NOT internal AND function_type = '{kind}'"
        found |= dict.fromkeys(_names(connection, source, "function"), called)
    assert listed == {n: k for n, k in found.items() if not n.startswith("featuredb_")}


def _names(connection: object, source: str, kind: str) -> list[str]:
    sql = getattr(connection, "sql")  # noqa: B009
    return [name for (name,) in sql(f"SELECT DISTINCT {kind}_name FROM {source}").fetchall()]


def test_what_each_is_and_parameters_of_macros(made_store: Path) -> None:
    listed = table(section(TEXT, "catalog.duckdb"))
    rows = {row[0].split("(")[0]: row for row in listed}
    with featuredb.open(made_store) as db:
        for name in ("feature_activations", "fires_in"):
            assert db.sql(f"FROM {name}(1)").columns
        page = {(row[0].split("(")[0], "(" in row[0]): row[2] for row in listed}
        shown = {(r.name, r.kind == "macro"): r.about for r in db.schema() if r.column is None}
        assert page == shown
        macros = db.sql(
            "SELECT function_name, parameters FROM duckdb_functions() WHERE NOT internal"
        )
        for name, parameters in macros.fetchall():
            if name in rows:
                stated = rows[name][0].split("(")[1].rstrip(")").split(", ")
                assert [p.split(" := ")[0] for p in stated] == list(parameters)


def test_positions_and_directory(made_store: Path) -> None:
    """Reading a store by the page gives the rows of the SQL view."""
    live = read_snapshot(Layout(made_store))
    with featuredb.open(made_store) as db:
        for segment in live.segments:
            directory = np.load(made_store / segment.directory.path)
            feature = int(np.argmax(np.diff(directory.astype(np.int64))))
            table_of = pa.concat_tables(
                [pq.read_table(made_store / f.file.path) for f in segment.feature_files]
            )
            own = table_of.slice(
                int(directory[feature]), int(directory[feature + 1] - directory[feature])
            )
            (stride,) = {f.stride for f in segment.feature_files}
            position = own.column("position").to_numpy().astype(np.int64)
            position = (position - feature * stride) % (1 << 32)
            contexts = segment.first_context + (position >> live.position_bits)
            tokens = position & ((1 << live.position_bits) - 1)
            seen = db.sql(
                "SELECT context_id, token_index FROM activations "
                "WHERE sae = ? AND feature_id = ? ORDER BY ALL",
                [segment.sae, feature],
            ).fetchall()
            assert seen == list(zip(contexts.tolist(), tokens.tolist(), strict=True))


def test_gaps_and_orders(made_store: Path) -> None:
    """Reading the by-token copy by the page gives the same rows."""
    live = read_snapshot(Layout(made_store))
    mask = (1 << live.position_bits) - 1
    with featuredb.open(made_store) as db:
        for segment in live.segments:
            found = []
            for entry in segment.token_files:
                assert entry.order is not None
                order = pq.read_table(made_store / entry.order)["feature_id"].to_pylist()
                for row in pq.read_table(made_store / entry.file.path).to_pylist():
                    context = entry.base_context + (row["position"] >> live.position_bits)
                    ranks = np.cumsum(row["gaps"])
                    for rank, activation in zip(ranks, row["activations"], strict=True):
                        token = row["position"] & mask
                        found.append((order[rank], context, token, float(activation)))
            seen = db.sql(
                "SELECT feature_id, context_id, token_index, activation FROM activations "
                "WHERE sae = ?",
                [segment.sae],
            ).fetchall()
            assert found
            assert sorted(found) == sorted(seen)


def test_encodings_and_row_groups(made_store: Path) -> None:
    live = read_snapshot(Layout(made_store))
    segment = live.segments[0]
    wanted = {
        segment.feature_files[0].file.path: table(section(TEXT, "by-feature")),
        segment.token_files[0].file.path: table(section(TEXT, "by-token")),
    }
    for path, rows in wanted.items():
        group = pq.read_metadata(made_store / path).row_group(0)
        for number, row in enumerate(rows):
            encodings = set(group.column(number).encodings)
            said = re.search(r"DELTA_BINARY_PACKED|BYTE_STREAM_SPLIT|PLAIN|dictionary", row[3])
            assert said is not None
            name = {"dictionary": "RLE_DICTIONARY"}.get(said[0], said[0])
            assert name in encodings, (path, row, encodings)
            assert group.column(number).compression == "ZSTD"


def test_current(made_store: Path) -> None:
    name, digest, told = (made_store / "CURRENT").read_text().split()
    assert name == "000001"
    assert digest == sha256((made_store / "snapshots" / f"{name}.json").read_bytes()).hexdigest()
    assert int(told, 16) == zlib.crc32(f"{name} {digest}".encode())
