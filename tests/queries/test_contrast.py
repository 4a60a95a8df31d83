"""Contrasts of documents of a store, against dense matrices and scipy; bad input; texts."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from click.testing import CliRunner
from scipy import stats

import featuredb
import featuredb.database
import queries.contrasts.probe
from featuredb.cli import main
from featuredb.database import Database
from featuredb.errors import (
    MissingExtraError,
    QueryError,
    RuleError,
    SQLError,
    UnknownFeatureError,
)
from featuredb.store.store import Store
from queries.encode import Pool
from queries.specificity import Active, ActiveText
from tests.make_store import MadeSae, World, make_store, stored

DOCUMENTS = 90
D_SAE = 40
LONG = 7
"""A feature that only reads length: it fires where a document is long, whatever it is about."""


def world() -> World:
    """Documents about art or war, or about nothing; those about art are longer.

    Features 0 to 3 fire more on war, 30 on never a token, 31 on one document.
    """
    rng = np.random.default_rng(1)
    topics: list[str | None] = [["art", "war", None][i % 3] for i in range(DOCUMENTS)]
    documents = []
    for topic in topics:
        n = int(rng.integers(4, 20)) + 6 * (topic == "art")
        ids = rng.integers(1, 9, n).tolist()
        documents.append([[0, *ids[i : i + 7]] for i in range(0, n, 7)])
    length = [sum(len(c) - 1 for c in d) for d in documents]
    dense = []
    for document, (contexts, topic) in enumerate(zip(documents, topics, strict=True)):
        for context in contexts:
            rate = np.full(D_SAE, 0.05)
            rate[:4] += 0.5 * (topic == "war")
            rate[LONG] = (length[document] / 30) ** 2
            rate[30:] = 0
            active = rng.random((len(context), D_SAE)) < rate
            values = rng.choice(np.array([0.5, 1, 1.5, 2], np.float32), active.shape)
            values[:, LONG] = length[document] / 8
            values[:, 31], active[:, 31] = 1, document == 4
            dense.append(np.where(active, values, 0).astype(np.float32))
    directions = rng.normal(size=(D_SAE, 4)).astype(np.float32)
    return World(
        documents,
        {
            "topic": topics,
            "year": [None if i == 3 else 1900 + 7 * i % 50 for i in range(DOCUMENTS)],
            "author": [f"author {i // 3}" for i in range(DOCUMENTS)],
        },
        ["<bos>", *(f" {letter * 2}" for letter in "abcdefgh")],
        [MadeSae("made", dense, directions, directions)],
        context_size=8,
        partitions=3,
    )


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = tmp_path_factory.mktemp("contrast") / "made.fdb"
    make_store(path, world())
    with featuredb.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def pooled() -> dict[str, npt.NDArray[np.float64]]:
    """max, sum and mean, [documents, features], and n [documents]."""
    made = world()
    values = stored(made, made.saes[0])
    owner = [d for d, contexts in enumerate(made.documents) for _ in contexts]
    tokens = [
        np.concatenate([v[1:] for v, o in zip(values, owner, strict=True) if o == d])
        for d in range(DOCUMENTS)
    ]
    n = np.array([len(t) for t in tokens], np.float64)
    total = np.array([t.sum(axis=0) for t in tokens], np.float64)
    mean = (total / n[:, None]).astype(np.float32).astype(np.float64)
    largest = np.array([t.max(axis=0) for t in tokens], np.float64)
    return {"max": largest, "sum": total, "mean": mean, "n": n}


def of_topic(topic: str | None) -> npt.NDArray[np.bool_]:
    return np.array([t == topic for t in world().metadata["topic"]])


@pytest.mark.parametrize("pool", ["max", "sum", "mean"])
def test_every_column(db: Database, pooled: dict[str, npt.NDArray[np.float64]], pool: Pool) -> None:
    a, b = of_topic("war"), of_topic("art")
    answer = db.contrast("topic = 'war'", "topic = 'art'", pool=pool, k=99, min_share=0)
    assert (answer.n_a, answer.n_b, answer.unit, answer.pool) == (30, 30, "document", pool)
    matrix = pooled[pool]
    active = (matrix[a | b] != 0).any(axis=0)
    assert sorted(r.feature_id for r in answer) == np.flatnonzero(active).tolist()
    assert answer.tested == active.sum()
    p = {
        f: stats.mannwhitneyu(matrix[a, f], matrix[b, f], method="asymptotic").pvalue
        for f in np.flatnonzero(active)
    }
    # No p is smaller than with all that fire in one set.
    many = {f: int((matrix[a | b, f] != 0).sum()) for f in p}
    least = {f: 2 * stats.hypergeom(60, m, 30).pmf(m) if m <= 30 else 0 for f, m in many.items()}
    safe = [min(1, max(p[f], least[f])) for f in p]
    q = dict(zip(p, stats.false_discovery_control(safe), strict=True))
    z = stats.norm.isf(0.025 / len(p))
    order = [-abs(stats.norm.isf(r.p / 2)) for r in answer]
    assert order == sorted(order)
    for rank, row in enumerate(answer, 1):
        f = row.feature_id
        n_a, n_b = (int((matrix[side, f] != 0).sum()) for side in (a, b))
        assert (row.rank, row.sae) == (rank, "made")
        assert (row.share_a, row.share_b) == pytest.approx((n_a / 30, n_b / 30))
        assert row.difference == pytest.approx(n_a / 30 - n_b / 30)
        table = np.array([[n_a, 30 - n_a], [n_b, 30 - n_b]]) + 0.5
        odds = np.log(table[0, 0] * table[1, 1] / table[0, 1] / table[1, 0])
        error = np.sqrt((1 / table).sum())
        assert row.log_odds == pytest.approx(odds)
        low = np.sign(odds) * max(0, abs(odds) - z * error)
        assert row.log_odds_low == pytest.approx(low, abs=1e-9)
        # Sets of one size: no correction for skewness.
        assert row.p == pytest.approx(p[f], rel=1e-9)
        assert row.q == pytest.approx(q[f], rel=1e-9)
        assert row.auroc_low <= row.auroc <= row.auroc_high
        assert row.top_tokens == [t["token"] for t in db.feature(f).statistics.top_tokens]


def test_python_and_sql_agree(db: Database) -> None:
    catalog = duckdb.connect(str(db.path / "catalog.duckdb"), read_only=True)
    cases: list[tuple[str, str | None, float | None]] = [
        ("topic = 'war'", None, None),
        ("topic = 'war' -- with a comment", "topic IS NULL", 0.0),
        ("document_id < 2", "topic = 'art'", 0.1),
        ("document_id = 4", None, 0.0),
        ("year > 1920", "true", None),
    ]
    for a, b, share in cases:
        answer = db.contrast(a, "all" if b == "true" else b, k=30, min_share=share)
        for run in (db.sql, lambda q, p: catalog.sql(q, params=p)):
            table = run(
                "FROM contrast(?, ?, k := 30, min_share := ?)", [a, b, share]
            ).to_arrow_table()
            assert table.column_names == answer.table.column_names
            assert [f.type for f in table.schema if f.name != "top_tokens"] == [
                f.type for f in answer.table.schema if f.name != "top_tokens"
            ]
            for mine, theirs in zip(answer, table.to_pylist(), strict=True):
                for name, value in theirs.items():
                    wanted = mine[name]
                    if isinstance(value, float):
                        wanted = pytest.approx(wanted, rel=1e-7, abs=1e-9)
                    assert value == wanted, name
    with pytest.raises((duckdb.Error, SQLError), match="A is empty: no document satisfies it"):
        catalog.sql("FROM contrast('false')").fetchall()
    with pytest.raises(duckdb.Error, match="QueryError: A is empty: no document satisfies false"):
        db.sql("FROM contrast('false')").fetchall()
    # A file of texts is no condition: whoever may ask SQL alone reads no files by it.
    with pytest.raises(duckdb.Error, match="SQLError"):
        db.sql("FROM contrast('@/etc/hostname')").fetchall()


def test_sql_of_a_handle_that_is_gone(db: Database) -> None:
    own = featuredb.open(db.path)
    relation = own.sql("FROM contrast('year > 1920', k := 3)")
    assert len(relation.fetchall()) == 3
    relation = own.sql("FROM contrast('year > 1920', k := 3)")
    own.close()
    with pytest.raises(Exception, match="closed"):
        relation.fetchall()


def test_length_alone_does_not_come_out(db: Database) -> None:
    plain = db.contrast("topic = 'art'", "topic = 'war'", k=40)
    assert next(r for r in plain if r.feature_id == LONG).q < 0.05
    assert any("--covariate length" in note for note in plain.notes)
    alike = db.contrast("topic = 'art'", "topic = 'war'", k=40, covariate="length")
    assert next(r for r in alike if r.feature_id == LONG).q > 0.05
    assert "alike in length (van Elteren)" in alike.null
    assert {r.feature_id for r in alike if r.q < 0.05} >= {0, 1, 2, 3}
    both = db.contrast("topic = 'art'", "topic = 'war'", covariate=["length", "year"])
    assert "length and year" in both.null


def test_sets(db: Database, pooled: dict[str, npt.NDArray[np.float64]]) -> None:
    war = np.flatnonzero(of_topic("war"))
    by_condition = db.contrast("topic = 'war'")
    assert (by_condition.a, by_condition.b) == ("topic = 'war'", "the rest")
    assert (by_condition.n_a, by_condition.n_b) == (30, 60)
    for same in (war.tolist(), war, pa.array(war).to_pylist()):
        assert db.contrast(same).table == by_condition.table
    rest = db.contrast("topic = 'war'")
    for spelled in ("rest", " The rest "):
        assert db.contrast("topic = 'war'", spelled).table == rest.table
    against_all = db.contrast("topic = 'war'", "all")
    assert against_all.table == by_condition.table
    assert "30 documents of A are in B too, and counted in A only" in against_all.notes[0]
    one = db.contrast([4], min_share=0, k=1)
    assert (one[0].feature_id, one.n_a) == (31, 1)
    assert one[0].auroc_low is None
    contexts = db.contrast("topic = 'war' AND context_index = 0", unit="context")
    assert contexts.n_a == 30
    assert contexts.n_a + contexts.n_b == len(world().contexts)
    few = db.contrast("topic = 'war'", min_share=0.5, max_share=0.9, k=99)
    shares = [(30 * r.share_a + 60 * r.share_b) / 90 for r in few]
    assert all(0.5 <= s <= 0.9 for s in shares)
    assert len(few) == sum(0.5 <= s <= 0.9 for s in (pooled["max"] != 0).mean(axis=0))


def test_each_value_against_the_rest(db: Database) -> None:
    answer = db.contrast(each="topic", k=3)
    assert [r.value for r in answer] == ["art"] * 3 + ["war"] * 3
    war = db.contrast("topic = 'war'", "topic = 'art'", k=3)
    second = [(r.feature_id, r.auroc) for r in answer if r.value == "war"]
    assert second == [(r.feature_id, r.auroc) for r in war]
    assert answer.tested == 2 * war.tested
    assert "30 documents without topic left out" in answer.notes
    assert {(r.value, r.n) for r in answer} == {("art", 30), ("war", 30)}
    assert "war · 30" in str(answer)
    assert "60 tests, of a feature at a value" in str(answer)


def test_each_value_among_those_alike(db: Database) -> None:
    answer = db.contrast(each="topic", k=3, covariate="length")
    assert answer.null.endswith("among documents alike in length (van Elteren)")
    war = db.contrast("topic = 'war'", "topic = 'art'", k=3, covariate="length")
    assert [r.feature_id for r in answer if r.value == "war"] == [r.feature_id for r in war]
    with pytest.raises(QueryError, match="no value of topic has documents alike in topic"):
        db.contrast(each="topic", covariate="topic")


@pytest.mark.parametrize("covariate", [(), "length", ("topic", "topic")])
def test_one_document_is_no_evidence(db: Database, covariate: Any) -> None:
    """Any document is the first of 90 in something, and each as easily."""
    for document in range(20):
        answer = db.contrast([document], min_share=0, covariate=covariate, k=40)
        assert answer.found == 0
        assert all(r.q >= min(1, 2 / DOCUMENTS) for r in answer)


def test_a_target_of_few_documents_or_values_is_no_evidence(db: Database) -> None:
    few = db.contrast([0, 1, 2, 4, 5], target="length", min_share=0, k=40)
    assert few[0].spearman > 0.9
    assert few.found == 0
    assert min(r.q for r in few) >= 2 / math.factorial(5)
    assert db.contrast("document_id < 45", target="length", pool="mean").found == 1


def test_columns_that_are_always_there(db: Database) -> None:
    assert db.contrast(target="LENGTH", pool="mean", k=1)[0].feature_id == LONG
    with pytest.raises(QueryError, match="documents have no column size: they have length, corpus"):
        db.contrast(target="size")


def test_pairs(db: Database, pooled: dict[str, npt.NDArray[np.float64]]) -> None:
    answer = db.contrast("topic = 'war'", "topic = 'art'", paired="author", k=40, min_share=0)
    a, b = of_topic("war"), of_topic("art")
    assert (answer.n_a, answer.n_b) == (30, 30)
    for row in answer:
        d = pooled["max"][a, row.feature_id] - pooled["max"][b, row.feature_id]
        if d.any():
            theirs = stats.wilcoxon(d, method="asymptotic", correction=False).pvalue
            assert row.p == pytest.approx(theirs, rel=1e-9)
    assert "(Wilcoxon)" in answer.null


def test_a_target(db: Database, pooled: dict[str, npt.NDArray[np.float64]]) -> None:
    answer = db.contrast(target="year", k=40, min_share=0)
    year = np.array([np.nan if y is None else y for y in world().metadata["year"]], np.float64)
    known = ~np.isnan(year)
    assert "1 document without year left out" in answer.notes
    for row in answer:
        x, y = pooled["max"][known, row.feature_id], year[known]
        theirs = stats.spearmanr(x, y)
        assert row.spearman == pytest.approx(theirs.statistic)
        assert row.p == pytest.approx(theirs.pvalue, rel=1e-7)
        if row.t is not None:
            assert row.t == pytest.approx(stats.ttest_ind(y[x != 0], y[x == 0]).statistic)
    length = db.contrast("topic = 'war'", target="length")
    assert length[0].feature_id == LONG


def test_held_out(db: Database) -> None:
    answer = db.contrast("topic = 'war'", "topic = 'art'", holdout=0.4, k=5, seed=3)
    assert (answer.n_a, answer.n_b, answer.tested, len(answer)) == (12, 12, 5, 5)
    assert len({r.feature_id for r in answer} & {0, 1, 2, 3}) >= 3
    assert (
        answer.table
        == db.contrast("topic = 'war'", "topic = 'art'", holdout=0.4, k=5, seed=3).table
    )
    assert "are of the 24 held out (seed 3)" in " ".join(answer.notes)


def test_nothing(db: Database) -> None:
    """Documents by a number that has nothing to do with them."""
    answer = db.contrast("document_id % 2 = 0", k=3)
    assert answer.found == 0
    assert str(answer).startswith("contrast nothing · no feature has q < 0.05")


def test_contexts_of_each_side(db: Database) -> None:
    answer = db.contrast("topic = 'war'", "topic = 'art'", k=4)
    rows = answer.contexts.to_pylist()
    assert [(r["rank"], r["side"]) for r in rows] == [(i, s) for i in range(1, 5) for s in "AB"]
    for row in rows:
        topic = "war" if row["side"] == "A" else "art"
        assert row["topic"] == topic
        best = db.top_contexts(row["feature_id"], k=1, where=f"topic = '{topic}'")[0]
        assert (best.context_id, best.activation) == (row["context_id"], row["activation"])
    for text in (str(answer), answer._repr_html_()):
        assert "strongest contexts in A and in B" in text
    assert "topic = &#39;war&#39;" in answer._repr_html_() or "topic" in answer._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": "topic = 'tea'"}, "A is empty: no document satisfies topic = 'tea'"),
        ({"a": "true"}, "A is every document: there is no rest"),
        ({"a": "topic = 'war'", "b": "topic = 'war'"}, "B is empty: all of it is in A too"),
        ({"a": [1, 900]}, "A: there is no document 900"),
        ({"a": []}, "A is empty: give ids, texts or a SQL condition"),
        ({"a": 3}, "A must be a SQL condition, a list of ids or texts, not int"),
        ({"a": [2**70]}, f"A: there is no document {2**70}"),
        ({"a": [-1]}, "A: there is no document -1"),
        ({"a": b"abc"}, "A must be a SQL condition, a list of ids or texts, not bytes"),
        ({"a": pa.table({"document_id": [1]})}, "a list of ids or texts, not Table"),
        ({"a": "true); DROP VIEW documents; SELECT (1"}, "A is one condition: it has no room"),
        ({"a": "true) UNION SELECT 1 WHERE (true"}, "A is no SQL condition: Parser Error"),
        ({"a": "year >"}, "A is no SQL condition: Parser Error: syntax error"),
        ({"a": "year > 1920", "covariate": 3}, "a covariate must be the name of a column"),
        ({"a": "year > 1920", "covariate": None}, "a covariate must be the name of a column"),
        ({"a": "year > 1920", "min_share": 0.9, "max_share": 0.1}, "min_share is above max_share"),
        ({"a": "topic = 'war'", "holdout": 0.01}, "too few documents to hold out 0.01 of each set"),
        ({"a": "topic = 'war'", "holdout": 0.01, "probe": 3}, "too few documents to hold out"),
        ({"a": [1.5]}, "A must be a SQL condition, a list of document ids, or of texts"),
        ({}, "give A: a SQL condition on documents, ids, or texts"),
        ({"a": "topik = 'war'"}, "there is no column topik"),
        ({"a": "topic = 'war'", "paired": "topic"}, "topic does not pair: A has 'war' more than"),
        ({"a": [0], "b": [3], "paired": "author"}, "author does not pair: no value of it is in A"),
        ({"target": "topic"}, "topic is not a number: for one value against the rest give each="),
        ({"target": "title"}, "documents have no column title: they have length, "),
        ({"target": "year", "paired": "author"}, "give one of paired and target, not both"),
        ({"a": "all", "target": "year", "b": "all"}, "a target needs no B"),
        ({"each": "topic", "a": "all"}, "each compares every value of a column with the rest"),
        ({"each": "nothing"}, "documents have no column nothing"),
        ({"a": "year > 1920", "unit": "token"}, "unit must be one of document, context, turn"),
        ({"a": "year > 1920", "unit": "turn"}, "no corpus here has turns"),
        ({"a": "year > 1920", "pool": "min"}, "pool must be one of max, sum, mean"),
        ({"a": "year > 1920", "holdout": 1}, "holdout must be a share between 0 and 1, not 1"),
        ({"a": "year > 1920", "min_share": 2}, "min_share must be a share, 0 to 1, not 2"),
        ({"a": "year > 1920", "covariate": "size"}, "documents have no column size"),
        ({"a": "@no.txt"}, "no.txt cannot be read as texts: No such file"),
        ({"a": ["a text"], "unit": "context"}, "texts are compared as documents"),
    ],
)
def test_bad_input(db: Database, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((QueryError, SQLError)) as error:
        db.contrast(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_sae_that_is_not_there(db: Database) -> None:
    with pytest.raises(UnknownFeatureError, match="there is no SAE x: this database has made"):
        db.contrast("year > 1920", sae="x")
    assert len(db.contrast("year > 1920", sae="made"))


def test_new_texts(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a model that fires feature 5 on every ` a`, and feature 6 once."""
    sae = db.saes[0]

    def encode(store: Store, model: str | None, texts: Sequence[str]) -> list[ActiveText]:
        found = []
        for text in texts:
            words = [f" {w}" for w in text.split()]
            at = np.array([i for i, w in enumerate(words) if w == " a"])
            index = np.concatenate([at, [0]]).astype(np.int64)
            feature = np.array([5] * len(at) + [6], np.int64)
            active = Active(sae, index, feature, np.full(len(index), 2.5, np.float32))
            found.append(ActiveText([active], words))
        return found

    monkeypatch.setattr(featuredb.database, "_encode", encode)
    lines = [f"a b a {i}" for i in range(20)]
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    answer = db.contrast(f"@{file}", "all")
    assert (answer.a, answer.n_a, answer.n_b) == (f"the texts of {file}", 20, 90)
    assert {r.feature_id for r in answer[:2]} == {5, 6}
    assert answer[0].share_a == 1
    first = next(r for r in answer.contexts.to_pylist() if r["side"] == "A")
    assert (first["text_index"], first["context_id"]) == (0, None)
    assert first["tokens"] == [" a", " b", " a", " 0"]
    assert "text 0 token 0" in str(answer)
    assert db.contrast(lines, "all").table == answer.table
    assert db.contrast(lines).table == answer.table
    mixed = db.contrast("topic = 'war'", dict(enumerate(lines)), pool="mean")
    assert (mixed.n_a, mixed.n_b) == (30, 20)
    # On the tokens of feature 6, which is the first of a text: there 5 fires where it is an a.
    first = db.contrast([f"b a {i}" for i in range(9)], [f"a b {i}" for i in range(9)], on=6)
    assert [(r.feature_id, r.share_a, r.share_b) for r in first][:1] == [(5, 0, 1)]
    assert {r["token_index"] for r in first.contexts.to_pylist()} == {0}
    with pytest.raises(QueryError, match="B is empty: no document of it has a token on which made"):
        db.contrast("topic = 'war'", ["b c"] * 9, on=5)
    two = db.contrast(["b"] * 8, ["a"] * 8)
    assert (two[0].feature_id, two[0].auroc) == (5, 0)
    # Texts without a token leave the numbers of the others as they are.
    gaps = db.contrast(["", "a", " "], ["", "b", "a b"], min_share=0, k=1)
    assert {(r["side"], r["text_index"]) for r in gaps.contexts.to_pylist()} == {
        ("A", 1),
        ("B", 2),
    }
    texts = db.contrast(lines, covariate="length")
    assert "alike" in texts.null
    with pytest.raises(QueryError, match="new texts have no column year: of them only length"):
        db.contrast(lines, covariate="year")
    with pytest.raises(QueryError, match="new texts have no column author: of them only"):
        db.contrast(lines, "all", paired="author")


