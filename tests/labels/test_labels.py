"""Labels: written, preferred, voted for, removed, carried, imported and exported."""

from __future__ import annotations

import gzip
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featuredb
from featuredb.errors import LabelError, StorageError, UnknownFeatureError
from featuredb.labels.batch import LabelBatch
from featuredb.labels.write import add_labels
from featuredb.render.formats import to_bytes
from featuredb.store.snapshot import Snapshot
from featuredb.store.user_data import LABELS
from ingest.operations.user_data import Tables, change_user_data
from tests.explorer.conftest import serving
from tests.make_store import make_store
from tests.queries.test_questions import small_world


def _shown(folder: Path) -> dict[str, str]:
    """The preferred label of each feature. Fails where a feature has not exactly one."""
    with featuredb.open(folder) as db:
        rows = list(db.labels())
    shown = {f"{r.sae}/{r.feature_id}": r.text for r in rows if r.preferred}
    assert len(shown) == sum(r.preferred for r in rows)
    assert shown.keys() == {f"{r.sae}/{r.feature_id}" for r in rows}
    return shown


def test_written_preferred_voted_for_and_removed(folder: Path) -> None:
    with featuredb.open(folder) as db:
        relation = db.sql("SELECT text FROM labels")
        db.label("demo/3", " music ")
        (row,) = db.label("other/3", "dates", method="rule", model="m")
        assert (row.text, row.method, row.model, row.preferred) == ("dates", "rule", "m", True)
        answer = db.label("demo/3", "songs")
        assert [(r.text, r.preferred) for r in answer] == [("songs", True), ("music", False)]
        assert {r.method for r in answer} == {"human"}
        answer = db.prefer_label("demo/3", "music")
        assert [r.text for r in answer if r.preferred] == ["music"]
        # By its id, and more than once.
        (songs,) = (r.label_id for r in answer if r.text == "songs")
        db.vote_for_label("demo/3", songs[:6], 3)
        assert [r.votes for r in db.vote_for_label("demo/3", songs, -1)] == [0, 2]
        # The same words of the same author are the same label, which keeps its votes.
        answer = db.label("demo/3", "songs")
        assert [(r.text, r.votes, r.preferred) for r in answer] == [
            ("songs", 2, True),
            ("music", 0, False),
        ]
        assert [r.text for r in db.remove_label("demo/3", "songs")] == ["music"]
        assert len(db.labels(["demo/3", "other/3"])) == 2
        assert len(db.labels("demo/1")) == 0
        assert relation.fetchall() == []
        operations = [row.operation for row in featuredb.snapshots(folder)]
        assert operations == ["ingest", *["label"] * 8]
    assert _shown(folder) == {"demo/3": "music", "other/3": "dates"}
    with duckdb.connect(str(folder / "catalog.duckdb"), read_only=True) as client:
        assert client.execute("SELECT sae, text FROM labels").fetchall() == [
            ("demo", "music"),
            ("other", "dates"),
        ]
    assert featuredb.verify(folder, all_snapshots=True).ok


def test_every_answer_about_a_feature_has_its_label(folder: Path) -> None:
    with featuredb.open(folder) as db:
        db.label("demo/3", "dates <i>")
        db.label("demo/4", "music")
        three = {
            "top": db.top_contexts("demo/3", 2),
            "many": db.top_contexts(["demo/3", "demo/1"], 2),
            "sample": db.sample_contexts("demo/3", 4, 2),
            "silent": db.silent_contexts("demo/3", 2, "random"),
            "activations": db.activations("demo/3"),
            "documents": db.document_features("demo/3"),
            "document": db.document(0, "demo/3"),
            "find": db.find(all=["demo/3"], none=["demo/4"]),
            "near": db.near("demo/3", 2),
            "coactive": db.coactive("demo/3", 2, min_both=1),
            "families": db.families("demo/3"),
            "card": db.feature("demo/3"),
            "of another": db.near("demo/1", 9),
        }
        both = {
            "find": three["find"],
            "pair": db.coactivation("demo/3", "demo/4"),
            "compare": db.compare("demo/3", "demo/4"),
            "many": db.top_contexts(["demo/3", "demo/4"], 2),
        }
    for name, answer in three.items():
        assert "dates <i>" in str(answer), name
        assert "dates &lt;i&gt;" in answer._repr_html_(), name
    for name, answer in both.items():
        assert "music" in str(answer), name
        assert "music" in answer._repr_html_(), name
    # They are in JSON, too.
    assert list(three["find"].attributes()["labels"]) == ["demo/3", "demo/4"]
    assert "dates" in three["document"].attributes()["label"]


