"""The graph of nearest directions equals that of all pairs, with any memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from featuredb.store import schemas
from featuredb.store.layout import Layout
from featuredb.store.vectors.directions import DirectionRows, Directions, half_rows, write_vectors
from featuredb.store.vectors.exact import ExactSearch
from ingest.derive.neighbors import iter_neighbors, neighbors
from tests.directions import clustered, cosines_of_all, sae_of, with_ties

Float32 = npt.NDArray[np.float32]

LONG = os.environ.get("FEATUREDB_LONG") == "1"


def nearest(rows: Float32) -> list[list[tuple[int, float]]]:
    """Per row its 50 nearest others, by the definition."""
    scores = cosines_of_all(rows)
    answer = []
    for own, line in enumerate(scores):
        order = np.lexsort((np.arange(len(rows)), -line))
        kept = order[order != own][: schemas.NEIGHBORS_KEPT]
        answer.append(list(zip(kept.tolist(), line[kept].tolist(), strict=True)))
    return answer


@pytest.fixture(scope="module")
def rows() -> Float32:
    return with_ties(clustered(3_000, 24))


@pytest.mark.parametrize("memory", [1 << 30, 1])
@pytest.mark.parametrize("cut", [1, 2_900])
def test_all_pairs(rows: Float32, memory: int, cut: int) -> None:
    parts = {"one": rows[:cut], "two": rows[cut:]}
    saes = [sae_of(name, len(part), 24) for name, part in parts.items()]
    other = sae_of("other", 5, 24)
    apart = type(other)(**{**{f: getattr(other, f) for f in other.__struct_fields__}, "hook": "x"})
    table = neighbors([saes[0], apart, saes[1]], parts | {"other": rows[:5]}, memory=memory)
    assert table.schema == schemas.NEIGHBORS
    of = np.array(table.column("sae").to_pylist())
    assert list(dict.fromkeys(of)) == ["one", "other", "two"]
    kept = table.filter(of != "other").to_pylist()
    begins = {"one": 0, "two": cut}
    got: list[list[tuple[int, float]]] = [[] for _ in range(len(rows))]
    for row in kept:
        line = got[begins[row["sae"]] + row["feature_id"]]
        line.append((begins[row["neighbor_sae"]] + row["neighbor_id"], row["score"]))
        assert row["rank"] == len(line)
    assert got == nearest(rows)


def test_rows_read_from_lancedb_a_part_at_a_time(rows: Float32, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    vectors = write_vectors(layout, "s", Directions(rows, rows[:, :2]))
    stored = {"s": DirectionRows(layout, [vectors], "decoder")}
    saes = [sae_of("s", len(rows), 24)]
    whole = neighbors(saes, {"s": rows})
    assert neighbors(saes, stored).equals(whole)
    parts = list(iter_neighbors(saes, stored, memory=1))
    assert len(parts) == 30
    assert {part.num_rows % 5_000 for part in parts} == {0}


def test_more_of_one_direction_than_is_ever_looked_at() -> None:
    rows = np.tile(clustered(1, 4), (4_300, 1))
    table = neighbors([sae_of("s", len(rows), 4)], {"s": rows})
    ids = table.column("neighbor_id").to_numpy().reshape(len(rows), -1)
    assert ids[0].tolist() == list(range(1, 51))
    assert ids[4_299].tolist() == list(range(50))


def test_few_features_and_none() -> None:
    assert neighbors([], {}).num_rows == 0
    assert neighbors([sae_of("s", 1, 4)], {"s": clustered(1, 4)}).num_rows == 0
    assert neighbors([sae_of("s", 3, 4)], {"s": clustered(3, 4)}).num_rows == 6


_MEASURED = """
import resource, sys
import numpy as np, faiss, pyarrow
from ingest.derive.neighbors import iter_neighbors
from tests.directions import clustered, sae_of
n, memory = map(int, sys.argv[1:])
rows = clustered(n, 256)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
list(iter_neighbors([sae_of("s", 200, 256)], {"s": rows[:200]}))
before = peak()
for table in iter_neighbors([sae_of("s", n, 256)], {"s": rows}, memory=memory):
    del table
print(peak() - before)
"""


@pytest.mark.parametrize("memory", [100_000_000, 200_000_000])
def test_memory_is_bounded(memory: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, "20000", str(memory)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) <= memory


@pytest.mark.skipif(not LONG, reason="minutes: set FEATUREDB_LONG=1")
def test_131072_features_agree_with_exact_search() -> None:
    rows = clustered(131_072, 768)
    exact = ExactSearch([half_rows(rows)], rows.__getitem__)
    checked = 0
    for table in iter_neighbors([sae_of("s", len(rows), 768)], {"s": rows}):
        for at in range(0, table.num_rows, 50 * 500):
            own = table.slice(at, 50)
            feature = own.column("feature_id")[0].as_py()
            found = exact.search(rows[feature], 51)
            others = found.rows != feature
            assert own.column("neighbor_id").to_pylist() == found.rows[others].tolist()
            assert own.column("score").to_pylist() == found.scores[others].tolist()
            checked += 1
    assert checked > 250