@pytest.mark.parametrize("pool", ["max", "sum", "mean"])
def test_on_the_tokens_of_a_feature(db: Database, pool: Pool) -> None:
    """What fires with feature 0, against dense matrices of the tokens on which it does."""
    made = world()
    values = stored(made, made.saes[0])
    owner = np.array([d for d, contexts in enumerate(made.documents) for _ in contexts])
    pooled, n = np.zeros((DOCUMENTS, D_SAE)), np.zeros(DOCUMENTS)
    for document in range(DOCUMENTS):
        own = [v[1:] for v, o in zip(values, owner, strict=True) if o == document]
        tokens = np.concatenate(own).astype(np.float64)
        tokens = tokens[tokens[:, 0] > 0]
        n[document] = len(tokens)
        if len(tokens):
            total = tokens.sum(axis=0)
            mean = (total / len(tokens)).astype(np.float32)
            pooled[document] = {"max": tokens.max(axis=0), "sum": total, "mean": mean}[pool]
    a, b = of_topic("war") & (n > 0), ~of_topic("war") & (n > 0)
    answer = db.contrast("topic = 'war'", pool=pool, k=99, min_share=0, on=0)
    assert (answer.n_a, answer.n_b) == (a.sum(), b.sum())
    assert "on tokens on which made/0 fires" in answer.null
    assert "1 document without a token on which made/0 fires is left out" in answer.notes
    longer = "A has 6 of those tokens per document and B 1 (medians)"
    assert any(longer in note for note in answer.notes) == (pool != "mean")
    active = np.flatnonzero((pooled != 0).any(axis=0))
    assert sorted(r.feature_id for r in answer) == active.tolist()
    for row in answer:
        one, two = pooled[a, row.feature_id], pooled[b, row.feature_id]
        assert row.share_a == pytest.approx((one != 0).mean())
        if np.ptp([*one, *two]) > 0:
            theirs = stats.mannwhitneyu(one, two, method="asymptotic")
            assert row.p == pytest.approx(theirs.pvalue, rel=1e-9)
            assert row.auroc == pytest.approx(theirs.statistic / len(one) / len(two))
    # Its contexts show the strongest of those tokens.
    fires = {(r.context_id, r.token_index) for r in db.activations(0)}
    shown = answer.contexts.to_pylist()
    assert shown
    assert all((r["context_id"], r["token_index"]) in fires for r in shown)
    # Without it, and again from what is kept, the answer is that of all tokens.
    assert db.contrast("topic = 'war'", pool=pool).n_a == 30


