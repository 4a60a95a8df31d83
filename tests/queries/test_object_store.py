"""A database in an object store answers as the same database on the disk does, in few requests.

The files of the test's database are small enough to be fetched whole, as are most files of a
database of a few million tokens. To test range reads too, the size limits are also lowered.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featuredb
from featuredb.database import Database
from featuredb.errors import CorruptDatabaseError
from featuredb.store.files import remote
from queries.answers import Answer, Rows
from tests.make_store import MadeSae, World, make_store
from tests.object_store import ObjectStore

N_DOCUMENTS = 400
D_SAE = 600


def _world() -> World:
    rng = np.random.default_rng(0)
    n_words = 300
    documents = [
        [[0, *rng.integers(1, n_words, 15).tolist()] for _ in range(int(rng.integers(1, 3)))]
        for _ in range(N_DOCUMENTS)
    ]
    contexts = [c for d in documents for c in d]
    dense = []
    for context in contexts:
        active = rng.random((len(context), D_SAE)) < 0.01
        values = rng.gamma(2.0, 1.0, active.shape)
        dense.append(np.where(active, values, 0).astype(np.float32))
    decoder, encoder = rng.normal(size=(2, D_SAE, 8)).astype(np.float32)
    topics = rng.choice(["art", "war"], N_DOCUMENTS).tolist()
    words = ["<bos>", *(f" word{i}" for i in range(1, n_words))]
    return World(documents, {"topic": topics}, words, [MadeSae("demo", dense, decoder, encoder)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "my.fdb"
    make_store(path, _world())
    return path


@pytest.fixture(scope="module")
def whole(folder: Path, object_store: ObjectStore) -> str:
    """The database's URL."""
    return object_store.copy(folder, "my.fdb")


@pytest.fixture(params=["whole files", "ranges"])
def url(request: pytest.FixtureRequest, whole: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "ranges":
        _everything_is_large(monkeypatch)
    return whole


def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BLOCK": 512,
        "WHOLE": 0,
        "WHOLE_SHARED": 0,
        "_REQUEST": 16_384,
        "_TAIL_LEAST": 1_024,
    }.items():
        monkeypatch.setattr(remote, name, value)


QUESTIONS: dict[str, Callable[[Database, str], Answer]] = {
    "top": lambda db, _: db.top_contexts(7),
    "top of a silent feature": lambda db, _: db.top_contexts(599),
    "top, computed": lambda db, _: db.top_contexts(7, k=70),
    "top, filtered": lambda db, _: db.top_contexts(7, where="topic = 'war'", min_activation=1.0),
    "near": lambda db, _: db.near(7),
    "near, beyond the graph": lambda db, _: db.near(7, k=60),
    "near by encoder": lambda db, _: db.near(7, by="encoder"),
    "near by coactivation": lambda db, _: db.near(7, by="coactivation"),
    "fires_in": lambda db, _: db.fires_in(11),
    "fires_on": lambda db, text: db.fires_on(text),
    "search": lambda db, _: db.search("word7"),
    "sql": lambda db, _: _sql(db, "FROM top_contexts(7, k := 9)"),
    "sql fires_in": lambda db, _: _sql(db, "FROM fires_in(11)"),
    "sql over everything": lambda db, _: _sql(
        db, "SELECT count(*), sum(activation), max(context_id), sum(token_index) FROM activations"
    ),
}


def _sql(db: Database, query: str) -> Answer:
    return Rows(db.sql(query).to_arrow_table())


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_those_of_the_folder(question: str, folder: Path, url: str) -> None:
    with featuredb.open(folder) as here, featuredb.open(url) as there:
        text = str(here.sql("SELECT text FROM documents WHERE document_id = 9").fetchall()[0][0])
        ask = QUESTIONS[question]
        assert ask(there, text).arrow().equals(ask(here, text).arrow())


def test_a_card_and_the_information_are_the_same(folder: Path, url: str) -> None:
    with featuredb.open(folder) as here, featuredb.open(url) as there:
        assert str(there.feature(3)) == str(here.feature(3))
        told = dict(there.info().data)
        assert told.pop("path") == url
        assert told == {k: v for k, v in here.info().data.items() if k != "path"}


