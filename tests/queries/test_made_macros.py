"""A catalog whose macros were copied is the catalog that has them made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import featuredb
from featuredb.errors import CorruptDatabaseError
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Snapshot
from queries import made_macros
from queries.catalog_file import build_catalog
from tests.make_store import make_store
from tests.queries.worlds import made_world

FACTS = (
    "SELECT function_name, function_type, parameters, macro_definition, comment "
    "FROM duckdb_functions() WHERE NOT internal ORDER BY ALL",
    "SELECT view_name, sql, comment FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
    "SELECT table_name, column_name, column_index, data_type, comment FROM duckdb_columns() "
    "WHERE NOT internal ORDER BY ALL",
    "FROM vocabulary ORDER BY ALL",
    "FROM saes ORDER BY ALL",
    "FROM ingests ORDER BY ALL",
    "FROM corpora ORDER BY ALL",
)
SEEDS = (0, 5, 3)
"""Worlds of one SAE, three and two, with a BOS and without."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Snapshot]]:
    folder = tmp_path_factory.mktemp("stores")
    made = [(folder / f"{seed}.fdb", made_world(seed, 3)) for seed in SEEDS]
    stores = [(path, make_store(path, world)) for path, world in made]
    path, _ = stores[2]
    with featuredb.open(path) as db:
        ((sae, feature),) = db.sql(
            "SELECT sae, feature_id FROM features WHERE count > 0 LIMIT 1"
        ).fetchall()
    featuredb.add_monitor(path, "m", f'"{sae}/{feature}" > 0')  # decides a macro and a view
    return [(path, featuredb.open(path).snapshot) for path, _ in stores]


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    made_macros._made.clear()
    yield
    made_macros._made.clear()


def facts(ask: Callable[[str], Any], without: str = "-") -> list[str]:
    rows = [row for fact in FACTS for row in ask(fact.replace(without, "")).fetchall()]
    # DuckDB keeps the columns of an EXCLUDE in no order.
    return [_EXCLUDED.sub(lambda found: str(sorted(found[1].split(", "))), str(r)) for r in rows]


_EXCLUDED = re.compile(r"EXCLUDE \(([^)]*)\)")


def catalog(path: Path, snapshot: Snapshot) -> list[str]:
    build_catalog(Layout(path), snapshot)
    with duckdb.connect(str(path / "catalog.duckdb"), read_only=True) as client:
        return facts(client.sql)


def test_the_file_is_the_same_after_other_databases(stores: list[tuple[Path, Snapshot]]) -> None:
    alone = []
    for store in stores:
        alone.append(catalog(*store))
        made_macros._made.clear()
    for at in (0, 1, 2, 0, 1, 1, 2, 0):
        assert catalog(*stores[at]) == alone[at]
    (made,) = made_macros._made.values()
    assert len(made.kept) <= len(stores) + 1  # the last again, and no other
    databases = made.connection.execute("FROM duckdb_databases() WHERE NOT internal").fetchall()
    assert len(databases) == len(made.kept) + 1


def test_a_handle_is_the_same(stores: list[tuple[Path, Snapshot]]) -> None:
    path, snapshot = stores[1]
    with featuredb.open(path) as db:
        alone = facts(db.sql, ", comment")  # it has none of its own
    build_catalog(Layout(path), snapshot)
    (made,) = made_macros._made.values()
    assert len(made.kept) == 1
    with featuredb.open(path) as db:
        assert facts(db.sql, ", comment") == alone
        sae = snapshot.saes[0].name
        assert db.sql("FROM near(?)", [f"{sae}/0"]).columns[:1] == ["of_sae"]


def test_few_sets_are_kept(
    stores: list[tuple[Path, Snapshot]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_macros, "_MOST", 1)
    alone = catalog(*stores[1])
    catalog(*stores[2])
    (made,) = made_macros._made.values()
    assert len(made.kept) == 1
    assert catalog(*stores[1]) == alone


def test_after_a_catalog_that_could_not_be_made(
    stores: list[tuple[Path, Snapshot]], tmp_path: Path
) -> None:
    alone = catalog(*stores[1])
    path = tmp_path / "broken.fdb"
    broken = make_store(path, made_world(SEEDS[1], 3))
    (path / broken.derived.features.path).unlink()
    with pytest.raises(CorruptDatabaseError, match="cannot be opened"):
        build_catalog(Layout(path), broken)
    assert not list(path.glob("*catalog.duckdb*.tmp*"))
    assert catalog(*stores[1]) == alone
