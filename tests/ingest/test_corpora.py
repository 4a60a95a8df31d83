"""Corpora have names, documents say of which they are, and texts that are stored are noticed."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import featuredb
from featuredb.errors import DatabaseError, IngestError
from ingest.corpus.naming import corpus_name
from tests.logs import logged
from tests.tiny import HOOK, tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    tiny_model(folder / "model")
    tiny_sae(folder / "sae", metadata={"hook_name": HOOK, "context_size": 32})
    rows = tiny_documents(12)
    write_jsonl(folder / "mail.jsonl", [row | {"corpus": "own"} for row in rows])
    write_jsonl(folder / "again.jsonl", [*tiny_documents(8, seed=3)[3:], *rows[:8]])
    given: dict[str, Any] = {
        "model": str(folder / "model"),
        "saes": [str(folder / "sae")],
        "check": False,
    }
    featuredb.ingest(folder / "stored.fdb", corpus=str(folder / "mail.jsonl"), **given)
    return folder


@pytest.fixture
def path(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "stored.fdb", tmp_path / "a.fdb"))


def test_documents_say_of_which_corpus_they_are(folder: Path, path: Path) -> None:
    again = str(folder / "again.jsonl")
    with logged() as messages:
        featuredb.append(path, again, corpus_name="two words", check=False)
    warned = "8 of 13 texts are stored already, in corpus mail: they count twice from now on; "
    assert [m for m in messages if "stored already" in m] == [
        warned + "--skip-stored leaves them out"
    ]
    with featuredb.open(path) as db:
        counted = db.sql(
            "SELECT corpus, corpus_id, count(*) FROM documents GROUP BY ALL ORDER BY 2"
        )
        assert counted.fetchall() == [("mail", "0", 12), ("two words", "1", 13)]
        assert db.sql("SELECT corpus, corpus_id FROM corpora ORDER BY 2").fetchall() == [
            ("mail", "0"),
            ("two words", "1"),
        ]
        # The corpus's own column of that name has another, and is what it was.
        own = db.sql("SELECT DISTINCT corpus_ FROM documents WHERE corpus = 'mail'").fetchall()
        assert own == [("own",)]
        assert [corpus["name"] for corpus in db.info()["corpora"]] == ["mail", "two words"]
        feature = db.sql("SELECT feature_id FROM features ORDER BY count DESC LIMIT 1").fetchall()
        chosen: Any = db.top_contexts(feature[0][0], k=1000, where="corpus = 'two words'")
        assert chosen.pandas().document_id.min() >= 12
        about = {row.column: row.about for row in db.schema("documents")}
        assert about["corpus"] == "name of the corpus"
        assert about["corpus_"] == "a column of the corpus"
    assert featuredb.snapshots(path).pandas().corpora.tolist()[-1].tolist() == ["mail", "two words"]
    assert not featuredb.append(path, again, corpus_name="two words", check=False).fresh
    featuredb.drop(path, corpus="mail")
    with pytest.raises(DatabaseError, match="no corpus 'mail': this database has 'two words'"):
        featuredb.drop(path, corpus="mail")
    assert featuredb.verify(path).ok


def test_names_that_cannot_be(folder: Path, path: Path) -> None:
    again = str(folder / "again.jsonl")
    with pytest.raises(IngestError, match="has a corpus named 'mail': give another --corpus-name"):
        featuredb.append(path, again, corpus_name="mail", check=False)
    for name in ("", " ", "12", "a\nb"):
        with pytest.raises(IngestError, match="more than digits or spaces"):
            featuredb.append(path, again, corpus_name=name, check=False)


def test_stored_texts_are_left_out_if_asked(folder: Path, path: Path) -> None:
    """By the text, whatever else the rows say. Those left are counted by hand."""
    again = str(folder / "again.jsonl")
    outcome = featuredb.append(path, again, skip_stored=True, check=False)
    assert [corpus.n_documents for corpus in outcome.snapshot.corpora] == [12, 5]
    with featuredb.open(path) as db:
        texts = Counter(text for (text,) in db.sql("SELECT text FROM documents").fetchall())
    assert set(texts.values()) == {1}
    assert not featuredb.append(path, again, skip_stored=True, check=False).fresh
    live = outcome.snapshot.number
    texts_only = write_jsonl(path.parent / "c.jsonl", [{"text": text} for text in list(texts)[:9]])
    with pytest.raises(IngestError, match=r"all 9 texts of .*c\.jsonl are stored already"):
        featuredb.append(path, str(texts_only), skip_stored=True, check=False)
    with featuredb.open(path) as db:
        assert db.snapshot.number == live
    ids = write_jsonl(path.parent / "ids.jsonl", [{"ids": [5, 6, 7]}])
    with pytest.raises(IngestError, match=r"--skip-stored compares texts, and .* has tokens"):
        featuredb.append(path, str(ids), tokens_column="ids", skip_stored=True, check=False)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/mail.jsonl.gz", "mail"),
        ("/a/b/wiki.en.txt", "wiki.en"),
        ("hf:someone/enron-mail:config@train[:10]", "enron-mail"),
        ("mail/", "mail"),
        ("mail/*.txt", "mail"),
        ("mail/**/part-?.parquet", "mail"),
        ("one.txt, two.txt", "one"),
        ("-", "stdin"),
        ("2024.csv", "corpus-2024"),
        ("*.txt", "corpus"),
        ("/", "corpus"),
    ],
    ids=lambda value: value.replace("/", "_"),
)
def test_a_corpus_is_called_after_its_source(source: str, name: str) -> None:
    assert corpus_name(source, None, []) == name
    assert corpus_name(source, None, [name, f"{name}-2"]) == f"{name}-3"
