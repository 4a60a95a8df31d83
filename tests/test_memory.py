"""Publishing, compacting, verifying and whole-table SQL stay within the memory they are given.

The data is several times that: one decoded feature would exceed the limit. Each step runs in a
separate process, which reports how far its resident memory rose above that after the same step on a
small store. So interpreter, libraries and compiled code do not count.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import featuredb
from benchmarks import made_store
from benchmarks.synthetic import World
from featuredb.cli import main
from featuredb.errors import SQLError
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Draft, Segment
from featuredb.store.values import stored_values
from ingest.extract.runs import Codes

MB = 10**6
BOUND = 160 * MB
SQL_BOUND = 200 * MB
ROW = 4 + 8 + 4 + 4
"""Bytes of a row of `activations`, without the name of its SAE."""

DENSE = 0
"""A feature that fires on three tokens of five."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measured through /proc")

_SPAWN = multiprocessing.get_context("spawn")


class Loud(World):
    """A world with evenly rarer features, and one that is nearly always on."""

    def codes(self, partition: int) -> Codes:
        """As `World.codes`. `l0` features are drawn per token, and counted once."""
        positions = self._positions(self.documents(partition))
        rng = self._rng(6, partition)
        shape = len(positions), round(self.l0)
        drawn = 1 + (self.features - 1) * rng.random(shape, np.float32) ** 2
        ids = drawn.astype(np.uint16)
        ids[rng.random(shape[0], np.float32) < 0.6, 0] = DENSE
        ids.sort(axis=1)
        new = np.ones(shape, bool)
        new[:, 1:] = ids[:, 1:] != ids[:, :-1]
        values = rng.standard_exponential(int(new.sum()), np.float32)
        return Codes(positions[np.nonzero(new)[0]], ids[new], stored_values(values))


LARGE = Loud(partitions=8, partition_tokens=250_000, features=2_048, l0=16, dimensions=64)
SMALL = Loud(partitions=2, partition_tokens=2_000, features=2_048, l0=16, dimensions=64)


class Unpublished(NamedTuple):
    """A store of runs, yet without a snapshot."""

    folder: Path
    world: World
    draft: Draft
    runs: list[Segment]

    def copy(self, folder: Path) -> Unpublished:
        """The same store at another place, its files linked."""
        shutil.copytree(self.folder, folder, copy_function=os.link)
        return self._replace(folder=folder)

    def publish(self, memory: int, *, merged: bool) -> None:
        """Publish it, its runs as they are or merged into one segment."""
        level = 0 if merged else 1
        runs = [msgspec.structs.replace(run, level=level) for run in self.runs]
        layout = Layout(self.folder)
        made_store.publish_runs(layout, self.draft, runs, self.world, memory)


def _written(folder: Path, world: World) -> Unpublished:
    draft = made_store.store_texts(Layout(folder), world)
    write = partial(made_store.write_partition, folder, world)
    with ProcessPoolExecutor(2, mp_context=_SPAWN) as pool:
        written = pool.map(write, range(world.partitions), world.first_contexts()[:-1].tolist())
        return Unpublished(folder, world, draft, [run for run, _, _ in written])


class Stores(NamedTuple):
    """One store twice, small and large: as runs, and published in several segments."""

    runs: tuple[Unpublished, Unpublished]
    segments: tuple[Path, Path]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("stores")
    small, large = _written(folder / "small", SMALL), _written(folder / "large", LARGE)
    published = small.copy(folder / "small.segments"), large.copy(folder / "large.segments")
    for own in published:
        own.publish(1 << 30, merged=False)
    return Stores((small, large), (published[0].folder, published[1].folder))


class Published(NamedTuple):
    """The stores of one segment, and the growth of memory while the large one was made."""

    folders: tuple[Path, Path]
    grown: int


@pytest.fixture(scope="module")
def published(stores: Stores) -> Published:
    small, large = stores.runs
    grown = growth(_publish, small, large)
    return Published((_published(small), _published(large)), grown)


def _published(store: Unpublished) -> Path:
    return store.folder.with_suffix(".published")


def _publish(store: Unpublished) -> None:
    store.copy(_published(store)).publish(BOUND, merged=True)


def _compact(folder: Path) -> None:
    assert featuredb.compact(folder, memory=f"{BOUND}B").after == 1


