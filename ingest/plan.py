"""The plan: everything an ingest was asked for, written down before the model runs.

`staging/plan.json` names the numbered partitions; a partition is done when its summary file
exists. The same command finds the plan, checks that nothing it rests on has changed, and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from featuredb.errors import CorruptDatabaseError, PlanMismatchError
from featuredb.files import fsync_path, write_atomically
from featuredb.layout import Layout
from featuredb.snapshot import Draft, Segment

_BYTES_PER_ACTIVATION = 48
"""Peak host memory per activation of a partition while it is sorted and written (measured)."""

_SMALLEST_PARTITION = 65_536
_PARTITIONS = 64


class Partition(msgspec.Struct, frozen=True):
    """Contexts first_context <= id < end_context."""

    first_context: int
    end_context: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """identity: what must not change between attempts, as readable text by name. corpora, saes:
    the ids and the names of those that are run, of the draft's."""

    identity: dict[str, str]
    started: str
    batch_tokens: int
    sink_norms: dict[str, float | None]
    draft: Draft
    corpora: tuple[str, ...]
    saes: tuple[str, ...]
    partitions: tuple[Partition, ...]


class Summary(msgspec.Struct, frozen=True):
    """A finished partition: its runs, one per SAE, in the plan's order."""

    partition: int
    tokens: int
    seconds: float
    segments: tuple[Segment, ...]


def plan_path(layout: Layout) -> Path:
    return layout.staging / "plan.json"


def summary_path(layout: Layout, partition: int) -> Path:
    return layout.staging / f"p{partition:06d}.json"


def run_id(plan: Plan, partition: int, sae: int, writer: str = "") -> str:
    """Segment id of one SAE's run over one partition. writer: who wrote it, where several may."""
    own = f"-{writer}" if writer else ""
    return f"r{plan.draft.number:06d}-{partition:06d}-{sae}{own}"


def write_plan(layout: Layout, plan: Plan) -> None:
    """From here on the ingest goes on instead of starting over."""
    # Folders of what it rests on may be new: their names must not be lost after it.
    fsync_path(layout.root)
    write_atomically(plan_path(layout), msgspec.json.encode(plan))


def read_plan(layout: Layout) -> Plan | None:
    """The plan of an unfinished ingest, None when there is none. Raises `CorruptDatabaseError`."""
    path = plan_path(layout)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise CorruptDatabaseError(
            f"{path} cannot be read ({error}): delete {layout.root} and ingest again"
        ) from error


def write_summary(layout: Layout, summary: Summary) -> None:
    """Mark a partition as done; its runs are already in place."""
    write_atomically(summary_path(layout, summary.partition), msgspec.json.encode(summary))


def read_summaries(layout: Layout, plan: Plan) -> dict[int, Summary]:
    """Finished partitions by number. One whose run is gone, or unreadable, counts as unfinished."""
    found = {}
    for number in range(len(plan.partitions)):
        try:
            raw = summary_path(layout, number).read_bytes()
            summary = msgspec.json.decode(raw, type=Summary)
        except (FileNotFoundError, msgspec.MsgspecError):
            continue
        if all(layout.segment(s.id).is_dir() for s in summary.segments):
            found[number] = summary
    return found


def check_identity(layout: Layout, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises `PlanMismatchError` naming what differs from the command that began this ingest."""
    changed = differences(before, now)
    if changed:
        raise PlanMismatchError(
            f"{layout.root} holds an unfinished ingest of something else ({'; '.join(changed)}): "
            "repeat the first command to finish it, or give another path"
        )


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two identities, in words, by name."""
    return [
        f"{name} was {before.get(name, 'unset')}, is now {now.get(name, 'unset')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def partition_tokens(total: int, l0: float, memory: int) -> int:
    """Tokens per partition: some 64 of them, each small enough to be sorted in a quarter of
    `memory` bytes, none so small that files outnumber their use."""
    by_memory = int(memory / 4 / (_BYTES_PER_ACTIVATION * max(1.0, l0)))
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
