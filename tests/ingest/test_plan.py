"""`featuredb.plan`: the ingest does what the plan predicts, and planning leaves no files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import IngestError, LoadCheckError
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


def test_what_an_ingest_would_refuse_is_refused(folder: Path, tmp_path: Path) -> None:
    loud = tiny_sae(folder / "loud", bias=5)
    told = good(folder) | {"saes": [str(loud)], "check": True}
    with pytest.raises(LoadCheckError, match="SAE sae"):
        featuredb.plan(tmp_path / "db.fdb", **told)
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
