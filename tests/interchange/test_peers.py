"""Files written by the peers' own code (tests/fixtures/exchange/make.py), and labels in and out."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import featuredb
from featuredb.errors import FeatureDBError, IngestError, LabelError
from featuredb.labels.batch import LabelBatch
from featuredb.labels.delphi import score_of
from featuredb.labels.write import add_labels
from featuredb.store.snapshot import Snapshot
from featuredb.store.user_data import SCORES
from ingest.operations.user_data import Tables, change_user_data
from tests.make_store import make_store
from tests.queries.test_questions import small_world

FIXTURES = Path(__file__).parents[1] / "fixtures" / "exchange"
DELPHI = FIXTURES / "delphi"


@pytest.fixture(scope="module")
def delphi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("delphi") / "d.fdb"
    featuredb.import_activations(path, DELPHI / "latents", "delphi")
    return path


def test_the_cache_that_delphi_wrote(delphi: Path) -> None:
    dense = np.array(json.loads((DELPHI / "dense.json").read_text()), np.float32)
    with featuredb.open(delphi) as db:
        rows = db.sql("SELECT context_id, token_index, feature_id, activation FROM activations")
        stored = np.zeros_like(dense)
        for context, token, feature, value in rows.fetchall():
            stored[context, token, feature] = value
        assert np.array_equal(stored, dense)
        top = db.top_contexts(3)
        best = dense[:, :, 3].max(axis=1)
        assert [row.context_id for row in top] == sorted(
            np.flatnonzero(best).tolist(), key=lambda c: (-best[c], c)
        )
        assert db.fires_in(0).arrow().num_rows == (dense[0] > 0).any(axis=0).sum()
        (sae,) = db.saes
        assert (sae.name, sae.hook, sae.d_sae) == ("layers.1.mlp", "layers.1.mlp", 7)
        assert db.snapshot.model.id == "tiny-model"
        assert top[0].tokens[:2] == ["<5>", f"<{[1, 2, 4, 3][top[0].context_id]}>"]
    assert featuredb.verify(delphi).ok


def test_the_batch_that_saedashboard_wrote(tmp_path: Path) -> None:
    path = tmp_path / "s.fdb"
    featuredb.import_activations(path, FIXTURES / "saedashboard", "neuronpedia")
    with featuredb.open(path) as db:
        assert [(r.activation, r.tokens) for r in db.top_contexts(2)] == [
            (7.5, ["<s>", " The", " river"]),
            (6.25, ["<s>", " river", " bank"]),
        ]
        assert len(db.top_contexts(9)) == 1
        assert db.saes[0].name == "1-res-made"
        assert [row.feature_id for row in db.search("date")] == [9]
    assert featuredb.verify(path).ok


def test_the_results_that_delphi_wrote(delphi: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(delphi, tmp_path / "d.fdb"))
    done = featuredb.import_labels(path, DELPHI, "delphi")
    assert (done.labels, done.scores) == (2, 2)
    with featuredb.open(path) as db:
        first, second = db.labels()
        assert (first.feature_id, first.text) == (0, "Words for “water”, such as river")
        assert (second.feature_id, second.text) == (3, "Dates")
        scores = {score["scorer"]: score["value"] for score in first.scores}
    # One of four activating ones is wrong; of fuzz two, and one of the others.
    assert scores == {"detection": 0.875, "fuzz": 0.625}
    featuredb.export_labels(path, tmp_path / "out", "delphi")
    for folder in ("explanations", "scores/detection", "scores/fuzz"):
        for file in (tmp_path / "out" / folder).iterdir():
            assert file.read_bytes() == (DELPHI / folder / file.name).read_bytes()
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 4
    again = featuredb.import_labels(path, DELPHI, "delphi")
    assert (again.labels, again.duplicates) == (0, 2)


@pytest.mark.parametrize(
    ("results", "value"),
    [
        ([], None),
        ("no list", None),
        ([{"correct": True}, {"correct": False}, {"correct": None}], 0.5),
        ([{"similarity": 1.0, "distance": 2}, {"similarity": 0.0, "distance": -1}], 1.0),
        ([{"similarity": 1.0, "distance": 2}], None),
        ([{"ev_correlation_score": "nan", "distance": -1}], None),
        ([{"ev_correlation_score": 0.25, "distance": -1}], 0.25),
    ],
)
def test_the_number_of_a_score(results: Any, value: float | None) -> None:
    assert score_of(results) == value


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labeled") / "l.fdb"
    make_store(path, small_world(("sae",)))
    return path


@pytest.fixture
def database(labeled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labeled, tmp_path / "l.fdb"))


def _rows(path: Path, *names: str) -> list[tuple[Any, ...]]:
    with featuredb.open(path) as db:
        return [tuple(row[name] for name in names) for row in db.labels()]


def neuronpedia_file(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def _line(index: Any, text: str, **more: Any) -> dict[str, Any]:
    """A line as Neuronpedia's export-data.py writes it."""
    return {
        "id": "x",
        "modelId": "tiny",
        "layer": "1-res",
        "index": index,
        "authorId": "me",
        "description": text,
        "embedding": None,
        "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini",
        "umap_x": 0,
        **more,
    }


