"""The plan of an ingest, written before the model runs, and the summaries of its partitions.

A partition is done when it has a valid summary. The same command finds ``staging/plan.json``,
checks that its inputs have not changed, and continues.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from featuredb.errors import CorruptDatabaseError, IngestError, PlanMismatchError
from featuredb.store.files.atomic import fsync_path, write_atomically
from featuredb.store.files.memory import Budget
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft, File, Segment

_BYTES_PER_ACTIVATION = 48
"""Peak host memory per activation of a partition while it is sorted and written."""

_SMALLEST_PARTITION = 65_536
_PARTITIONS = 64


class Partition(msgspec.Struct, frozen=True):
    """Contexts first_context <= id < end_context."""

    first_context: int
    end_context: int


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingest will do.

    id: random, to distinguish a repeated command's plan from a discarded one. identity: what
    must not change between attempts, as readable text by name. corpora, saes: ids and names of
    those of the draft that are run.
    """

    id: str = ""
    identity: dict[str, str]
    started: str
    batch_tokens: int
    sink_norms: dict[str, float | None]
    draft: Draft
    corpora: tuple[str, ...]
    saes: tuple[str, ...]
    partitions: tuple[Partition, ...]


class Summary(msgspec.Struct, frozen=True):
    """A finished partition: its segments, one per SAE, in the plan's order. plan: the plan's id."""

    partition: int
    tokens: int
    seconds: float
    segments: tuple[Segment, ...]
    plan: str = ""


def plan_path(layout: Layout) -> Path:
    return layout.staging / "plan.json"


def summary_path(layout: Layout, partition: int) -> Path:
    return layout.staging / f"p{partition:06d}.json"


def new_plan_id() -> str:
    """A new random id."""
    return uuid.uuid4().hex


def run_id(plan: RunPlan, partition: int, sae: int, writer: str = "") -> str:
    """Segment id of one SAE and one partition. writer: the worker, if several may write it."""
    suffix = f"-{writer}" if writer else ""
    return f"r{plan.draft.number:06d}-{partition:06d}-{sae}{suffix}"


def write_plan(layout: Layout, plan: RunPlan) -> None:
    """Write the plan. From then on the ingest continues instead of starting over."""
    # Folders it depends on may be new, and their names must not be lost after it.
    fsync_path(layout.root)
    write_atomically(plan_path(layout), msgspec.json.encode(plan))


def read_plan(layout: Layout) -> RunPlan | None:
    """The plan of an unfinished ingest, None if there is none. Raises `CorruptDatabaseError`."""
    path = plan_path(layout)
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunPlan)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        giving_up = (
            f"give it up with `featuredb vacuum {layout.root} --unfinished`"
            if layout.current.exists()
            else f"delete {layout.root} and ingest again"
        )
        raise CorruptDatabaseError(f"{path} cannot be read ({error}): {giving_up}") from error


def refuse_without_plan(layout: Layout, plan_id: str) -> None:
    """Raise `IngestError` if the plan has been given up, or finished by others.

    A worker may outlive the driver and the ingest.
    """
    plan = read_plan(layout)
    if plan is None or plan.id != plan_id:
        raise IngestError(
            f"the ingest into {layout.root} was given up or finished by others meanwhile: "
            "run the command again"
        )


def write_summary(layout: Layout, summary: Summary) -> None:
    """Mark a partition as done. Its segments are already in place.

    Creates no folder: without ``staging/`` no plan exists. Raises as `refuse_without_plan`.
    """
    refuse_without_plan(layout, summary.plan)
    path = summary_path(layout, summary.partition)
    write_atomically(path, msgspec.json.encode(summary), make_folder=False)


def read_summaries(layout: Layout, plan: RunPlan) -> dict[int, Summary]:
    """Finished partitions by number.

    A summary that cannot be read, is of another plan, or has a file that is missing or of another
    size, does not count.
    """
    summaries = {}
    for number in range(len(plan.partitions)):
        try:
            raw = summary_path(layout, number).read_bytes()
            summary = msgspec.json.decode(raw, type=Summary)
        except (FileNotFoundError, msgspec.MsgspecError):
            continue
        if summary.plan == plan.id and all(_is_whole(layout, s) for s in summary.segments):
            summaries[number] = summary
    return summaries


def _is_whole(layout: Layout, segment: Segment) -> bool:
    for file in _files(segment):
        path = layout.root / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            return False
    return True


def _files(segment: Segment) -> Iterator[File]:
    yield from (listed.file for listed in segment.feature_files)
    yield from (listed.file for listed in segment.token_files)
    yield from (segment.directory, segment.sinks)


def check_identity(layout: Layout, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise `PlanMismatchError`, naming what differs from the command that began this ingest."""
    changed = differences(before, now)
    if changed:
        raise PlanMismatchError(
            f"{layout.root} holds an unfinished ingest of something else ({'; '.join(changed)}): "
            "repeat the first command to finish it, or give another path"
        )


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The differences of two identities, in words."""
    return [
        f"{name} was {before.get(name, 'unset')}, is now {now.get(name, 'unset')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def partition_tokens(total: int, l0: float, memory: Budget) -> int:
    """Tokens per partition: about 64 partitions, each sorted within a quarter of the budget, and
    none so small that there would be too many files."""
    by_memory = int(memory.bytes / 4 / (_BYTES_PER_ACTIVATION * max(1.0, l0)))
    return max(1_024, min(by_memory, max(_SMALLEST_PARTITION, -(-total // _PARTITIONS))))


def cut_partitions(
    starts: npt.NDArray[np.int64], first_context: int, tokens: int
) -> tuple[Partition, ...]:
    """Consecutive contexts of about `tokens` tokens each.

    starts: int64 [n + 1], where each context begins in tokens.bin.
    """
    n = len(starts) - 1
    pieces = max(1, round(float(starts[-1]) / tokens))
    targets = starts[-1] * np.arange(1, pieces) / pieces
    inner = np.searchsorted(starts, targets)
    edges: Sequence[int] = sorted({0, n, *(int(i) for i in inner)})
    return tuple(Partition(first_context + a, first_context + b) for a, b in pairwise(edges))
