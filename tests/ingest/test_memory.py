"""An ingest holds one or two partitions at a time, of any number."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from featuredb.store.layout import Layout
from ingest import prepare
from ingest.engines.local import LocalEngine
from ingest.extract.partition import Extractor
from ingest.inputs import load_inputs
from ingest.options import IngestOptions
from ingest.prepare import RunSettings, plan_ingest
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


def peak(folder: Path, options: IngestOptions) -> tuple[int, int]:
    """Partitions run, and the most bytes that Python and numpy held besides the loaded inputs."""
    inputs = load_inputs(options)
    identity = inputs.identity(options)
    layout = Layout(folder)
    tracemalloc.start()
    try:
        settings = RunSettings.of(options, inputs.loaded.model.device)
        plan = plan_ingest(layout, inputs, settings, identity)
        engine = LocalEngine(Extractor.of(layout, plan, inputs.loaded))
        done = list(engine.run(range(len(plan.partitions)), lambda *_: None))
        return len(done), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocations are counted rather than resident pages, which other things move too."""
    monkeypatch.setattr(prepare, "partition_tokens", lambda *_: 2_048)
    options = IngestOptions(
        corpus=str(write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(2_800))),
        model=str(tiny_model(tmp_path / "model")),
        saes=[str(tiny_sae(tmp_path / "sae"))],
        dtype="float32",
        device="cpu",
        check=False,
    )
    peak(tmp_path / "first", replace(options, max_tokens=1_000))  # allocated only once
    few, low = peak(tmp_path / "small", replace(options, max_tokens=8_000))
    many, high = peak(tmp_path / "large", replace(options, max_tokens=64_000))
    assert few < 6 < 24 < many
    # How far writing one partition overlaps collecting the next depends on timing, up to half as
    # much again. Keeping all of them would take several times as much.
    assert high < 2 * low


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has such settings")
def test_freed_arrays_are_used_again() -> None:
    """The pages of the second array and of those after it are those of the first."""
    script = """
import resource, sys
import numpy as np
from featuredb.store.files.memory import keep_freed_memory, return_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
np.ones(1 << 24, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 24, np.uint8)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
return_freed_memory()
print(kept, faults)
"""

    def faults(how: str) -> tuple[str, int]:
        run = subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True)
        kept, number = run.stdout.decode().split()
        return kept, int(number)

    kept, few = faults("keep")
    if kept == "False":
        pytest.skip("another C library")
    assert few * 10 < faults("leave")[1]
