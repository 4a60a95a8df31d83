"""A hub reference asks for the files of one SAE: its weights and the configuration near them.

The hub is a list of names and sizes here. What `snapshot_download` would fetch is decided by the
hub client's own filter, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import save_file

from featuredb.errors import SaeError
from ingest.sae import load_sae
from tests.ingest.sae_files import arrays, tensors, torch_file

D, F = 8, 24
GB = 10**9
ROWS: dict[str, tuple[int, ...]] = {
    "W_enc": (F, D),
    "b_enc": (F,),
    "W_dec": (F, D),
    "b_dec": (D,),
}


class Hub:
    """Repositories as folders on disk. Files that are only listed have a size and no bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sizes: dict[str, dict[str, int]] = {}
        self.fetched: dict[str, int] = {}
        self.revisions: list[str | None] = []

    def add(self, repo: str, names: Iterable[str], size: int = GB) -> Path:
        """List `names`, each of `size` bytes unless it exists on disk. The repository's folder."""
        folder = self.root / repo
        sizes = self.sizes.setdefault(repo, {})
        for name in names:
            file = folder / name
            sizes[name] = file.stat().st_size if file.exists() else size
        return folder

    def listing(self, _: Any, repo: str, **options: Any) -> SimpleNamespace:
        self.revisions.append(options.get("revision"))
        names = list(self.sizes[repo])
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(self, repo: str, *, allow_patterns: list[str] | None, **_: Any) -> str:
        wanted = filter_repo_objects(list(self.sizes[repo]), allow_patterns=allow_patterns)
        self.fetched |= {f"{repo}/{name}": self.sizes[repo][name] for name in wanted}
        return str(self.root / repo)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub
    from huggingface_hub import constants

    made = Hub(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **o: made.listing(*a, **o))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.download)
    return made


def names_of(hub: Hub) -> list[str]:
    return sorted(hub.fetched)


QWEN = "Qwen/SAE-Res-Qwen3-8B-Base-W1K-L0_4"


def test_qwen_scope_fetches_one_layer(hub: Hub) -> None:
    w = tensors(arrays(W_enc=(1024, D), b_enc=(1024,), W_dec=(D, 1024), b_dec=(D,)))
    torch_file(hub.root / QWEN / "layer7.sae.pt", w)
    hub.add(QWEN, ["README.md", *(f"layer{i}.sae.pt" for i in range(36))])
    with pytest.raises(SaeError, match=r"holds 36 SAEs, name one: layer0\.sae\.pt"):
        load_sae(f"hf:{QWEN}")
    assert hub.fetched == {}
    sae = load_sae(f"hf:{QWEN}/layer7.sae.pt")
    assert (sae.stated_l0, sae.hook) == (4, "model.layers.7")
    assert names_of(hub) == [f"{QWEN}/layer7.sae.pt"]
    assert sum(hub.fetched.values()) < 100_000


def test_gemma_scope_2_leaves_its_examples(hub: Hub) -> None:
    repo, inside = "google/gemma-scope-2-1b-pt", "resid_post/layer_5_width_16k_l0_small"
    shapes = {"w_enc": (D, F), "w_dec": (F, D), "b_enc": (F,), "threshold": (F,), "b_dec": (D,)}
    (hub.root / repo / inside).mkdir(parents=True)
    save_file(tensors(arrays(**shapes)), hub.root / repo / inside / "params.safetensors")
    beside = ["params.safetensors", "examples.safetensors", "features.json", "README.md"]
    hub.add(repo, [f"{inside}/{name}" for name in beside] + ["tokenizer.json"])
    assert load_sae(f"hf:{repo}/{inside}").hook == "model.layers.5.output"
    assert names_of(hub) == [f"{repo}/{inside}/params.safetensors"]
    assert sum(hub.fetched.values()) < 100_000


