"""Without the extra ``featuredb[ingest]``: functions that need it say so, the others work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import featuredb
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

_WITHOUT = """
import sys
for name in ("torch", "numba", "safetensors", "transformers", "accelerate", "gguf", "zstandard"):
    sys.modules[name] = None
import featuredb
from featuredb.errors import MissingExtraError
path = sys.argv[1]
try:
    {call}
except MissingExtraError as error:
    print(error)
else:
    print("done")
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extras")
    corpus = write_jsonl(folder / "corpus.jsonl", tiny_documents(20))
    model, sae = tiny_model(folder / "model"), tiny_sae(folder / "sae")
    path = folder / "db.fdb"
    featuredb.ingest(path, corpus=str(corpus), model=str(model), saes=[str(sae)], check=False)
    return path


def _without_extra(path: Path, call: str) -> str:
    script = _WITHOUT.format(call=call)
    command = [sys.executable, "-W", "error", "-c", script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("call", "purpose"),
    [
        ("featuredb.ingest(path, corpus='c', model='m', saes=['s'])", "ingesting"),
        ("featuredb.plan(path, corpus='c', model='m', saes=['s'])", "planning an ingest"),
        ("featuredb.append(path, 'c')", "ingesting"),
        ("featuredb.add_saes(path, ['s'])", "ingesting"),
        ("featuredb.drop(path, sae='s')", "dropping"),
        ("featuredb.compact(path)", "compacting"),
        ("featuredb.verify(path, source=1)", "comparing with the model"),
        ("featuredb.load_sae(path)", "loading an SAE"),
        ("featuredb.demo(path)", "the demo"),
        ("featuredb.open(path).fires_on('new text')", "reading new text"),
    ],
)
def test_what_needs_the_extra_says_so(database: Path, call: str, purpose: str) -> None:
    message = _without_extra(database, call)
    assert message.startswith(f"{purpose} needs ")
    assert message.endswith(", which is not installed: pip install 'featuredb[ingest]'\n")


@pytest.mark.parametrize(
    "call",
    [
        "featuredb.vacuum(path, grace='0s')",
        "featuredb.verify(path)",
        "featuredb.snapshots(path)",
        "featuredb.open(path).feature(1, k=3)",
        "featuredb.open(path).sql('FROM features').fetchall()",
        "[getattr(featuredb, name) for name in featuredb.__all__]",
    ],
)
def test_what_does_not_need_the_extra(database: Path, call: str) -> None:
    assert _without_extra(database, call) == "done\n"
