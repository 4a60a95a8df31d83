"""Search over labels, by their words and by meaning, with the real MiniLM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import featuredb
from featuredb.errors import MissingExtraError, QueryError
from tests.make_store import make_store
from tests.minilm import minilm_folder
from tests.queries.test_questions import small_world


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[featuredb.Database]:
    """Labels of one SAE, one of them automatic."""
    path = tmp_path_factory.mktemp("search") / "my.fdb"
    make_store(path, small_world(("demo",)))
    labels = path.with_name("labels.csv")
    labels.write_text(
        "feature,label,method\n0,songs and orchestras,human\n1,months in dates,human\n"
        "2,the courts and the law,human\n2,judges,np\n3,months,automatic\n4,Months,human\n"
    )
    featuredb.import_labels(path, labels)
    with featuredb.open(path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("query", "features"),
    [
        ("months", [4, 1, 3]),
        ("MONTHS, dates", [1, 4, 3]),
        ("orch*", [0]),
        ("judges", [2]),
        ("demo/3", [3]),
        ("2", [2]),
        ("mont", []),
    ],
)
def test_words_of_labels_and_names(db: featuredb.Database, query: str, features: list[int]) -> None:
    answer = db.search(query, by="tokens")
    assert [row.feature_id for row in answer] == features
    assert answer.table == db.sql("FROM search(?)", [query]).to_arrow_table()


def test_one_box_takes_expressions(db: featuredb.Database) -> None:
    answer = db.search("/./")
    assert answer.by == "evidence"
    assert answer.table == db.search("/./", by="evidence").table
    with pytest.raises(QueryError, match=r"^/\[/ is no regular expression: missing \]") as error:
        db.search("/[/")
    assert "\n" not in str(error.value)
    with pytest.raises(QueryError, match=r"^/\[/ is no regular expression"):
        db.about("/[/", by="evidence")


@pytest.mark.parametrize("query", ["*", "**", "* *"])
def test_a_star_alone_begins_no_word(db: featuredb.Database, query: str) -> None:
    assert len(db.search(query)) == 0


@pytest.mark.parametrize("by", [None, "tokens", "evidence"])
def test_an_encoder_is_of_meaning(db: featuredb.Database, by: str | None) -> None:
    with pytest.raises(QueryError, match="encoder is of a search by meaning"):
        db.search("months", by=by, encoder="m")


def test_a_label_that_is_the_word_counts_one(db: featuredb.Database) -> None:
    first, second, third = db.search("months", by="tokens")
    assert (first.score, first.matched, first.label) == (1.0, "Months", "Months")
    assert second.score == pytest.approx(3**-0.5)
    assert third.score == pytest.approx(1 / 3)


def test_by_meaning(
    db: featuredb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = str(minilm_folder())
    monkeypatch.setenv("FEATUREDB_CACHE", str(tmp_path))
    for query, feature in {"melody": 0, "which part of the year": 1, "legal matters": 2}.items():
        answer = db.search(query, k=2, by="meaning", encoder=encoder)
        assert answer[0].feature_id == feature, query
        assert answer[0].score > answer[1].score
    assert answer[0].matched == "the courts and the law"
    assert "the\u00a0courts" in str(answer)
    # Vectors are kept: a second handle embeds the query alone.
    assert list((tmp_path / "meaning").glob("*.lance"))
    monkeypatch.setattr(
        "featuredb.steering.sentences.SentenceEncoder.vectors",
        lambda self, texts: self._embedded(list(texts)).detach().numpy() if len(texts) == 1 else 0,
    )
    again = db.search("legal matters", k=2, by="meaning", encoder=encoder)
    assert again.table == answer.table


def test_what_meaning_needs(
    db: featuredb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare.fdb"
    make_store(bare, small_world(("demo",)))
    with featuredb.open(bare) as empty, pytest.raises(QueryError, match="no feature has a label"):
        empty.search("music", by="meaning")
    monkeypatch.delitem(sys.modules, "featuredb.steering.meaning", raising=False)
    monkeypatch.delitem(sys.modules, "featuredb.steering.sentences", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featuredb\[labels\]'"):
        db.search("music", by="meaning")
    assert [row.feature_id for row in db.search("judges")] == [2]
