"""An ingest on an accelerator, step by step: where its time goes, and how long it waits.

Each row of the table does what the row above does, and one thing more, so that what a step costs
is the difference: the model alone, SAEs launched after it, their activations copied to the host and
rounded, kept in memory, sorted and written. Beside tokens a second stand how busy the thread is
that launches everything, and how many cores the process uses.

Models and SAEs have real sizes and random weights. Runs on a CPU too, to try it out.
Run ``python -m benchmarks.device --help``.
"""

from __future__ import annotations

import collections
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ingest import extractor_of, with_compiled_layers
from benchmarks.shapes import SHAPES
from ingest.attached import AttachedSae
from ingest.engines.local import LocalEngine
from ingest.extract.batches import Batch, batches
from ingest.extract.forward import forward
from ingest.extract.partition import Extractor, collect
from ingest.extract.pipeline import as_recorded
from ingest.model.device import full_float32
from ingest.options import EncodeDtype
from ingest.sae.activations import JumpReLU

_KERNELS = 12


class Step(NamedTuple):
    """One row. seconds: of all. launching: CPU seconds of the thread that launches."""

    seconds: float
    launching: float
    cpu: float
    activations: int


def model_alone(extractor: Extractor) -> int:
    for batch in _batches(extractor):
        _states(extractor, batch)
    return 0


def launched(extractor: Extractor) -> int:
    """Whatever is found stays on the device."""
    for batch in _batches(extractor):
        for attached, x in _states(extractor, batch):
            attached.sae.launch(x, None, 2.0 * (extractor.per_row[attached.name] + 1))
    return 0


def on_host(extractor: Extractor) -> int:
    found = 0
    for parts in extractor.results(_batches(extractor), extractor.sources[0].rule, as_recorded):
        found += sum(len(each.place) for _, recorded in parts for each in recorded)
    return found


def kept(extractor: Extractor) -> int:
    found = 0

    def report(_: int, activations: int) -> None:
        nonlocal found
        found += activations

    for _ in collect(extractor, range(len(extractor.plan.partitions)), report):
        pass
    return found


def written(extractor: Extractor) -> int:
    summaries = LocalEngine(extractor).run(range(len(extractor.plan.partitions)), lambda *_: None)
    return sum(segment.rows for summary in summaries for segment in summary.segments)


STEPS: dict[str, Callable[[Extractor], int]] = {
    "model alone": model_alone,
    "SAEs launched": launched,
    "on the host": on_host,
    "kept": kept,
    "written": written,
}


def _batches(extractor: Extractor) -> Iterator[Batch]:
    (source,) = extractor.sources
    return batches(source.tokens, source.starts, extractor.plan.batch_tokens)


@torch.inference_mode()
def _states(extractor: Extractor, batch: Batch) -> list[tuple[AttachedSae, torch.Tensor]]:
    with full_float32():
        states = forward(extractor.model, [each.hook for each in extractor.saes], batch)
        return [(each, states[each.hook.name].flatten(0, 1)) for each in extractor.saes]


