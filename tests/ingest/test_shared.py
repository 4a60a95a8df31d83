"""A database answers new text wherever it is: it keeps its SAEs and is told where the model is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
import torch
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import CorruptDatabaseError, ModelError, SaeError
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from featuredb.store.store import Store
from ingest.extract import recorded
from ingest.model.load import token_direction
from ingest.sae import load_sae
from ingest.sae.stored import stored_sae
from tests.pretend_device import starts_processes
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

TEXT = " river bridge king treaty stone water music"


@dataclass(frozen=True)
class Shared:
    """A database that moved. Its model is a copy, and nothing is where it was."""

    path: Path
    model: Path
    before: list[dict[str, Any]]


def forget() -> None:
    """As a new process, nothing is loaded."""
    recorded._load_model.cache_clear()
    recorded._SAES.clear()


@pytest.fixture
def fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def made(home: Path, **options: Any) -> Path:
    """A database of two SAEs of different rules."""
    about = {"prepend_bos": True, "context_size": 16}
    saes = [
        tiny_sae(home / "one", metadata={"hook_name": "blocks.1.hook_resid_post", **about}),
        tiny_sae(
            home / "two",
            metadata={"hook_name": "blocks.2.hook_resid_pre", **about},
            d_sae=64,
            seed=4,
            architecture="topk",
            k=5,
        ),
    ]
    featuredb.ingest(
        home / "x.fdb",
        corpus=str(write_jsonl(home / "corpus.jsonl", tiny_documents(20))),
        model=str(tiny_model(home / "model")),
        saes=[str(sae) for sae in saes],
        dtype="float32",
        check=False,
        **options,
    )
    return home / "x.fdb"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    home, away = (tmp_path_factory.mktemp(name) for name in ("home", "away"))
    path = made(home)
    with featuredb.open(path) as db:
        before = db.fires_on(TEXT, k=50).table.to_pylist()
    assert {row["sae"] for row in before} == {"one", "two"}
    shutil.copytree(home / "model", away / "model")
    shutil.move(path, away / "y.fdb")
    shutil.rmtree(home)
    return Shared(away / "y.fdb", away / "model", before)


@pytest.fixture
def shared(moved: Shared, tmp_path: Path, fresh: None) -> Shared:
    """A copy."""
    shutil.copytree(moved.path.parent, tmp_path, dirs_exist_ok=True)
    return Shared(tmp_path / "y.fdb", tmp_path / "model", moved.before)


def test_the_same_answer_after_everything_has_moved(shared: Shared) -> None:
    with featuredb.open(shared.path, model=shared.model) as db:
        assert db.fires_on(TEXT, k=50).table.to_pylist() == shared.before
        rows = db.sql("SELECT sae, feature_id, activation FROM fires_on(?, k := 50)", [TEXT])
        expected = [(r["sae"], r["feature_id"], r["activation"]) for r in shared.before]
        assert rows.fetchall() == expected
    assert featuredb.verify(shared.path, source=5, model=shared.model).ok


def test_a_token_s_nearest_are_what_the_logit_lens_says(shared: Shared) -> None:
    """The product of the token's direction with a decoder direction is the stored logit."""
    refused = CliRunner().invoke(main, ["near", str(shared.path), "--token", " river"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (5, 1)
    assert re.search("no longer at .*--model", refused.stderr)
    with featuredb.open(shared.path, model=shared.model) as db:
        loaded = recorded.recorded_model(db.snapshot.model, str(shared.model))
        texts = db._store.texts.token_texts
        for feature in ("one/0", "two/3"):
            for promoted in db.feature(feature)[0].promoted_tokens[:3]:
                row = token_direction(loaded, texts.index(promoted["token"]), "unembedding")
                assert row @ db.direction(feature) == pytest.approx(promoted["logit"], rel=1e-4)
        token = texts.index(" river")
        for matrix, weight in (
            ("unembedding", loaded.model.lm_head.weight * loaded.model.model.norm.weight),
            ("embedding", loaded.model.get_input_embeddings().weight),
        ):
            query = weight[token].cpu().numpy()
            answer = db.near_token(" river", 9, "encoder", matrix, "two")
            assert answer.arrow().drop_columns("rank") == (
                db.near_vector(query, 9, "encoder", "two").arrow().drop_columns("rank")
            )


def test_the_same_answer_from_a_url(shared: Shared, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/far.fdb"
    featuredb.push(shared.path, url)
    with featuredb.open(url, model=shared.model) as db:
        assert db.fires_on(TEXT, k=50).table.to_pylist() == shared.before
    forget()
    featuredb.pull(url, tmp_path / "pulled.fdb")
    with featuredb.open(tmp_path / "pulled.fdb", model=shared.model) as db:
        assert db.fires_on(TEXT, k=50).table.to_pylist() == shared.before


def test_without_the_model_one_line_says_model(shared: Shared) -> None:
    words = "is no longer at .*: say where it is now with --model"
    with featuredb.open(shared.path) as db:
        with pytest.raises(ModelError, match=words):
            db.fires_on(TEXT)
        with pytest.raises(duckdb.Error, match=words):
            db.sql("FROM fires_on(?)", [TEXT]).fetchall()
    with pytest.raises(ModelError, match=words):
        featuredb.append(shared.path, str(write_jsonl(shared.path.parent / "b", [{"text": "a"}])))


@pytest.mark.parametrize("verb", ["fires", "sql", "verify"])
def test_model_on_the_command_line(shared: Shared, verb: str) -> None:
    call = {
        "fires": ["fires", str(shared.path), TEXT],
        "sql": ["sql", str(shared.path), f"SELECT feature_id FROM fires_on('{TEXT}')"],
        "verify": ["verify", str(shared.path), "--source", "3"],
    }[verb]
    refused = CliRunner().invoke(main, call)
    assert refused.exit_code == ModelError.exit_code
    assert refused.output.count("\n") == 1 or verb == "verify"
    assert "--model" in refused.output
    given = CliRunner().invoke(main, [*call, "--model", str(shared.model)])
    assert given.exit_code == 0, given.output


def test_another_model_is_named_with_both_hashes(shared: Shared) -> None:
    other = tiny_model(shared.path.parent / "other", seed=9)
    snapshot = read_snapshot(Layout(shared.path))
    found = f"its weights have SHA-256 [0-9a-f]{{12}}…, not {snapshot.model.sha256[:12]}…$"
    with featuredb.open(shared.path, model=other) as db, pytest.raises(ModelError, match=found):
        db.fires_on(TEXT)
    tokenizer = shared.model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    found = f"its tokenizer has SHA-256 .*…, not {snapshot.model.tokenizer_sha256[:12]}…$"
    with (
        featuredb.open(shared.path, model=shared.model) as db,
        pytest.raises(ModelError, match=found),
    ):
        db.fires_on(TEXT)


@starts_processes
def test_what_is_kept_is_carried_through_every_change(shared: Shared) -> None:
    layout = Layout(shared.path)
    first = kept(read_snapshot(layout))
    assert len(first) == 2
    more = write_jsonl(shared.path.parent / "more.jsonl", tiny_documents(9, seed=7))
    featuredb.append(shared.path, str(more), model=str(shared.model), engine="processes", workers=1)
    featuredb.compact(shared.path)
    assert kept(read_snapshot(layout)) == first
    other = tiny_sae(shared.path.parent / "two", d_sae=40, seed=6)
    featuredb.add_saes(shared.path, [str(other)], ["three"], model=str(shared.model), check=False)
    shutil.rmtree(other)
    assert featuredb.verify(shared.path, source=5, model=shared.model).ok
    with featuredb.open(shared.path, model=shared.model) as db:
        assert db.info()["size"]["saes_bytes"] == sum(
            path.stat().st_size for path in layout.saes.iterdir()
        )
    featuredb.drop(shared.path, sae="two")
    featuredb.vacuum(shared.path, grace="0s")
    names = {Path(file).name for file in kept(read_snapshot(layout))}
    assert len(names) == 2
    assert {path.name for path in layout.saes.iterdir()} == names


def kept(snapshot: Snapshot) -> list[str]:
    return [sae.weights.path for sae in snapshot.saes if sae.weights is not None]


def test_a_stored_sae_is_the_sae_of_its_files(tmp_path: Path) -> None:
    path = made(tmp_path)
    x = torch.randn(7, 32)
    store = Store.open(path)
    for record, vectors in zip(store.snapshot.saes, store.snapshot.vectors, strict=True):
        own, stored = load_sae(record.source), stored_sae(store.root, record, vectors)
        for rows in (x, x[:1]):
            assert torch.equal(own.encode(rows), stored.encode(rows))
            assert torch.equal(own.decode(own.encode(rows)), stored.decode(own.encode(rows)))
        assert stored.hash == own.hash
        assert (stored.d_in, stored.d_sae, stored.format) == (32, own.d_sae, "saelens")


def test_damage_is_found_when_it_is_loaded(shared: Shared) -> None:
    file = shared.path / kept(read_snapshot(Layout(shared.path)))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert [p.where for p in featuredb.verify(shared.path).problems] == [f"saes/{file.name}"]
    with featuredb.open(shared.path, model=shared.model) as db:
        with pytest.raises(CorruptDatabaseError, match=re.escape(file.name)):
            db.fires_on(TEXT)
        file.unlink()
        with pytest.raises(CorruptDatabaseError, match=re.escape(file.name)):
            db.fires_on(TEXT)


def test_a_database_made_before_saes_were_kept(tmp_path: Path, fresh: None) -> None:
    path = made(tmp_path)
    with featuredb.open(path) as db:
        before = db.fires_on(TEXT).table
    layout = Layout(path)
    pretend_old(layout)
    forget()
    with featuredb.open(path) as db:
        assert db.fires_on(TEXT).table == before
    (tmp_path / "one").rename(tmp_path / "moved")
    forget()
    with featuredb.open(path) as db, pytest.raises(SaeError) as refused:
        db.fires_on(TEXT)
    assert "made before SAEs were kept in it" in str(refused.value)
    more = str(write_jsonl(tmp_path / "more.jsonl", tiny_documents(5, seed=7)))
    with pytest.raises(SaeError, match="no SAE at"):
        featuredb.append(path, more)
    saes = [str(tmp_path / "moved"), str(tmp_path / "two")]
    featuredb.append(path, more, saes=saes, check=False)
    assert len(kept(read_snapshot(layout))) == 2
    shutil.rmtree(tmp_path / "moved")
    forget()
    with featuredb.open(path) as db:
        assert {row.sae for row in db.fires_on(TEXT)} == {"one", "two"}


def pretend_old(layout: Layout) -> None:
    """Make the snapshot one of before."""
    shutil.rmtree(layout.saes)
    snapshot = read_snapshot(layout)
    saes = tuple(msgspec.structs.replace(sae, weights=None) for sae in snapshot.saes)
    old = msgspec.structs.replace(snapshot, saes=saes)
    layout.snapshot(1).write_bytes(msgspec.json.encode(old))
    layout.current.write_text("000001\n")
