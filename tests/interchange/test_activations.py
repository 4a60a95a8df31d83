"""Activations of other programs: a real database from each format, and each format from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import featuredb
from featuredb.errors import IngestError, ModelError, OptionError, QueryError, StorageError
from tests.docs.conftest import made_world
from tests.make_store import make_store

Place = tuple[int, int, int]
"""A sequence, a token, a feature."""


def goodfire_file(path: Path, words: list[list[str]], active: Mapping[Place, float]) -> Path:
    """A DuckDB file as Goodfire publishes them (goodfire-ai/r1-interpretability, db_example)."""
    ids = {word: i for i, word in enumerate(sorted({w for s in words for w in s}))}
    with duckdb.connect(str(path)) as file:
        file.execute(
            "CREATE TABLE tokens(sequence_id INTEGER, token_idx INTEGER, token INTEGER, "
            "decoded_token VARCHAR);"
            "CREATE TABLE activations(feature_id INTEGER, sequence_id INTEGER, token_idx INTEGER, "
            "strength FLOAT)"
        )
        tokens = [(s, i, ids[w], w) for s, own in enumerate(words) for i, w in enumerate(own)]
        file.executemany("INSERT INTO tokens VALUES (?, ?, ?, ?)", tokens[::-1])
        rows = [(f, s, t, value) for (s, t, f), value in active.items()]
        if rows:
            file.executemany("INSERT INTO activations VALUES (?, ?, ?, ?)", rows[::-1])
    return path


def content(path: Path) -> tuple[list[str], dict[Place, float]]:
    """The texts and all activations of a database."""
    with featuredb.open(path) as db:
        texts = [t for (t,) in db.sql("SELECT text FROM documents ORDER BY document_id").fetchall()]
        rows = db.sql("SELECT context_id, token_index, feature_id, activation FROM activations")
        return texts, {(c, t, f): a for c, t, f, a in rows.fetchall()}


WORDS = [["The", " cat", " sat", "\n"], [" cat", '"x",', " 日", ""], ["The"]]
ACTIVE = {(0, 1, 3): 2.5, (1, 0, 3): 5.0, (0, 1, 0): 0.1, (2, 0, 1): 70_000.0, (1, 2, 3): 1.0}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("goodfire")
    source = goodfire_file(folder / "r1.ddb", WORDS, ACTIVE)
    featuredb.import_activations(
        folder / "r1.fdb", source, "goodfire", features=6, values="float32", model_name="R1"
    )
    return folder / "r1.fdb"


def test_an_import_is_a_database_with_every_activation(imported: Path) -> None:
    texts, rows = content(imported)
    assert texts == ["".join(words) for words in WORDS]
    assert rows == {place: np.float32(value) for place, value in ACTIVE.items()}
    report = featuredb.verify(imported)
    assert report.problems == ()


def test_an_import_answers_what_is_stored(imported: Path) -> None:
    with featuredb.open(imported) as db:
        top = db.top_contexts(3)
        assert [row.activation for row in top] == [5.0, 2.5]
        assert top[0].tokens == WORDS[1]
        assert top[0].sequence_id == "1"
        assert [row.feature_id for row in db.near(3, by="coactivation")] == [0]
        assert sorted(row.feature_id for row in db.fires_in(0)) == [0, 3]
        assert len(db.find(all=[3], none=[0])) == 2
        card = db.feature(3)
        assert "decoder norm" not in str(card)
        assert len(card.neighbors) == 0
        assert "directions" not in card._repr_html_()
        assert "R1" in str(db.info())
        assert len(db.search("cat")) > 0
        assert str(db.compare(3, 0))


def test_what_an_import_cannot_answer_says_why(imported: Path) -> None:
    with featuredb.open(imported) as db:
        with pytest.raises(QueryError, match=r"r1 has no directions: .* ask by coactivation"):
            db.near(3)
        with pytest.raises(QueryError, match="has no directions"):
            db.direction(3)
        with pytest.raises(ModelError, match="was imported: it has neither the model nor the SAE"):
            db.fires_on("something new")


def test_an_import_again_is_done_already_and_another_is_refused(
    imported: Path, tmp_path: Path
) -> None:
    source = imported.with_suffix(".ddb")
    again = featuredb.import_activations(
        imported, source, "goodfire", features=6, values="float32", model_name="R1"
    )
    assert not again.fresh
    other = goodfire_file(tmp_path / "other.ddb", WORDS, {})
    with pytest.raises(IngestError, match="already holds a database of something else"):
        featuredb.import_activations(imported, other, "goodfire")


FORMATS = {"goodfire": "out.ddb", "parquet": "out", "csv": "out", "arrow": "out"}


@pytest.mark.parametrize("form", FORMATS)
def test_every_activation_goes_out_and_comes_back(
    imported: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / FORMATS[form]
    assert featuredb.export_activations(imported, out, form) == len(ACTIVE)
    back = tmp_path / "back.fdb"
    featuredb.import_activations(back, out, form, features=6, values="float32")
    assert content(back) == content(imported)
    with pytest.raises(StorageError, match="already"):
        featuredb.export_activations(imported, out, form)


def test_other_options_are_not_what_is_there_already(imported: Path) -> None:
    source = imported.with_suffix(".ddb")
    options: dict[str, Any] = {"features": 6, "values": "float32"}
    with pytest.raises(IngestError, match="or made with other options"):
        featuredb.import_activations(imported, source, "goodfire", model_name="R2", **options)


_WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_tokens_and_activations_survive(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    words = data.draw(st.lists(st.lists(_WORD, min_size=1, max_size=5), min_size=1, max_size=4))
    places = st.tuples(st.integers(0, len(words) - 1), st.integers(0, 4), st.integers(0, 9))
    value = st.floats(-1e6, 1e6, width=32).filter(bool)
    drawn = data.draw(st.dictionaries(places, value, max_size=12))
    active = {(s, t, f): v for (s, t, f), v in drawn.items() if t < len(words[s])}
    folder = tmp_path_factory.mktemp("any")
    source = goodfire_file(folder / "a.ddb", words, active)
    featuredb.import_activations(
        folder / "a.fdb", source, "goodfire", features=10, values="float32"
    )
    expected = ["".join(own) for own in words], active
    assert content(folder / "a.fdb") == expected
    for form in ("csv", "delphi"):
        featuredb.export_activations(folder / "a.fdb", folder / form, form)
    options: dict[str, Any] = {"features": 10, "values": "float32"}
    featuredb.import_activations(folder / "c.fdb", folder / "csv", "csv", **options)
    assert content(folder / "c.fdb") == expected
    featuredb.import_activations(folder / "d.fdb", folder / "delphi", "delphi", **options)
    assert content(folder / "d.fdb")[1] == active


def _broken(change: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = goodfire_file(folder / "broken.ddb", WORDS, ACTIVE)
        with duckdb.connect(str(path)) as file:
            file.execute(change)
        return path

    return make


def _text_file(folder: Path) -> Path:
    (folder / "x.ddb").write_text("no database")
    return folder / "x.ddb"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "absent.ddb", "is not a DuckDB database"),
        (_text_file, "is not a DuckDB database"),
        (_broken("DROP TABLE tokens"), "cannot be read"),
        (_broken("ALTER TABLE activations DROP strength"), "no column strength or activation"),
        (_broken("DELETE FROM tokens WHERE token_idx = 1"), "each token_idx from 0 on once"),
        (_broken("DELETE FROM tokens WHERE sequence_id = 2"), "not among the tokens"),
        (_broken("DELETE FROM tokens; DELETE FROM activations"), "has no tokens"),
        (_broken("INSERT INTO activations FROM activations"), "an activation twice"),
        (_broken("UPDATE activations SET strength = 'nan'"), "no finite number"),
        (_broken("UPDATE activations SET feature_id = -1"), "a feature beyond"),
        (_broken("UPDATE tokens SET token = NULL"), "a row has no token"),
        (_broken("UPDATE tokens SET token = 1"), r"token 1 has \d+ texts"),
    ],
    ids=range(12),
)
def test_a_bad_file_is_one_line_and_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    source = make(tmp_path)
    with pytest.raises(IngestError, match=said) as caught:
        featuredb.import_activations(tmp_path / "db.fdb", source, "goodfire")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "db.fdb").exists()


def test_an_unknown_format_names_those_there_are(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not read from circuit-tracer: choose one of goodfire,"):
        featuredb.import_activations(tmp_path / "a.fdb", tmp_path, "circuit-tracer")
    with pytest.raises(OptionError, match="not written as x: choose one of goodfire, delphi, "):
        featuredb.export_activations(imported, tmp_path / "a", "x")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "made.fdb"
    make_store(path, made_world())
    return path


def test_a_database_of_ours_goes_through_delphi(made: Path, tmp_path: Path) -> None:
    featuredb.export_activations(made, tmp_path / "latents", "delphi")
    featuredb.import_activations(tmp_path / "back.fdb", tmp_path / "latents", "delphi")
    with featuredb.open(made) as before, featuredb.open(tmp_path / "back.fdb") as after:
        for feature in (0, 1, 7, 39):
            columns = ["context_id", "token_index", "activation"]
            one, other = (db.activations(feature).arrow() for db in (before, after))
            assert one.select(columns).equals(other.select(columns))
        assert after.saes[0].name == "blocks.13.hook_resid_post"


def test_examples_go_through_neuronpedia(made: Path, tmp_path: Path) -> None:
    count = featuredb.export_activations(made, tmp_path / "np", "neuronpedia")
    featuredb.import_activations(tmp_path / "back.fdb", tmp_path / "np", "neuronpedia")
    with featuredb.open(made) as before, featuredb.open(tmp_path / "back.fdb") as after:
        ((examples,),) = before.sql("SELECT count(*) FROM examples WHERE rank <= 20").fetchall()
        assert count == examples
        for feature in (0, 7):
            tops = [db.top_contexts(feature, k=1)[0] for db in (before, after)]
            assert tops[0].activation == tops[1].activation
            assert tops[0].tokens == tops[1].tokens
    assert featuredb.verify(tmp_path / "back.fdb").problems == ()


def test_circuit_tracer_gets_a_file_for_each_feature(made: Path, tmp_path: Path) -> None:
    featuredb.export_activations(made, tmp_path / "ct", "circuit-tracer")
    with featuredb.open(made) as db:
        fire = {
            f"{n}.json"
            for (n,) in db.sql("SELECT feature_id FROM features WHERE count > 0").fetchall()
        }
        top = db.top_contexts(0, k=1)[0]
        density = db.feature(0).statistics.density
    assert {file.name for file in (tmp_path / "ct").iterdir()} == fire
    feature: dict[str, Any] = json.loads((tmp_path / "ct" / "0.json").read_text())
    best = feature["examples_quantiles"][0]["examples"][0]
    assert feature["examples_quantiles"][0]["quantile_name"] == "Top activations"
    assert best["tokens_acts_list"][best["train_token_ind"]] == top.activation == feature["act_max"]
    assert best["tokens"][best["train_token_ind"]] == top.token
    assert feature["activation_frequency"] == density


def test_files_without_ids_have_a_token_for_each_text(tmp_path: Path) -> None:
    tokens = pa.table(
        {"context_id": ["b", "b", "a"], "position": [0, 1, 0], "text": ["x", "y", "x"]}
    )
    active = pa.table({"context_id": ["b"], "position": [1], "latent": [2], "value": [1.5]})
    import pyarrow.parquet as pq

    pq.write_table(tokens, tmp_path / "tokens.parquet")
    pq.write_table(active, tmp_path / "activations.parquet")
    featuredb.import_activations(tmp_path / "a.fdb", tmp_path, "parquet")
    assert content(tmp_path / "a.fdb") == (["x", "xy"], {(1, 1, 2): 1.5})