def test_explanations_of_neuronpedia_come_and_go(database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "1-res"
    neuronpedia_file(folder / "explanations" / "batch-0.jsonl.gz", [_line("1", "dates")])
    neuronpedia_file(folder / "explanations" / "batch-1.jsonl.gz", [_line("2", "“a”\n東京")])
    assert featuredb.import_labels(database, folder, "neuronpedia").labels == 2
    names = ("feature_id", "text", "method", "model", "author")
    rows = _rows(database, *names)
    assert rows == [
        (1, "dates", "oai_token-act-pair", "gpt-4o-mini", "me"),
        (2, "“a”\n東京", "oai_token-act-pair", "gpt-4o-mini", "me"),
    ]
    featuredb.export_labels(database, tmp_path / "out", "neuronpedia")
    (file,) = (tmp_path / "out" / "explanations").iterdir()
    lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert [(e["index"], e["description"]) for e in lines] == [("1", "dates"), ("2", "“a”\n東京")]
    back = Path(shutil.copytree(database, tmp_path / "back.fdb"))
    again = featuredb.import_labels(back, tmp_path / "out", "neuronpedia")
    assert (again.labels, again.duplicates) == (0, 2)


def test_equal_texts_of_neuronpedia_are_one_context(tmp_path: Path) -> None:
    """Of one feature an example counts once, and other activations on equal words stand apart."""
    lines = [
        {"index": index, "tokens": tokens, "values": values, "modelId": "m", "layer": "1-res"}
        for index, tokens, values in (
            ("2", ["a", "b"], [0, 1.5]),
            ("0", ["a", "b"], [2, 0]),
            ("2", ["a", "b"], [0, 1.5]),  # in the top and in an interval
            ("2", ["b"], [4.0]),
            ("2", ["a", "b"], [0, 0.5]),
            ("0", ["a", "b"], [0.25, 0]),
        )
    ]
    neuronpedia_file(tmp_path / "np" / "activations" / "batch-0.jsonl.gz", lines[:3])
    neuronpedia_file(tmp_path / "np" / "activations" / "batch-1.jsonl.gz", lines[3:])
    featuredb.import_activations(tmp_path / "n.fdb", tmp_path / "np", "neuronpedia")
    with featuredb.open(tmp_path / "n.fdb") as db:
        assert db.sql("SELECT text FROM documents").fetchall() == [("ab",), ("b",), ("ab",)]
        rows = db.sql("SELECT * EXCLUDE sae FROM activations ORDER BY context_id, feature_id")
        first = [(0, 0, 0, 2.0), (2, 0, 1, 1.5), (2, 1, 0, 4.0)]
        assert rows.fetchall() == [*first, (0, 2, 0, 0.25), (2, 2, 1, 0.5)]


def _autointerp(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(
            "CREATE TABLE autointerp(feature_id INTEGER, label TEXT, seqs TEXT, indices TEXT, "
            "quality REAL, interestingness REAL, model_name TEXT, prompt_version TEXT)"
        )
        file.executemany("INSERT INTO autointerp VALUES (?,?,?,?,?,?,?,?)", rows)
    return path


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 4),
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
                lambda text: text == text.strip() and text
            ),
            st.sampled_from(["[]", "[1, 2]"]),
            st.floats(0, 1),
        ),
        max_size=4,
    )
)
def test_labels_of_goodfire_survive(
    labeled: Path,
    tmp_path_factory: pytest.TempPathFactory,
    drawn: dict[int, tuple[str, str, float]],
) -> None:
    folder = tmp_path_factory.mktemp("goodfire")
    rows = [(n, t, s, s, q, 0.5, "labeler", "v0-dev") for n, (t, s, q) in sorted(drawn.items())]
    path = _autointerp(folder / "autointerp.db", rows)
    database = Path(shutil.copytree(labeled, folder / "l.fdb"))
    featuredb.import_labels(database, path, "goodfire")
    assert _rows(database, "feature_id", "text", "method", "model") == [
        (n, t, "goodfire v0-dev", "labeler") for n, t, *_ in rows
    ]
    featuredb.export_labels(database, folder / "out.db", "goodfire")
    with closing(sqlite3.connect(folder / "out.db")) as file:
        assert file.execute("SELECT * FROM autointerp").fetchall() == rows


