"""The life of a store: append, add an SAE, drop, compact, vacuum, older snapshots."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import (
    DatabaseError,
    IngestError,
    ModelError,
    OptionError,
    SaeError,
    UnfinishedError,
    UnknownFeatureError,
)
from featuredb.store import schemas
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from ingest import prepare
from ingest.change import next_draft
from ingest.extract import partition
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from ingest.publish import MOST_SEGMENTS, publish
from tests.content import assert_same_content, logical_content
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


@dataclass(frozen=True)
class World:
    """Two corpora, two SAEs and their databases."""

    folder: Path

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def corpus(self, name: str) -> str:
        return str(self.folder / f"{name}.jsonl")

    def sae(self, name: str) -> str:
        return str(self.folder / name)

    def options(self, *saes: str, corpus: str = "a") -> IngestOptions:
        return IngestOptions(
            corpus=self.corpus(corpus),
            model=self.model,
            saes=[self.sae(name) for name in saes],
            names=list(saes),
            dtype="float32",
            check=False,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("life")
    documents = tiny_documents()
    write_jsonl(folder / "a.jsonl", documents[: len(documents) // 2])
    write_jsonl(folder / "b.jsonl", documents[len(documents) // 2 :])
    tiny_model(folder / "model")
    tiny_sae(folder / "one")
    tiny_sae(folder / "two", seed=5, d_sae=64)
    return World(folder)


@pytest.fixture(scope="module", autouse=True)
def small_partitions() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "partition_tokens", lambda *_: 400)
        yield


@pytest.fixture(scope="module")
def first(world: World) -> Path:
    """Corpus a, SAE one."""
    ingest(world.folder / "first.fdb", world.options("one"))
    return world.folder / "first.fdb"


@pytest.fixture(scope="module")
def grown(world: World, first: Path) -> Path:
    """Then corpus b, then SAE two."""
    path = world.folder / "grown.fdb"
    shutil.copytree(first, path)
    featuredb.append(path, world.corpus("b"), check=False)
    featuredb.add_saes(path, [world.sae("two")], ["two"], check=False)
    return path


@pytest.fixture
def mine(grown: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown, tmp_path / "mine.fdb"))


def derived_anew(path: Path, into: Path) -> Path:
    """A copy of a database with all derived tables recomputed."""
    shutil.copytree(path, into)
    layout = Layout(into)
    base = read_snapshot(layout)
    table = pq.read_table(into / base.derived.features.path, columns=["sae", *schemas.LOGITS.names])
    logits = {
        sae.name: table.filter(pc.equal(table.column("sae"), sae.name)).drop_columns("sae")
        for sae in base.saes
    }
    segments = {sae.name: base.segments_of(sae.name) for sae in base.saes}
    publish(layout, next_draft(base, "again"), segments, logits, base.ingests)
    return into


def files_of(path: Path) -> dict[Path, int]:
    """When each file of a database was last changed, without the lock, which every change takes."""
    files = {p.relative_to(path): p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    files.pop(Path("LOCK"), None)
    return files


def interrupt(*_: object, **__: object) -> None:
    """In place of a step of an ingest."""
    raise KeyboardInterrupt


def test_growing_in_any_order_gives_the_same(world: World, grown: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.fdb"
    ingest(other, world.options("one", "two"))
    featuredb.append(other, world.corpus("b"), check=False)
    assert_same_content(grown, other)


def test_what_was_kept_is_what_deriving_anew_gives(grown: Path, tmp_path: Path) -> None:
    assert_same_content(grown, derived_anew(grown, tmp_path / "anew.fdb"))


def test_ids_and_queries_go_on_across_corpora(world: World, first: Path, grown: Path) -> None:
    before, after = featuredb.open(first), featuredb.open(grown)
    old, new = before.snapshot.corpora[0], after.snapshot.corpora[1]
    assert new.first_context == old.n_contexts
    assert new.first_document == old.n_documents
    counts = after.sql("SELECT corpus, n_documents FROM corpora ORDER BY corpus").fetchall()
    assert counts == [("a", old.n_documents), ("b", new.n_documents)]
    for feature in range(0, 95, 10):
        contexts = [row["context_id"] for row in after.top_contexts(f"one/{feature}", k=60)]
        found = after.sql(
            "SELECT context_id FROM activations WHERE sae = 'one' AND feature_id = ? "
            "GROUP BY context_id ORDER BY max(activation) DESC, context_id LIMIT 60",
            [feature],
        ).fetchall()
        assert contexts == [row[0] for row in found]
    text = after.sql("SELECT text FROM documents ORDER BY document_id DESC LIMIT 1").fetchall()
    assert len(text) == 1
    assert len(after.fires_on(text[0][0])) > 0


def test_the_same_again_has_nothing_to_do(world: World, mine: Path) -> None:
    number = featuredb.open(mine).snapshot.number
    assert not featuredb.append(mine, world.corpus("b"), check=False).fresh
    assert not featuredb.add_saes(mine, [world.sae("two")], ["two"], check=False).fresh
    assert featuredb.open(mine).snapshot.number == number


def test_dropping_takes_back_what_was_added(world: World, first: Path, mine: Path) -> None:
    featuredb.drop(mine, sae="two")
    dropped = featuredb.drop(mine, corpus="1")
    assert dropped.operation == "drop"
    assert_same_content(mine, first)
    again = featuredb.append(mine, world.corpus("b"), check=False).snapshot
    assert again.corpora[1].id == "2"
    assert again.corpora[1].first_context == 2 * again.corpora[1].n_contexts or (
        again.corpora[1].first_context > dropped.corpora[0].n_contexts
    )


@pytest.mark.parametrize("compacted", [False, True])
def test_dropping_the_first_corpus_leaves_the_second(
    grown: Path, mine: Path, compacted: bool
) -> None:
    if compacted:
        assert featuredb.compact(mine).after == 2
    featuredb.drop(mine, corpus="0")
    before, after = logical_content(grown), logical_content(mine)
    begin = read_snapshot(Layout(mine)).corpora[0].first_context
    for name in ("one", "two"):
        table = before[f"activations {name}"]
        left = table.filter(pc.greater_equal(table.column("context_id"), begin))
        assert after[f"activations {name}"].equals(left)
        sinks = before[f"sinks {name}"]
        kept = sinks.filter(pc.greater_equal(sinks.column("context_id"), begin))
        assert after[f"sinks {name}"].equals(kept)
    was, now = read_snapshot(Layout(grown)), read_snapshot(Layout(mine))
    gone = was.corpora[0]
    lost = gone.tokens.rows - gone.n_contexts
    sinks_gone = len(before["sinks one"]) - len(after["sinks one"])
    assert now.recorded_tokens("one") == was.recorded_tokens("one") - lost + sinks_gone


def test_dropped_corpus_derives_as_if_it_had_never_been(mine: Path, tmp_path: Path) -> None:
    featuredb.compact(mine)
    featuredb.drop(mine, corpus="0")
    assert_same_content(mine, derived_anew(mine, tmp_path / "anew.fdb"))


def test_compacting_keeps_what_was_derived(grown: Path, mine: Path) -> None:
    before = read_snapshot(Layout(mine))
    done = featuredb.compact(mine)
    assert (done.before, done.after) == (3, 2)  # SAE two was run over both corpora at once
    assert done.snapshot.derived == before.derived
    assert_same_content(mine, grown)


def test_compaction_starts_by_itself(world: World, first: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(first, tmp_path / "many.fdb"))
    documents = [d for d in tiny_documents() if d["text"].strip()]
    for number in range(MOST_SEGMENTS):
        told = write_jsonl(tmp_path / f"{number}.jsonl", documents[number : number + 1])
        snapshot = featuredb.append(path, str(told), check=False).snapshot
        assert len(snapshot.segments) == (1 if number == MOST_SEGMENTS - 1 else number + 2)
    assert_same_content(path, derived_anew(path, tmp_path / "anew.fdb"))


def test_older_snapshots_open_until_a_vacuum(first: Path, grown: Path, mine: Path) -> None:
    listed = featuredb.snapshots(mine).arrow().to_pylist()
    assert [row["snapshot"] for row in listed] == [1, 2, 3]
    assert [row["operation"] for row in listed] == ["ingest", "append", "add-sae"]
    assert [row["live"] for row in listed] == [False, False, True]
    old, alone = featuredb.open(mine, snapshot=1), featuredb.open(first)
    assert old.sql("SELECT count(*) FROM activations").fetchall() == (
        alone.sql("SELECT count(*) FROM activations").fetchall()
    )
    for feature in range(0, 95, 7):
        assert str(old.top_contexts(feature, k=60)) == str(alone.top_contexts(feature, k=60))
        assert str(old.feature(feature)) == str(alone.feature(feature))
    ran = CliRunner().invoke(main, ["top", str(mine), "3", "--snapshot", "1", "--format", "json"])
    assert ran.exit_code == 0, ran.output
    kept = featuredb.vacuum(mine)
    assert kept.snapshots == ()
    assert list(kept.kept) == [1, 2]
    done = featuredb.vacuum(mine, grace=timedelta(0))
    assert done.snapshots == (1, 2)
    assert done.bytes > 0
    assert_same_content(mine, grown)
    with pytest.raises(DatabaseError, match="snapshot"):
        featuredb.open(mine, snapshot=1)


def test_vacuum_leaves_only_what_is_named(mine: Path) -> None:
    featuredb.drop(mine, sae="one")
    featuredb.drop(mine, corpus="0")
    featuredb.compact(mine)
    (mine / "segments" / "left").mkdir()
    (mine / "segments" / "left" / "fm.parquet").write_bytes(b"stray")
    featuredb.vacuum(mine, grace=timedelta(0))
    snapshot = read_snapshot(Layout(mine))
    named = {file.path for file in snapshot.files()}
    parts = ("segments", "derived", "corpus", "matrices")
    there = {
        path.relative_to(mine).as_posix()
        for part in parts
        for path in (mine / part).rglob("*")
        if path.is_file()
    }
    assert there == {path for path in named if path.split("/")[0] in parts}
    tables = {path.stem for path in (mine / "vectors.lance").glob("*.lance")}
    assert tables == {vectors.table for vectors in snapshot.vectors}
    assert featuredb.verify(mine).ok


@pytest.mark.parametrize("stage", ["append", "add-sae"])
def test_an_unfinished_change_goes_on_or_is_given_up(
    world: World, first: Path, grown: Path, tmp_path: Path, stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = Path(shutil.copytree(first, tmp_path / "cut.fdb"))

    def change() -> Any:
        if stage == "append":
            return featuredb.append(path, world.corpus("b"), check=False)
        return featuredb.add_saes(path, [world.sae("two")], ["two"], check=False)

    with monkeypatch.context() as patch:
        patch.setattr("ingest.operations.ingest.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            change()
    assert_same_content(path, first)
    # A finished ingest does not touch an unfinished one.
    assert not ingest(path, world.options("one")).fresh
    assert (path / "staging" / "plan.json").exists()
    for other in (
        lambda: featuredb.drop(path, sae="one"),
        lambda: featuredb.compact(path),
        lambda: featuredb.vacuum(path),
    ):
        with pytest.raises(UnfinishedError, match="--unfinished"):
            other()
    monkeypatch.setattr(partition, "gather", interrupt)  # everything was run already
    done = change()
    monkeypatch.undo()
    assert done.fresh
    assert not (path / "staging").exists()
    assert featuredb.verify(path).ok


def test_giving_up_leaves_the_database_as_it_was(
    world: World, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(first, tmp_path / "cut.fdb"))
    before = {p.relative_to(path) for p in path.rglob("*") if p.is_file()}

    with monkeypatch.context() as patch:
        patch.setattr("ingest.operations.ingest.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            featuredb.append(path, world.corpus("b"), check=False)
    assert featuredb.vacuum(path, unfinished=True).files > 0
    assert {p.relative_to(path) for p in path.rglob("*") if p.is_file()} == before
    assert_same_content(path, first)


class Refusal(NamedTuple):
    """A change that is refused, and what the one line says."""

    what: str
    error: type[Exception]
    words: str
    change: Callable[[World, Path], object]
    grown: bool = False
    """Of the database with all its segments, rather than the first."""


REFUSALS = [
    Refusal(
        "the same corpus", IngestError, "already, as corpus a",
        lambda world, path: featuredb.append(path, world.corpus("a"), max_tokens=50),
    ),
    Refusal(
        "a corpus that is not there", IngestError, "nowhere",
        lambda world, path: featuredb.append(path, str(world.folder / "nowhere.jsonl")),
    ),
    Refusal(
        "contexts that do not fit", IngestError, "context size 128 is more than the 32",
        lambda world, path: featuredb.append(path, world.corpus("b"), context_size=128),
    ),
    Refusal(
        "another SAE", SaeError, "is not the one this database was ingested with",
        lambda world, path: featuredb.append(path, world.corpus("b"), saes=[world.sae("two")]),
    ),
    Refusal(
        "another model", ModelError, "is not the one this database was ingested with",
        lambda world, path: featuredb.append(
            path, world.corpus("b"), model=str(tiny_model(world.folder / "other", seed=9))
        ),
    ),
    Refusal(
        "a name that is taken", IngestError, "has an SAE named 'one'",
        lambda world, path: featuredb.add_saes(path, [world.sae("two")], ["one"]),
    ),
    Refusal(
        "an SAE that is not there", UnknownFeatureError, "there is no SAE 'three'",
        lambda world, path: featuredb.drop(path, sae="three"),
    ),
    Refusal(
        "the last SAE", DatabaseError, "is the only one",
        lambda world, path: featuredb.drop(path, sae="one"),
    ),
    Refusal(
        "a corpus id that is not there", DatabaseError, "there is no corpus '7'",
        lambda world, path: featuredb.drop(path, corpus="7"),
    ),
    Refusal(
        "the last corpus", DatabaseError, "is the only one",
        lambda world, path: featuredb.drop(path, corpus="0"),
    ),
    Refusal(
        "too little memory", OptionError, "at least 100MB",
        lambda world, path: featuredb.compact(path, memory="1MB"), grown=True,
    ),
    Refusal(
        "time running backwards", OptionError, "negative",
        lambda world, path: featuredb.vacuum(path, grace=timedelta(hours=-1)),
    ),
]  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_refused_in_one_line_and_nothing_changes(
    world: World, first: Path, grown: Path, tmp_path: Path, refusal: Refusal
) -> None:
    path = Path(shutil.copytree(grown if refusal.grown else first, tmp_path / "kept.fdb"))
    before = files_of(path)
    with pytest.raises(refusal.error, match=refusal.words) as caught:
        refusal.change(world, path)
    assert "\n" not in str(caught.value)
    assert files_of(path) == before


def test_the_commands_say_what_they_did(world: World, first: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(first, tmp_path / "told.fdb"))

    def run(*arguments: str) -> str:
        ran = CliRunner().invoke(main, [*arguments])
        assert ran.exit_code == 0, ran.output
        return ran.stderr + ran.stdout

    assert "done: " in run("append", str(path), "--corpus", world.corpus("b"), "--no-check")
    sae = world.sae("two")
    assert "done: " in run("add-sae", str(path), "--sae", sae, "--name", "two", "--no-check")
    assert "add-sae" in run("snapshots", str(path))
    assert "dropped SAE two, now at snapshot 4" in run("drop", str(path), "--sae", "two")
    assert "3 segments became 1" not in run("compact", str(path))
    assert "may go by" in run("vacuum", str(path))
    assert "removed 4 older snapshots" in run("vacuum", str(path), "--grace", "0s")
    ran = CliRunner().invoke(main, ["vacuum", str(path), "--grace", "soon"])
    assert ran.exit_code == 2
    ran = CliRunner().invoke(main, ["drop", str(path)])
    assert ran.exit_code == 2
