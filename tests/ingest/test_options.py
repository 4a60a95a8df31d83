"""What each option of an ingest does to the content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import featuredb
from featuredb.errors import LoadCheckError
from featuredb.snapshot import Snapshot
from ingest.hooks import forward_to_hooks, resolve_hook
from ingest.options import IngestOptions
from ingest.pipeline import ingest
from ingest.sae import load_sae
from tests.content import activations
from tests.ingest.loads import HOOK, WIDTH, offset_model, open_model
from tests.tiny import tiny_documents, tiny_sae, write_jsonl


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> IngestOptions:
    folder = tmp_path_factory.mktemp("options")
    return IngestOptions(
        corpus=str(write_jsonl(folder / "corpus.jsonl", tiny_documents(30))),
        model=str(offset_model(folder / "model")),
        saes=[str(tiny_sae(folder / "sae", hook=HOOK))],
        names=["sae"],
        dtype="float32",
        device="cpu",
        check=False,
    )


@pytest.fixture(scope="module")
def plain(options: IngestOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.fdb"
    ingest(path, options)
    return path


def at(path: Path, sae: str = "sae") -> npt.NDArray[np.int64]:
    """The token_index of every stored activation."""
    return np.asarray(activations(path, sae).column("token_index"), np.int64)


def snapshot(path: Path) -> Snapshot:
    with featuredb.open(path) as db:
        return db.snapshot


def test_no_check_takes_what_the_check_refuses(options: IngestOptions, tmp_path: Path) -> None:
    path = tmp_path / "db.fdb"
    with pytest.raises(LoadCheckError):
        ingest(path, replace(options, check=True))
    assert not path.exists()
    ingest(path, options)
    assert snapshot(path).saes[0].check.variance_explained < 0


def test_keep_bos(options: IngestOptions, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "db.fdb"
    ingest(path, replace(options, keep_bos=True, keep_sinks=True))
    assert at(plain).min() == 1
    assert at(path).min() == 0
    before, after = snapshot(plain), snapshot(path)
    assert after.recording.keep_bos
    contexts = before.corpora[0].n_contexts
    assert after.recorded_tokens("sae") == before.recorded_tokens("sae") + contexts


def test_sinks_are_left_out_and_kept_on_request(options: IngestOptions, tmp_path: Path) -> None:
    """With so low a threshold half of all tokens are sinks."""
    model = open_model(Path(options.model))
    low = replace(options, sink_threshold=1.0)
    ingest(tmp_path / "out.fdb", low)
    ingest(tmp_path / "kept.fdb", replace(low, keep_sinks=True))
    out, kept = snapshot(tmp_path / "out.fdb"), snapshot(tmp_path / "kept.fdb")
    (segment,) = out.segments
    assert segment.sinks.rows > 0
    assert kept.segments[0].sinks.rows == 0
    total = kept.recorded_tokens("sae")
    assert out.recorded_tokens("sae") + segment.sinks.rows == total
    with featuredb.open(tmp_path / "out.fdb") as db:
        sinks = db.sql("SELECT context_id, token_index, norm FROM sinks").fetchall()
        point = resolve_hook(model.model, HOOK)
        limit = out.saes[0].check.median_norm
        for context, index, norm in sinks[:20]:
            ids = torch.from_numpy(db._store.texts.token_ids(context).astype(np.int64))[None]
            state = forward_to_hooks(model.model, [point], ids)[HOOK][0, index]
            assert np.isclose(float(state.norm()), norm, rtol=1e-4)
            assert norm > limit
        fired = {(c, t) for c, t in db.sql(
            "SELECT DISTINCT context_id, token_index FROM activations").fetchall()}  # fmt: skip
    assert not fired & {(c, t) for c, t, _ in sinks}


@pytest.mark.parametrize("limit", [1, 100, 10**9])
def test_max_tokens_stops_after_the_document_that_reaches_it(
    options: IngestOptions, plain: Path, tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "db.fdb"
    ingest(path, replace(options, max_tokens=limit))
    with featuredb.open(plain) as db:
        counts = [n for (n,) in db.sql(
            "SELECT n_tokens FROM documents ORDER BY document_id").fetchall()]  # fmt: skip
    reached = np.cumsum(counts)
    documents = min(int(np.searchsorted(reached, limit)) + 1, len(counts))
    (corpus,) = snapshot(path).corpora
    assert corpus.n_documents == documents
    assert corpus.n_tokens == reached[documents - 1]


def test_stride(options: IngestOptions, plain: Path, tmp_path: Path) -> None:
    """Windows begin every 10 tokens; what overlaps is the same text."""
    path = tmp_path / "db.fdb"
    ingest(path, replace(options, stride=10))
    with featuredb.open(path) as strided, featuredb.open(plain) as whole:
        (corpus,) = strided.snapshot.corpora
        assert corpus.stride == 10
        query = "SELECT token_ids FROM contexts WHERE document_id = 2 ORDER BY context_index"
        windows: list[Any] = [w[1:] for (w,) in strided.sql(query).fetchall()]
        document = [t for (w,) in whole.sql(query).fetchall() for t in w[1:]]
    assert len(windows) == -(-(len(document) - 31) // 10) + 1
    for i, window in enumerate(windows):
        assert window == document[10 * i : 10 * i + 31]


def test_exact_keeps_float32(options: IngestOptions, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "db.fdb"
    ingest(path, replace(options, exact=True))
    assert {s.values for s in snapshot(path).segments} == {"float32"}
    exact, rounded = activations(path, "sae"), activations(plain, "sae")
    values = exact.column("activation").to_numpy()
    assert (values != values.astype(np.float16)).any()
    assert exact.select([0, 1, 2]).equals(rounded.select([0, 1, 2]))
    half = rounded.column("activation").to_numpy()
    assert (values.astype(np.float16).astype(np.float32) == half).all()
    sae, model = load_sae(options.saes[0]), open_model(Path(options.model))
    assert sae.d_in == WIDTH
    with featuredb.open(path) as db:
        ids = torch.from_numpy(db._store.texts.token_ids(3).astype(np.int64))[None]
        rows = db.sql("SELECT token_index, feature_id, activation FROM activations "
                      "WHERE context_id = 3").fetchall()  # fmt: skip
    point = resolve_hook(model.model, HOOK)
    acts = sae.encode(forward_to_hooks(model.model, [point], ids)[HOOK][0].float())
    assert len(rows) == int((acts[1:] != 0).sum())
    for token, feature, value in rows:
        assert np.isclose(float(acts[token, feature]), value, rtol=1e-4, atol=1e-5)