def test_labels_of_other_kinds_as_goodfire(database: Path, tmp_path: Path) -> None:
    details = ["{", "[1]", '{"seqs": [1]}', "null"]
    rows = {"scorer": ["quality"] * 4, "value": [0.5] * 4, "details": details}
    labels = pa.table({"feature_id": list(range(4)), "text": ["a", "b", "c", "d"]})
    add_labels(database, LabelBatch(labels, pa.table({**rows, "row": list(range(4))})))
    featuredb.export_labels(database, tmp_path / "out.db", "goodfire")
    with closing(sqlite3.connect(tmp_path / "out.db")) as file:
        seqs = file.execute("SELECT seqs FROM autointerp LIMIT 4").fetchall()
    assert seqs == [("[]",), ("[]",), ("[1]",), ("[]",)]


@pytest.mark.parametrize("scorer", ["../../evil", "/tmp/evil", "..", ""])
def test_scorers_name_no_folder_elsewhere(database: Path, tmp_path: Path, scorer: str) -> None:
    run = shutil.copytree(DELPHI, tmp_path / "run")
    featuredb.import_labels(database, run, "delphi")

    def renamed(_: Snapshot, tables: Tables) -> Tables:
        scores = tables["scores"]
        at = scores.column_names.index("scorer")
        names = pa.array([scorer] * len(scores))
        return {"scores": scores.set_column(at, scores.schema.field(at), names)}

    change_user_data(database, [SCORES], renamed, "label")
    with pytest.raises(LabelError, match="names no scorer"):
        featuredb.export_labels(database, tmp_path / "out", "delphi")
    assert {each.name for each in tmp_path.iterdir()} == {"run", "l.fdb"}


