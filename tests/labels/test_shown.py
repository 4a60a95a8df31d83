"""Wherever an answer names a feature it says the feature's label, too: as text, HTML and JSON."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.database import Database
from featuredb.render.formats import to_bytes
from tests.steering.conftest import make_steerable

TEXT = "river bridge stone water tower"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose every feature has a label, one effect of each kind and a monitor."""
    folder = tmp_path_factory.mktemp("shown")
    path = make_steerable(folder)
    with featuredb.open(path) as db:
        features = db.sql("SELECT sae, feature_id FROM features").fetchall()
        frequent = db.sql("SELECT arg_max(feature_id, density) FROM features WHERE sae = 'early'")
        ((number,),) = frequent.fetchall()
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sae", "feature_id", "text"])
        rows.writerows([sae, n, f"meaning of {sae} {n}"] for sae, n in features)
    featuredb.import_labels(path, folder / "labels.csv")
    featuredb.add_monitor(path, "watch", f"early/{number} > q0.9")
    featuredb.measure(path, [f"early/{number}"], prompts=["river bridge"])
    return path


@pytest.fixture(scope="module")
def db(path: Path) -> Iterator[Database]:
    with featuredb.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def feature(db: Database) -> str:
    """The one that the monitor reads."""
    return str(db.monitors[0].features[0])


def _rarest(db: Database) -> str:
    """The feature that fires in the fewest contexts."""
    sql = "SELECT sae || '/' || feature_id FROM features WHERE n_contexts > 0 ORDER BY n_contexts"
    return str(db.sql(f"{sql} LIMIT 1").fetchall()[0][0])


CALLS: dict[str, Callable[[Database, str], Any]] = {
    "about": lambda db, f: db.about(TEXT),
    "activations": lambda db, f: db.activations(f),
    "attribute": lambda db, f: db.attribute(TEXT, " stone"),
    "calibrate": lambda db, f: db.calibrate("watch"),
    "coactivation": lambda db, f: db.coactivation(f, "late/3"),
    "coactive": lambda db, f: db.coactive(f),
    "compare": lambda db, f: db.compare(f, "late/3"),
    "contrast": lambda db, f: db.contrast("document_id % 2 = 0"),
    "document": lambda db, f: db.document(7, f),
    "document features": lambda db, f: db.document_features(f),
    "effect": lambda db, f: db.effect(f, k=2, save=False),
    "encode": lambda db, f: db.encode([TEXT], pool="max"),
    "families": lambda db, f: db.families(k=5, min_coverage=0.05, min_gain=0.01, min_count=1),
    "feature": lambda db, f: db.feature(f),
    "find": lambda db, f: db.find(all=[f]),
    "fires": lambda db, f: db.fires_on(TEXT),
    "fires by token": lambda db, f: db.fires_on(TEXT).by_token(),
    "fires, shaded": lambda db, f: db.fires_on(TEXT).shaded(f),
    "monitors": lambda db, f: db.monitors,
    "monitor": lambda db, f: db.monitor("watch"),
    "near": lambda db, f: db.near(f),
    "replay": lambda db, f: db.replay("watch", k=3),
    "sample": lambda db, f: db.sample_contexts(f),
    "search": lambda db, f: db.search("river"),
    "silent": lambda db, f: db.silent_contexts(_rarest(db), like="random"),
    "steer": lambda db, f: db.steer(TEXT, f"{f}=2x", max_new_tokens=2, controls=False),
    "sweep": lambda db, f: db.sweep(TEXT, f"{f}=1x", "0,1x", max_new_tokens=2),
    "top": lambda db, f: db.top_contexts(f),
    "top of many": lambda db, f: db.top_contexts([f, "late/3"]),
    "watch": lambda db, f: db.watch("watch", [TEXT * 40]),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_labels_are_shown_with_features(db: Database, feature: str, call: str) -> None:
    answer = CALLS[call](db, feature)
    assert len(answer)
    assert "meaning of " in str(answer)
    assert "meaning of " in answer._repr_html_()
    assert b"meaning of " in to_bytes(answer, "json") or call == "encode"
    if "feature_id" in answer.table.column_names and "label" in answer.table.column_names:
        named = [row for row in answer if row.feature_id is not None]
        assert named
        assert all(row.label == f"meaning of {row.sae} {row.feature_id}" for row in named)


def test_families_of_all_features_name_both(db: Database) -> None:
    answer = db.families(k=5, min_coverage=0.05, min_gain=0.01, min_count=1)
    names = {f"{row.of_sae}/{row.of_feature_id}" for row in answer}
    assert answer.labels == {name: f"meaning of {name.replace('/', ' ')}" for name in names}


def test_the_macro_has_the_labels_of_a_replay(db: Database) -> None:
    assert db.sql("FROM alarms('watch')").to_arrow_table().equals(db.replay("watch").table)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_terminal_shows_them(path: Path, feature: str, width: int) -> None:
    for call in (["measure", path, feature], ["monitor", "list", path]):
        ran = CliRunner().invoke(main, list(map(str, call)), env={"COLUMNS": str(width)})
        assert ran.exit_code == 0, ran.output
        assert "meaning of early" in ran.stdout
        assert all(len(line) <= width for line in ran.stdout.splitlines())
