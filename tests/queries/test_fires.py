"""What fires on a text: orders, filters by density, and the features of each token."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import QueryError, UnknownFeatureError
from tests.make_store import MadeSae, World, make_store

D = 12


@pytest.fixture(scope="module")
def world() -> World:
    """Feature 0 fires once, 1 on every token, the others now and then. Two SAEs."""
    rng = np.random.default_rng(3)
    documents = [[[0, *rng.integers(1, 5, 9).tolist()]] for _ in range(12)]
    saes = []
    for name in ("b", "a"):
        dense = []
        for number in range(12):
            values = np.where(rng.random((10, D)) < 0.2, rng.integers(1, 9, (10, D)) / 4, 0)
            values[:, 0] = 0
            values[:, 1] = 1.5
            values[0] = 0
            if number == 3:
                values[4, 0] = 0.25
            dense.append(values.astype(np.float32))
        rows = rng.normal(size=(D, 8)).astype(np.float32)
        saes.append(MadeSae(name, dense, rows, rows))
    return World(documents, {}, ["<s>", " a", " b", " c", " d"], saes)


@pytest.fixture(scope="module")
def path(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fires") / "s.fdb"
    make_store(made, world)
    return made


@pytest.fixture
def db(path: Path) -> Iterator[featuredb.Database]:
    with featuredb.open(path) as opened:
        yield opened


def dense(world: World, context: int) -> list[npt.NDArray[np.float32]]:
    return [np.asarray(sae.dense[context]) for sae in world.saes]


@pytest.mark.parametrize("by", ["activation", "mass"])
def test_orders(db: featuredb.Database, world: World, by: str) -> None:
    for context in range(12):
        wanted = []
        for order, matrix in enumerate(dense(world, context)):
            for feature in np.flatnonzero(matrix.any(axis=0)).tolist():
                column = matrix[:, feature].astype(float)
                wanted.append(
                    (-(column.max() if by == "activation" else column.sum()), order, feature)
                )
        answer = db.fires_in(context, k=100, by=by)
        names = [(world.saes[order].name, feature) for _, order, feature in sorted(wanted)]
        assert [(row.sae, row.feature_id) for row in answer] == names
        assert answer.active == len(wanted)
        few = db.fires_in(context, k=3, by=by)
        assert (len(few), few.active) == (3, len(wanted))
        assert f"3 of {len(wanted)} active features" in str(few)


def test_densities(db: featuredb.Database) -> None:
    every = db.fires_in(3, k=100)
    for low, high in ((None, 0.3), (0.3, None), (0.0, 1.0), (0.1, 0.25)):
        answer = db.fires_in(3, k=100, min_density=low, max_density=high)
        inside = [r for r in every if (low or 0) <= r.density <= (1 if high is None else high)]
        assert [dict(row) for row in answer] == [
            {**dict(row), "rank": rank} for rank, row in enumerate(inside, 1)
        ]
        assert answer.active == every.active
        kept = {(row.sae, row.feature_id) for row in answer}
        assert {(row.sae, row.feature_id) for row in answer.by_token(100)} == kept
    assert {row.feature_id for row in every} - {
        row.feature_id for row in db.fires_in(3, k=100, max_density=0.9)
    } == {1}


def test_orders_and_densities_in_sql(db: featuredb.Database, world: World, path: Path) -> None:
    ((text,),) = db.sql("SELECT text FROM documents WHERE document_id = 3").fetchall()
    plain = duckdb.connect(str(path / "catalog.duckdb"), read_only=True)
    for by, low, high in (("mass", None, 0.3), ("activation", 0.1, 0.25), ("specificity", 0, None)):
        wanted = db.fires_in(3, 7, by, low, high)
        options = "k := 7, ranked := ?, min_density := ?, max_density := ?"
        names = [(row.rank, row.sae, row.feature_id, row.activation) for row in wanted]
        assert names
        for asked in (db.sql, plain.execute):
            for call, about in (("fires_in", 3), ("fires_on", text)):
                rows = asked(
                    f"SELECT rank, sae, feature_id, activation FROM {call}(?, {options})",
                    [about, by, low, high],
                )
                assert rows.fetchall() == names
    for options, message in (
        ("ranked := 'size'", "must be one of specificity, activation, mass, not"),
        ("max_density := 2", "a density is from 0 to 1, not 2"),
    ):
        for call in ("fires_in(3, ", "fires_on((SELECT text FROM documents LIMIT 1), "):
            with pytest.raises(Exception, match=message):
                db.sql(f"FROM {call}{options})").fetchall()
    plain.close()


def test_a_feature_that_hardly_fired_does_not_lead(db: featuredb.Database) -> None:
    answer = db.fires_in(3, k=100)
    rank = {(row.sae, row.feature_id): row.rank for row in answer}
    assert min(rank["b", 0], rank["a", 0]) > 3


@pytest.mark.parametrize("by", ["specificity", "activation"])
def test_by_token(db: featuredb.Database, world: World, by: str) -> None:
    for context in (0, 3, 7):
        answer = db.fires_in(context, k=2, by=by).by_token(4)
        scores: dict[tuple[str, int, float], float] = {}
        for row in db.fires_in(context, k=100).by_token(100):
            scores[row.sae, row.feature_id, row.activation] = row.specificity
        rows = iter(answer)
        for token in range(10):
            active = []
            for order, matrix in enumerate(dense(world, context)):
                name = world.saes[order].name
                for feature in np.flatnonzero(matrix[token]).tolist():
                    value = float(matrix[token, feature])
                    key = scores[name, feature, value] if by == "specificity" else value
                    active.append((-key, order, feature, name, value))
            for rank, (_, _, feature, name, value) in enumerate(sorted(active)[:4], 1):
                row = next(rows)
                assert (row.token_index, row.rank, row.sae, row.feature_id) == (
                    token, rank, name, feature
                )  # fmt: skip
                assert row.activation == value
                assert row.token == answer.tokens[token]
        assert next(rows, None) is None


def test_the_largest_of_a_token_has_the_specificity_of_the_text(db: featuredb.Database) -> None:
    firing = db.fires_in(5, k=100)
    best: dict[Any, float] = {}
    for row in firing.by_token(100):
        key = row.sae, row.feature_id
        best[key] = max(best.get(key, 0), row.specificity)
    assert best == {(row.sae, row.feature_id): row.specificity for row in firing}


def test_one_token_and_what_is_refused(db: featuredb.Database) -> None:
    firing = db.fires_in(5)
    one = firing.by_token(3, token=2)
    assert [dict(r) for r in one] == [dict(r) for r in firing.by_token(3) if r.token_index == 2]
    assert "token 2: " in str(one)
    assert len(firing.by_token(3, token=0)) == 0
    for token in (10, -1, True):
        with pytest.raises(QueryError, match=f"there is no token {token}: the text has 10, from 0"):
            firing.by_token(token=token)
    with pytest.raises(QueryError, match="by must be one of specificity, activation, mass"):
        db.fires_in(5, by="density")
    with pytest.raises(QueryError, match="a density is from 0 to 1, not 7"):
        db.fires_in(5, min_density=7)
    again = pickle.loads(pickle.dumps(firing))
    assert again.by_token(3).table == firing.by_token(3).table


def test_a_text_shaded_by_a_feature(db: featuredb.Database, world: World) -> None:
    firing = db.fires_in(3, k=1)
    for feature in (0, 1, 5):
        answer = firing.shaded(f"a/{feature}")
        assert answer.table["activation"].to_pylist() == dense(world, 3)[1][:, feature].tolist()
        assert answer.table["token"].to_pylist() == firing.tokens
    assert "a/1 · fires on 9 of 10 tokens" in str(firing.shaded("a/1"))
    with pytest.raises(UnknownFeatureError):
        firing.shaded("a/99")


@pytest.mark.parametrize("columns", ["60", "80", "100"])
def test_on_the_command_line(path: Path, columns: str) -> None:
    def run(*words: str) -> str:
        call = ["fires", str(path), "--context", "3", *words]
        result = CliRunner(env={"COLUMNS": columns}).invoke(main, call)
        assert result.exit_code == 0, result.output
        assert max(map(len, result.output.splitlines())) <= int(columns)
        return result.output

    assert run("--per-token", "-k", "2").startswith("10 tokens\n")
    assert run("--token", "4").startswith("token 4: ")
    assert "mass" in run("--by", "mass", "--max-density", "0.9")
    assert run("--feature", "b/0").startswith("b/0 · fires on 1 of 10 tokens")
    wrong = CliRunner().invoke(main, ["fires", str(path), "--file", "x", "--per-token"])
    assert wrong.exit_code == 2
