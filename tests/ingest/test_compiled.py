"""`--torch-compile`: compiled layers give the values of eager ones, and a database names them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featuredb
from featuredb.errors import IngestError, ModelError
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from ingest.model.compiled import compile_layers, compiled_layers
from ingest.model.hooks import forward_to_hooks, layer_paths, resolve_hook
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from tests.content import activations
from tests.ingest.test_maskless import lone_model
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++"),
    pytest.mark.skipif(
        "FEATUREDB_TEST_DEVICE" in os.environ, reason="torch compiles nothing for such a device"
    ),
]


def test_layers_with_a_hook_inside_run_as_they_are() -> None:
    loaded = replace(lone_model("llama"), compiled=True)
    model = loaded.model
    ran: list[str] = []
    paths = layer_paths(model)

    def noted(path: str) -> Callable[..., Any]:
        own = model.get_submodule(path).forward

        def run(*args: Any, **kwargs: Any) -> Any:
            ran.append(path)
            return own(*args, **kwargs)

        return run

    loaded.layers.update({path: noted(path) for path in paths})
    ids = torch.arange(6).reshape(2, 3)
    for inside, expected in (
        ("blocks.1.hook_mlp_out", paths[:1]),
        ("blocks.2.attn.hook_z", paths[:2]),
        ("blocks.2.hook_resid_pre", paths[:2]),
        ("blocks.2.hook_resid_post", paths),
    ):
        hooks = [resolve_hook(model, inside)]
        ran.clear()
        with compiled_layers(loaded, hooks):
            replaced = forward_to_hooks(model, hooks, ids)
        assert ran == expected
        assert torch.equal(replaced[inside], forward_to_hooks(model, hooks, ids)[inside])
        assert ran == expected, "the model is as it was"


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    torch._dynamo.reset()
    loaded = lone_model("llama")
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-compiler")}),
        pytest.raises(ModelError, match=r"compile llama .*no-compiler.*--torch-compile out$"),
    ):
        compile_layers(loaded)
    model = loaded.model
    assert all("forward" not in vars(model.get_submodule(path)) for path in layer_paths(model))


def test_a_database_says_so_and_is_run_so_again(tmp_path: Path) -> None:
    options = IngestOptions(
        corpus=str(write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(30))),
        model=str(tiny_model(tmp_path / "model")),
        saes=[str(tiny_sae(tmp_path / "sae"))],
        names=["sae"],
        dtype="float32",
        device="cpu",
        batch_tokens=128,
        check=False,
    )
    ingest(tmp_path / "eager.fdb", options)
    path = tmp_path / "compiled.fdb"
    outcome = ingest(path, replace(options, torch_compile=True))
    assert outcome.snapshot.model.compiled
    # Sums differ in their last bits, which float16 hides but for a step now and then.
    found, expected = activations(path, "sae"), activations(tmp_path / "eager.fdb", "sae")
    for name in found.column_names:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=1e-6)
    with pytest.raises(IngestError, match="compiled"):
        ingest(path, options)
    assert read_snapshot(Layout(path)).model == outcome.snapshot.model
    # The model is run so again: the same bits, where eager ones would differ in the last.
    report = featuredb.verify(path, source=20)
    assert not report.problems
    assert report.recomputed is not None
    assert report.recomputed.flips == 0
