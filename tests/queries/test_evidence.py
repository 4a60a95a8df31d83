"""Features by evidence and by phrase, against loops and exact fractions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import featuredb
from featuredb.errors import QueryError
from queries.about import FUSION, about
from queries.connection import Reader
from queries.specificity import Active, ActiveText
from tests.make_store import MadeSae, World, make_store
from tests.queries.test_against_oracle import everywhere

WORDS = [
    *("the", "volcano", "volcanic", "violin", "violins", "violinist", "bridge", "sea", "of", "a"),
    *("ai", "ailment", "naïve", "été", "state", "California", "$5", "u.s.", "dinosaurs"),
]
D_SAE = 40


def _world() -> World:
    """150 documents of one context. A feature fires mostly where one of the words is."""
    rng = np.random.default_rng(11)
    texts, documents, dense = [], [], []
    shares = rng.dirichlet(np.full(len(WORDS), 0.3), 150)
    for share in shares:
        words = ["the", *rng.choice(WORDS, int(rng.integers(0, 9)), p=share).tolist()]
        text = " ".join(words).replace("volcano", "Volcano")
        texts.append(text)
        documents.append([[0, 1]])
        values = np.zeros((2, D_SAE), np.float32)
        for feature in range(D_SAE):
            liked = WORDS[feature % len(WORDS)] in words
            if rng.random() < (0.9 if liked else 0.15):
                values[1, feature] = rng.random() * (4 if liked else 1)
        values[1, 39] = 0
        dense.append(values)
    rows = np.eye(D_SAE, 64, dtype=np.float32)
    sae = MadeSae("s", dense, rows, rows)
    return World(documents, {}, ["<s>", " x"], [sae], texts=texts, context_size=4)


WORLD = _world()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evidence") / "e.fdb"
    make_store(path, WORLD)
    return path


def matching(query: str) -> tuple[set[int], str | None]:
    """Documents that have the query, and what they have."""
    texts = [text.lower() for text in WORLD.texts]
    if re.fullmatch("/.+/", query):
        return {i for i, t in enumerate(texts) if re.search(query[1:-1], t, re.IGNORECASE)}, query
    phrase = re.escape(query.strip().lower()).replace(r"\ ", r"\s+")
    if re.match(r"\w", query.strip()):
        phrase = r"(?:^|\W)" + phrase
    whole = {i for i, t in enumerate(texts) if re.search(phrase, t)}
    words = sorted(set(re.findall(r"\w+", query.lower())))
    if len(whole) >= 3 or not words:
        return whole, query.strip()

    def having(word: str, short: bool) -> set[int]:
        end = r"\b" if short else ""
        return {i for i, t in enumerate(texts) if re.search(rf"(?:^|\W){word}{end}", t)}

    held = {word: having(word, len(word) < 4) for word in words}
    rare = [word for word in words if len(held[word]) <= 0.2 * len(texts)] or words
    every = whole | set.intersection(*(held[word] for word in rare))
    some = every | set.union(*(held[word] for word in rare))
    if len(every) >= 3:
        return every, " and ".join(rare)
    if len(some) >= 3:
        return some, " or ".join(rare)
    stems = {w: w if len(w) < 7 else w[:-2] for w in words}
    last = some | set.union(*(having(stems[word], len(word) < 4) for word in words))
    if last - some:
        return last, " or ".join(stems[w] + "…" for w in rare)
    return some, " or ".join(rare)


def expected(query: str) -> list[dict[str, Any]]:
    matched, _ = matching(query)
    n_docs, m = len(WORLD.texts), len(matched)
    rows = []
    for feature in range(D_SAE):
        values = [float(np.float16(d[1, feature])) for d in WORLD.saes[0].dense]
        fired = [i for i in range(n_docs) if values[i]]
        top = sorted(fired, key=lambda i: (-values[i], i))[:50]
        if not top:
            continue
        n, h = len(top), len(matched & set(top))
        total = math.comb(n_docs, n)
        tail = sum(
            Fraction(math.comb(m, i) * math.comb(n_docs - m, n - i), total)
            for i in range(h, min(n, m) + 1)
        )
        g2 = 0.0
        for observed, row, column in (
            (h, n, m), (n - h, n, n_docs - m), (m - h, n_docs - n, m),
            (n_docs - n - m + h, n_docs - n, n_docs - m),
        ):  # fmt: skip
            if observed:
                g2 += 2 * observed * math.log(observed * n_docs / (row * column))
        rows.append({"feature": feature, "h": h, "n": n, "g2": g2, "p": float(tail)})
    rows.sort(key=lambda r: (r["p"], r["feature"]))
    q = 1.0
    for place in range(len(rows), 0, -1):
        q = min(q, rows[place - 1]["p"] * len(rows) / place)
        rows[place - 1]["q"] = q
    kept = [r for r in rows if r["h"] >= min(2, m) and r["h"] * n_docs > r["n"] * m]
    return sorted(kept, key=lambda r: (-round(r["g2"], 9), r["feature"]))


@pytest.mark.parametrize(
    "query",
    ["volcano", "Volcano!", "violin", "violins violin", "the state of California", "sea bridge",
     "the", "ai", "naïve", "ÉTÉ", "$5", "u.s.", "/vol.?canic/", "/^the$/", "dinosaurs bridge sea",
     "volcanos", "xyzzy", ".", "", "a of", "“volcano”", "🎵", "sea\tbridge", "a\\ of", "\\ "],
    ids=repr,
)  # fmt: skip
def test_evidence(store: Path, query: str) -> None:
    with featuredb.open(store) as db, duckdb.connect(str(store / "catalog.duckdb")) as client:
        answer = db.search(query, k=100, by="evidence")
        rows = everywhere(db, client, answer, "FROM evidence(?, k := 100)", [query])
    want = expected(query) if query.strip() else []
    assert [r["feature_id"] for r in rows] == [w["feature"] for w in want]
    matched, how = matching(query)
    for row, right in zip(rows, want, strict=True):
        assert (row["hits"], row["top_documents"]) == (right["h"], right["n"])
        assert row["matching_documents"] == len(matched)
        assert row["matched"] == how
        assert row["score"] == pytest.approx(right["g2"], rel=1e-6)
        assert row["p"] == pytest.approx(right["p"], rel=1e-9)
        assert row["q"] == pytest.approx(right["q"], rel=1e-9)
        assert row["lift"] == pytest.approx(row["share"] * 150 / len(matched))


def test_under_the_null_few_queries_find_anything() -> None:
    """Of draws at random p is at most 0.05 in at most about 5 %: it is a valid p-value."""
    rng = np.random.default_rng(0)
    low = 0
    for _ in range(2_000):
        n, m, of = 50, 12, 300
        h = len(set(rng.permutation(of)[:n]) & set(range(m)))
        tail = sum(
            Fraction(math.comb(m, i) * math.comb(of - m, n - i), math.comb(of, n))
            for i in range(h, m + 1)
        )
        low += tail <= 0.05
    assert low / 2_000 <= 0.06


def test_search_falls_back_to_evidence(store: Path) -> None:
    with featuredb.open(store) as db:
        answer = db.search("volcano")
        assert answer.by == "evidence"
        assert len(answer)
        assert "documents with volcano" in str(answer).replace("\n", " ")
        assert db.search("volcano", by="tokens").by == "tokens"
        assert len(db.search("volcano", by="tokens")) == 0
        with pytest.raises(QueryError, match="by must be tokens or evidence or meaning, not 'x'"):
            db.search("volcano", by="x")


def _encoding(reader: Reader, features: dict[int, float]) -> Any:
    """What a model would give: the features on the phrase's tokens, feature 0 everywhere."""
    sae = reader.snapshot.saes[0]

    def encode(texts: Sequence[str]) -> list[ActiveText]:
        (text,) = texts
        tokens = re.findall(r" ?[^ .]+|\.", text)
        inside = range(4, len(tokens) - 1)
        rows = [(t, 0, 1.0) for t in range(len(tokens))]
        rows += [(t, f, v) for t in inside for f, v in features.items()]
        columns = [np.array(c) for c in zip(*rows, strict=True)]
        active = Active(sae, columns[0], columns[1], columns[2].astype(np.float32))
        return [ActiveText([active], tokens)]

    return encode


