"""Monitors of a database of chats in overlapping windows, of a ReLU and a top-k SAE."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.database import Database
from featuredb.errors import QueryError
from featuredb.monitors.watching import Watch, WatchedFeatures
from queries.rules.stored import listed
from tests.steering.conftest import TEMPLATE
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

SIZE, STRIDE = 15, 6
"""Text tokens of a window, and from one window to the next."""

CHATS = [
    [
        {"role": ("user", "assistant")[i % 2], "content": d["text"][: 150 + 40 * i]}
        for i, d in enumerate(tiny_documents(8, seed=seed)[2:])
    ]
    for seed in range(6)
]
Token = tuple[str | None, dict[str, float]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    model = tiny_model(folder / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    about = {"hook_name": "blocks.1.hook_resid_post", "prepend_bos": True, "context_size": SIZE + 1}
    saes = [
        tiny_sae(folder / "plain", metadata=about),
        tiny_sae(folder / "top", metadata=about, architecture="topk", k=8, seed=2),
    ]
    featuredb.ingest(
        folder / "x.fdb",
        corpus=str(write_jsonl(folder / "c.jsonl", [{"messages": chat} for chat in CHATS])),
        model=str(model),
        saes=[str(sae) for sae in saes],
        messages_column="messages",
        stride=STRIDE,
        dtype="float32",
        exact=True,
        check=False,
        progress=False,
    )
    return folder / "x.fdb"


def _documents(db: Database, features: list[str]) -> list[list[Token]]:
    """Each document's tokens: role and activations in the first window that has the token."""
    active: dict[tuple[int, int], dict[str, float]] = {}
    for name in features:
        sql = f"SELECT context_id, token_index, activation FROM feature_activations('{name}')"
        for context, index, value in db.sql(sql).fetchall():
            active.setdefault((context, index), {})[name] = value
    documents: list[list[Token]] = [[] for _ in CHATS]
    contexts = "SELECT context_id, document_id, context_index, roles FROM contexts ORDER BY 1"
    for context, document, number, roles in db.sql(contexts).fetchall():
        own = documents[document]
        for index in range(1, len(roles)):
            if number * STRIDE + index - 1 == len(own):
                own.append((roles[index], active.get((context, index), {})))
    return documents


def _mean(text: list[Token], t: int, name: str, n: int) -> float:
    return sum(text[s][1].get(name, 0.0) for s in range(max(0, t - n + 1), t + 1)) / n


def test_replay_and_run_of_chats_are_the_rule_token_by_token(path: Path) -> None:
    with featuredb.open(path) as db:
        dense = dict(
            db.sql(
                "SELECT sae, arg_max(feature_id, density) FROM features WHERE density < 0.5 "
                "GROUP BY sae"
            ).fetchall()
        )
        one, two = f"plain/{dense['plain']}", f"top/{dense['top']}"
        documents = _documents(db, [one, two])
        level, low = (
            float(np.median([a[name] for text in documents for _, a in text if name in a])) * share
            for name, share in ((two, 1), (one, 0.3))
        )
    rules: dict[str, Callable[[list[Token], int], bool]] = {
        f"{two} > {level!r} and role = assistant": lambda text, t: (
            text[t][0] == "assistant" and text[t][1].get(two, 0) > level
        ),
        f"mean({one}, 5) > {low!r} and not role = user": lambda text, t: (
            text[t][0] != "user" and _mean(text, t, one, 5) > low
        ),
        f"{one} or {two}": lambda text, t: bool(text[t][1]),
    }
    for number, (rule, holds) in enumerate(rules.items()):
        held = [[holds(text, t) for t in range(len(text))] for text in documents]
        expected = []
        for document, row in enumerate(held):
            for now, run in groupby(enumerate(row), itemgetter(1)):
                tokens = [t for t, _ in run]
                if now:
                    role = documents[document][tokens[0]][0]
                    expected.append((document, tokens[0], len(tokens), role))
        assert len(expected) > 5, rule
        featuredb.add_monitor(path, f"m{number}", rule)
        with featuredb.open(path) as db:
            index = dict(db.sql("SELECT context_id, context_index FROM contexts").fetchall())
            replayed = [
                (r.document_id, index[r.context_id] * STRIDE + r.token_index - 1, r.n_tokens)
                for r in db.replay(f"m{number}")
            ]
            assert replayed == [row[:3] for row in expected], rule
            ran = db.watch(f"m{number}", CHATS)
            found = [(r.text_index, r.token_index, r.n_tokens, r.role) for r in ran]
            assert found == expected, rule
            assert db.calibrate(f"m{number}")[0].alarms == len(expected)
            firing = [(d, t) for d, row in enumerate(held) for t, now in enumerate(row) if now]
            assert _fired(db, f"m{number}", documents) == firing


def _fired(db: Database, name: str, documents: list[list[Token]]) -> list[tuple[int, int]]:
    """Where a guard would say that the monitor fires, token after token."""
    watch = Watch(db._store, listed(name, db._store), None)
    names = [f"{sae}/{number}" for sae, number in watch.watched.features]
    fired = []
    for d, text in enumerate(documents):
        grid = np.array([[a.get(n, 0.0) for _, a in text] for n in names])
        roles = [role for role, _ in text]
        for t in range(len(text)):
            if watch.firing(grid[:, : t + 1], roles[: t + 1], 1):
                fired.append((d, t))
    return fired


def test_a_top_k_sae_is_encoded_whole(path: Path) -> None:
    featuredb.add_monitor(path, "both", "plain/3 > 0.01 or top/3 > 0.01", replace=True)
    with featuredb.open(path) as db:
        watched = WatchedFeatures(db._store, listed("both", db._store), None)
    assert [sae.sae.d_sae for sae in watched.loaded.saes] == [1, 96]


def test_the_rule_of_an_sae_that_was_dropped(path: Path) -> None:
    featuredb.add_monitor(path, "gone", "top/3 > 0.01 and plain/3", replace=True)
    featuredb.drop(path, sae="top")
    lost = (
        "monitor gone reads top/3 of an SAE that this database does not have: add the SAE, or "
        "remove the monitor"
    )
    with featuredb.open(path) as db:
        for ask in (db.replay, db.calibrate, lambda name: db.watch(name, CHATS)):
            with pytest.raises(QueryError) as error:
                ask("gone")
            assert str(error.value) == lost
        with pytest.raises(QueryError) as error:
            db.sql("FROM alarms('gone')").fetchall()
        assert str(error.value).endswith(lost)
        assert "gone" in db.monitors.table.column("monitor").to_pylist()
    ran = CliRunner().invoke(main, ["monitor", "replay", str(path), "gone"])
    assert ran.exit_code != 0
    assert ran.stderr.strip().splitlines() == [f"featuredb: {lost}"]
    featuredb.set_monitor(path, "gone", "removed")
