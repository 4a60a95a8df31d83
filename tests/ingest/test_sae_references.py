"""hf: and sae-lens: references, against a hub cache built by hand: nothing here goes online."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from featuredb.errors import MissingExtraError, SaeError
from ingest.sae import load_sae
from ingest.sae.detect import detect, read
from ingest.sae.naming import short_name
from ingest.sae.references import Resolved, _wanted, resolve

FIXTURES = Path(__file__).parents[1] / "fixtures" / "saes"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds one revision of google/gemma-scope-2b-pt-res, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--google--gemma-scope-2b-pt-res"
    folder = repo / "snapshots" / COMMIT / "layer_9" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    shutil.copy(FIXTURES / "gemmascope_jumprelu" / "params.npz", folder)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v1").write_text(COMMIT)
    return folder


ADDRESS = "hf:google/gemma-scope-2b-pt-res/layer_9/width_16k/average_l0_82"


@pytest.mark.parametrize("suffix", ["", "@v1", f"@{COMMIT}", "/params.npz"])
def test_from_the_cache(cache: Path, suffix: str) -> None:
    sae = load_sae(ADDRESS + suffix)
    assert sae.files[0].parent == cache
    assert (sae.hook, sae.model_name) == ("blocks.9.hook_resid_post", "google/gemma-2-2b")
    assert (sae.name, sae.stated_l0) == ("layer_9-width_16k-average_l0_82", 82.0)
    assert sae.source == ADDRESS + suffix


def test_revision_argument(cache: Path) -> None:
    assert load_sae(ADDRESS, revision="v1").d_sae == 256
    with pytest.raises(SaeError):
        load_sae(ADDRESS, revision="v2")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:google", "is not hf:owner/repo"),
        ("hf:google/nothing-here/layer_1", "not in the local cache"),
        ("hf:google/gemma-scope-2b-pt-res/layer_1", "has no 'layer_1'"),
    ],
)
def test_not_there(cache: Path, reference: str, message: str) -> None:
    with pytest.raises(SaeError, match=message):
        load_sae(reference)


def test_without_a_network_the_cache_has_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    assert load_sae(ADDRESS).files[0].parent == cache
    with pytest.raises(SaeError, match="cannot be reached"):
        load_sae("hf:google/nothing-here/layer_1")


def test_catalog_facts_reach_the_reader(tmp_path: Path) -> None:
    """A scale, and corrections of cfg.json, that only SAELens's catalog knows."""
    folder = tmp_path / "sae"
    shutil.copytree(FIXTURES / "saelens_standard", folder)
    plain = load_sae(folder)
    hints = {
        "norm_scaling_factor": 0.5,
        "overrides": {"normalize_activations": "expected_average_only_in"},
    }
    place = detect(Resolved(folder, folder, hints))
    scaled = read(place)
    torch.testing.assert_close(scaled.encoder.W_enc, plain.W_enc * 0.5)
    torch.testing.assert_close(scaled.decoder.W_dec, plain.W_dec / 0.5)


def test_only_what_one_sae_needs_is_fetched() -> None:
    names = [
        "README.md",
        "layer_0/width_16k/average_l0_10/params.npz",
        "layer_0/width_16k/average_l0_20/params.npz",
        "trainer_0/ae.pt",
        "trainer_0/config.json",
        "trainer_0/checkpoints/ae_100.pt",
        "L1/hyperparams.json",
        "L1/checkpoints/final.safetensors",
    ]
    assert _wanted("o/r", "layer_0/width_16k/average_l0_10", names) == [names[1]]
    assert _wanted("o/r", "trainer_0", names) == [names[3], names[4]]
    assert _wanted("o/r", "L1", names) == [names[7], names[6]]
    assert _wanted("o/r", "L1/checkpoints/final.safetensors", names) == [names[7], names[6]]
    with pytest.raises(SaeError, match="holds 2 SAEs, name one: width_16k/average_l0_10"):
        _wanted("o/r", "layer_0", names)


def test_sae_lens_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingExtraError, match=r"featuredb\[sae-lens\]"):
        load_sae("sae-lens:gemma-scope-2b-pt-res-canonical/layer_9/width_16k/canonical")


def test_sae_lens_catalog(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog gives the repository and path; the reading is ours."""
    entry = SimpleNamespace(
        repo_id="google/gemma-scope-2b-pt-res",
        model="gemma-2-2b",
        saes_map={"layer_9/width_16k/canonical": "layer_9/width_16k/average_l0_82"},
        expected_l0={"layer_9/width_16k/canonical": 73.0},
        norm_scaling_factor={},
        config_overrides=None,
    )
    catalog = ModuleType("sae_lens.loading.pretrained_saes_directory")
    catalog.get_pretrained_saes_directory = lambda: {"gemma": entry}  # type: ignore[attr-defined]
    for name in ("sae_lens", "sae_lens.loading"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, catalog.__name__, catalog)
    resolved = resolve("sae-lens:gemma/layer_9/width_16k/canonical")
    assert resolved.path == cache
    assert resolved.hints["l0"] == 73.0
    assert load_sae("sae-lens:gemma/layer_9/width_16k/canonical").d_sae == 256
    with pytest.raises(SaeError, match="no release 'gemna'"):
        resolve("sae-lens:gemna/x")
    with pytest.raises(SaeError, match="has no SAE 'x'"):
        resolve("sae-lens:gemma/x")


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("/saes/layer_12/width_16k/average_l0_82/params.npz", "layer_12-width_16k-average_l0_82"),
        ("/saes/pythia/layers.5.mlp/sae.safetensors", "layers.5.mlp"),
        ("/saes/resid_post_layer_9/trainer_3/ae.pt", "resid_post_layer_9-trainer_3"),
        ("/saes/L15R-8x/checkpoints/final.safetensors", "L15R-8x"),
        ("/saes/my sae (2)/sae_weights.safetensors", "my-sae-2"),
        ("owner/repo/sae_weights.safetensors", "repo"),
        ("/resid_post_mlp_v5_32k/autoencoders/8.pt", "resid_post_mlp_v5_32k-8"),
        ("/saes/Llama-3.1-8B-Instruct-SAE-l19.pth", "Llama-3.1-8B-Instruct-SAE-l19"),
        ("/sae.safetensors", "sae"),
    ],
)
def test_short_names(weights: str, name: str) -> None:
    assert short_name(Path(weights)) == name
