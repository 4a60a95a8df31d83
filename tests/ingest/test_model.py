"""Loading models from folders: tiny random-weight ones, written here."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from featuredb.errors import ModelError
from ingest.model.load import LoadedModel, bos_token_id, load_model, unembedding

WIDTH, LAYERS, VOCAB = 32, 2, 24
WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstu"]

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "intermediate_size": 40,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SMALL, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 48,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "gpt_neox": ("GPTNeoXConfig", _SMALL),
    "opt": ("OPTConfig", {**_SMALL, "ffn_dim": 40, "word_embed_proj_dim": WIDTH}),
    "phi": ("PhiConfig", _SMALL),
    "bert": ("BertConfig", _SMALL),
}  # fmt: skip

torch.set_num_threads(1)


def write_tokenizer(folder: Path, *, adds_bos: bool = False, bos: str | None = "<s>") -> None:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)


def write_model(folder: Path, name: str = "llama") -> Path:
    kind, arguments = CONFIGS[name]
    torch.manual_seed(0)
    auto = (
        transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    )
    model = auto.from_config(getattr(transformers, kind)(**arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy of the model to spoil."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(folder, device="cpu", dtype="float32", **options)


def refused(ref: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(ref, device="cpu", dtype="float32")
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_facts(llama: Path) -> None:
    loaded = load(llama)
    weights = (llama / "model.safetensors").read_bytes()
    assert loaded.weights_hash == hashlib.sha256(weights).hexdigest()
    tokenizer = (llama / "tokenizer.json").read_bytes()
    assert loaded.tokenizer_hash == hashlib.sha256(tokenizer).hexdigest()
    assert (loaded.id, loaded.path, loaded.revision) == ("tiny-llama", llama, None)
    assert (loaded.d_model, loaded.n_layers, loaded.context_length) == (WIDTH, LAYERS, 48)
    assert loaded.architecture == "LlamaForCausalLM"
    assert (loaded.dtype, loaded.device) == (torch.float32, torch.device("cpu"))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_nothing_is_printed(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(llama)
    assert capfd.readouterr() == ("", "")


def test_long_texts_are_tokenized_without_a_word(
    llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = load(llama).tokenizer("a b " * 500).input_ids
    assert len(ids) == 1000
    assert capfd.readouterr() == ("", "")


def test_verbosity_is_left_as_it_was(llama: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(llama)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_dtype(llama: Path) -> None:
    half = load_model(llama, device="cpu", dtype=torch.bfloat16)
    assert half.dtype == half.model.dtype == torch.bfloat16
    automatic = load_model(llama, device="cpu")
    assert automatic.dtype in (torch.float32, torch.bfloat16)
    with pytest.raises(ModelError, match="unknown dtype 'int8'"):
        load_model(llama, device="cpu", dtype="int8")


@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
def test_a_device_that_is_not_there(llama: Path, device: str) -> None:
    with pytest.raises(ModelError, match=rf"cannot compute on '{device}' here: give auto, cpu"):
        load_model(llama, device=device)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_automatic_dtype_asks_the_cpu(
    llama: Path, monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr("ingest.model.device._cpu_has_bfloat16", lambda: native)
    assert load_model(llama, device="cpu").dtype == expected


def test_shards_are_hashed_in_order(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    digest = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert load(folder).weights_hash == digest
    shards[0].unlink()
    assert shards[0].name in refused(folder)


def write_gguf(file: Path, hidden: int = 40) -> Path:
    """A llama in llama.cpp's format, with its tokenizer inside."""
    import numpy as np
    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(48)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {
        "token_embd": (VOCAB, WIDTH), "output_norm": (WIDTH,), "output": (VOCAB, WIDTH),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}"] = (hidden, WIDTH)
        shapes[f"blk.{layer}.ffn_down"] = (WIDTH, hidden)
        shapes[f"blk.{layer}.attn_norm"] = shapes[f"blk.{layer}.ffn_norm"] = (WIDTH,)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (rng.normal(size=shape) * 0.1).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_gguf(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    for ref in (file, tmp_path):
        loaded = load(ref)
        assert (loaded.id, loaded.architecture) == ("tiny", "LlamaForCausalLM")
        assert (loaded.d_model, loaded.n_layers, loaded.context_length) == (WIDTH, LAYERS, 48)
        assert loaded.weights_hash == hashlib.sha256(file.read_bytes()).hexdigest()
        assert loaded.tokenizer_hash == loaded.weights_hash
        assert loaded.model(torch.arange(4)[None]).logits.shape == (1, 4, VOCAB)
        assert bos_token_id(loaded, None) == 1
    assert capfd.readouterr() == ("", "")
    shutil.copy(file, tmp_path / "other.gguf")
    assert "holds 2 models" in refused(tmp_path)


# --- refusals --------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no such folder" in refused("./nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path)


def test_other_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no")
    assert "notes.txt is not a model" in refused(tmp_path / "notes.txt")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    message = refused(folder)
    assert "has no weights" in message
    assert "model.safetensors" in message


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    message = refused(folder)
    assert "has no tokenizer" in message
    assert "tokenizer.json" in message


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in refused(folder)


@pytest.mark.parametrize(
    "changes", [{"model_type": "frobnicator"}, {"architectures": ["FrobForCausalLM"]}]
)
def test_unknown_architecture(folder: Path, changes: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert "frob" in refused(folder).lower()


def test_truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cannot be loaded" in refused(folder)


def test_weights_left_out_are_not_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(folder)


def test_hub_id_that_is_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "no folder 'owner/nothing' here" in refused("owner/nothing")
    assert "neither a folder here nor a hub id" in refused("not an id")


def test_hub_id_in_the_cache(llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--owner--tiny"
    shutil.copytree(llama, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    loaded = load_model("owner/tiny", device="cpu", dtype="float32")
    assert (loaded.id, loaded.revision) == ("owner/tiny", commit)
    assert loaded.weights_hash == load(llama).weights_hash


# --- BOS -------------------------------------------------------------------------------------


def test_bos_follows_the_sae_then_the_tokenizer(folder: Path) -> None:
    plain = load(folder)
    assert [bos_token_id(plain, wanted) for wanted in (True, False, None)] == [1, None, None]
    write_tokenizer(folder, adds_bos=True)
    adding = load(folder)
    assert [bos_token_id(adding, wanted) for wanted in (True, False, None)] == [1, None, 1]


def test_bos_falls_back_to_eos(folder: Path) -> None:
    write_tokenizer(folder, bos=None)
    loaded = load(folder)
    assert bos_token_id(loaded, True) == 2
    loaded.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="BOS"):
        bos_token_id(loaded, True)


# --- unembedding -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "bert"])
def test_unembedding_gives_the_model_s_logits(tmp_path: Path, name: str) -> None:
    loaded = load(write_model(tmp_path, name))
    lens = unembedding(loaded)
    assert lens is not None
    assert lens.W_U.shape == (VOCAB, WIDTH)
    assert lens.gain is not None
    assert lens.center is (name not in ("llama", "gemma2"))
    seen: list[torch.Tensor] = []
    head = loaded.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        ids = torch.arange(3, 9)[None]
        states = loaded.model(ids, output_hidden_states=True).hidden_states
    handle.remove()
    # two streams that differ by a direction: the norm's bias cancels in the difference
    last_layer = _last_stream(loaded, ids)
    x = last_layer - last_layer.mean(-1, keepdim=True) if lens.center else last_layer
    epsilon = 1e-5 if lens.center else 1e-6
    normed = x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * lens.gain
    difference = (normed[0, 1] - normed[0, 0]) @ lens.W_U.T
    expected = (seen[0][0, 1] - seen[0][0, 0]) @ head.weight.T
    torch.testing.assert_close(difference, expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(states[-1], seen[0])


def _last_stream(loaded: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    from ingest.model.hooks import forward_to_hooks, resolve_hook

    hook = resolve_hook(loaded.model, f"blocks.{LAYERS - 1}.hook_resid_post")
    return forward_to_hooks(loaded.model, [hook], ids)[hook.name]


def test_encoder_has_no_unembedding(tmp_path: Path) -> None:
    loaded = load(write_model(tmp_path, "bert"))
    assert loaded.architecture == "BertForMaskedLM"
    assert unembedding(loaded) is None


def test_model_without_a_head(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**CONFIGS["llama"][1])
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    loaded = load(tmp_path)
    assert loaded.architecture == "LlamaModel"
    assert unembedding(loaded) is None