MOST = {"top": 7, "near": 3, "fires_in": 7}
"""Requests of the first question after opening: one per file where files come whole. A file that
does not costs two, for its footer and for its rows."""


@pytest.mark.parametrize("question", MOST)
def test_requests_of_a_lookup_where_files_come_whole(
    question: str, whole: str, object_store: ObjectStore
) -> None:
    with object_store.counted() as opening:
        db = featuredb.open(whole)
    assert len(opening) == 2
    with object_store.counted() as cold:
        QUESTIONS[question](db, "")
    assert 0 < len(cold) <= MOST[question]
    assert {r.method for r in cold} == {"GET"}
    with object_store.counted() as warm:
        QUESTIONS[question](db, "")
    assert len(warm) == 0


def test_requests_of_a_lookup_where_the_segment_and_the_tables_are_large(
    whole: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a database of 25 million tokens: what every question reads still comes whole."""
    _everything_is_large(monkeypatch)
    monkeypatch.setattr(remote, "WHOLE_SHARED", 1 << 20)
    monkeypatch.setattr(remote, "_REQUEST", 1 << 20)
    monkeypatch.setattr(remote, "_TAIL_LEAST", 16_384)
    others: tuple[tuple[str, int, int, Callable[[Database], Answer]], ...] = (
        ("top", 7, 1, lambda db: db.top_contexts(400)),
        ("near", 3, 1, lambda db: db.near(400)),
        ("fires_in", 7, 2, lambda db: db.fires_in(300)),
    )
    for question, cold_most, other_most, other in others:
        db = featuredb.open(whole)
        with object_store.counted() as cold:
            QUESTIONS[question](db, "")
        assert len(cold) <= cold_most, cold
        assert all(r.range is not None for r in cold)
        with object_store.counted() as warm:
            other(db)
        assert len(warm) <= other_most, warm


def test_no_large_file_is_read_whole(
    whole: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _everything_is_large(monkeypatch)
    db = featuredb.open(whole)
    sizes = {f.path: f.bytes for f in db.snapshot.files()}
    with object_store.counted() as asked:
        db.top_contexts(7, k=3)
        db.near(7, k=3)
    read: dict[str, int] = {}
    for request in asked:
        name = request.path.partition("my.fdb/")[2]
        first, last = map(int, str(request.range).removeprefix("bytes=").split("-"))
        read[name] = read.get(name, 0) + last + 1 - first
    for name in ("corpus/0/tokens.bin", "corpus/0/index.npy", "derived/000001/features.parquet"):
        assert 0 < read[name] < sizes[name] * 0.8, name


def test_what_was_read_is_kept_within_a_bound(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "KEPT", 8_192)
    db = featuredb.open(url)
    root = db.location
    assert isinstance(root, remote.RemoteFiles)
    before = db.top_contexts(7).arrow()
    db.near(7)
    assert root._kept <= 8_192
    assert db.top_contexts(7).arrow().equals(before)


def test_a_handle_pickles_with_its_options(
    whole: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {"endpoint_url": object_store.endpoint, "key": "someone", "secret": "secret"}
    db = featuredb.open(whole, storage_options=options)
    again = pickle.loads(pickle.dumps(db))
    assert again.near(3).arrow().equals(db.near(3).arrow())
    assert repr(again) == repr(db)
    assert whole in repr(db)


def test_a_reader_keeps_its_snapshot_when_the_url_gets_another(
    folder: Path, object_store: ObjectStore
) -> None:
    db = featuredb.open(object_store.copy(folder, "changing.fdb"))
    expected = db.top_contexts(5).arrow()
    object_store.write("changing.fdb", "CURRENT", b"000009\n")
    assert db.top_contexts(5).arrow().equals(expected)
    assert db.near(5).arrow().num_rows == 20


def test_a_file_that_goes_after_the_views_were_made(
    folder: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _everything_is_large(monkeypatch)
    with featuredb.open(object_store.copy(folder, "broken.fdb")) as db:
        db.sql("SELECT 1").fetchall()
        object_store.remove("broken.fdb", db.snapshot.derived.features.path)
        with pytest.raises(CorruptDatabaseError, match=r"s3://shelf/broken.fdb/derived/.*features"):
            db.search("word7")