def test_on_what_is_not_there(db: Database) -> None:
    with pytest.raises(UnknownFeatureError):
        db.contrast("topic = 'war'", on=D_SAE)
    with pytest.raises(QueryError, match="no document of it has a token on which made/31 fires"):
        db.contrast("topic = 'art'", on=31)  # it fires in one document, of war
    with pytest.raises(QueryError, match="A is every document with a token on which made/31 fires"):
        db.contrast("topic = 'war'", on=31)
    result = CliRunner().invoke(main, ["contrast", str(db.path), "--a", "year > 1920", "--on", "0"])
    assert result.exit_code == 0, result.output
    assert "on which made/0 fires" in result.output


def test_a_probe_that_can_never_hold_is_no_monitor(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    fit = queries.contrasts.probe.probe
    never = {"rule": "-1.0 * peak(f0) > 1.0"}
    monkeypatch.setattr(queries.contrasts.probe, "probe", lambda *given: fit(*given) | never)
    call = ["contrast", str(db.path), "--a", "topic = 'war'", "--probe", "2", "--monitor", "m"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == RuleError.exit_code
    assert result.stderr.startswith("featuredb: the probe is stored as no monitor: ")
    assert result.stderr.endswith("Give a larger --probe, or swap --a and --b\n")
    assert "\n" not in result.stderr[:-1]
    assert db.monitors.table.num_rows == 0


def test_info_says_that_nothing_pooled_is_stored(db: Database) -> None:
    assert db.info()["pooled"] == {"how": "computed when asked", "bytes": 0}
    assert "per document, context and turn: computed when asked, 0 bytes" in str(db.info())


def test_command(db: Database) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["contrast", str(db.path), *arguments])

    result = run("--a", "topic = 'war'", "--b", "topic = 'art'", "-k", "2", "--format", "json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    assert data["a"] == "topic = 'war'"
    assert len(data["rows"]) == 2
    assert len(data["contexts"]) == 4
    table = run("--each", "topic", "-k", "1", "--covariate", "length")
    assert "each topic" in table.output
    wrong = run("--a", "topic = 'tea'")
    assert (wrong.exit_code, wrong.output) == (
        2,
        "Error: A is empty: no document satisfies topic = 'tea'\n",
    ) or "A is empty" in wrong.output


def test_plot(db: Database) -> None:
    mpl.use("agg")
    answer = db.contrast("topic = 'war'", "topic = 'art'", k=12)
    drawn = answer.plot()
    at = np.concatenate([np.asarray(c.get_offsets()) for c in drawn.collections])
    shares = [(r.share_b, r.share_a) for r in answer]
    assert np.array(sorted(at.tolist())) == pytest.approx(np.array(sorted(shares)))
    assert [t.get_text() for t in drawn.texts] == [f"made/{r.feature_id}" for r in answer[:8]]
    assert db.contrast(target="year", k=2).plot(drawn) is drawn
    import matplotlib.pyplot as plt

    plt.close("all")


def test_probe(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of few features, measured on what it has not seen, as it says itself."""
    answer = db.contrast("topic = 'war'", "topic = 'art'", probe=3, holdout=0.4)
    found = answer.probe
    assert found is not None
    assert 1 <= len(found["features"]) <= 3
    assert (found["n_train"], found["n_held"]) == (36, 24)
    assert found["auroc"] > 0.8
    assert found["auroc_words"] is not None
    assert "beside" in str(answer)
    _check_rule(db, found)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featuredb\[probes\]'"):
        db.contrast("topic = 'war'", "topic = 'art'", probe=3)


def _check_rule(db: Database, probe: dict[str, Any]) -> None:
    """Its rule holds at the last token of the documents that it says are of A."""
    score: Counter[int] = Counter()
    for each in probe["features"]:
        for row in db.document_features(each["feature"]):
            score[row.document_id] += row.max_activation * each["weight"] / each["scale"]
    n_tokens = dict(db.sql("SELECT document_id, n_tokens FROM documents").fetchall())
    said = {d for d in n_tokens if score[d] + probe["intercept"] > 1e-9}
    alarms = db.replay(probe["rule"])
    bos = int(db.snapshot.corpora[0].bos_token_id is not None)
    size = db.snapshot.corpora[0].context_size - bos
    index = dict(db.sql("SELECT context_id, context_index FROM contexts").fetchall())
    last = {
        r.document_id: index[r.context_id] * size + r.token_index - bos + r.n_tokens for r in alarms
    }
    assert {d for d, end in last.items() if end == n_tokens[d]} == said