def transcoders(hub: Hub, repo: str, **cfg: Any) -> list[str]:
    """A set of which layer 1 has bytes."""
    folder = hub.root / repo
    folder.mkdir(parents=True)
    save_file(tensors(arrays(**ROWS)), folder / "layer_1.safetensors")
    whole = {
        "model_kind": "transcoder_set",
        "model_name": "owner/tiny",
        "feature_input_hook": "mlp.hook_in",
        **cfg,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    return ["config.yaml", *(f"layer_{i}.safetensors" for i in range(4)), "features/x.bin"]


@pytest.mark.parametrize("named", ["layer_1.safetensors", "layer_1", "1"])
def test_circuit_tracer_fetches_one_layer_and_the_config(hub: Hub, named: str) -> None:
    hub.add("owner/set", transcoders(hub, "owner/set"))
    assert load_sae(f"hf:owner/set/{named}@v2").hook == "blocks.1.mlp.hook_in"
    assert names_of(hub) == ["owner/set/config.yaml", "owner/set/layer_1.safetensors"]
    assert sum(hub.fetched.values()) < 100_000
    assert hub.revisions == ["v2"]
    hub.fetched.clear()
    with pytest.raises(SaeError, match="holds 4 SAEs, name one: layer_0"):
        load_sae("hf:owner/set")
    assert hub.fetched == {}
    with pytest.raises(SaeError, match="has no 'layer_9'"):
        load_sae("hf:owner/set/layer_9")


def test_a_set_that_lists_files_of_other_repositories(hub: Hub) -> None:
    entries = [f"hf://other/repo/sub/layer_{i}.safetensors?revision=r{i}" for i in range(4)]
    transcoders(hub, "owner/set/deep", transcoders=entries)
    (hub.root / "owner/set/deep/layer_1.safetensors").unlink()
    hub.add("owner/set", ["deep/config.yaml", "README.md"])
    transcoders(hub, "other/repo/sub")
    hub.add("other/repo", [f"sub/{name}" for name in ("config.yaml", "layer_1.safetensors")])
    hub.add("other/repo", [f"sub/layer_{i}.safetensors" for i in (0, 2, 3)])
    sae = load_sae("hf:owner/set/deep/layer_1")
    assert (sae.hook, sae.format) == ("blocks.1.mlp.hook_in", "circuit_tracer")
    assert hub.revisions == [None, "r1"]
    assert names_of(hub) == [
        "other/repo/sub/config.yaml",
        "other/repo/sub/layer_1.safetensors",
        "owner/set/deep/config.yaml",
    ]
    assert sum(hub.fetched.values()) < 100_000
    with pytest.raises(SaeError, match="set of 4 transcoders"):
        load_sae("hf:owner/set/deep")


def test_kissane_fetches_its_own_configuration(hub: Hub) -> None:
    repo = "ckkissane/attn-saes-gpt2-small-all-layers"
    w = tensors(arrays(W_enc=(D, F), b_enc=(F,), W_dec=(F, D), b_dec=(D,)))
    torch_file(hub.root / repo / "L1_v9.pt", w, L1_v9_cfg={"act_name": "blocks.1.attn.hook_z"})
    hub.add(repo, [f"L{i}_v9{end}" for i in range(12) for end in (".pt", "_cfg.json")])
    assert load_sae(f"hf:{repo}/L1_v9.pt").processed_weights
    assert names_of(hub) == [f"{repo}/L1_v9.pt", f"{repo}/L1_v9_cfg.json"]


@pytest.mark.parametrize(
    ("inside", "names", "kept"),
    [
        # SAELens: sparsity and optimizer state stay
        ("b", ["sae_weights.safetensors", "cfg.json", "sparsity.safetensors", "trainer_state.pt"],
         ["cfg.json", "sae_weights.safetensors"]),
        # Llamascopium: the same weights twice
        ("b", ["sae_weights.safetensors", "sae_weights.pt", "config.json", "lm_config.json"],
         ["config.json", "sae_weights.safetensors"]),
        # dictionary_learning: the final weights, not the trainer's checkpoints
        ("b", ["ae.pt", "config.json", "eval_results.json", "checkpoints/ae_1.pt"],
         ["ae.pt", "config.json"]),
        ("b", ["model_final.pt", "checkpoint_1.pt", "checkpoint_2.pt", "config.json"],
         ["config.json", "model_final.pt"]),
        # Llama Scope
        ("b", ["hyperparams.json", "lm_config.json", "checkpoints/final.safetensors",
               "checkpoints/step_1.safetensors"],
         ["checkpoints/final.safetensors", "hyperparams.json"]),
        ("", ["x.npz", "tokenizer.json", "model.gguf"], ["x.npz"]),
        # names that are patterns to the hub's client
        ("a[1]*", ["params.npz", "x.json"], ["params.npz"]),
    ],
)  # fmt: skip
def test_what_is_asked_for(hub: Hub, inside: str, names: list[str], kept: list[str]) -> None:
    start = f"{inside}/" if inside else ""
    hub.add("o/r", [start + name for name in names] + ["a1x/params.npz"] * bool(inside))
    (hub.root / "o/r").mkdir(parents=True)
    with pytest.raises(SaeError):  # nothing is on disk
        load_sae(f"hf:o/r/{inside}")
    assert names_of(hub) == sorted(f"o/r/{start}{name}" for name in kept)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/params.npz", "b/params.npz"], "holds 2 SAEs, name one: a/params.npz"),
        (["a/b/params.npz"], "holds an SAE further down, name one: a/b/params.npz"),
        (["checkpoint_1.pt", "checkpoint_2.pt"], "holds 2 SAEs"),
        (["a.safetensors", "b.safetensors", "config.yaml"], "holds 2 SAEs"),
        (["model.gguf", "x.txt"], "is not an SAE: it holds model.gguf, x.txt"),
    ],
)
def test_what_is_refused_before_anything_is_fetched(hub: Hub, names: list[str], words: str) -> None:
    hub.add("o/r", [f"in/{name}" for name in names])
    with pytest.raises(SaeError, match=words):
        load_sae("hf:o/r/in")
    assert hub.fetched == {}


