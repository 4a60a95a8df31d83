"""Ingestion against the bare loop and against a cache that keeps everything in memory.

Side by side in one process, the same model, SAE and batches, rounds interleaved because machines
are noisy. Figures are medians and ratios:

(a) bare: forward to the hook, ``encode``, results dropped.
(b) featuredb: the same, and every activation sorted and written in both copies.
(c) a cache as described by Delphi: locations [n, 3] and values of all non-zero activations
    collected in memory, concatenated and saved as safetensors at the end.

Run ``python -m benchmarks.ingest --help``.
"""

from __future__ import annotations

import itertools
import re
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from ingest.attached import AttachedSae
from ingest.demo.fetch import model_folder, wikipedia_corpus
from ingest.demo.run import SAE_FOLDER
from ingest.extract.batches import Batch, batches, cut
from ingest.extract.forward import forward
from ingest.extract.partition import Extractor, collect, write
from ingest.inputs import load_inputs
from ingest.options import IngestOptions
from ingest.prepare import RunSettings, plan_ingest
from ingest.run_plan import Partition, read_summaries

_ROWS = 1_024
"""Rows that the in-memory cache encodes at a time: [N, d_sae] may not fit."""

Way = Callable[[Extractor, int], float]
"""Runs one partition, returns bytes written per activation it kept."""


@dataclass
class Measured:
    """Rounds of one way: tokens per second, bytes per activation."""

    rates: list[float]
    bytes_per_activation: float = 0.0


def bare(extractor: Extractor, number: int) -> float:
    """(a)"""
    with torch.inference_mode():
        for batch in _batches(extractor, number):
            for attached, x in _inputs(extractor, batch):
                attached.sae.encode(x)
    return 0.0


def featuredb_way(extractor: Extractor, number: int) -> float:
    """(b), writing after the model has run: nothing overlaps, the strictest measure."""
    (collected,) = collect(extractor, [number], lambda *_: None)
    summary = write(extractor, collected)
    size = 0
    for segment in summary.segments:
        size += sum(f.file.bytes for f in segment.feature_files)
        size += sum(f.file.bytes for f in segment.token_files)
    return size / sum(s.rows for s in summary.segments)


def screened(extractor: Extractor, number: int) -> float:
    """(b) with ``--encode-dtype screened``."""
    saes = [replace(each, sae=each.sae.encoded_in("screened")) for each in extractor.saes]
    return featuredb_way(replace(extractor, saes=saes), number)


