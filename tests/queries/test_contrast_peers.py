"""What other tools say of the same pooled matrix: run once in an environment of their own.

``tests/fixtures/contrast/peers.json`` says which code made it, and from what.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from featuredb.store.snapshot import LoadCheck, Sae
from queries.contrasts.scores import of_two, with_log_odds
from queries.contrasts.trend import STRONGEST, midranks, trend
from queries.contrasts.two_sets import Sides, difference
from tests.queries.test_two_sets import active_in

FIXTURE = Path(__file__).parents[1] / "fixtures" / "contrast" / "peers.json"


def test_parity() -> None:
    made = json.loads(FIXTURE.read_text())
    group = np.array(list(made["group"])) == "1"
    flat = np.frombuffer(base64.b64decode(made["pooled"]), np.float16)
    pooled = flat.reshape(len(group), -1).astype(np.float32)
    pairs = active_in(pooled.T)
    sides = Sides.of(np.where(group, 1, 2).astype(np.uint8))
    sae = Sae("x", "", "", "relu", "0", "h", None, 1, 1, 24, "float32", LoadCheck(0, 0, 1, 0, 1, 1))
    scores = of_two([sae], [difference(pairs, sides)], sides)
    columns = with_log_odds(scores, sides.n[0, 0], sides.n[1, 0], 24).columns
    assert columns["difference"] == pytest.approx(made["interp_embed"], abs=1e-6)
    assert columns["log_odds_low"] == pytest.approx(made["embedding_atlas"], abs=1e-6)
    assert np.count_nonzero(columns["log_odds_low"])
    year = np.array(made["year"])
    found = trend(pairs, year, midranks(year))
    # Where fewer units are active, or values tie at the last, theirs takes units as they come.
    strongest = np.sort(pooled, axis=0)[::-1]
    definite = (strongest[STRONGEST - 1] > 0) & (strongest[STRONGEST - 1] > strongest[STRONGEST])
    assert definite.sum() > 20
    theirs = np.array(made["hypothesaes"])
    assert found.separation[definite] == pytest.approx(theirs[definite], abs=1e-6)
    assert found.t == pytest.approx(made["ttest"], abs=1e-6)
