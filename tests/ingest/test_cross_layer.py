"""Cross-layer transcoders and crosscoders: one SAE for each layer, in one forward pass."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import featuredb
from featuredb.errors import FeatureDBError, HookError, LoadCheckError, SaeError
from ingest.sae import load_sae, members
from tests.content import activations
from tests.ingest.cross_layers import (
    CLT,
    CROSSCODER,
    FEATURES,
    GEMMA_CLT,
    LAYERS,
    Floats,
    Set,
    fitted,
    model_for,
    states,
)
from tests.ingest.sae_files import check_stored
from tests.tiny import WIDTH, tiny_documents, tiny_sae, write_jsonl

HOOKS = {
    CLT: ("blocks.{}.hook_resid_mid", "blocks.{}.hook_mlp_out"),
    GEMMA_CLT: (
        "model.layers.{}.pre_feedforward_layernorm.output",
        "model.layers.{}.post_feedforward_layernorm.output",
    ),
    CROSSCODER: ("model.layers.{}.output", "model.layers.{}.output"),
}


class Made(NamedTuple):
    kind: str
    set: Set
    model: Path
    folder: Path
    corpus: Path


@pytest.fixture(scope="module", params=[CLT, GEMMA_CLT, CROSSCODER])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp(request.param)
    model = model_for(request.param, root / "model")
    whole = fitted(request.param, model)
    corpus = write_jsonl(root / "corpus.jsonl", tiny_documents(24))
    return Made(request.param, whole, model, whole.save(root), corpus)


def ingest(path: Path, made: Made, saes: list[str] | None = None, **options: Any) -> None:
    settings: dict[str, Any] = {
        "corpus": str(made.corpus),
        "model": str(made.model),
        "saes": saes or [str(made.folder)],
        "context_size": 32,
        "dtype": "float32",
        "device": "cpu",
        "exact": True,
        "keep_sinks": True,
    }
    featuredb.ingest(path, **(settings | options))


def seen(made: Made, path: Path) -> tuple[list[Floats], list[Floats], list[tuple[int, int]]]:
    """(x, y) by place at every recorded position of a database, and those positions."""
    model = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32).eval()
    with featuredb.open(path) as db:
        contexts = db.sql("SELECT context_id, token_ids FROM contexts ORDER BY ALL").fetchall()
    skipped = int(made.kind != CLT)  # a BOS
    pieces, positions = [], []
    for context, ids in contexts:
        pieces.append(states(made.kind, model, ids))
        positions += [(context, token) for token in range(skipped, len(ids))]
    n = made.set.size
    x, y = (
        [np.concatenate([piece[side][i][skipped:] for piece in pieces]) for i in range(n)]
        for side in (0, 1)
    )
    return x, y, positions


def test_a_whole_set_is_one_sae_for_each_layer(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "set.fdb"
    ingest(path, made, names=["mine"])
    layers, n = LAYERS[made.kind], made.set.size
    names = [f"mine-layer_{layer}" for layer in layers]
    x, y, positions = seen(made, path)
    number = {position: each for each, position in enumerate(positions)}
    for name, want in zip(names, made.set.acts(x), strict=True):
        stored = activations(path, name).to_pydict()
        have = np.zeros_like(want)
        at = [number[p] for p in zip(stored["context_id"], stored["token_index"], strict=True)]
        have[at, stored["feature_id"]] = stored["activation"]
        assert np.allclose(have, want, rtol=1e-4, atol=1e-5)
        assert np.count_nonzero(have) == len(at) > 0
        assert (have.min() < 0) == (made.kind == CLT)
    with featuredb.open(path) as db:
        rows = db.sql(
            "SELECT sae, hook, hook_out, hooks_out, variance_explained FROM saes ORDER BY sae_index"
        ).fetchall()
        info = db.info()
    reads, writes = HOOKS[made.kind]
    assert [row[:3] for row in rows] == [
        (name, reads.format(layer), None) for name, layer in zip(names, layers, strict=True)
    ]
    written = [writes.format(layer) for layer in layers]
    causal = made.kind != CROSSCODER
    wanted = [written[i:] if causal else written for i in range(n)]
    assert [row[3] for row in rows] == wanted
    assert [sae["hooks_out"] for sae in info["saes"]] == wanted
    # Each place that is written to, from all the layers that feed it.
    for row, target, rebuilt in zip(rows, y, made.set.rebuilt(x), strict=True):
        residue = np.square(target - rebuilt, dtype=np.float64).sum()
        share = 1 - residue / np.square(target - target.mean(0), dtype=np.float64).sum()
        assert row[4] == pytest.approx(share, abs=1e-4)
        assert share > 0.5


def test_directions_are_the_sum_of_what_is_written(made: Made) -> None:
    for i, reference in enumerate(members(made.folder)):
        sae = load_sae(reference)
        assert torch.allclose(sae.W_dec, torch.tensor(sum(made.set.W_dec[i])), rtol=1e-5, atol=1e-5)
        assert sae.cross_layer is not None
        for o in range(i if made.kind == CLT else 0, made.set.size):
            assert np.array_equal(sae.cross_layer.towards(o), made.set.W_dec[i][o])
        with pytest.raises(SaeError, match="rebuilds nothing by itself"):
            sae.decode(torch.zeros(1, FEATURES))
        check_stored(sae, torch.randn(9, WIDTH))


def test_what_was_ingested_is_found_again(made: Made, tmp_path: Path) -> None:
    """New text, another corpus, more SAEs and workers load each SAE by its own file."""
    path = tmp_path / "life.fdb"
    ingest(path, made, engine="processes" if made.kind == GEMMA_CLT else "local", workers=1)
    more = write_jsonl(tmp_path / "more.jsonl", tiny_documents(6, seed=8))
    featuredb.append(path, str(more))
    assert featuredb.verify(path, source=4).ok
    with featuredb.open(path) as db:
        assert len(db.saes) == made.set.size
        assert db.fires_on("river bridge stone", k=3)
        (before,) = db.sql("SELECT count(*) FROM activations").fetchall()[0]
    sae = tiny_sae(
        tmp_path / "sae",
        metadata={"hook_name": "blocks.1.hook_resid_post", "prepend_bos": made.kind != CLT},
    )
    other = tmp_path / "other.fdb"
    ingest(other, made, [str(sae)], names=["plain"], check=False)
    featuredb.add_saes(other, [str(made.folder)], names=["late"], device="cpu")
    featuredb.append(other, str(more), check=False)
    with featuredb.open(other) as db:
        assert [each.name for each in db.saes][1:] == [
            f"late-layer_{layer}" for layer in LAYERS[made.kind]
        ]
        late = db.sql("SELECT count(*) FROM activations WHERE sae <> 'plain'").fetchall()[0]
    assert late == (before,)
    # The database keeps what encode needs. What it writes to each layer is not measured again.
    made.folder.rename(made.folder.with_name("moved"))
    featuredb.append(path, str(write_jsonl(tmp_path / "last.jsonl", tiny_documents(4, seed=9))))
    made.folder.with_name("moved").rename(made.folder)
    with featuredb.open(path) as db:
        assert db.saes[0].check.variance_explained is not None


def test_decoders_of_other_places_are_refused(made: Made, tmp_path: Path) -> None:
    """Each slice at the place after its own, as relative and absolute indices taken for another."""
    n = made.set.size
    shifted = [[made.set.W_dec[i][(o - 1) % n] for o in range(n)] for i in range(n)]
    if made.kind == CLT:
        empty = np.zeros((FEATURES, WIDTH), np.float32)
        shifted = [[shifted[i][o] if o > i else empty for o in range(n)] for i in range(n)]
    wrong = replace(made.set, W_dec=shifted).save(tmp_path)
    with pytest.raises(LoadCheckError, match=r"explains none of the variance at"):
        ingest(tmp_path / "wrong.fdb", made, [str(wrong)])
    assert not (tmp_path / "wrong.fdb").exists()


def test_one_of_a_set_alone(made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing can be compared with what the last one writes: it is taken, and that is said."""
    last = members(made.folder)[-1]
    with caplog.at_level(logging.INFO, logger="featuredb"):
        ingest(tmp_path / "one.fdb", made, [last])
    assert "is not checked" in caplog.text
    with featuredb.open(tmp_path / "one.fdb") as db:
        (row,) = db.sql("SELECT sae, variance_explained FROM saes").fetchall()
    assert row == (f"{load_sae(last).name}", None)
    assert row[0].endswith(f"-layer_{LAYERS[made.kind][-1]}")