def in_memory(extractor: Extractor, number: int) -> float:
    """(c), which keeps BOS and sinks, where almost every feature fires, among the rest."""
    locations, values, tokens = [], [], []
    with torch.inference_mode():
        for batch in _batches(extractor, number):
            for attached, x in _inputs(extractor, batch):
                width = batch.token_ids.shape[1]
                contexts = torch.from_numpy(batch.contexts).to(x.device)
                for start in range(0, len(x), _ROWS):
                    acts = attached.sae.encode(x[start : start + _ROWS])
                    row, feature = torch.nonzero(acts.abs() > 1e-5, as_tuple=True)
                    values.append(acts[row, feature].half())
                    row += start
                    found = [contexts[row // width], row % width, feature]
                    locations.append(torch.stack(found, dim=1))
            tokens.append(torch.from_numpy(batch.token_ids).reshape(-1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cache.safetensors")
        kept = torch.cat(locations).cpu()
        narrow = torch.stack([kept[:, 0], kept[:, 1], kept[:, 2]], dim=1).to(torch.int32)
        save_file(
            {
                "locations": narrow.to(torch.uint16) if int(kept.max()) < 65_536 else narrow,
                "activations": torch.cat(values).cpu(),
                "tokens": torch.cat(tokens).to(torch.int32),
            },
            path,
        )
        return path.stat().st_size / len(kept)


def extractor_of(
    folder: Path,
    documents: int,
    shape: str | None,
    saes: int,
    batch_tokens: int | None,
    partitions: int = 1,
    features: int | None = None,
) -> Extractor:
    """A planned ingest of Wikipedia summaries, in so many partitions of equally many contexts.

    shape: of a random model and random SAEs, None for the demo's. features: of a random SAE, None
    for the shape's.
    """
    model, references = str(model_folder()) if shape is None else "", [str(SAE_FOLDER)]
    if shape is not None:
        model = str(random_model(shape, folder / "model"))
        references = [str(random_sae(shape, folder / f"sae{i}", i, features)) for i in range(saes)]
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
    settings = RunSettings.of(options, inputs.loaded.model.device)
    plan = plan_ingest(layout, inputs, settings, inputs.identity(options))
    edges = np.linspace(0, plan.draft.corpora[0].n_contexts, partitions + 1).astype(int).tolist()
    cut_evenly = tuple(Partition(*edge) for edge in itertools.pairwise(edges))
    plan = msgspec.structs.replace(plan, partitions=cut_evenly)
    return Extractor.of(layout, plan, inputs.loaded)


def with_compiled_layers(extractor: Extractor) -> Extractor:
    """The same, by ``--torch-compile``."""
    return replace(extractor, model=replace(extractor.model, compiled=True))


def _batches(extractor: Extractor, number: int) -> list[Batch]:
    partition = extractor.plan.partitions[number]
    (source,) = extractor.sources
    starts = source.starts[partition.first_context : partition.end_context + 1]
    return list(batches(source.tokens, starts, extractor.plan.batch_tokens))


def _inputs(extractor: Extractor, batch: Batch) -> list[tuple[AttachedSae, torch.Tensor]]:
    states = forward(extractor.model, [p.hook for p in extractor.saes], batch)
    return [(p, states[p.hook.name].flatten(0, 1).float()) for p in extractor.saes]


@click.command()
@click.option("--documents", default=1_000, help="Wikipedia summaries to run.")
@click.option("--rounds", default=3, help="Times each way runs, interleaved.")
@click.option("--shape", type=click.Choice(list(SHAPES)), help="A random model of that shape.")
@click.option("--saes", default=1, help="Random SAEs read in one pass; with --shape.")
@click.option("--batch-tokens", default=None, type=int)
@click.option("--torch-compile", is_flag=True, help="Show featuredb with compiled layers too.")
def main(
    documents: int,
    rounds: int,
    shape: str | None,
    saes: int,
    batch_tokens: int | None,
    torch_compile: bool,
) -> None:
    """Print tokens per second of each way and the ratios, by default with the demo's model."""
    folder = Path(tempfile.mkdtemp(prefix="featuredb-bench-"))
    extractor = extractor_of(folder, documents, shape, saes, batch_tokens)
    tokens = int(extractor.sources[0].starts[-1])
    ways: dict[str, Way] = {
        "bare loop": bare,
        "featuredb": featuredb_way,
        "in-memory cache": in_memory,
    }
    dtype, cpu = extractor.model.dtype, extractor.model.device.type == "cpu"
    if cpu and all(each.sae.can_encode_in("screened", dtype) for each in extractor.saes):
        ways["featuredb, screened"] = screened
    if torch_compile:
        other = with_compiled_layers(extractor)
        ways["featuredb, compiled"] = lambda _, number: featuredb_way(other, number)
        featuredb_way(other, 0)  # its layers are compiled when they are first run
    measured = {name: Measured([]) for name in ways}
    activations = 0
    bare(extractor, 0)  # warm-up
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            size = way(extractor, 0)
            if extractor.model.device.type == "cuda":
                torch.cuda.synchronize(extractor.model.device)  # what was launched counts too
            measured[name].rates.append(tokens / (time.perf_counter() - began))
            if name == "featuredb":
                activations = _stored(extractor)
            measured[name].bytes_per_activation = size
    _show(measured, extractor, tokens, activations)
    shutil.rmtree(folder)


def _stored(extractor: Extractor) -> int:
    return sum(s.rows for s in read_summaries(extractor.layout, extractor.plan)[0].segments)


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


def _flops_per_token(extractor: Extractor) -> float:
    """Two per weight of the layers up to the last hook. Attention's products are left out."""
    last = max(p.hook.layer if p.hook.layer is not None else -1 for p in extractor.saes)
    weights = 0
    for name, parameter in extractor.model.model.named_parameters():
        layer = re.search(r"\.(\d+)\.", name)
        if layer is not None and int(layer[1]) <= last and parameter.ndim == 2:
            weights += parameter.numel()
    return 2.0 * weights


def _show(
    measured: dict[str, Measured], extractor: Extractor, tokens: int, activations: int
) -> None:
    base = statistics.median(measured["bare loop"].rates)
    table = Table("", "tokens/s", "of bare", "bytes per activation")
    for name, got in measured.items():
        rate = statistics.median(got.rates)
        size = f"{got.bytes_per_activation:.2f}" if got.bytes_per_activation else ""
        table.add_row(name, f"{rate:,.0f}", f"{rate / base:.3f}", size)
    out = Console()
    out.print(table)
    lengths = np.diff(extractor.sources[0].starts)
    batched = cut(lengths, extractor.plan.batch_tokens)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batched)
    waste = 1 - float(lengths.sum()) / padded
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = _matmul_rate(extractor.model.device, extractor.model.dtype)
    used = _flops_per_token(extractor) * statistics.median(measured["featuredb"].rates)
    out.print(
        f"model FLOP/s {used / 1e9:,.0f} G, {used / rate:.1%} of the {rate / 1e9:,.0f} G that a "
        "matrix product reaches here"
    )
    out.print(
        f"{tokens:,} tokens, {activations:,} activations (L0 {activations / tokens:.1f}), "
        f"padding {waste:.1%}, batches of {extractor.plan.batch_tokens} tokens, "
        f"{extractor.model.dtype} on {extractor.model.device}, peak memory {peak:,.0f} MB"
    )


if __name__ == "__main__":
    main()
