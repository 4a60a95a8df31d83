"""The language of rules: what is read, what is refused and at which character."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import featuredb
from featuredb.database import Database
from featuredb.errors import QueryError, RuleError, UnknownFeatureError
from queries.rules.rule import FeatureRule
from tests.make_store import MadeSae, World, make_store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAE `s` of 4 features: 0 is silent, 1 to 3 fire with 1 to 8."""
    path = tmp_path_factory.mktemp("rules") / "r.fdb"
    dense = np.zeros((9, 4), np.float32)
    dense[1:, 1:] = np.arange(1, 9)[:, None]
    rows = np.eye(4, dtype=np.float32)
    world = World(
        [[[0, 1, 2, 1, 2, 1, 2, 1, 2]]],
        {},
        ["<s>", " a", " b"],
        [MadeSae("s", [dense], rows, rows)],
    )
    make_store(path, world)
    return path


@pytest.fixture(scope="module")
def db(path: Path) -> Iterator[Database]:
    with featuredb.open(path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("f1 > 5", "s/1 > 5"),
        ("f1 > q0.5", "s/1 > 4"),
        ("0.5x <= s/1", "4 <= s/1"),
        ("max(f1, f2) > 3 and not f3", "max(s/1, s/2) > 3 and not (s/3)"),
        ("0.25 * f1 + f2*2 - 1.5 > 0", "0.25 * s/1 + 2 * s/2 - 1.5 > 0"),
        ("-(f1 - 2 * f2) < 3", "-s/1 + 2 * s/2 < 3"),
        ("any(f1, f2 > 3)", "s/1 or s/2 > 3"),
        ("f1 or f2 and f3", "s/1 or (s/2 and s/3)"),
        ("f1 > 2 for 3 tokens", "s/1 > 2 for 3 tokens"),
        ("(f1 or f2) for 1 token", "(s/1 or s/2) for 1 token"),
        ("peak(mean(f1, 4)) > 2 and role = user", 'peak(mean(s/1, 4)) > 2 and role = "user"'),
        ("1 < f1 <= 3", "1 < s/1 and s/1 <= 3"),
        ("f1 > f2", "s/1 > s/2"),
        ("sum(f1, f2) > 1e-2", "s/1 + s/2 > 0.01"),
        ('"s/1" > 5', "s/1 > 5"),
    ],
)
def test_what_is_read(db: Database, text: str, read: str) -> None:
    rule = FeatureRule.parse(db._reader.store, text)
    assert rule.text == read
    assert FeatureRule.parse(db._reader.store, read) == rule


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", 0, "the rule is empty"),
        ("f1 >", 4, "at its end: expected a feature such as f12, a number or \\("),
        ("f1 > > 5", 5, "at character 6, '> 5': expected a feature"),
        ("f1 f2", 3, "at character 4, 'f2': expected > or <"),
        ("(f1 > 5", 7, r"at its end: expected \)"),
        ("f1 > 5 for x tokens", 11, "expected a number"),
        ("f1 > 5 for 2.5 tokens", 11, "tokens are whole"),
        ("mean(f1) > 3", 0, "mean takes a value and tokens"),
        ("foo(f1) > 2", 0, "there is no foo: a feature is written as f12, and there are max"),
        ("F12 > 3", 0, "there is no F12: a feature is written as f12"),
        ("f1 > nan", 5, "there is no nan"),
        ("f1 > 3 # x", 7, "at character 8, '# x': expected > or <, and, or or for$"),
        ("f1 > q1.5", 5, "at character 6: a quantile is from q0 to q1, not q1.5"),
        ("q0.5 > 3", 0, "q0.5 is of one feature"),
        ("max(f1, f2) > q0.5", 14, "q0.5 is of one feature"),
        ("f1 * f2 > 3", 0, "cannot be multiplied"),
        ("f1 + (f2 > 3) > 1", 6, "this is a condition"),
        ("f1 and 12", 7, "this is a number: compare it"),
        ("f1 > 1e999", 5, "too large"),
        ("é > 3", 0, "at character 1, 'é > 3'"),
        ("role = user", 0, "reads no feature"),
        ("not " * 2_000 + "f1", 400, "nested more than 100 deep"),
        ("max(" * 2_000 + "f1" + ")" * 2_000, 400, "nested more than 100 deep"),
    ],
)
def test_errors_point_at_the_character(
    db: Database, text: str, position: int, message: str
) -> None:
    with pytest.raises(RuleError, match=message) as error:
        db.replay(text)
    assert error.value.position == position
    assert "\n" not in str(error.value)


def test_a_sum_may_have_many_terms(db: Database) -> None:
    many = " + ".join(["f1"] * 600)
    one, other = db.replay(f"{many} > 600"), db.replay("600 * f1 > 600")
    assert one.table.column("score").equals(other.table.column("score"))


