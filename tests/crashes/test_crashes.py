"""Writers killed at random points neither lose nor duplicate data."""

from __future__ import annotations

import os
from pathlib import Path

from tests.crashes.harness import kill_at_random
from tests.crashes.steps import Scene

KILLS = 210 if os.environ.get("FEATUREDB_LONG") else 14
SEED = int(os.environ.get("FEATUREDB_SEED", "1"))


def test_killed_at_random_points(tmp_path: Path) -> None:
    tally = kill_at_random(Scene.make(tmp_path), tmp_path, KILLS, SEED)
    print(tally)
    assert sum(tally.kills.values()) == KILLS
    # Not all of them too late: most died before they were done.
    assert sum(n for (_, what), n in tally.kills.items() if what != "it done") > KILLS // 2
