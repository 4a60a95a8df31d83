"""Edits of SAEs that write to several layers, against hooks of torch alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import featuredb
from featuredb.errors import QueryError
from tests.ingest.cross_layers import CLT, FEATURES, LAYERS, fitted, model_for, states
from tests.tiny import tiny_documents, write_jsonl

FEATURE, VALUE = 5, 3.0


def test_a_clamp_is_written_at_every_layer_that_the_feature_writes_to(tmp_path: Path) -> None:
    folder = model_for(CLT, tmp_path / "model")
    whole = fitted(CLT, folder)
    featuredb.ingest(
        tmp_path / "set.fdb",
        corpus=str(write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(8))),
        model=str(folder),
        saes=[str(whole.save(tmp_path))],
        names=["mine"],
        context_size=32,
        dtype="float32",
        device="cpu",
        check=False,
    )
    place = 1
    edit = f"mine-layer_{LAYERS[CLT][place]}/{FEATURE}={VALUE:g}"
    with featuredb.open(tmp_path / "set.fdb") as db:
        ids = [0, *db.tokenizer(" river bridge stone water").input_ids]
        with db.intervene(edit) as model:
            x, y = states(CLT, model, ids)
        change = VALUE - whole.acts(x)[place][:, FEATURE]
        assert np.abs(change).min() > 0
        assert whole.W_enc[place].shape[1] == FEATURES
        for o, layer in enumerate(LAYERS[CLT]):
            block = model.model.layers[layer]
            with torch.no_grad():
                given = torch.from_numpy(x[o]).to(model.device)
                own = block.mlp(block.post_attention_layernorm(given)).cpu().numpy()
            written = np.outer(change, whole.W_dec[place][o][FEATURE])
            np.testing.assert_allclose(y[o] - own, written, atol=2e-5 * np.abs(own).max() + 1e-5)
            assert written.any() == (o >= place)
        with pytest.raises(QueryError, match="writes to several layers"):
            db.attribute(" river bridge", token=" bridge")
