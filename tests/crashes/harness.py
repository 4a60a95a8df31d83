"""Kill a step at a random point, read the database, rerun it, compare with an undisturbed run."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from featuredb.errors import DatabaseNotFoundError, DatabaseNotReadyError
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from tests.content import logical_content
from tests.crashes.steps import STEPS, Death, Scene, Stage, copy

Content = dict[str, pa.Table] | None


@dataclass
class Tally:
    """Number of kills, by step and by what a reader saw immediately after."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{sum(self.kills.values())} kills, no activation lost or doubled:"]
        for step in STEPS:
            seen = {what: n for (name, what), n in self.kills.items() if name == step}
            told = ", ".join(f"{n} saw {what}" for what, n in sorted(seen.items()))
            lines.append(f"  {step:12} {sum(seen.values()):4}  {told}")
        return "\n".join(lines)


def content(path: Path) -> Content:
    """Verified content that a reader sees, or None before the first snapshot."""
    try:
        return logical_content(path)
    except (DatabaseNotFoundError, DatabaseNotReadyError):
        return None


def same(one: Content, other: Content) -> bool:
    """Whether two contents are equal, to the bit."""
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(one[name].equals(other[name]) for name in one)


def readable(path: Path) -> None:
    """Read every kept snapshot. Raises if one cannot be read."""
    layout = Layout(path)
    if not layout.current.exists():
        return
    live = read_snapshot(layout)
    for file in layout.snapshots.glob("[0-9]*.json"):
        if int(file.stem) <= live.number:
            read_snapshot(layout, int(file.stem))


def kill_at_random(scene: Scene, folder: Path, kills: int, seed: int) -> Tally:
    """Kill writers `kills` times, in turn at each step of a database's life.

    Right after each kill a reader must see the content from before the step or from after it. After
    running the step again, it must see the content of a run without kills. Raises
    AssertionError.
    """
    stage = Stage(scene)
    # One run without kills: a copy before each step, the content after it, and its duration.
    life = folder / "life.fdb"
    before, after, lasts = {}, {}, {}
    for step in STEPS:
        before[step] = copy(life, folder / f"before-{step}.fdb")
        told = stage.run(life, step)
        assert told is not None
        lasts[step] = told
        after[step] = content(life)
    seen = {step: content(before[step]) for step in STEPS}
    chance = random.Random(seed)
    tally = Tally()
    steps = list(STEPS)
    for number in range(kills):
        step = steps[number % len(steps)]
        events, seconds = lasts[step]
        by_event = chance.random() < 0.7
        death = (
            Death(event=chance.randint(1, events))
            if by_event
            else Death(seconds=chance.uniform(0.2, 1.0) * seconds)
        )
        path = copy(before[step], folder / f"kill-{number}.fdb")
        what = f"{step}, {death}, seed {seed}"
        if stage.run(path, step, death) is not None:
            tally.kills[step, "it done"] += 1
            shutil.rmtree(path)
            continue
        found = content(path) if path.exists() else None
        readable(path)
        if same(found, seen[step]):
            tally.kills[step, "what was before"] += 1
        else:
            assert same(found, after[step]), f"a reader saw neither before nor after: {what}"
            tally.kills[step, "what comes after"] += 1
        stage.run(path, step)
        assert same(content(path), after[step]), f"the content differs after {what}"
        assert not (path / "staging").exists(), what
        shutil.rmtree(path)
    return tally