def test_no_hook_for_a_whole_set(made: Made, tmp_path: Path) -> None:
    for option in ("hook", "hook_out"):
        with pytest.raises(HookError, match="each have a layer of their own"):
            ingest(tmp_path / "x.fdb", made, None, **{option: "blocks.0.hook_resid_pre"})
    with pytest.raises(HookError, match="writes to several layers"):
        ingest(tmp_path / "x.fdb", made, members(made.folder)[:1], hook_out="blocks.0.hook_mlp_out")


def changed(folder: Path, name: str, **tensors: Any) -> None:
    """Rewrite a weight file with some tensors replaced, or left out where None."""
    kept = load_file(folder / name) | tensors
    save_file({k: np.ascontiguousarray(v) for k, v in kept.items() if v is not None}, folder / name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Set]:
    """Sets of random numbers."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Floats:
        return rng.standard_normal(shape).astype(np.float32)

    def of(kind: str) -> Set:
        n = len(LAYERS[kind])
        W_dec = [[draw(6, 4) * (kind == CROSSCODER or o >= i) for o in range(n)] for i in range(n)]
        some = {name: [draw(6) for _ in range(n)] for name in ("b_enc", "threshold")}
        others = {"W_enc": [draw(4, 6) for _ in range(n)], "b_dec": [draw(4) for _ in range(n)]}
        return Set(kind, W_dec=W_dec, skip=[draw(4, 4) for _ in range(n)], **some, **others)

    return {kind: of(kind) for kind in (CLT, GEMMA_CLT, CROSSCODER)}


def _lose_decoders(folder: Path) -> None:
    (folder / "W_dec_1.safetensors").unlink()


def _lose_config(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def _other_kind(folder: Path) -> None:
    (folder / "config.yaml").write_text("model_kind: something")


def _topk(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("\nactivation: topk")


def _relu(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("\nactivation: relu")


def _skip(folder: Path) -> None:
    changed(folder, "W_enc_1.safetensors", W_skip_1=np.eye(4, dtype=np.float32))


def _flat(folder: Path) -> None:
    changed(folder, "W_dec_1.safetensors", W_dec_1=np.ones((6, 4), np.float32))


def _narrow(folder: Path) -> None:
    changed(folder, "W_dec_1.safetensors", W_dec_1=np.ones((5, 2, 4), np.float32))


def _nan(folder: Path) -> None:
    changed(folder, "W_dec_1.safetensors", W_dec_1=np.full((6, 2, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lose_decoders, r"W_dec_1\.safetensors is missing beside .*cross-layer transcoder"),
        (_lose_config, r"config\.yaml is missing beside .*cross-layer transcoder"),
        (_other_kind, r"model_kind is 'something', not cross_layer_transcoder"),
        (_topk, r"activation 'topk' is not supported"),
        (_relu, r"also holds threshold_1 \[6\]"),
        (_skip, r"also holds W_skip_1 \[4, 4\]"),
        (_flat, r"holds W_dec_1 \[6, 4\], but should hold W_dec_1 \[d_sae, layers, d_out\]"),
        (_narrow, r"contradictory shapes"),
        (_nan, r"W_dec_1 holds NaN"),
    ],
)
def test_a_spoiled_layer(small: dict[str, Set], tmp_path: Path, spoil: Any, message: str) -> None:
    folder = small[CLT].save(tmp_path)
    spoil(folder)
    with pytest.raises(SaeError, match=message):
        load_sae(folder / "W_enc_1.safetensors")


@pytest.mark.parametrize("kind", [CLT, GEMMA_CLT, CROSSCODER])
def test_a_folder_is_a_set(small: dict[str, Set], tmp_path: Path, kind: str) -> None:
    folder = small[kind].save(tmp_path)
    n = len(LAYERS[kind])
    stem = "W_enc" if kind == CLT else "params_layer"
    assert members(folder) == [f"{folder}/{stem}_{i}.safetensors" for i in range(n)]
    assert members(f"{folder}/{stem}_0.safetensors") == [f"{folder}/{stem}_0.safetensors"]
    with pytest.raises(SaeError, match=f"of {n} SAEs, one for each layer.*{stem}_0"):
        load_sae(folder)
    (folder / f"{stem}_1.safetensors").unlink()
    with pytest.raises(SaeError, match=f"{stem}_1.safetensors is missing"):
        members(folder)


def test_layers_by_the_names_of_catalogs(small: dict[str, Set], tmp_path: Path) -> None:
    folder = small[CLT].save(tmp_path)
    for name in ("layer_1", "1"):
        sae = load_sae(folder / name)
        assert (sae.hook, sae.name) == ("blocks.1.hook_resid_mid", "owner-clt-layer_1")
        assert [file.name for file in sae.files] == ["W_enc_1.safetensors", "W_dec_1.safetensors"]


def test_places_that_the_folder_contradicts(small: dict[str, Set], tmp_path: Path) -> None:
    folder = small[CROSSCODER].save(tmp_path)
    other = folder.rename(folder.with_name("layer_0_2_width_1k_l0_big"))
    with pytest.raises(SaeError, match=r"w_dec writes to 3 places, but layer_0_2.* has 2 layers"):
        load_sae(other / "params_layer_0.safetensors")
    renamed = other.rename(folder.with_name("somewhere"))
    (renamed / "config.json").unlink()
    sae = load_sae(renamed / "params_layer_0.safetensors")
    assert (sae.hook, sae.hooks_out, sae.name) == (None, (), "somewhere-place_0")
    file = (renamed / "params_layer_0.safetensors").rename(renamed / "weights.safetensors")
    with pytest.raises(SaeError, match="name does not say which of them this is"):
        load_sae(file)


def test_a_set_of_the_hub(
    small: dict[str, Set], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--owner--clt"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = small[CLT].save(repo / "snapshots")
    folder.rename(folder.with_name(commit))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    names = [f"W_enc_{i}.safetensors" for i in range(3)]
    assert members("hf:owner/clt") == [f"hf:owner/clt/{name}" for name in names]
    assert members(f"hf:owner/clt@{commit}") == [f"hf:owner/clt/{name}@{commit}" for name in names]
    assert load_sae("hf:owner/clt/1").name == "clt-layer_1"
    with pytest.raises(FeatureDBError, match="one for each layer"):
        load_sae("hf:owner/clt")
