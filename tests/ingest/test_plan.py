"""`featuredb.plan`: the ingest does what the plan predicts, and planning leaves no files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import CorpusError, IngestError, LoadCheckError
from featuredb.store.snapshot import Snapshot
from ingest import prepare
from ingest.extract import forward as extract
from ingest.model.hooks import forward_to_hooks
from ingest.operations import plan as module
from tests.ingest.bad import good
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write_jsonl(folder / "corpus.jsonl", tiny_documents(500))
    tiny_model(folder / "model")
    tiny_sae(folder / "sae")
    tiny_sae(folder / "other", d_sae=40, hook="blocks.0.hook_resid_post", seed=5)
    return folder


@pytest.mark.parametrize("more", [{}, {"stride": 20}, {"max_tokens": 9_000}, {"keep_bos": True}])
def test_the_ingest_does_what_was_planned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    for name in (prepare, module):
        monkeypatch.setattr(name, "partition_tokens", lambda *_: 3_000)
    told = good(folder) | {"saes": [str(folder / "sae"), str(folder / "other")],
                           "names": ["sae", "other"]} | more  # fmt: skip
    path = tmp_path / "db.fdb"
    planned = featuredb.plan(path, **told)
    assert list(tmp_path.iterdir()) == []
    featuredb.ingest(path, **told)
    with featuredb.open(path) as db:
        snapshot = db.snapshot
    (corpus,) = snapshot.corpora
    assert planned["documents"] == corpus.n_documents
    assert planned["contexts"] == corpus.n_contexts
    assert planned["tokens"] == corpus.n_tokens
    assert planned["tokens_with_bos"] == corpus.tokens.rows
    assert planned["partitions"] == round(corpus.tokens.rows / 3_000)
    assert planned["partitions"] > 2
    for said in planned["saes"]:
        rows = snapshot.rows(said["name"])
        assert abs(said["activations"] - rows) < 0.05 * rows
        segments = snapshot.segments_of(said["name"])
        size = sum(f.file.bytes for s in segments for f in s.feature_files)
        size += sum(f.file.bytes for s in segments for f in s.token_files)
        assert abs(said["bytes"] - size) < 0.25 * size
    assert planned["seconds"] > 0
    assert planned["measured"]["sample_tokens"] >= 4_096
    assert planned["measured"]["tokens_per_second"] > 0


def test_the_model_sees_a_sample_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def counted(model: Any, hooks: Any, ids: Any, mask: Any) -> Any:
        nonlocal seen
        seen += ids.numel()
        return forward_to_hooks(model, hooks, ids, mask)

    monkeypatch.setattr(extract, "forward_to_hooks", counted)
    planned = featuredb.plan(tmp_path / "db.fdb", **good(folder))
    assert planned["tokens"] > 16_000
    assert seen < 16_000


def predicted(folder: Path, tmp_path: Path, **options: Any) -> tuple[Any, Snapshot]:
    """What was planned, and what then was."""
    given = good(folder) | options
    planned = featuredb.plan(tmp_path / "db.fdb", **given)
    assert list(tmp_path.iterdir()) == []
    snapshot = featuredb.ingest(tmp_path / "db.fdb", **given).snapshot
    (corpus,) = snapshot.corpora
    wanted = (corpus.n_documents, corpus.n_contexts, corpus.n_tokens, corpus.tokens.rows)
    names = ("documents", "contexts", "tokens", "tokens_with_bos")
    assert tuple(planned[name] for name in names) == wanted
    return planned, snapshot


@pytest.mark.parametrize("order", ["one after another", "mixed"])
def test_a_corpus_of_three_languages(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Activations are predicted within 10 %, although those of the first language are not those of
    the others."""
    for name in (prepare, module):
        monkeypatch.setattr(name, "SAMPLE_TOKENS", 2_000)
    documents = tiny_documents(240)
    for document in documents[80:]:
        document["text"] = document["text"].replace("e", "é").replace(" ", "  ")
    for document in documents[160:]:
        document["text"] = document["text"].upper()
    languages = [documents[:80], documents[80:160], documents[160:]]
    if order == "mixed":
        documents = [each for row in zip(*languages, strict=True) for each in row]
    where = folder / "languages"
    where.mkdir(exist_ok=True)
    corpus = str(write_jsonl(where / f"{order}.jsonl", documents))
    sae = str(tiny_sae(where / "sae", bias=-0.04))
    planned, snapshot = predicted(folder, tmp_path, corpus=corpus, saes=[sae])
    rows = snapshot.rows("sae")
    assert abs(planned["activations"] - rows) < 0.1 * rows
    alone = str(write_jsonl(where / "first.jsonl", languages[0]))
    first = featuredb.plan(tmp_path / "x.fdb", **good(folder) | {"corpus": alone, "saes": [sae]})
    l0 = rows / snapshot.recorded_tokens("sae")
    assert abs(first["saes"][0]["l0"] - l0) > 0.1 * l0
    # The same contexts as the ingest's own check, to within those of the last tokens.
    (check,) = planned["saes"][0]["load_check"]
    assert check["l0"] == pytest.approx(snapshot.sae("sae").checks[0].l0, rel=0.02)
    assert 2_000 <= planned["measured"]["sample_tokens"] < 2_100