def test_goodfire_as_csv(database: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("feature_id,label,quality\n1,cycles,0.9\n2,sorting,\n")
    done = featuredb.import_labels(database, tmp_path / "a.csv", "goodfire")
    assert (done.labels, done.scores) == (2, 1)


def test_explanations_that_openai_wrote(database: Path, tmp_path: Path) -> None:
    done = featuredb.import_labels(database, FIXTURES / "openai" / "3", "openai")
    assert (done.labels, done.scores) == (2, 1)
    rows = _rows(database, "feature_id", "text", "method", "scores")
    assert [row[:3] for row in rows] == [(1, "text 1", "openai"), (2, "text 2", "openai")]
    (score,) = rows[0][3]
    assert (score["scorer"], score["value"]) == ("simulation", 0.5)


Make = Callable[[Path], Path]


def _gzip(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _text(name: str, text: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return folder

    return make


def _delphi(score: bytes, name: str = "m_latent1.txt") -> Make:
    """A run of Delphi's with one explanation and what its scorer gave."""

    def make(folder: Path) -> Path:
        _text(f"explanations/{name}", '"x"')(folder)
        (folder / "scores" / "fuzz").mkdir(parents=True)
        (folder / "scores" / "fuzz" / name).write_bytes(score)
        return folder

    return make


def _of_layer(layer: int | str) -> bytes:
    neuron = {"layer_index": layer, "neuron_index": 1}
    return json.dumps({"neuron_id": neuron, "scored_explanations": []}).encode()


def _latents(**damage: Any) -> Make:
    """A cache of Delphi's with some arrays replaced, or left out where None."""
    right = {
        "tokens": np.zeros((1, 4), np.int64),
        "locations": np.array([[0, 1, 0], [0, 2, 1]]),
        "activations": np.ones(2, np.float32),
    }

    def make(folder: Path) -> Path:
        arrays = {name: array for name, array in (right | damage).items() if array is not None}
        save_file(arrays, folder / "0_1.safetensors")
        return folder

    return make


_GOOD = json.dumps(_line("1", "x")).encode()


@pytest.mark.parametrize(
    ("form", "make", "said"),
    [
        ("neuronpedia", lambda f: f, "has no explanations/batch-N.jsonl.gz"),
        ("neuronpedia", lambda f: f / "absent.jsonl", "cannot read"),
        (
            "neuronpedia",
            lambda f: _gzip(f / "a.jsonl.gz", gzip.compress(_GOOD)[:-9]),
            "damaged gzip",
        ),
        ("neuronpedia", lambda f: _gzip(f / "a.jsonl.gz", b"no gzip"), "damaged gzip"),
        ("neuronpedia", lambda f: _gzip(f / "a.jsonl", _GOOD + b"\n{"), "line 2, is not JSON"),
        ("neuronpedia", lambda f: _gzip(f / "a.jsonl", b"[1]"), "line 1, is not a JSON object"),
        (
            "neuronpedia",
            lambda f: _gzip(f / "a.jsonl", b'{"index": 1}'),
            "an index and a description",
        ),
        (
            "neuronpedia",
            lambda f: neuronpedia_file(f / "a.jsonl.gz", [_line(1, "x"), _line(2, "y", layer="2")]),
            "of several sources",
        ),
        ("neuronpedia", lambda f: neuronpedia_file(f / "a.jsonl.gz", [_line("99", "x")]), "99"),
        ("neuronpedia", lambda f: neuronpedia_file(f / "a.jsonl.gz", [_line("one", "x")]), "one"),
        ("neuronpedia", lambda f: neuronpedia_file(f / "a.jsonl.gz", [_line("1", " ")]), "row 1"),
        (
            "neuronpedia",
            lambda f: neuronpedia_file(f / "a.jsonl.gz", [_line("1", "x" * 2**20)]),
            "row 1",
        ),
        ("delphi", lambda f: f, "has no explanations/"),
        ("delphi", _text("explanations/m_latent1.txt", "{"), "is not JSON"),
        ("delphi", _text("explanations/m_latent1.txt", "[1]"), "is no explanation"),
        ("goodfire", lambda f: f / "absent.db", "cannot read"),
        (
            "goodfire",
            lambda f: _gzip(f / "a.db", b"SQLite format 3\0rest"),
            "no labels of Goodfire's",
        ),
        (
            "goodfire",
            lambda f: _gzip(f / "a.csv", b"feature_id,text\n1,x\n"),
            "has no column label",
        ),
        (
            "goodfire",
            lambda f: _gzip(f / "a.csv", b"feature_id,label,quality\n1,x,y\n"),
            "no number",
        ),
        ("delphi", _delphi(b"[]", name="m_latent99999999999999999999.txt"), "is not a feature"),
        ("delphi", _delphi(b"[" * 100_000), "nested too deeply"),
        ("delphi", _delphi(b'[{"similarity": "high", "distance": "far"}]'), "is no score"),
        ("delphi", _delphi(b'[{"similarity": 1}]'), "is no score"),
        ("delphi", _delphi(b'[{"correct": "yes"}]'), "is no score"),
        ("delphi", _delphi(b"[\xff]"), "is not JSON"),
        ("delphi", _text("explanations/m_latent1.txt", '"\\ud800"'), "is not JSON"),
        ("goodfire", lambda f: _autointerp(f / "a.db", [(1, b"x", *[None] * 6)]), "row 1: label"),
        (
            "goodfire",
            lambda f: _autointerp(f / "a.db", [(1, "x", b"y", *[None] * 5)]),
            "row 1: seqs",
        ),
        (
            "goodfire",
            lambda f: _gzip(f / "a.csv", b"feature_id,label\n1,x\n2,a, b\n3,c\n"),
            "line 3, has 3 values for 2 columns",
        ),
        ("goodfire", lambda f: _gzip(f / "a*.csv", b"feature_id,label\n1,\n"), "row 1"),
        ("neuronpedia", lambda f: _gzip(f / "a.jsonl", b"[" * 100_000), "nested too deeply"),
        (
            "neuronpedia",
            lambda f: _gzip(f / "a.jsonl", b'{"index": 1, "description": "\\ud800"}'),
            "line 1, is not JSON",
        ),
        (
            "openai",
            lambda f: _gzip(f / "1.jsonl", _of_layer(1) + b"\n" + _of_layer("2")),
            "has layers 1, 2",
        ),
        ("openai", lambda f: f, "has no NEURON.jsonl"),
        ("openai", lambda f: _gzip(f / "1.jsonl", b"{}"), "no neuron_id"),
    ],
    ids=range(35),
)
def test_bad_labels_are_one_line_and_store_nothing(
    database: Path, tmp_path: Path, form: str, make: Make, said: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    source = make(folder)
    with pytest.raises(LabelError) as caught:
        featuredb.import_labels(database, source, form)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert _rows(database, "text") == []


@pytest.mark.parametrize(
    ("form", "make", "said"),
    [
        ("delphi", lambda f: f, "give the folder of one hook point"),
        ("delphi", _text("m/0_x.safetensors", ""), "FIRST_LAST"),
        ("delphi", _text("m/0_2.safetensors", "rubbish"), "cannot be read"),
        ("delphi", _latents(tokens=None), "was cached without its tokens"),
        ("delphi", _latents(locations=None), "has no locations as Delphi caches them"),
        ("delphi", _latents(activations=np.ones((2, 1))), "has no activations as Delphi caches"),
        ("delphi", _latents(activations=np.ones(3)), "has no place (row, token, latent) of each"),
        ("delphi", _latents(locations=np.ones((2, 2))), "has no place (row, token, latent) of"),
        ("neuronpedia", lambda f: f, "has no batch-N.json"),
        ("neuronpedia", _text("batch-0.json", "{"), "is not JSON"),
        ("neuronpedia", _text("batch-0.json", '{"features": []}'), "is no batch of SAEDashboard"),
        ("neuronpedia", _text("activations/batch-0.jsonl", '{"index": 1}'), "field `tokens`"),
        (
            "neuronpedia",
            _text("activations/batch-0.jsonl", '{"index": "1", "tokens": ["a"], "values": []}'),
            "has 1 tokens and 0 values",
        ),
        ("neuronpedia", _text("activations/batch-0.jsonl", ""), "has no activations"),
        (
            "neuronpedia",
            _text("activations/batch-0.jsonl", '{"index": 1e20, "tokens": [], "values": []}'),
            "Expected `int | str`, got `float` - at `$.index`",
        ),
        (
            "neuronpedia",
            _text("activations/batch-0.jsonl", '{"index": 1, "tokens": ["a"], "values": [1e99]}'),
            "an activation that is no finite number",
        ),
        ("parquet", lambda f: f, "has no tokens.parquet"),
        ("parquet", _text("tokens.parquet", "x"), "has no activations.parquet"),
    ],
    ids=range(18),
)
def test_bad_activations_are_one_line_and_leave_nothing(
    tmp_path: Path, form: str, make: Make, said: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(IngestError) as caught:
        featuredb.import_activations(tmp_path / "x.fdb", make(folder), form)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.fdb").exists()
    assert issubclass(IngestError, FeatureDBError)
