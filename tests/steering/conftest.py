"""A real database of a tiny model and two SAEs, whose files are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import featuredb
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_steerable(folder: Path) -> Path:
    """A database of a tiny model with a chat template and two SAEs, whose files are gone."""
    model = tiny_model(folder / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    saes = [
        tiny_sae(folder / name, hook=f"blocks.{layer}.hook_resid_post", seed=layer)
        for layer, name in ((1, "early"), (2, "late"))
    ]
    featuredb.ingest(
        folder / "x.fdb",
        corpus=str(write_jsonl(folder / "corpus.jsonl", tiny_documents())),
        model=str(model),
        saes=[str(sae) for sae in saes],
        dtype="float32",
        device="cpu",
        check=False,
        progress=False,
    )
    for sae in saes:
        shutil.rmtree(sae)
    return folder / "x.fdb"


@pytest.fixture(scope="package")
def steerable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SAEs, `early` and `late`, at layers 1 and 2."""
    return make_steerable(tmp_path_factory.mktemp("steering"))


@pytest.fixture(scope="module")
def db(steerable: Path) -> Iterator[featuredb.Database]:
    with featuredb.open(steerable) as opened:
        yield opened