@pytest.mark.parametrize("kind", ["ids", "chats", "one long document", "tiny documents"])
def test_any_corpus_is_sampled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in (prepare, module):
        monkeypatch.setattr(name, "SAMPLE_TOKENS", 500)
    where = tmp_path.parent / f"{tmp_path.name}-files"
    texts = [document["text"] for document in tiny_documents(60)]
    options: dict[str, Any] = {"bos": True, "context_size": 32}
    if kind == "ids":
        rows: list[dict[str, Any]] = [{"ids": [1 + ord(c) % 500 for c in t], "n": 3} for t in texts]
        options["tokens_column"] = "ids"
    elif kind == "chats":
        model = Path(shutil.copytree(folder / "model", where / "model"))
        file = model / "tokenizer_config.json"
        template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
        rows = [
            {"messages": [{"role": role, "content": text}, {"role": "user", "content": "yes"}]}
            for role, text in zip(["user", "assistant", "judge"] * 20, texts, strict=True)
        ]
        options |= {"model": str(model), "messages_column": "messages"}
    elif kind == "one long document":
        rows = [{"text": "".join(texts)}]
    else:
        rows = [{"text": text[:9], "nested": {"a": [1, None]}} for text in texts * 4]
    where.mkdir(exist_ok=True)
    corpus = str(write_jsonl(where / "corpus.jsonl", rows))
    planned, snapshot = predicted(folder, tmp_path, corpus=corpus, **options)
    stored = snapshot.rows("sae")
    assert abs(planned["activations"] - stored) < 0.1 * stored
    assert planned["measured"]["sample_tokens"] < 600


def test_what_an_ingest_would_refuse_is_refused(folder: Path, tmp_path: Path) -> None:
    loud = tiny_sae(folder / "loud", bias=5)
    told = good(folder) | {"saes": [str(loud)], "check": True}
    with pytest.raises(LoadCheckError, match="SAE sae"):
        featuredb.plan(tmp_path / "db.fdb", **told)
    empty = write_jsonl(folder / "empty.jsonl", [{"text": ""}] * 3)
    with pytest.raises(CorpusError, match="all of its 3 documents are empty"):
        featuredb.plan(tmp_path / "db.fdb", **good(folder) | {"corpus": str(empty)})
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(IngestError, match="not a featuredb database and not empty"):
        featuredb.plan(tmp_path, **good(folder))


def test_command_line(folder: Path, tmp_path: Path) -> None:
    call = ["plan", str(tmp_path / "db.fdb"), "--corpus", str(folder / "corpus.jsonl"),
            "--model", str(folder / "model"), "--sae", str(folder / "sae"), "--no-check",
            "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    table = CliRunner().invoke(main, call, catch_exceptions=False)
    assert table.exit_code == 0
    for said in ("documents", "contexts", "tokens", "partitions", "activations", "time"):
        assert f"\n{said} " in table.stdout
    assert "L0 of the load check on" in table.stdout
    told = CliRunner().invoke(main, [*call, "--format", "json"], catch_exceptions=False)
    assert json.loads(told.stdout)["documents"] == 500
    assert list(tmp_path.iterdir()) == []
