"""The parts of an SAE's encoder on a CUDA device: its product, with their errors, and choice.

Residuals of a bfloat16 model are bfloat16, so that their product with float32 weights can be had
from bfloat16 products of two or three parts of the weights, added in float32. Errors are against
float64, relative to the root mean square of the pre-activations; "flips" are features of the first
rows that one side alone finds above the threshold of L0 100, per token.

Run ``python -m benchmarks.products``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ingest.sae.codes import compact, in_rows
from ingest.sae.split import bfloat16_parts

_CHECKED_ROWS = 512


def by_parts(x: Tensor, weights: list[Tensor]) -> Tensor:
    """x @ weights, the smallest part first."""
    z = torch.mm(x, weights[-1], out_dtype=torch.float32)
    for part in weights[-2::-1]:
        z += torch.mm(x, part, out_dtype=torch.float32)
    return z


def by_parts_in_place(x: Tensor, weights: list[Tensor]) -> Tensor:
    """The same, each product added by the product itself."""
    z = torch.mm(x, weights[-1], out_dtype=torch.float32)
    for part in weights[-2::-1]:
        z = torch.addmm(z, x, part, out_dtype=torch.float32)
    return z


def stacked(x: Tensor, weights: Tensor) -> Tensor:
    """The same as one longer product."""
    return torch.mm(x.repeat(1, len(weights) // x.shape[1]), weights, out_dtype=torch.float32)


def tf32(x: Tensor, weights: Tensor) -> Tensor:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return x @ weights
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def median_ms(work: Callable[[], object]) -> float:
    """Milliseconds on the device, of the median of some runs."""
    times = []
    for number in range(6):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if number:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def products(rows: int, d: int, d_sae: int, table: Table) -> None:
    """One row for each way to multiply."""
    x = torch.randn(rows, d, device="cuda").bfloat16()
    x[:, :4] *= 30  # a few large dimensions, as in residuals
    weights = torch.randn(d, d_sae, device="cuda") / d**0.5
    flops = 2.0 * rows * d * d_sae
    two, three = bfloat16_parts(weights, 2), bfloat16_parts(weights, 3)
    long_two, long_three = torch.cat(two[::-1]), torch.cat(three[::-1])
    wide = x.float()
    ways: dict[str, Callable[[], Tensor]] = {
        "float32": lambda: wide @ weights,
        "TF32": lambda: tf32(wide, weights),
        "1 x bf16": lambda: torch.mm(x, two[0], out_dtype=torch.float32),
        "2 x bf16": lambda: by_parts(x, two),
        "3 x bf16": lambda: by_parts(x, three),
        "3 x bf16, addmm": lambda: by_parts_in_place(x, three),
        "2 x bf16, one product": lambda: stacked(x, long_two),
        "3 x bf16, one product": lambda: stacked(x, long_three),
    }
    exact = wide[:_CHECKED_ROWS].double() @ weights.double()
    scale = float(exact.square().mean().sqrt())
    threshold = exact.flatten().float().topk(100 * _CHECKED_ROWS).values[-1].double()
    for name, way in ways.items():
        try:
            z = way()[:_CHECKED_ROWS].double()
            ms = median_ms(way)
        except (RuntimeError, TypeError) as error:
            table.add_row(f"{rows} x {d} x {d_sae}", name, str(error).splitlines()[0][:60])
            continue
        error = float((z - exact).square().mean().sqrt()) / scale
        worst = float((z - exact).abs().max()) / scale
        flips = int(((z > threshold) != (exact > threshold)).sum()) / _CHECKED_ROWS
        table.add_row(
            f"{rows} x {d} x {d_sae}", name, f"{ms:.2f}", f"{flops / ms / 1e9:.0f}",
            f"{error:.1e}", f"{worst:.1e}", f"{flips:.3f}",
        )  # fmt: skip
    del exact
    z = way()
    rest: dict[str, Callable[[], object]] = {
        "top-k of 64": lambda: in_rows(*reversed(z.topk(64, dim=1, sorted=False))),
        "above a threshold": lambda: compact(z, z > float(threshold), None, 150 * rows),
    }
    for name, work in rest.items():
        table.add_row(f"{rows} x {d_sae}", name, f"{median_ms(work):.2f}")


def device_limits(out: Console) -> None:
    """What copies and one large product reach."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    out.print(f"copy on the device {2 * a.numel() / median_ms(lambda: b.copy_(a)) / 1e9:.2f} TB/s")
    host = torch.empty(50_000_000, dtype=torch.uint8)
    pinned = host.pin_memory()
    part = a[: len(host)]
    for name, place in [("pageable", host), ("pinned", pinned)]:
        ms = median_ms(lambda place=place: place.copy_(part, non_blocking=True))
        out.print(f"50 MB to {name} memory: {len(host) / ms / 1e6:.1f} GB/s")
    n = 8_192
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(n, n, device="cuda").to(dtype)
        out.print(f"{dtype} product: {2 * n**3 / median_ms(lambda x=x: x @ x) / 1e9:,.0f} TFLOP/s")
    keys = torch.randint(0, 1 << 50, (22_000_000,), device="cuda")
    out.print(f"sort of 22 M int64: {median_ms(keys.sort):.1f} ms")


@click.command()
@click.option("--rows", multiple=True, type=int, default=(8_192,))
@click.option("--d", multiple=True, type=int, default=(2_304, 4_096))
@click.option("--features", multiple=True, type=int, default=(16_384, 131_072))
def main(rows: tuple[int, ...], d: tuple[int, ...], features: tuple[int, ...]) -> None:
    """Print milliseconds, TFLOP/s and errors of each way."""
    out = Console(width=150)
    torch.backends.cuda.matmul.allow_tf32 = False
    device_limits(out)
    columns = ("size", "way", "ms", "TFLOP/s", "error", "worst", "flips a token")
    table = Table(*columns, box=None)
    for n in rows:
        for width in d:
            for d_sae in features:
                products(n, width, d_sae, table)
    out.print(table)


if __name__ == "__main__":
    main()