@pytest.mark.parametrize("preferred", [True, False])
def test_verify_finds_two_preferred_labels_and_none(folder: Path, preferred: bool) -> None:
    with featuredb.open(folder) as db:
        db.label("demo/3", "music")
        db.label("demo/3", "songs")
        db.label("other/3", "music")
    assert featuredb.verify(folder).ok

    def all_so(_: Snapshot, tables: Tables) -> Tables:
        rows = tables["labels"]
        shown = pa.array([preferred] * len(rows))
        at = rows.column_names.index("preferred")
        return {"labels": rows.set_column(at, rows.schema.field(at), shown)}

    change_user_data(folder, [LABELS], all_so, "label")
    (problem,) = featuredb.verify(folder).problems
    assert "of which not exactly one is preferred" in str(problem)


def test_verify_finds_a_score_without_its_label(folder: Path) -> None:
    scored = pa.table({"row": [0], "scorer": ["detection"], "value": [0.5]})
    labels = pa.table({"feature_id": [3], "text": ["music"], "sae": ["demo"]})
    add_labels(folder, LabelBatch(labels, scored))
    assert featuredb.verify(folder).ok

    def without(_: Snapshot, tables: Tables) -> Tables:
        return {"labels": tables["labels"].slice(0, 0)}

    change_user_data(folder, [LABELS], without, "label")
    (problem,) = featuredb.verify(folder).problems
    assert "has a score of a label that does not exist" in str(problem)


def test_a_handle_answers_from_what_it_wrote_and_stays_there(folder: Path) -> None:
    with featuredb.open(folder) as first, featuredb.open(folder) as second:
        assert [row.text for row in first.label("demo/1", "one")] == ["one"]
        assert len(second.labels()) == 0
        assert [row.text for row in second.label("demo/2", "two")] == ["two"]
        assert [row.text for row in second.labels()] == ["one", "two"]
        assert [row.text for row in first.labels()] == ["one"]
    with featuredb.open(folder, snapshot=1) as old:
        assert len(old.label("demo/2", "three")) == 2
        assert old.snapshot.number == 4


def _batch(*rows: tuple[str, str, str, int, bool]) -> LabelBatch:
    names = ("feature_id", "text", "method", "votes", "preferred")
    return LabelBatch(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]))


def test_which_label_is_preferred(folder: Path) -> None:
    rules = ("demo/1", "token x", "automatic", 9, True)
    add_labels(folder, _batch(rules, ("demo/2", "by rule", "automatic", 0, False)))
    assert _shown(folder) == {"demo/1": "token x", "demo/2": "by rule"}
    # Any other takes over from an automatic one: that marked as preferred, else with most votes.
    many = [("demo/1", "few", "np", 1, False), ("demo/1", "most", "np", 5, False)]
    done = add_labels(folder, _batch(*many, many[0], ("demo/1", "rest", "np", 0, False)))
    assert (done.labels, done.duplicates) == (3, 1)
    assert _shown(folder)["demo/1"] == "most"
    add_labels(folder, _batch(("demo/2", "a", "np", 9, False), ("demo/2", "b", "np", 0, True)))
    assert _shown(folder)["demo/2"] == "b"
    # None takes over from one that people see already, but what they write themselves.
    add_labels(folder, _batch(("demo/1", "new", "np", 99, True)))
    assert _shown(folder)["demo/1"] == "most"
    with featuredb.open(folder) as db:
        db.label("demo/1", "mine")
        assert _shown(folder)["demo/1"] == "mine"
        db.remove_label("demo/1", "mine")
    assert _shown(folder)["demo/1"] == "new"