def test_about_counts_the_phrase_alone_and_fuses_ranks(store: Path) -> None:
    with featuredb.open(store) as db:
        reader = db._reader
        encode = _encoding(reader, {3: 0.5, 39: 2.0})
        firing = about(reader, "volcano violin", 10, "firing", encode)
        assert {row.feature_id for row in firing} == {0, 3, 39}
        assert {row.token for row in firing} == {" volcano"}
        evidence = about(reader, "volcano violin", 50, "evidence", encode)
        both = about(reader, "volcano violin", 100, "both", encode)
        ranks = [{row.feature_id: row.rank for row in answer} for answer in (firing, evidence)]
        for row in both:
            found = [each[row.feature_id] for each in ranks if row.feature_id in each]
            assert row.score == pytest.approx(sum(1 / (FUSION + rank) for rank in found))
            assert (row.specificity is None) == (row.feature_id not in ranks[0])
            assert (row.hits is None) == (row.feature_id not in ranks[1])
        scores = [row.score for row in both]
        assert scores == sorted(scores, reverse=True)
        assert str(both).startswith("about volcano violin")


def test_about_in_sql_is_by_evidence(store: Path) -> None:
    with featuredb.open(store) as db:
        wanted = db.about("volcano violin", 7, by="evidence")
        assert len(wanted)
        rows = db.sql("FROM about(?, k := 7)", ["volcano violin"]).to_arrow_table()
        assert rows.column_names == wanted.arrow().column_names
        assert rows.to_pylist() == wanted.arrow().to_pylist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("  ", 5, "both"), "the phrase is empty"),
        (("volcano", 5, "meaning"), "by must be one of both, firing, evidence, not 'meaning'"),
        (("volcano", 0, "both"), "k must be a whole number"),
    ],
)
def test_bad_phrases(store: Path, arguments: tuple[Any, ...], message: str) -> None:
    with featuredb.open(store) as db, pytest.raises(QueryError, match=message):
        db.about(*arguments)