@pytest.mark.parametrize(
    ("repo", "kind"),
    [
        ("jbloom/GPT2-Small-SAEs-Reformatted", "center"),
        ("tommmcgrath/gpt2-small-mlp-out-saes", "center"),
        ("neuronpedia/gpt2-small__res_sce-ajt", "center"),
        ("JoshEngels/Mistral-7B-Residual-Stream-SAEs", "constant_norm_rescale"),
        ("somebody/else", "none"),
    ],
)
def test_repositories_whose_configuration_is_known_to_be_wrong(
    hub: Hub, repo: str, kind: str
) -> None:
    w = arrays(W_enc=(D, F), b_enc=(F,), W_dec=(F, D), b_dec=(D,))
    local = f"models--{repo.replace('/', '--')}/snapshots/abc"
    for place in (repo, local):
        folder = hub.root / place / "blocks.1.hook_resid_pre"
        folder.mkdir(parents=True)
        save_file(tensors(w), folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(
            '{"d_in": 8, "d_sae": 24, "hook_point": "blocks.1.hook_resid_pre"}'
        )
    names = [f"blocks.1.hook_resid_pre/{name}" for name in ("cfg.json", "sae_weights.safetensors")]
    hub.add(repo, names)
    for reference in (f"hf:{repo}/blocks.1.hook_resid_pre", str(folder)):
        assert load_sae(reference).encoder.normalization == kind


def test_sizes_are_counted(hub: Hub) -> None:
    """The count itself: a file that is only listed weighs what the list says."""
    hub.add("o/r", ["params.npz", "other.bin"])
    (hub.root / "o/r").mkdir(parents=True)
    with pytest.raises(SaeError):
        load_sae("hf:o/r")
    assert hub.fetched == {"o/r/params.npz": GB}
    assert np.prod((F, D)) * 4 < GB