def test_carried_by_drop_and_add_and_copied(folder: Path, tmp_path: Path) -> None:
    with featuredb.open(folder) as db:
        db.label("demo/1", "one")
        db.label("other/1", "there")
    featuredb.drop(folder, sae="other")
    featuredb.compact(folder)
    assert _shown(folder) == {"demo/1": "one"}
    featuredb.push(folder, f"file://{tmp_path / 'there'}")
    with featuredb.open(f"file://{tmp_path / 'there'}") as remote:
        assert [row.text for row in remote.labels()] == ["one"]
        with pytest.raises(StorageError, match="labeling needs a folder"):
            remote.label("demo/1", "two")
    featuredb.pull(f"file://{tmp_path / 'there'}", tmp_path / "back.fdb")
    assert _shown(tmp_path / "back.fdb") == {"demo/1": "one"}


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "arrow", "csv.gz"])
def test_a_file_holds_everything(folder: Path, made: Path, tmp_path: Path, ending: str) -> None:
    scores = pa.table(
        {
            "row": [0, 0, 1],
            "scorer": ["fuzz", "detection", "fuzz"],
            "model": pa.array([None, "judge", None], pa.string()),
            "value": [0.25, 0.5, -1.0],
            "details": pa.array(['{"n": [1, 2]}', None, None], pa.string()),
        }
    )
    rows = [
        ("demo/1", 'quoted "text",\nof two lines', "np", 3, True),
        ("other/2", "Ø", "np", -1, True),
    ]
    add_labels(folder, replace(_batch(*rows), scores=scores))
    file = tmp_path / f"labels.{ending.removesuffix('.gz')}"
    assert featuredb.export_labels(folder, file) == 2
    if ending.endswith("gz"):
        data = gzip.compress(file.read_bytes())
        file = tmp_path / f"labels.{ending}"
        file.write_bytes(data)
    back = Path(shutil.copytree(made, tmp_path / "back.fdb"))
    done = featuredb.import_labels(back, file)
    assert (done.labels, done.duplicates, done.scores) == (2, 0, 3)
    with featuredb.open(folder) as one, featuredb.open(back) as two:
        assert one.labels().table == two.labels().table
        assert two.sql("SELECT scorer, value FROM scores WHERE sae = 'other'").fetchall() == [
            ("fuzz", -1.0)
        ]
    assert featuredb.import_labels(back, file).duplicates == 2
    assert featuredb.verify(back).ok
    with pytest.raises(StorageError, match="is there already"):
        featuredb.export_labels(back, file, "parquet")


def test_spreadsheets_spell_ids_in_many_ways(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text('\ufefffeature,label,note\n"demo/1",one,\n 2 ,two,x\n"3",three,\n')
    with pytest.raises(LabelError, match=r"row 2: it does not say of which SAE: .* demo .*other"):
        featuredb.import_labels(folder, file)
    assert _shown(folder) == {}
    done = featuredb.import_labels(folder, file, sae="other", method="spreadsheet")
    assert done.labels == 3
    assert _shown(folder) == {"demo/1": "one", "other/2": "two", "other/3": "three"}
    pq.write_table(
        pa.table({"index": [1.0, 2.0], "description": ["x", "y"]}), tmp_path / "f.parquet"
    )
    assert featuredb.import_labels(folder, tmp_path / "f.parquet", sae="demo").labels == 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("feature_id,text\n1,\u200b\ufeff\n", "row 1: the label is empty"),
        ("feature_id,text,hook\n1,x,blocks.9\n", "row 1: it is about an SAE at blocks.9, and"),
        ("feature_id,text,sae,hook\n1,x,demo,blocks.1.hook_resid_post\n", "it is about demo at b"),
        ("feature_id,text,sae\ndemo/1,x,other\n", "its feature is of demo, its columns say other"),
        (f"feature_id,text\n{'9' * 100_000},x\n", "9… is not a feature"),
        ('feature_id,text\n200,"a\n201,b\n202,"c\n203,d\n', "line 2, has text after a closing qu"),
        ("feature_id,text,votes\n1,x,99999999999999999999\n", "not a whole number"),
        *(
            (f"feature_id,text,scores\n1,x,\"[{{'scorer': {scorer}, 'value': {value}}}]\"\n", what)
            for scorer, value, what in [
                ("'../evil'", 1, "row 1: '../evil' names no scorer: give it a name without /"),
                ("'/tmp/evil'", 1, "names no scorer"),
                ("'..'", 1, "names no scorer"),
                ("null", 1, "row 1: a score has no scorer"),
                ("5", 1, "row 1: its scores are not JSON"),
                ("'fuzz'", "NaN", "row 1: the score of fuzz is nan, no number"),
                ("'fuzz'", "Infinity", "row 1: the score of fuzz is inf, no number"),
                ("'fuzz'", f"1{'0' * 400}", "row 1: its scores are not JSON"),
                ("'\\ud800'", 1, "row 1: its scores are not JSON"),
            ]
        ),
        ("feature_id,text\ndemo/1,ok\ndemo/99,no\n", r"row 2: there is no feature 99: demo has"),
        ("feature_id,text\nsome/1,x\n", "row 1: there is no SAE some"),
        ("feature_id,text\n-1,x\n", "there is no feature -1"),
        ("feature_id,text\nab,x\n", "row 1: demo/ab is not a feature"),
        ("feature_id,text\n,x\n", "row 1: it names no feature"),
        ("feature_id,text\n1,\n", "row 1: the label is empty"),
        ('feature_id,text\n1," "\n', "row 1: the label is empty"),
        (f"feature_id,text\n1,{'x' * 1_000_000}\n", "has 1,000,000 characters: it may have 10,000"),
        ("feature_id,text,d_sae\n1,x,16384\n", "SAE of 16,384 features, and demo has 5"),
        ("feature_id,text,sae_sha256\n1,x,abc\n", r"an SAE with hash abc, .* demo \(0\)"),
        ("feature_id,text,votes\n1,x,many\n", "row 1: votes is 'many', not a whole number"),
        ("feature_id,text,scores\n1,x,high\n", "row 1: its scores are not JSON"),
        (
            "feature_id,note\n1,x\n",
            "has no column text or label .*: its columns are 'feature_id', ",
        ),
        ("feature_id,text,label\n1,x,y\n", "has columns text and label: keep one"),
        ("feature_id,text\n1,x\n2,a,b\n", "line 3, has 3 values for 2 columns: put a text with"),
        ("", "is not a CSV file"),
    ],
    ids=range(32),
)
def test_bad_rows_are_named_and_nothing_is_written(
    made: Path, tmp_path: Path, text: str, what: str
) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text.replace("'", '""') if ",scores" in text else text)
    with pytest.raises(LabelError, match=what) as error:
        featuredb.import_labels(made, file, sae="demo")
    assert "\n" not in str(error.value)
    assert len(list((made / "snapshots").glob("*.json"))) == 1
    assert not (made / "user").exists()