def _verify(folder: Path) -> None:
    assert featuredb.verify(folder, memory=f"{BOUND}B").ok


def _ask(query: str, folder: Path) -> None:
    with featuredb.open(folder, memory=f"{SQL_BOUND}B") as db:
        assert db.sql(query).fetchall()


Given = TypeVar("Given")


def _child(task: Callable[[Any], None], small: Any, large: Any, answer: Connection) -> None:
    task(small)
    gc.collect()
    # The peak so far has the compiler's in it.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident_peak()
    task(large)
    answer.send(_resident_peak() - before)


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(kilobytes) * 1024


def growth(task: Callable[[Given], None], small: Given, large: Given) -> int:
    """Bytes by which a task on a large store takes more than the process held after a small one."""
    ours, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_child, args=(task, small, large, theirs))
    process.start()
    theirs.close()
    try:
        grown: int = ours.recv()
    finally:
        process.join()
    return grown


def test_the_data_is_several_times_the_bound(stores: Stores) -> None:
    rows = sum(run.rows for run in stores.runs[1].runs)
    dense = np.load(stores.runs[1].folder / stores.runs[1].runs[0].directory.path)[1]
    assert ROW * rows > 3 * max(BOUND, SQL_BOUND)
    assert 8 * dense > stores.runs[1].runs[0].recorded_tokens * 4


def test_publishing_merges_and_derives_in_the_memory_given(published: Published) -> None:
    assert published.grown < BOUND


def test_verifying_stays_in_the_memory_given(published: Published) -> None:
    assert growth(_verify, *published.folders) < BOUND


def test_compacting_stays_in_the_memory_given(stores: Stores) -> None:
    assert growth(_compact, *stores.segments) < BOUND


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM activations ORDER BY activation, context_id, token_index "
        "OFFSET (SELECT sum(count) // 2 FROM features) LIMIT 5",
        "SELECT context_id, token_index, count(*) AS n FROM activations GROUP BY ALL "
        "ORDER BY n DESC LIMIT 5",
    ],
    ids=["sorted", "grouped"],
)
def test_whole_table_sql_stays_in_the_memory_given(published: Published, query: str) -> None:
    assert growth(partial(_ask, query), *published.folders) < SQL_BOUND


def test_sql_spills_outside_the_database_and_cleans_up(published: Published) -> None:
    folder = published.folders[1]
    before = sorted(folder.rglob("*"))
    with featuredb.open(folder, memory="100MB") as db:
        ((where,),) = db.sql("SELECT current_setting('temp_directory')").fetchall()
        assert Path(where).parent.parent == Path(tempfile.gettempdir())
        again = pickle.loads(pickle.dumps(db))
        with again:
            limit = again.sql("SELECT current_setting('memory_limit')").fetchall()
        assert limit == db.sql("SELECT current_setting('memory_limit')").fetchall()
        assert limit == [("76.2 MiB",)]
        db.sql(
            "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY hash(i)) AS n "
            "FROM range(10000000) AS t(i))"
        ).fetchall()
        assert Path(where).exists()
    gc.collect()
    assert not Path(where).exists()
    assert sorted(folder.rglob("*")) == before


def test_too_little_memory_for_sql_is_one_line_that_says_so(published: Published) -> None:
    result = CliRunner().invoke(
        main,
        ["sql", str(published.folders[0]), "--memory", "100MB",
         "SELECT list(hash(i)) FROM range(100000000) AS t(i)"],
    )  # fmt: skip
    assert result.exit_code == SQLError.exit_code
    (line,) = result.stderr.strip().splitlines()
    assert "ran out of memory" in line
    assert "raise --memory" in line


def test_what_a_killed_process_spilled_goes_with_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal; from featuredb.store.files.scratch import spill_folder; "
        "print(spill_folder())"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def made(ending: str) -> Path:
        command = [sys.executable, "-c", f"{script}; {ending}"]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return Path(told.stdout.strip()).parent

    killed = made("import sys; sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.parent == tmp_path
    assert killed.exists()
    # Long enough ago that it cannot be one that is just being made.
    os.utime(killed, (0, 0))
    assert not made("").exists()
    assert list(tmp_path.iterdir()) == []