def with_thresholds(extractor: Extractor, l0: float) -> Extractor:
    """Its SAEs with JumpReLU instead, of a threshold that `l0` features of a token exceed."""
    batch = next(iter(_batches(extractor)))
    real = torch.arange(batch.token_ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
    changed = []
    for attached, x in _states(extractor, batch):
        rows = x[real.flatten().to(x.device)][:2_048].float()
        z = attached.sae.encoder.pre_activations(rows)
        count = max(1, round(l0 * len(rows)))
        threshold = z.flatten().float().topk(count).values[-1]
        encoder = replace(attached.sae.encoder, activation=JumpReLU(threshold))
        changed.append(replace(attached, sae=replace(attached.sae, encoder=encoder)))
    return replace(extractor, saes=changed, per_row={})


def timed(extractor: Extractor, work: Callable[[Extractor], int]) -> Step:
    """How long it takes, until the device has done all of it."""
    began, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
    activations = work(extractor)
    _synchronize(extractor.model.device)
    return Step(
        time.perf_counter() - began,
        time.thread_time() - thread,
        time.process_time() - process,
        activations,
    )


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def show(steps: dict[str, list[Step]], tokens: int, out: Console) -> None:
    """The best round of each step."""
    table = Table(
        "", "tokens/s", "µs a token", "M activations/s", "launching thread", "cores", box=None
    )
    for name, rounds in steps.items():
        best = min(rounds)
        millions = best.activations / best.seconds / 1e6
        table.add_row(
            name,
            f"{tokens / best.seconds:,.0f}",
            f"{best.seconds / tokens * 1e6:.2f}",
            f"{millions:.1f}" if best.activations else "",
            f"{best.launching / best.seconds:.0%}",
            f"{best.cpu / best.seconds:.1f}",
        )
    out.print(table)


def show_kernels(extractor: Extractor, work: Callable[[Extractor], int], out: Console) -> None:
    """What the device ran, and the share of the time in which it ran anything."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step = timed(extractor, work)
    events = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(event.self_device_time_total for event in events) / 1e6
    out.print(f"device busy {total / step.seconds:.0%} of {step.seconds:.1f} s")
    table = Table("kernel", "s", "share", "calls", box=None)
    for event in events[:_KERNELS]:
        seconds = event.self_device_time_total / 1e6
        table.add_row(event.key[:90], f"{seconds:.2f}", f"{seconds / total:.0%}", str(event.count))
    out.print(table)


def show_waits(extractor: Extractor, out: Console) -> None:
    """The lines at which the host waits for a CUDA device, and how often in how many batches."""
    queue = list(_batches(extractor))[:4]
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in extractor.results(queue, extractor.sources[0].rule, as_recorded):
            pass
    torch.cuda.set_sync_debug_mode("default")
    lines = collections.Counter(f"{each.filename}:{each.lineno}" for each in caught)
    out.print(
        f"waits in {len(queue)} batches of {len(extractor.saes)} SAEs, by line: {dict(lines)}"
    )


def encoded(extractor: Extractor, encode_dtype: EncodeDtype) -> Extractor:
    """Its SAEs encoded so."""
    if encode_dtype == "float32":
        return extractor
    saes = [replace(each, sae=each.sae.encoded_in(encode_dtype)) for each in extractor.saes]
    return replace(extractor, saes=saes)


def measure(extractor: Extractor, rounds: int, tokens: int, out: Console) -> None:
    """Print the table."""
    # Warm-up, which also tells how many activations to leave room for.
    list(LocalEngine(extractor).run([0], lambda *_: None))
    steps: dict[str, list[Step]] = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name, work in STEPS.items():
            steps[name].append(timed(extractor, work))
    show(steps, tokens, out)


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="gemma-2-2b")
@click.option("--saes", default=1, help="Random SAEs read in one pass.")
@click.option("--features", type=int, help="Of an SAE. Default: the shape's.")
@click.option("--l0", type=float, help="JumpReLU of so many active features, instead of top-k.")
@click.option("--documents", default=2_000, help="Wikipedia summaries to run.")
@click.option("--partitions", default=6)
@click.option("--rounds", default=1, help="Times each step runs; the best is shown.")
@click.option("--batch-tokens", default=None, type=int)
@click.option(
    "--encode-dtype",
    "encode_dtypes",
    type=click.Choice(get_args(EncodeDtype)),
    multiple=True,
    default=["float32"],
    help="May be repeated: a table for each.",
)
@click.option("--torch-compile", is_flag=True, help="With compiled layers.")
@click.option("--kernels", is_flag=True, help="Show what a CUDA device runs, and where it waits.")
def main(
    shape: str,
    saes: int,
    features: int | None,
    l0: float | None,
    documents: int,
    partitions: int,
    rounds: int,
    batch_tokens: int | None,
    encode_dtypes: tuple[EncodeDtype, ...],
    torch_compile: bool,
    kernels: bool,
) -> None:
    """Print what each step of an ingest sustains."""
    out = Console(width=150)
    folder = Path(tempfile.mkdtemp(prefix="featuredb-device-"))
    try:
        began = time.perf_counter()
        extractor = extractor_of(
            folder,
            documents,
            shape,
            saes,
            batch_tokens,
            partitions,
            features=features,
        )
        device = extractor.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        rule = f"JumpReLU of L0 {l0:g}" if l0 else "top-k"
        out.print(
            f"{shape}, {saes} SAEs of {extractor.saes[0].sae.d_sae:,} features, {rule}, on {name}, "
            f"torch {torch.__version__}; ready after {time.perf_counter() - began:.0f} s"
        )
        if l0 is not None:
            extractor = with_thresholds(extractor, l0)
        if torch_compile:
            extractor = with_compiled_layers(extractor)
        tokens = int(np.diff(extractor.sources[0].starts).sum())
        for encode_dtype in encode_dtypes:
            out.print(f"encoded in {encode_dtype}")
            chosen = encoded(extractor, encode_dtype)
            measure(chosen, rounds, tokens, out)
            if kernels and device.type == "cuda":
                show_kernels(chosen, written, out)
                show_waits(chosen, out)
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 1e9
            out.print(f"{tokens:,} tokens, device memory at most {peak:.1f} GB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