def test_files_that_are_none(made: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(b"feature_id,text\n1,x\n" * 99)[:-9])
    with pytest.raises(LabelError, match="damaged gzip"):
        featuredb.import_labels(made, cut)
    for name, what in {
        "none.csv": "cannot read",
        "x.txt": "by the ending .* --from, as one of csv",
    }.items():
        with pytest.raises(LabelError, match=what):
            featuredb.import_labels(made, tmp_path / name)
    (tmp_path / "x.parquet").write_text("no")
    for form in ("Parquet", "Arrow"):
        with pytest.raises(LabelError, match=f"is not an? {form} file"):
            featuredb.import_labels(made, tmp_path / "x.parquet", form.lower())
    with pytest.raises(LabelError, match="not read as xls: choose one of csv, "):
        featuredb.import_labels(made, tmp_path / "x.parquet", "xls")


def test_bad_labels_by_hand(made: Path) -> None:
    with featuredb.open(made) as db:
        for text in ("", " \n", "x" * 1_048_576):
            with pytest.raises(LabelError, match="the label"):
                db.label("demo/1", text)
        with pytest.raises(UnknownFeatureError, match="no feature 99"):
            db.label("demo/99", "x")
        with pytest.raises(LabelError, match="feature demo/1 has no label"):
            db.prefer_label("demo/1", "x")
        assert db.snapshot.number == 1


