"""Checkpoints that leave out weights: those that are never run may be missing, others not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from featuredb.errors import ModelError
from ingest.model.hooks import forward_to_hooks
from ingest.model.load import load_model
from tests.tiny import tiny_model

_SIZES: dict[str, Any] = {
    "vocab_size": 608,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def saved(folder: Path, model: Any, without: str = "") -> Path:
    """A model on disk, without the tensors that have `without` in their names."""
    tiny_model(folder)
    model.eval().save_pretrained(folder)
    file = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if not without or without not in k}
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def bert() -> Any:
    return hf.BertModel(hf.BertConfig(**_SIZES))


def llama(kind: Any = hf.LlamaForCausalLM) -> Any:
    return kind(hf.LlamaConfig(**_SIZES, tie_word_embeddings=False))


@pytest.mark.parametrize(
    ("make", "without"),
    [
        (bert, "pooler"),
        (lambda: hf.BertForMaskedLM(hf.BertConfig(**_SIZES)), "cls."),
        (lambda: hf.RobertaModel(hf.RobertaConfig(**_SIZES)), "pooler"),
        (lambda: hf.EsmModel(hf.EsmConfig(**_SIZES, mask_token_id=1)), "contact_head"),
        (lambda: llama(hf.LlamaForSequenceClassification), "score"),
    ],
)
def test_what_the_layers_do_not_need_may_be_missing(
    tmp_path: Path, make: Callable[[], Any], without: str
) -> None:
    torch.manual_seed(0)
    model = make()
    loaded = load_model(saved(tmp_path / "m", model, without), device="cpu", dtype="float32")
    hook = loaded.hook("blocks.1.hook_resid_post")
    ids = torch.tensor([[1, 5, 7]])
    expected = model.eval().base_model(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(forward_to_hooks(loaded.model, [hook], ids)[hook.name], expected)


@pytest.mark.parametrize(
    ("make", "without"),
    [
        (bert, "layer.0.output.dense"),
        (bert, "layer.2.attention.self.key.bias"),
        (bert, "word_embeddings"),
        (bert, "embeddings.LayerNorm.bias"),
        (llama, "lm_head"),
        (llama, "model.norm"),
        (llama, "layers.1.mlp.up_proj"),
    ],
)
def test_what_is_needed_is_named(tmp_path: Path, make: Callable[[], Any], without: str) -> None:
    folder = saved(tmp_path / "m", make(), without)
    with pytest.raises(ModelError, match="leave out") as caught:
        load_model(folder, device="cpu", dtype="float32")
    assert without in str(caught.value)


def test_a_hook_behind_what_is_missing_gives_no_numbers(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path / "m", bert(), "pooler"), device="cpu", dtype="float32")
    assert torch.isnan(loaded.model.pooler.dense.weight).all()
