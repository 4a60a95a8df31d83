"""Columns of a corpus in a database: SQL, Python and the command line show the same values."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import CorpusError, IngestError
from tests.ingest.typed_columns import KEPT
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

ID = 2**53 + 1
TEXTS = [d["text"] for d in tiny_documents() if len(d["text"]) > 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    tiny_model(folder / "model")
    tiny_sae(folder / "sae", d_sae=32)
    return folder


def ingest(path: Path, folder: Path, corpus: Any) -> featuredb.Database:
    featuredb.ingest(
        path, corpus=corpus, model=str(folder / "model"), saes=[str(folder / "sae")],
        dtype="float32", check=False,
    )  # fmt: skip
    return featuredb.open(path)


def run(*arguments: object) -> str:
    ran = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def densest(db: featuredb.Database) -> int:
    query = "SELECT feature_id FROM features ORDER BY n_documents DESC LIMIT 1"
    (row,) = db.sql(query).fetchall()
    return int(row[0])


@pytest.fixture(scope="module")
def kinds(folder: Path) -> Path:
    """A database whose documents have a column of every kind, in cycles of its values."""
    columns: dict[str, Any] = {"text": TEXTS[:6]}
    for name, (values, _, _) in KEPT.items():
        rows = [i % len(values) for i in range(6)]
        whole = pa.chunked_array([values.slice(row, 1) for row in rows])
        columns[name] = whole
    with ingest(folder / "kinds.fdb", folder, pa.table(columns)):
        return folder / "kinds.fdb"


def expected(name: str, document: int) -> Any:
    _, _, values = KEPT[name]
    return values[document % len(values)]


def as_pairs(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) and "k" in value else value


def test_python_shows_every_kind(kinds: Path) -> None:
    with featuredb.open(kinds) as db:
        answer = db.top_contexts(densest(db), k=6)
        assert len(answer) == 6
        for row in answer:
            for name in KEPT:
                assert row[name] == expected(name, row["document_id"]), name
        assert len(answer.pandas()) == len(answer.polars()) == 6
        assert "36812-02-20" in str(answer)
        assert "36812-02-20" in answer._repr_html_()


def test_sql_shows_every_kind(kinds: Path) -> None:
    with featuredb.open(kinds) as db:
        for name in KEPT:
            for query in (
                f'SELECT document_id, "{name}" FROM documents',
                f'SELECT document_id, "{name}" FROM top_contexts({densest(db)}, k := 6)',
            ):
                rows = db.sql(query).fetchall()
                assert len(rows) == 6
                for document, value in rows:
                    assert as_pairs(value) == expected(name, document), name
        (by_text,) = db.sql(
            "SELECT count(*) FROM documents WHERE \"text in bytes\" = 'doc-001'"
        ).fetchall()
        assert by_text == (2,)
        found = db.top_contexts(densest(db), where="\"a year before 1\" LIKE '-768%'")
        assert {row["document_id"] for row in found} == {0, 2, 4}


def test_the_command_line_shows_every_kind(kinds: Path, tmp_path: Path) -> None:
    with featuredb.open(kinds) as db:
        feature = densest(db)
    top = json.loads(run("top", kinds, feature, "--format", "json"))["rows"]
    sql = json.loads(run("sql", kinds, "SELECT * FROM documents", "--format", "json"))["rows"]
    for row in top:
        (other,) = (r for r in sql if r["document_id"] == row["document_id"])
        assert {name: row[name] for name in KEPT} == {name: other[name] for name in KEPT}
    for form in ("table", "csv", "jsonl"):
        shown = run("top", kinds, feature, "--format", form)
        assert "36812-02-20" in shown
        assert "b'" not in shown
    run("top", kinds, feature, "--format", "parquet", "-o", tmp_path / "top.parquet")
    assert featuredb.verify(kinds).ok


def test_column_names_of_every_kind(folder: Path, tmp_path: Path) -> None:
    names = ["A", "a", "", " ", 'q"q', "it's", "a.b", "select", "rank", "tokens", "é", "É", "n\nl"]
    rows = [{"text": TEXTS[0]} | {name: name for name in names}]
    with ingest(tmp_path / "x.fdb", folder, rows) as db:
        (stored,) = db.sql(
            "SELECT * EXCLUDE (text, source, source_offset, corpus, corpus_id) FROM documents"
        ).fetchall()
        assert list(stored)[-len(names) :] == names
        row = db.top_contexts(densest(db))[0]
        assert list(row)[-len(names) :] == names
        (found,) = db.sql(f"SELECT * FROM top_contexts({densest(db)}, k := 1)").fetchall()
        assert list(found)[-len(names) :] == names


APPENDED: dict[str, tuple[pa.Array, pa.Array, list[Any]]] = {
    "a struct that gains a field": (
        pa.array([{"url": "u", "n": 1}, None]),
        pa.array([{"url": "v", "lang": "en"}]),
        [{"url": "u", "n": 1, "lang": None}, None, {"url": "v", "n": None, "lang": "en"}, None],
    ),
    "structs that gain a field, in lists": (
        pa.array([[{"url": "u"}], []]),
        pa.array([[{"lang": "en", "url": "v"}]]),
        [[{"url": "u", "lang": None}], [], [{"url": "v", "lang": "en"}], None],
    ),
    "milliseconds and microseconds": (
        pa.array([1], pa.timestamp("ms")),
        pa.array([1], pa.timestamp("us")),
        [datetime(1970, 1, 1, 0, 0, 0, 1000), None, datetime(1970, 1, 1, 0, 0, 0, 1), None],
    ),
    "small integers and fractions": (pa.array([7]), pa.array([0.5]), [7.0, None, 0.5, None]),
    "fractions and small integers": (pa.array([0.5]), pa.array([7]), [0.5, None, 7.0, None]),
    "text and dates": (
        pa.array(["x"]),
        pa.array([18_000], pa.date32()),
        ["x", None, "2019-04-14", None],
    ),
    "text and structs": (pa.array(["x"]), pa.array([{"a": 1}]), ["x", None, '{"a": 1}', None]),
    "text and fractions": (pa.array(["x"]), pa.array([0.5]), ["x", None, "0.5", None]),
}


def test_an_append_unites_columns(folder: Path, tmp_path: Path) -> None:
    first = {name: padded(before) for name, (before, _, _) in APPENDED.items()}
    second = {name: padded(added) for name, (_, added, _) in APPENDED.items()}
    path = tmp_path / "x.fdb"
    ingest(path, folder, pa.table({"text": TEXTS[:2]} | first)).close()
    featuredb.append(path, pa.table({"text": TEXTS[10:12]} | second), check=False)
    with featuredb.open(path) as db:
        answer = {row["document_id"]: row for row in db.top_contexts(densest(db), k=50)}
        assert set(answer) == set(range(4))
        for name, (_, _, values) in APPENDED.items():
            query = f'SELECT "{name}" FROM documents ORDER BY document_id'
            assert [value for (value,) in db.sql(query).fetchall()] == values, name
            assert [answer[document][name] for document in range(4)] == values, name
    assert featuredb.verify(path).ok


def padded(array: pa.Array) -> pa.Array:
    """Two rows of an array."""
    return array if len(array) == 2 else pa.concat_arrays([array, pa.nulls(1, array.type)])


REFUSED: dict[str, tuple[pa.Array, pa.Array]] = {
    "large and a fraction": (pa.array([ID]), pa.array([0.5])),
    "large and NaN": (pa.array([ID]), pa.array([float("nan")])),
    "a fraction and large": (pa.array([0.5]), pa.array([ID])),
    "lists, a fraction and large": (pa.array([[0.5]]), pa.array([[1, ID]])),
    "lists, large and a fraction": (pa.array([[ID]]), pa.array([[0.5]])),
    "beyond float32": (pa.array([2**24 + 1]), pa.array([0.5], pa.float32())),
    "float32 and beyond": (pa.array([0.5], pa.float32()), pa.array([2**24 + 1])),
    "in a struct": (pa.array([{"id": ID}]), pa.array([{"id": 0.5}])),
    "names by case": (pa.array([{"Id": 1}]), pa.array([{"id": 1}])),
    "a struct and text": (pa.array([{"a": 1}]), pa.array(["x"])),
}


@pytest.fixture(scope="module")
def strict(folder: Path) -> Path:
    """A database with the first column of each of `REFUSED`."""
    columns = {name: before for name, (before, _) in REFUSED.items()}
    path = folder / "strict.fdb"
    ingest(path, folder, pa.table({"text": TEXTS[:1]} | columns)).close()
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_an_append_that_would_change_a_value_is_refused(strict: Path, name: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in strict.rglob("*.parquet")}
    table = pa.table({"text": TEXTS[10:11], name: REFUSED[name][1]})
    with pytest.raises((IngestError, CorpusError), match=name) as caught:
        featuredb.append(strict, table, check=False)
    assert "\n" not in str(caught.value)
    assert {file: file.stat().st_mtime_ns for file in strict.rglob("*.parquet")} == before


def test_an_append_of_json_does_not_round(strict: Path, tmp_path: Path) -> None:
    name = "a fraction and large"
    rows = write_jsonl(tmp_path / "c.jsonl", [{"text": TEXTS[10], name: ID}])
    with pytest.raises(CorpusError, match=f"'{name}' does not fit double: {ID} would be rounded"):
        featuredb.append(strict, str(rows), check=False)


def test_the_same_corpus_by_another_name_has_nothing_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in TEXTS[:3]])
    told: dict[str, Any] = {
        "model": str(folder / "model"), "saes": [str(folder / "sae")], "check": False,
        "dtype": "float32",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert featuredb.ingest("x.fdb", corpus="c.jsonl", **told).fresh
    shutil.copy(corpus, tmp_path / "copy.jsonl")
    for name in ("./c.jsonl", str(corpus), corpus.as_uri(), "c*.jsonl", "copy.jsonl"):
        if name == "c*.jsonl":
            (tmp_path / "copy.jsonl").unlink()
        elif name == "copy.jsonl":
            shutil.copy(corpus, tmp_path / "copy.jsonl")
        assert not featuredb.ingest("x.fdb", corpus=name, **told).fresh, name


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_stored_text_on_standard_input_is_answered_from_the_store(
    folder: Path, tmp_path: Path, end: str
) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_bytes((TEXTS[i].strip() + end).encode())
    model = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    path = tmp_path / "x.fdb"
    featuredb.ingest(
        path, corpus=str(tmp_path / "texts"), model=str(model), saes=[str(folder / "sae")],
        dtype="float32", check=False,
    )  # fmt: skip
    shutil.rmtree(model)
    raw = (tmp_path / "texts" / "1.txt").read_bytes()
    with featuredb.open(path) as db:
        assert db.has_text(raw.decode())
        assert not db.has_text(raw.decode() + "\n")
        right = [row["feature_id"] for row in db.fires_on(raw.decode())]
    for typed in {raw, raw if end else raw + b"\n"}:
        ran = CliRunner().invoke(main, ["fires", str(path), "-", "--format", "json"], input=typed)
        assert ran.exit_code == 0, ran.output
        assert [row["feature_id"] for row in json.loads(ran.stdout)["rows"]] == right