def test_the_explorer_writes_them(folder: Path) -> None:
    with serving(folder) as served:
        path = "/feature/demo/1"
        assert b"Say what it means" in served.get(path)[1]
        body = b"label=dates+%3Cb%3E"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        status, _, headers = served.get("/label/demo/1", "POST", body, form)
        assert (status, headers["location"]) == (303, path)
        assert b"dates &lt;b&gt;" in served.get(path)[1]
        assert b"dates" in served.get("/sql.json?q=FROM%20labels")[1]
        # Only a form that is sent writes, and only from this server's pages.
        assert served.get("/label/demo/1?label=x")[0] in (404, 405)
        elsewhere = {**form, "Origin": "http://evil.example"}
        assert served.get("/label/demo/1", "POST", body, elsewhere)[0] == 403
        status, page, _ = served.get("/label/demo/99", "POST", body, form)
        assert (status, b"there is no feature 99" in page) == (404, True)
        for bad in (b"label=", b"label=%FF%FE", b"label=\xff"):
            assert served.get("/label/demo/1", "POST", bad, form)[0] == 400
    assert _shown(folder) == {"demo/1": "dates <b>"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xef\xbb\xbffeature_id,text\r\n3,dates\r\n", None),
        (b"Feature;Label\n 3 ;dates\n", None),
        ("feature\tlabel\n3.0\tdates\n".encode("utf-16"), None),
        (b"feature,text,text\n3,a,b\n", "has two columns text"),
        (b"feature,text\n3,caf\xe9\n", "is not in UTF-8"),
        (b'feature,text\n3,"open\n4,b\n', "a quote that is never closed"),
        (b"feature,text\n,a\n", "row 1: it names no feature"),
        (b"feature,text,created\n3,a,yesterday\n", "row 1: created is 'yesterday'"),
        ("feature,text\n3,dates\n".encode("utf-32"), "is not in UTF-8"),
        ("feature,text\n3,dates\n".encode("utf-16-le"), "is not in UTF-8"),
        (b"feature,text\n\ndemo/3.0, dates \n", None),
        (b"feature,text,SAE,Hook\ndemo/3,dates,demo,\n", None),
        (b"feature,text,hook\n3,dates,\n", None),
    ],
    ids=range(13),
)
def test_csv_as_spreadsheets_save_it(folder: Path, data: bytes, said: str | None) -> None:
    file = folder.parent / "labels.csv"
    file.write_bytes(data)
    if said is None:
        assert featuredb.import_labels(folder, file, sae="demo").labels == 1
        with featuredb.open(folder) as db:
            assert [(r.feature_id, r.text) for r in db.labels()] == [(3, "dates")]
    else:
        with pytest.raises(LabelError, match=said):
            featuredb.import_labels(folder, file, sae="demo")


def test_columns_are_named_and_filled_in_many_ways(folder: Path) -> None:
    file = folder.parent / "LABELS.TSV"
    file.write_text(
        "Feature\tLabel\tVotes \tMethod\tCREATED\n"
        "1\told\t 5.0\tnp\t20260131\n"
        "1\tnew\t5\tnp\t2026-02-01T00:30:00+02:00\n"
    )
    featuredb.import_labels(folder, file, sae="demo")
    with featuredb.open(folder) as db:
        said = [(r.text, r.votes, r.method, r.created) for r in db.labels("demo/1")]
    assert said == [
        ("new", 5, "np", "2026-01-31T22:30:00+00:00"),
        ("old", 5, "np", "2026-01-31T00:00:00+00:00"),
    ]


def test_texts_are_the_same_without_space_around_them(folder: Path) -> None:
    file = folder.parent / "labels.csv"
    file.write_text('feature,text\ndemo/1," padded "\ndemo/1,padded\n')
    done = featuredb.import_labels(folder, file)
    assert (done.labels, done.duplicates) == (1, 1)
    assert _shown(folder) == {"demo/1": "padded"}


def test_an_automatic_label_that_was_chosen_stays(folder: Path, made: Path, tmp_path: Path) -> None:
    rules = ("demo/1", "token x", "automatic", 0, False)
    add_labels(
        folder, _batch(rules, ("demo/1", "a", "np", 0, False), ("demo/1", "b", "np", 1, False))
    )
    assert _shown(folder)["demo/1"] == "b"
    with featuredb.open(folder) as db:
        db.prefer_label("demo/1", "token x")
        db.remove_label("demo/1", "a")
        assert _shown(folder)["demo/1"] == "token x"
    add_labels(folder, _batch(("demo/1", "c", "np", 9, True)))
    assert _shown(folder)["demo/1"] == "token x"
    # Elsewhere, too.
    featuredb.export_labels(folder, tmp_path / "labels.csv")
    back = Path(shutil.copytree(made, tmp_path / "back.fdb"))
    featuredb.import_labels(back, tmp_path / "labels.csv")
    assert _shown(back)["demo/1"] == "token x"


@pytest.mark.parametrize("votes", [1.5, "1", None, True, float("nan"), 2**63, -(2**63) - 1])
def test_votes_are_whole_numbers(folder: Path, votes: Any) -> None:
    with featuredb.open(folder) as db:
        db.label("demo/1", "x")
        with pytest.raises(LabelError, match="votes"):
            db.vote_for_label("demo/1", "x", votes)
        most: Any = np.int64(2**63 - 1)
        db.vote_for_label("demo/1", "x", most)
        with pytest.raises(LabelError, match="votes"):
            db.vote_for_label("demo/1", "x")


