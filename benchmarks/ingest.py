"""Ingestion against the bare loop and against a cache that keeps everything in memory.

Side by side in one process, the same model, SAE and batches, rounds interleaved because machines
are noisy; figures are medians and ratios:

(a) bare: forward to the hook, ``encode``, results dropped;
(b) featuredb: the same, and every activation sorted and written in both copies;
(c) a cache as Delphi describes its own: locations [n, 3] and values of all non-zero activations
    collected in memory, concatenated and saved as safetensors at the end.

Run ``python -m benchmarks.ingest --help``.
"""

from __future__ import annotations

import re
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.shapes import SHAPES, random_model, random_sae
from featuredb.store.layout import Layout
from ingest.demo.fetch import model_folder, wikipedia_corpus
from ingest.demo.run import SAE_FOLDER
from ingest.extract.batches import Batch, batches, cut
from ingest.extract.forward import Probe, forward
from ingest.extract.partition import Engine, collect, write
from ingest.inputs import load_inputs
from ingest.options import IngestOptions
from ingest.prepare import engine_of, make_plan
from ingest.run_plan import Partition, read_summaries

Way = Callable[[Engine, int], float]
"""Runs one partition, returns bytes written per activation it kept."""


@dataclass
class Measured:
    """Rounds of one way: tokens per second, bytes per activation."""

    rates: list[float]
    bytes_per_activation: float = 0.0


def bare(engine: Engine, number: int) -> float:
    """(a)"""
    with torch.inference_mode():
        for batch in _batches(engine, number):
            for probe, x in _inputs(engine, batch):
                probe.sae.encode(x)
    return 0.0


def featuredb_way(engine: Engine, number: int) -> float:
    """(b), writing after the model has run: nothing overlaps, the strictest measure."""
    summary = write(engine, collect(engine, number, lambda *_: None))
    size = 0
    for segment in summary.segments:
        size += sum(f.file.bytes for f in segment.feature_files)
        size += sum(f.file.bytes for f in segment.token_files)
    return size / sum(s.rows for s in summary.segments)


