"""What each option of an ingest does to the content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

import featuredb
from featuredb.errors import HookError, IngestError, LoadCheckError
from featuredb.store.snapshot import Snapshot
from featuredb.store.values import LOG8_ERROR, stored_values
from ingest.model.hooks import forward_to_hooks, resolve_hook
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
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
    explained = snapshot(path).saes[0].check.variance_explained
    assert explained is not None
    assert explained < 0


def narrow_transcoder(folder: Path, **about: Any) -> Path:
    """One that writes half as many dimensions as it reads, in SAELens's format."""
    tiny_sae(folder, hook=HOOK, architecture="transcoder", d_out=WIDTH // 2, **about)
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_dec"] = weights["W_dec"][:, : WIDTH // 2].contiguous()
    weights["b_dec"] = weights["b_dec"][: WIDTH // 2].contiguous()
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def test_a_transcoder_that_does_not_say_where_it_writes(
    options: IngestOptions, tmp_path: Path
) -> None:
    narrow = replace(options, saes=[str(narrow_transcoder(tmp_path / "sae"))])
    with pytest.raises(HookError, match=r"writes 16, .* the place with --hook-out; --no-check"):
        ingest(tmp_path / "db.fdb", replace(narrow, check=True))
    with pytest.raises(HookError, match=r"writes 16 dimensions but blocks.2.hook_mlp_out has 32"):
        ingest(tmp_path / "db.fdb", replace(narrow, hook_out="blocks.2.hook_mlp_out"))
    ingest(tmp_path / "db.fdb", replace(narrow, engine="processes", workers=1))
    (sae,) = snapshot(tmp_path / "db.fdb").saes
    assert (sae.d_in, sae.d_out, sae.hook_out) == (WIDTH, WIDTH // 2, None)
    assert sae.check.variance_explained is None
    with featuredb.open(tmp_path / "db.fdb") as db:
        assert db.sql("SELECT variance_explained FROM saes").fetchall() == [(None,)]
        assert db.info()["saes"][0]["variance_explained"] is None
        assert db.near(3, k=2).table.num_rows == 2


def test_hook_out_is_measured_and_stored(options: IngestOptions, tmp_path: Path) -> None:
    at_mlp, told = "blocks.2.hook_mlp_out", replace(options, names=["sae"])
    ingest(tmp_path / "db.fdb", replace(told, hook_out=at_mlp))
    found, plain = snapshot(tmp_path / "db.fdb").saes[0], snapshot_of(told, tmp_path / "plain.fdb")
    assert (found.hook, found.hook_out) == (HOOK, at_mlp)
    assert found.check.variance_explained != plain.check.variance_explained
    assert found.check.l0 == plain.check.l0
    # Where it reads is no other place.
    ingest(tmp_path / "same.fdb", replace(told, hook_out=HOOK))
    assert snapshot(tmp_path / "same.fdb").saes[0].hook_out is None


def snapshot_of(options: IngestOptions, path: Path) -> Any:
    ingest(path, options)
    return snapshot(path).saes[0]


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
    """Windows begin every 10 tokens. What overlaps is the same text."""
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


def test_log8_is_the_same_activations_on_a_coarse_grid(
    options: IngestOptions, plain: Path, tmp_path: Path
) -> None:
    path = tmp_path / "db.fdb"
    ingest(path, replace(options, values="log8"))
    assert snapshot(path).recording.values == "log8"
    coarse, fine = activations(path, "sae"), activations(plain, "sae")
    assert coarse.select([0, 1, 2]).equals(fine.select([0, 1, 2]))
    have, want = (t.column("activation").to_numpy() for t in (coarse, fine))
    assert (have == stored_values(have, "log8").astype(np.float32)).all()
    # Both were rounded from the same float32.
    assert np.abs(have / want - 1).max() <= LOG8_ERROR + 2.0**-10
    assert (have != want).any()
    with featuredb.open(path) as db:
        assert db.info()["values"] == "log8"
        assert featuredb.verify(path).ok
        text = db.sql("SELECT text FROM documents WHERE document_id = 1").fetchall()[0][0]
        stored, live = db.fires_on(text).table, db.fires_on(text + " ").table
        assert stored.num_rows > 0
        assert live.num_rows > 0
        for answer in (stored, live):
            values = answer.column("activation").to_numpy()
            assert (values == stored_values(values, "log8").astype(np.float32)).all()


def test_what_values_can_be(options: IngestOptions) -> None:
    for exact, values, stored in (
        (False, "float16", "float16"),
        (True, "float16", "float32"),
        (False, "float32", "float32"),
        (True, "float32", "float32"),
        (False, "log8", "log8"),
    ):
        told = replace(options, exact=exact, values=values)  # type: ignore[arg-type]
        assert told.recording().values == stored
    with pytest.raises(IngestError, match="exact activations cannot be log8"):
        replace(options, exact=True, values="log8")
    with pytest.raises(IngestError, match="values must be one of float16, float32, log8"):
        replace(options, values="int8")  # type: ignore[arg-type]


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
