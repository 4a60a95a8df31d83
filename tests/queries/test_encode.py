"""Many texts at once: against dense matrices, stored or through the model, in any batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import featuredb
import queries.encode
from featuredb.cli import main
from featuredb.errors import QueryError
from featuredb.store.store import Store
from queries.encode import Pool, encode
from queries.specificity import Active, ActiveText
from queries.text_files import Columns, read_texts
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

POOLS: tuple[Pool | None, ...] = (None, "max", "sum", "mean")
NEW = [" river bridge king", "", " music", " river river river stone", " treaty" * 40]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode")
    about = {"prepend_bos": True, "context_size": 16}
    hooks = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre")
    featuredb.ingest(
        folder / "x.fdb",
        corpus=str(write_jsonl(folder / "corpus.jsonl", tiny_documents(12))),
        model=str(tiny_model(folder / "model")),
        saes=[
            str(tiny_sae(folder / name, metadata={"hook_name": hook, **about}, seed=seed))
            for seed, (name, hook) in enumerate(zip(("b", "a"), hooks, strict=True))
        ],
        dtype="float32",
        exact=True,
        check=False,
    )
    return folder / "x.fdb"


@pytest.fixture
def db(path: Path) -> Iterator[featuredb.Database]:
    with featuredb.open(path) as opened:
        yield opened


def dense(db: featuredb.Database, text: str) -> dict[str, npt.NDArray[np.float32]]:
    """[n_tokens, d_sae] by SAE, from `fires_on`."""
    firing = db.fires_on(text, k=10**6)
    shape = (len(firing.tokens), 96)
    matrices = {sae.name: np.zeros(shape, np.float32) for sae in db.saes}
    for row in firing:
        matrices[row.sae][:, row.feature_id] = row.activations
    return matrices


def expected(
    db: featuredb.Database, texts: Sequence[str], pool: Pool | None
) -> dict[tuple[Any, ...], float]:
    """Activation by (text, token, SAE, feature), or by (text, SAE, feature), in the answer's
    order."""
    rows: dict[tuple[Any, ...], float] = {}
    for number, text in enumerate(texts):
        matrices = dense(db, text)
        n = len(next(iter(matrices.values())))
        if pool is None:
            for token in range(n):
                for sae, matrix in matrices.items():
                    for feature in np.flatnonzero(matrix[token]):
                        rows[number, token, sae, int(feature)] = float(matrix[token, feature])
            continue
        for sae, matrix in matrices.items():
            for feature in np.flatnonzero(matrix.any(axis=0)):
                column = matrix[:, feature].astype(np.float64)
                value = {"max": column.max(), "sum": column.sum(), "mean": column.mean()}[pool]
                rows[number, sae, int(feature)] = float(np.float32(value))
    return rows


@pytest.mark.parametrize("pool", POOLS)
def test_new_and_stored_texts_are_as_one_by_one(db: featuredb.Database, pool: Pool | None) -> None:
    stored = [text for (text,) in db.sql("SELECT text FROM documents LIMIT 5").fetchall()]
    texts = [stored[0], *NEW, *stored[1:]]
    answer = db.encode(texts, pool=pool)
    names = ["text_index", *(["token_index"] if pool is None else []), "sae", "feature_id"]
    rows = {tuple(row[name] for name in names): row.activation for row in answer}
    want = expected(db, texts, pool)
    assert list(rows) == list(want)
    np.testing.assert_allclose(list(rows.values()), list(want.values()), rtol=2e-5, atol=1e-6)
    if pool is None:
        tokens = [db.fires_on(text).tokens for text in texts]
        assert all(row.token == tokens[row.text_index][row.token_index] for row in answer)


def test_stored_texts_need_no_model(path: Path) -> None:
    with featuredb.open(path, model="/nowhere") as db:
        stored = [text for (text,) in db.sql("SELECT text FROM documents").fetchall()]
        assert len(db.encode(stored, pool="max"))
        with pytest.raises(featuredb.FeatureDBError, match="no model at /nowhere"):
            db.encode([*stored, "new"])


@pytest.mark.parametrize("pool", POOLS)
def test_pieces_are_the_whole(
    db: featuredb.Database, monkeypatch: pytest.MonkeyPatch, pool: Pool | None
) -> None:
    whole = db.encode(NEW, pool)
    monkeypatch.setattr(queries.encode, "_TEXTS", 2)
    pieces = [piece.table for piece in db.encode_batches(iter(NEW), pool)]
    assert len(pieces) == 3
    joined = pa.concat_tables(pieces)
    assert joined.schema == whole.table.schema
    other = [name for name in joined.column_names if name != "activation"]
    assert joined.select(other) == whole.table.select(other)
    np.testing.assert_allclose(joined["activation"], whole.table["activation"], rtol=2e-5)


def test_ids_are_kept_and_nothing_is_an_empty_answer(db: featuredb.Database) -> None:
    answer = db.encode({"first": NEW[0], "second": NEW[2]}, pool="max")
    assert {(row.text_index, row.text_id) for row in answer} == {(0, "first"), (1, "second")}
    assert {row.text_id for row in db.encode(NEW)} == {None}
    for pool in POOLS:
        assert db.encode([], pool).table.schema == db.encode(NEW, pool).table.schema
        assert len(db.encode([""], pool)) == 0


def test_what_is_refused(db: featuredb.Database) -> None:
    with pytest.raises(QueryError, match="one text: for many at once ask Database"):
        db.fires_on(NEW)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="encode takes many texts"):
        db.encode("one")
    with pytest.raises(QueryError, match="text 1 of what encode is given must be text, not int"):
        db.encode(["a", 7])  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="pool must be one of max, sum, mean"):
        db.encode(["a"], pool="median")  # type: ignore[arg-type]


@settings(
    deadline=None,
    max_examples=60,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), pool=st.sampled_from(POOLS), k=st.integers(1, 4))
def test_the_k_highest(path: Path, data: st.DataObject, pool: Pool | None, k: int) -> None:
    store = Store.open(path)
    shapes = st.lists(st.integers(0, 4), min_size=1, max_size=3)
    made = []
    for n_tokens in data.draw(shapes):
        values = st.sampled_from([0.0, 0.5, 1.0, -2.0])
        matrix = [
            np.array(data.draw(st.lists(values, min_size=5, max_size=5)), np.float32)
            for _ in range(n_tokens)
        ]
        dense = np.array(matrix, np.float32).reshape(n_tokens, 5)
        token, feature = np.nonzero(dense)
        active = Active(store.snapshot.saes[0], token, feature, dense[token, feature])
        made.append(ActiveText([active], ["w"] * n_tokens))
    texts = [f"text {number}, which is new" for number in range(len(made))]
    every = encode(store, texts, pool, None, lambda _: made)
    best = encode(store, texts, pool, k, lambda _: made)
    groups: dict[Any, list[Any]] = {}
    for row in every:
        groups.setdefault((row.text_index, None if pool else row.token_index), []).append(row)
    wanted = []
    for rows in groups.values():
        chosen = sorted(rows, key=lambda row: (-row.activation, row.feature_id))[:k]
        wanted += [dict(row) for row in rows if row in chosen]
    assert [dict(row) for row in best] == wanted
    store.close()


FILES = {
    "t.txt": "one\n\ntwo words\r\nlast",
    "t.jsonl": '{"id": 7, "text": "one"}\n\n"two"\n{"text": "last", "more": 1}\n',
    "t.csv": 'id,text,more\na,"one, two",1\nb,last,2\n',
    "t.tsv": "text\tid\none\tx\n",
}
READ: dict[str, list[tuple[str | None, str]]] = {
    "t.txt": [(None, "one"), (None, ""), (None, "two words"), (None, "last")],
    "t.jsonl": [("7", "one"), (None, "two"), (None, "last")],
    "t.csv": [("a", "one, two"), ("b", "last")],
    "t.tsv": [("x", "one")],
    "t.parquet": [("1", "one"), ("2", "two")],
}


@pytest.mark.parametrize("name", READ)
def test_files_of_texts(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "t.parquet":
        pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two"], "more": [0, 0]}), file)
    else:
        file.write_text(FILES[name], newline="")
    assert list(read_texts(str(file))) == READ[name]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_columns_of_texts_may_be_called_anything(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"t.{ending}"
    rows = pa.table({"body": ["one", "two"], "text": ["no", "no"], "id": ["x", "y"], "nr": [1, 2]})
    if ending == "parquet":
        pq.write_table(rows, file)
    elif ending == "csv":
        rows.to_pandas().to_csv(file, index=False)
    else:
        file.write_text("\n".join(map(json.dumps, rows.to_pylist())))
    read = partial(read_texts, str(file))
    assert list(read(Columns("body"))) == [("x", "one"), ("y", "two")]
    assert list(read(Columns("body", "nr"))) == [("1", "one"), ("2", "two")]
    for columns, message in (
        (Columns("talk"), "record 1 has no text in 'talk': say which column it is"),
        (Columns("body", "key"), "record 1 has no 'key': name another column"),
    ):
        with pytest.raises(QueryError, match=message):
            list(read(columns))
    with pytest.raises(QueryError, match="has a text per line, and no columns"):
        list(read_texts(str(tmp_path / "t.txt"), Columns("body")))


BROKEN = {
    "a.jsonl": (b'{"text": "a"}\n{"text"\n', "a.jsonl, line 2 is not JSON"),
    "b.jsonl": (b'{"body": "a"}\n', "b.jsonl, record 1 has no text in 'text': say which column"),
    "c.csv": (b"body\na\n", "c.csv, record 1 has no text"),
    "d.txt": (b"\xff\xfe\xff", "d.txt cannot be read as texts: 'utf-8' codec"),
    "e.parquet": (b"PAR1", "e.parquet cannot be read as Parquet"),
    "f.txt": (None, "f.txt cannot be read as texts: No such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_broken(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(QueryError) as refused:
        list(read_texts(str(tmp_path / name)))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "json", "table"])
def test_a_file_on_the_command_line(path: Path, tmp_path: Path, form: str) -> None:
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": f"n{i}", "text": text}) for i, text in enumerate(NEW)]
    texts.write_text("\n".join(lines))
    out = tmp_path / f"out.{form}"
    call = ["fires", str(path), "--file", str(texts), "--pool", "max", "-k", "3"]
    result = CliRunner().invoke(main, [*call, "--format", form, "-o", str(out)])
    assert result.exit_code == 0, result.output
    with featuredb.open(path) as db:
        want = db.encode({f"n{i}": text for i, text in enumerate(NEW)}, "max", 3)
    match form:
        case "parquet":
            assert pq.read_table(out) == want.table
        case "jsonl":
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            assert [row["feature_id"] for row in rows] == want.table["feature_id"].to_pylist()
        case "csv":
            assert len(out.read_text().splitlines()) == len(want) + 1
        case "json":
            whole = json.loads(out.read_text())
            assert (whole["kind"], whole["pool"], len(whole["rows"])) == (
                "encoded",
                "max",
                len(want),
            )
        case _:
            assert "feature_id" in out.read_text()


def test_a_file_is_not_left_half_written(path: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a"}\n{"body": "b"}\n')
    call = ["fires", str(path), "--file", str(texts), "-o", str(tmp_path / "out.csv")]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == QueryError.exit_code
    assert result.output.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["texts.jsonl"]