def in_memory(engine: Engine, number: int) -> float:
    """(c), which keeps BOS and sinks, where almost every feature fires, among the rest."""
    locations, values, tokens = [], [], []
    with torch.inference_mode():
        for batch in _batches(engine, number):
            for probe, x in _inputs(engine, batch):
                acts = probe.sae.encode(x).reshape(*batch.token_ids.shape, -1)
                found = torch.nonzero(acts.abs() > 1e-5)
                values.append(acts[tuple(found.T)].half())
                found[:, 0] = torch.from_numpy(batch.contexts)[found[:, 0]]
                locations.append(found)
            tokens.append(torch.from_numpy(batch.token_ids).reshape(-1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache.safetensors")
        kept = torch.cat(locations)
        narrow = torch.stack([kept[:, 0], kept[:, 1], kept[:, 2]], dim=1).to(torch.int32)
        save_file(
            {
                "locations": narrow.to(torch.uint16) if int(kept.max()) < 65_536 else narrow,
                "activations": torch.cat(values),
                "tokens": torch.cat(tokens).to(torch.int32),
            },
            path,
        )
        return path.stat().st_size / len(kept)


def _batches(engine: Engine, number: int) -> list[Batch]:
    partition = engine.plan.partitions[number]
    (source,) = engine.sources
    starts = source.starts[partition.first_context : partition.end_context + 1]
    return list(batches(source.tokens, starts, engine.plan.batch_tokens))


def _inputs(engine: Engine, batch: Batch) -> list[tuple[Probe, torch.Tensor]]:
    states = forward(engine.model, [p.hook for p in engine.probes], batch)
    return [(p, states[p.hook.name].flatten(0, 1).float()) for p in engine.probes]


@click.command()
@click.option("--documents", default=1_000, help="Wikipedia summaries to run.")
@click.option("--rounds", default=3, help="Times each way runs, interleaved.")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="A random model of that shape.")
@click.option("--saes", default=1, help="Random SAEs read in one pass; with --shape.")
@click.option("--batch-tokens", default=None, type=int)
def main(
    documents: int, rounds: int, shape: str | None, saes: int, batch_tokens: int | None
) -> None:
    """Print tokens per second of each way and the ratios, with the demo's model unless told."""
    folder = Path(tempfile.mkdtemp(prefix="featuredb-bench-"))
    model, references = str(model_folder()), [str(SAE_FOLDER)]
    if shape is not None:
        model = str(random_model(shape, folder / "model"))
        references = [str(random_sae(shape, folder / f"sae{i}", i)) for i in range(saes)]
    options = IngestOptions(
        corpus=str(wikipedia_corpus(documents)),
        model=model,
        saes=references,
        names=[f"sae{i}" for i in range(len(references))],
        batch_tokens=batch_tokens,
        check=False,
        progress=False,
    )
    inputs = load_inputs(options)
    layout = Layout(folder / "bench.fdb")
    layout.root.mkdir()
    plan = make_plan(layout, inputs, options, inputs.identity(options))
    plan = msgspec.structs.replace(
        plan, partitions=(Partition(0, plan.draft.corpora[0].n_contexts),)
    )
    engine = engine_of(layout, plan, inputs)
    tokens = int(engine.sources[0].starts[-1])
    ways: dict[str, Way] = {
        "bare loop": bare,
        "featuredb": featuredb_way,
        "in-memory cache": in_memory,
    }
    measured = {name: Measured([]) for name in ways}
    activations = 0
    bare(engine, 0)  # warm-up
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            size = way(engine, 0)
            if engine.model.device.type == "cuda":
                torch.cuda.synchronize(engine.model.device)  # what was launched counts too
            measured[name].rates.append(tokens / (time.perf_counter() - began))
            if name == "featuredb":
                activations = _stored(engine)
            measured[name].bytes_per_activation = size
    _show(measured, engine, tokens, activations)
    shutil.rmtree(folder)


def _stored(engine: Engine) -> int:
    return sum(s.rows for s in read_summaries(engine.layout, engine.plan)[0].segments)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product in the model's dtype: the device's ceiling, measured."""
    n = 2_048 if device.type == "cpu" else 8_192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2.0 * n**3 / statistics.median(times[1:])


def _flops_per_token(engine: Engine) -> float:
    """Two per weight of the layers up to the last hook; attention's products are left out."""
    last = max(p.hook.layer if p.hook.layer is not None else -1 for p in engine.probes)
    weights = 0
    for name, parameter in engine.model.model.named_parameters():
        layer = re.search(r"\.(\d+)\.", name)
        if layer is not None and int(layer[1]) <= last and parameter.ndim == 2:
            weights += parameter.numel()
    return 2.0 * weights


def _show(measured: dict[str, Measured], engine: Engine, tokens: int, activations: int) -> None:
    base = statistics.median(measured["bare loop"].rates)
    table = Table("", "tokens/s", "of bare", "bytes per activation")
    for name, got in measured.items():
        rate = statistics.median(got.rates)
        size = f"{got.bytes_per_activation:.2f}" if got.bytes_per_activation else ""
        table.add_row(name, f"{rate:,.0f}", f"{rate / base:.3f}", size)
    out = Console()
    out.print(table)
    lengths = np.diff(engine.sources[0].starts)
    batched = cut(lengths, engine.plan.batch_tokens)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batched)
    waste = 1 - float(lengths.sum()) / padded
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = _matmul_rate(engine.model.device, engine.model.dtype)
    used = _flops_per_token(engine) * statistics.median(measured["featuredb"].rates)
    out.print(
        f"model FLOP/s {used / 1e9:,.0f} G, {used / rate:.1%} of the {rate / 1e9:,.0f} G that a "
        "matrix product reaches here"
    )
    out.print(
        f"{tokens:,} tokens, {activations:,} activations (L0 {activations / tokens:.1f}), "
        f"padding {waste:.1%}, batches of {engine.plan.batch_tokens} tokens, "
        f"{engine.model.dtype} on {engine.model.device}, peak memory {peak:,.0f} MB"
    )


if __name__ == "__main__":
    main()