def test_features_of_numpy_and_what_is_none(made: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.fdb"
    make_store(one, small_world(("demo",)))
    with featuredb.open(one) as db:
        three: Any = np.int64(3)
        db.label(three, "x")
        given: list[Any] = [three, np.array(["3", "1"]), pa.array([3, 1]), (3, 1)]
        for feature in given:
            assert [row.text for row in db.labels(feature)] == ["x"]
        given = [b"31", 3.5, bytearray(b"3"), [b"3"], np.array(3)]
        for feature in given:
            with pytest.raises(UnknownFeatureError, match="is not a feature"):
                db.labels(feature)
            with pytest.raises(UnknownFeatureError, match="is not a feature"):
                db.top_contexts(feature)
        with pytest.raises(UnknownFeatureError, match="is not a feature"):
            featuredb.card(one, given[0])
        assert featuredb.card(one, "3") == featuredb.card(one, ["3"])


_HALF = "half \ud800"


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda db: db.label("demo/1", _HALF), "the label is not UTF-8 text, at character 5"),
        (lambda db: db.label("demo/1", "x", method=_HALF), "the method is not UTF-8 text"),
        (lambda db: db.label("demo/1", "x", model=_HALF), "the model is not UTF-8 text"),
        (lambda db: db.label("demo/1", "x", method=5), "the method must be text, not int"),
        (lambda db: db.label("demo/1", "x", method=" "), "the method has no name"),
        (lambda db: db.label("demo/1", "x", model=""), "the model has no name"),
        (lambda db: db.label("demo/1", None), "the label must be text, not NoneType"),
        (lambda db: db.prefer_label("demo/1", None), "the label must be text, not NoneType"),
        (lambda db: db.remove_label("demo/1", _HALF), "the label is not UTF-8 text"),
        (
            lambda db: featuredb.import_labels(db.path, "x.csv", method=5),  # type: ignore[arg-type]
            "the method must be",
        ),
        (lambda db: featuredb.import_labels(db.path, "x.csv", method=""), "the method has no name"),
    ],
    ids=range(11),
)
def test_what_is_no_text_is_named(folder: Path, write: Any, what: str) -> None:
    with featuredb.open(folder) as db:
        db.label("demo/1", "there")
        with pytest.raises(LabelError, match=what):
            write(db)
    assert _shown(folder) == {"demo/1": "there"}


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv.gz", "CSV.GZ", "jsonl.gz", "parquet.gz"])
def test_other_endings_hold_everything_too(
    folder: Path, made: Path, tmp_path: Path, ending: str
) -> None:
    score = {"row": [0], "scorer": ["fuzz"], "value": [0.1], "details": ['{"n": ["Ø"]}']}
    rows = (("demo/1", 'a "b",\nc', "np", 3, True), ("other/2", "Ø", "np", -1, True))
    add_labels(folder, replace(_batch(*rows), scores=pa.table(score)))
    file = tmp_path / f"labels.{ending}"
    featuredb.export_labels(folder, file)
    assert file.read_bytes().startswith(b"\x1f\x8b") == ending.lower().endswith(".gz")
    back = Path(shutil.copytree(made, tmp_path / "back.fdb"))
    assert featuredb.import_labels(back, file).scores == 1
    with featuredb.open(folder) as one, featuredb.open(back) as two:
        assert one.labels().table == two.labels().table


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_what_labels_list_writes_is_read(folder: Path, made: Path, form: Any) -> None:
    with featuredb.open(folder) as db:
        answer = db.label("demo/1", "dates")
    file = folder.parent / f"labels.{form}"
    file.write_bytes(to_bytes(answer, form))
    back = Path(shutil.copytree(made, folder.parent / "back.fdb"))
    featuredb.import_labels(back, file)
    with featuredb.open(back) as db:
        assert db.labels().table == answer.table


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet", "arrow", "goodfire"])
def test_labels_are_written_into_a_pipe(folder: Path, tmp_path: Path, form: str) -> None:
    with featuredb.open(folder) as db:
        db.label("demo/1", "dates")
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert featuredb.export_labels(folder, pipe, form) == 1
    assert featuredb.export_labels(folder, file, form) == 1
    assert os.read(end, 1 << 16) == file.read_bytes()
    os.close(end)
    assert pipe.is_fifo()


def test_names_that_are_too_long(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*: File name too long"):
        featuredb.export_labels(folder, tmp_path / ("x" * 300 + ".csv"))
    with pytest.raises(LabelError, match=r"cannot read .*: File name too long"):
        featuredb.import_labels(folder, tmp_path / ("x" * 300 + ".csv"))
