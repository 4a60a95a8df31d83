"""Searching by words: against a plain computation, and what users type."""

from __future__ import annotations

import math
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import featuredb
from featuredb.database import Database
from queries.search import COMMON, FEW, PIECE, PROMOTED
from tests.make_store import MadeSae, World, make_store

WORDS = [
    "<bos>",
    " music",
    " Music",
    "music,",
    " musical",
    " of",
    " the",
    "ique",
    " mus",
    "mus",
    " can",
    "can",
    "!",
    " été",
    " 東京",
    '"music"',
    " California",
]


def made(seed: int, d_sae: int) -> World:
    rng = np.random.default_rng(seed)
    documents = [[[0, *rng.integers(1, len(WORDS), 12).tolist()]] for _ in range(20)]
    dense = []
    for (context,) in documents:
        # Each feature has its words, and all have the common ones.
        likes = np.array(
            [[(t * 7 + f) % 5 == 0 or t in (5, 6) for f in range(d_sae)] for t in context]
        )
        active = likes & (rng.random(likes.shape) < 0.7)
        dense.append(np.where(active, rng.integers(1, 9, likes.shape), 0).astype(np.float32))
    directions = rng.normal(size=(d_sae, 4)).astype(np.float32)
    sae = MadeSae("demo", dense, directions, directions)
    return World(documents, {}, WORDS, [sae], context_size=13)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Database:
    path = tmp_path_factory.mktemp("search") / "made.fdb"
    make_store(path, made(0, 40))
    return featuredb.open(path)


def _letter(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LNM"


def _words(query: str) -> dict[str, bool]:
    """The query's words, and whether each is a beginning."""
    words: list[str] = []
    inside = False
    for character in query.lower():
        if _letter(character):
            words = [*words[:-1], words[-1] + character] if inside else [*words, character]
        elif character == "*" and inside:
            words[-1] += "*"
        inside = _letter(character)
    words = words or query.lower().split()
    prefixes = {word.rstrip("*") for word in words if word.endswith("*")}
    return {word: word in prefixes for word in (word.rstrip("*") for word in words)}


def _spelled(token: str, word: str) -> str:
    bare = token.strip(" \t\n\r").lower()
    if any(map(_letter, word)):
        while bare and not _letter(bare[0]):
            bare = bare[1:]
        while bare and not _letter(bare[-1]):
            bare = bare[:-1]
    return bare


def _parts(word: str, prefix: bool) -> dict[str, float]:
    """What each token of the vocabulary is worth for a word."""
    vocabulary = WORDS[1:]
    whole = [
        t
        for t in vocabulary
        if (_spelled(t, word).startswith(word) if prefix else _spelled(t, word) == word)
    ]
    if whole or prefix:
        return dict.fromkeys(whole, 1.0)
    pieces = {}
    for token in vocabulary:
        bare = token.strip().lower()
        inside = word.startswith(bare) or (token.startswith(bare) and bare in word)
        if len(bare) >= PIECE and inside:
            pieces[token] = len(bare) / len(word)
    return pieces


def oracle(features: list[dict[str, Any]], query: str) -> dict[int, float]:
    """Scores by feature, from the rows of the view `features`."""
    fired: dict[str, dict[int, float]] = {}
    promoted: dict[str, dict[int, float]] = {}
    for word, prefix in _words(query).items():
        parts = _parts(word, prefix)
        fired[word], promoted[word] = {}, {}
        for row in features:
            number = row["feature_id"]
            mass = sum(
                t["count"] * t["mean_activation"] * parts.get(t["token"], 0)
                for t in row["top_tokens"] or []
            )
            if any(t["token"] in parts for t in row["top_tokens"] or []):
                fired[word][number] = mass / (row["count"] * row["mean_activation"])
            lens = [
                PROMOTED * parts[t["token"]] / place
                for place, t in enumerate(row["promoted_tokens"] or [], 1)
                if t["token"] in parts
            ]
            if lens:
                promoted[word][number] = max(lens)
    counts = {word: len(hits) for word, hits in fired.items() if hits}
    rarest = min(counts.values(), default=0)
    scores: dict[int, float] = {}
    for word in fired:
        weight = 1.0
        if word in counts:
            total = len(features)
            weight = math.log((total + 1) / counts[word]) / math.log((total + 1) / rarest)
            if counts[word] > COMMON * total >= rarest:
                weight = 0.0
        for hits in (fired[word], promoted[word]):
            for number, share in hits.items():
                count = features[number]["count"]
                part = share * count / (count + FEW) * weight
                scores[number] = scores.get(number, 0.0) + part
    return {number: score for number, score in scores.items() if score > 0}


def check(db: Database, query: str) -> None:
    features = db.sql("FROM features ORDER BY feature_id").to_arrow_table().to_pylist()
    hits = db.search(query, k=1000, by="tokens")
    expected = oracle(features, query)
    assert {row.feature_id: row.score for row in hits} == pytest.approx(expected, rel=1e-5)
    ordered = sorted(hits, key=lambda row: (-row.score, row.feature_id))
    assert [row.rank for row in ordered] == list(range(1, len(hits) + 1))


QUERIES = [
    "music",
    "the music of California",
    "musique",
    "mus*",
    "toucan",
    "!",
    "été",
    "東京",
    "xyz",
    "m",
]


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_those_of_a_plain_computation(db: Database, query: str) -> None:
    check(db, query)


@given(
    seed=st.integers(0, 100),
    d_sae=st.sampled_from([3, 40, 210]),
    queries=st.lists(
        st.lists(st.sampled_from([*WORDS, "music*", ", ", "s", " musiques"])).map("".join),
        min_size=4,
    ),
)
@settings(
    max_examples=8,
    deadline=None,
    # Shrinking makes a store at every step.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
def test_any_words(seed: int, d_sae: int, queries: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.fdb"
        make_store(path, made(seed, d_sae))
        with featuredb.open(path) as db:
            for query in queries:
                check(db, query)


@pytest.mark.parametrize(
    "query", ["music.", "music,", '"music"', "(MUSIC)", " music\n", "«music»!"]
)
def test_punctuation_is_no_part_of_a_word(db: Database, query: str) -> None:
    assert db.search(query).table.equals(db.search("music").table)
    assert len(db.search(query))


def test_common_words_do_not_rule_a_phrase(tmp_path: Path) -> None:
    make_store(tmp_path / "made.fdb", made(1, 210))
    with featuredb.open(tmp_path / "made.fdb") as db:
        rare = [row.feature_id for row in db.search("California", k=5)]
        assert [row.feature_id for row in db.search("California of the", k=5)] == rare


def test_firing_outranks_the_logit_lens(db: Database) -> None:
    fires = db.sql(
        "SELECT feature_id FROM features WHERE list_contains("
        "list_transform(top_tokens, lambda t: lower(trim(t['token']))), 'california')"
    ).fetchall()
    best = {row.feature_id for row in db.search("California", k=len(fires))}
    assert best == {number for (number,) in fires}


def test_a_typo_gets_a_suggestion(db: Database) -> None:
    hits = db.search("musci california xq")
    assert hits.suggestions == {"musci": ("music", "mus", "musical"), "xq": ()}
    assert "no feature mostly fires on musci: did you mean music, mus, musical?" in str(hits)
    assert db.search("music California").suggestions == {}
    assert db.search(" ").suggestions == {}


def test_the_macro_gives_the_same(db: Database) -> None:
    for query in QUERIES:
        hits = db.search(query, k=7, by="tokens").table
        assert db.sql("FROM search(?, k := 7)", [query]).to_arrow_table().equals(hits)