def test_features_that_are_not_there(db: Database) -> None:
    with pytest.raises(UnknownFeatureError, match=r"no feature 9.*character 8 of the rule"):
        db.replay("f1 and f9")
    with pytest.raises(UnknownFeatureError, match=r"no SAE t.*\(character 1 of the rule"):
        db.replay("t/1 > 5")
    with pytest.raises(QueryError, match="never fires, so it has no quantile"):
        db.replay("f0 > q0.5")


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        ("f1 > 5 and f1 < 3", "can never fire"),
        ("f1 < 0", "can never fire"),
        ("f1 > f1", "can never fire"),
        ("max(f1, f2) >= max(f1, f2)", "always fires"),
        ("f1 and not f1", "can never fire"),
        ("f1 > 5 and role = user and role = tool", "can never fire"),
        ("mean(f1, 3) < 0", "can never fire"),
        ("f1 >= 0", "always fires"),
        ("f1 > 3 or f1 <= 3", "always fires"),
        ("f1 + f2 > -1", "always fires"),
    ],
)
def test_what_is_decided_is_said(db: Database, rule: str, how: str) -> None:
    with pytest.raises(RuleError, match=how):
        db.replay(rule)


def test_a_monitors_life(path: Path) -> None:
    made = featuredb.add_monitor(path, "loud", "f1 > q0.5", note="too loud", owner="ann")
    assert (made[0].version, made[0].rule, made[0].given) == (1, "s/1 > 4", "f1 > q0.5")
    assert (made[0].owner, made[0].note, made[0].features) == ("ann", "too loud", ["s/1"])
    assert "1 alarm, " in made.notes[-1]
    with pytest.raises(QueryError, match="there is a monitor loud already"):
        featuredb.add_monitor(path, "loud", "f2 > 5")
    featuredb.add_monitor(path, "loud", "f2 > ?", rate="1/8", replace=True)
    featuredb.add_monitor(path, "other", "f3 > 100")
    with featuredb.open(path) as db:
        assert [(r.monitor, r.rule) for r in db.monitors] == [
            ("loud", "s/2 > 0"),
            ("other", "s/3 > 100"),
        ]
        rows = db.sql("SELECT context_id, token_index, n_tokens FROM alarms('loud')").fetchall()
        assert rows == [(0, 1, 8)]
        assert db.sql("FROM alarms('other')").fetchall() == []
        assert db.replay("loud").table.to_pylist() == (
            db.sql("FROM alarms('loud')").to_arrow_table().to_pylist()
        )
        every = db.sql("FROM alarms").to_arrow_table()
        assert every.schema == db.sql("FROM alarms('loud')").to_arrow_table().schema
        assert every.to_pylist() == db.replay("loud").table.to_pylist()
        with pytest.raises(QueryError, match="there is no monitor soft: there are loud, other"):
            db.replay("soft")
        with pytest.raises(QueryError, match="there is no monitor soft"):
            db.sql("FROM alarms('soft')").fetchall()
    featuredb.set_monitor(path, "loud", "disabled")
    with featuredb.open(path) as db:
        assert db.sql("FROM alarms").fetchall() == []
    with pytest.raises(QueryError, match="loud is disabled already"):
        featuredb.set_monitor(path, "loud", "disabled")
    gone = featuredb.set_monitor(path, "loud", "removed")
    assert [r.state for r in gone] == ["removed", "disabled", "enabled", "enabled"]
    assert [r.version for r in gone] == [4, 3, 2, 1]
    with pytest.raises(QueryError, match="there is no monitor loud: there are other"):
        featuredb.set_monitor(path, "loud", "enabled")
    assert featuredb.add_monitor(path, "loud", "f1 > 2")[0].version == 5
    assert featuredb.verify(path, all_snapshots=True).ok


@pytest.mark.parametrize("name", ["f12", "a b", "", "1st", "x" * 65])
def test_names_that_are_none(path: Path, name: str) -> None:
    with pytest.raises(QueryError, match="no name of a monitor"):
        featuredb.add_monitor(path, name, "f1 > 5")


@pytest.mark.parametrize(
    ("rule", "rate", "message"),
    [
        ("f1 > ?", "5", "no rate"),
        ("f1 > ?", "0/M", "no rate"),
        ("f1 > 5", "5/M", r"write \? in its place"),
        ("f1 < ?", "5/M", r"write > \?"),
        ("not f1 > ?", "5/M", r"write > \?"),
        ("f2 or f1 > ?", "1/M", "its other parts do"),
    ],
)
def test_rates_that_set_nothing(db: Database, rule: str, rate: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        db.calibrate(rule, rate=rate)
    with pytest.raises(QueryError, match="leaves a number open"):
        db.calibrate("f1 > ?")
