"""Chats: every token's role is stored beside it, and SQL joins it to activations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from transformers import AutoTokenizer

import featuredb
from featuredb.verification import verify
from ingest.tokens.contexts import TokenizedBatch
from ingest.tokens.store import _Roles
from queries.units import units_of
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


def _chats() -> list[dict[str, Any]]:
    chats = []
    for i in range(12):
        told = [{"role": "user", "content": " river bridge stone"}]
        told.append({"role": "assistant", "content": " music paint" * (i + 1)})
        if i % 3 == 0:
            told.insert(0, {"role": "critic", "content": " king queen"})
        chats.append({"messages": told, "topic": str(i)})
    return chats


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    model = tiny_model(folder / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = _TEMPLATE
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    featuredb.ingest(
        folder / "chats.fdb",
        corpus=str(write_jsonl(folder / "chats.jsonl", _chats())),
        model=str(model),
        saes=[str(tiny_sae(folder / "sae"))],
        messages_column="messages",
        dtype="float32",
        check=False,
    )
    return folder / "chats.fdb"


def test_the_text_of_each_role_is_what_it_said(path: Path) -> None:
    with featuredb.open(path) as db:
        rows = db.sql(
            "SELECT document_id, role, string_agg(token, '' ORDER BY context_id, token_index) "
            "FROM tokens JOIN contexts USING (context_id) WHERE token <> '<s>' GROUP BY ALL"
        ).fetchall()
    said = {(document, role): text for document, role, text in rows}
    for i, chat in enumerate(_chats()):
        for message in chat["messages"]:
            assert said[i, message["role"]].replace("·", " ") == message["content"]
        assert "<user>" in said[i, "template"]


def test_whole_chats(path: Path) -> None:
    """The text is what the template wrote, and each token's characters are its own."""
    with featuredb.open(path) as db:
        active = {
            (context, token): activation
            for context, token, activation in db.sql(
                "SELECT context_id, token_index, activation FROM activations WHERE feature_id = 3"
            ).fetchall()
        }
        assert active
        for i, chat in enumerate(_chats()):
            answer = db.document(i, 3)
            said = [(m["role"], m["content"]) for m in chat["messages"]]
            assert answer.text == "".join(f"<{role}>{content}\n" for role, content in said)
            assert answer.metadata["topic"] == str(i)
            for row in answer:
                assert answer.text[row.char_start : row.char_end] == row.token
                place = row.context_id, row.token_index
                assert (row.activation or 0) == active.get(place, 0)
            for role, content in said:
                spoken = [row for row in answer if row.role == role]
                start, end = spoken[0].char_start, spoken[-1].char_end
                assert answer.text[start:end] == content
            columns = answer.arrow().drop_columns(["sae", "feature_id", "activation"])
            rows = db.sql("FROM document(?)", [i]).fetchall()
            assert rows == [tuple(row.values()) for row in columns.to_pylist()]


def test_roles_join_activations(path: Path) -> None:
    with featuredb.open(path) as db:
        counts = dict(
            db.sql(
                "SELECT role, count(*) FROM activations "
                "JOIN tokens USING (context_id, token_index) GROUP BY role"
            ).fetchall()
        )
        ((total,),) = db.sql("SELECT count(*) FROM activations").fetchall()
    assert set(counts) == {"template", "user", "assistant", "critic"}
    assert sum(counts.values()) == total


def test_activations_per_turn(path: Path) -> None:
    """A turn is what one message says, and its activations are those of its tokens."""
    with featuredb.open(path) as db:
        units = units_of(db._store, "turn")
        turns = units.tables["turns"].to_pylist()
        said = [(i, m["role"]) for i, chat in enumerate(_chats()) for m in chat["messages"]]
        assert [(t["document_id"], t["role"]) for t in turns] == said
        assert [t["turn_index"] for t in turns if t["document_id"] == 0] == [0, 1, 2]
        by_role = (
            "FROM (SELECT document_id, role, max(activation), sum(activation), count(*) "
            "FROM activations JOIN tokens USING (context_id, token_index) "
            "JOIN contexts USING (context_id) WHERE feature_id = ? AND role <> 'template' "
            "GROUP BY ALL) ORDER BY document_id, role = 'assistant', role = 'user'"
        )
        counts = db.sql("SELECT feature_id FROM features ORDER BY count DESC LIMIT 4").fetchall()
        for (feature,) in counts:
            answer = db.document_features(feature, "turn")
            rows = [(r.document_id, r.role, *tuple(r)[-3:]) for r in answer]
            assert rows == db.sql(by_role, [feature]).fetchall()
        ((recorded,),) = db.sql(
            "SELECT count(*) FROM tokens WHERE role <> 'template' AND token <> '<s>'"
        ).fetchall()
        sinks = db.sql("FROM sinks").fetchall()
        assert not sinks
        assert units.lengths(db.saes[0]).sum() == recorded


def test_turns_contrasted_on_a_feature_of_another_sae(path: Path, tmp_path: Path) -> None:
    """Turns of two roles, of two SAEs, on the tokens of a feature: against SQL and scipy."""
    copy = tmp_path / "chats.fdb"
    shutil.copytree(path, copy)
    other = tiny_sae(tmp_path / "other", d_sae=64, seed=5)
    featuredb.add_saes(
        copy, [str(other)], names=["other"], model=str(path.parent / "model"), check=False
    )
    pooled = (
        "WITH on_it AS (SELECT context_id, token_index FROM activations WHERE sae = 'other' "
        "AND feature_id = ?), turns AS (SELECT DISTINCT document_id, role FROM tokens JOIN "
        "contexts USING (context_id) JOIN on_it USING (context_id, token_index) "
        "WHERE role IN ('user', 'assistant')) "
        "SELECT sae, feature_id, document_id, role, max(activation) FROM activations "
        "JOIN on_it USING (context_id, token_index) JOIN tokens USING (context_id, token_index) "
        "JOIN contexts USING (context_id) WHERE role IN ('user', 'assistant') GROUP BY ALL"
    )
    with featuredb.open(copy) as db:
        by_count = "FROM features WHERE sae = 'other' ORDER BY count DESC, feature_id LIMIT 1"
        ((feature,),) = db.sql(f"SELECT feature_id {by_count}").fetchall()
        answer = db.contrast(
            "role = 'user'",
            "role = 'assistant'",
            unit="turn",
            on=f"other/{feature}",
            min_share=0,
            k=500,
        )
        rows = db.sql(pooled, [feature]).fetchall()
    units = {(document, role) for _, _, document, role, _ in rows}
    sides = [sorted(u for u in units if u[1] == role) for role in ("user", "assistant")]
    assert (answer.n_a, answer.n_b) == tuple(map(len, sides))
    values: dict[tuple[str, int], dict[tuple[int, str], float]] = {}
    for sae, number, document, role, value in rows:
        values.setdefault((sae, number), {})[document, role] = value
    assert {(r.sae, r.feature_id) for r in answer} == set(values)
    assert {r.sae for r in answer} == {"sae", "other"}
    for row in answer:
        own = values[row.sae, row.feature_id]
        one, two = ([own.get(unit, 0.0) for unit in side] for side in sides)
        if len({*one, *two}) > 1:
            theirs = stats.mannwhitneyu(one, two, method="asymptotic")
            assert row.p == pytest.approx(theirs.pvalue, rel=1e-9)
            assert row.auroc == pytest.approx(theirs.statistic / len(one) / len(two))


def test_the_file_agrees_with_the_column(path: Path) -> None:
    with featuredb.open(path) as db:
        (corpus,) = db.snapshot.corpora
        assert corpus.roles is not None
        assert corpus.roles.rows == corpus.tokens.rows
        codes = np.fromfile(path / corpus.roles.path, np.uint8)
        rows = db.sql("SELECT role FROM tokens ORDER BY context_id, token_index").fetchall()
    assert [corpus.role_names[c] for c in codes] == [role for (role,) in rows]
    assert verify(path).ok
    (path / corpus.roles.path).write_bytes(b"\0")
    assert not verify(path).ok
    codes.tofile(path / corpus.roles.path)


def test_tokens_of_a_corpus_that_is_no_chat_have_no_role(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    featuredb.ingest(
        tmp_path / "plain.fdb",
        corpus=str(write_jsonl(tmp_path / "corpus.jsonl", tiny_documents(20))),
        model=str(model),
        saes=[str(tiny_sae(tmp_path / "sae"))],
        dtype="float32",
        check=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    with featuredb.open(tmp_path / "plain.fdb") as db:
        rows = db.sql(
            "SELECT token_index, token_id, token, role FROM tokens WHERE context_id = 5 "
            "ORDER BY token_index"
        ).fetchall()
        assert [r[1] for r in rows] == db._store.texts.token_ids(5).tolist()
        assert [r[0] for r in rows] == list(range(len(rows)))
        assert {r[3] for r in rows} == {None}
        assert rows[1][2].strip("· ") == tokenizer.decode(rows[1][1]).strip()
        (corpus,) = db.snapshot.corpora
        assert corpus.roles is None
        assert "roles" not in db.sql("SELECT * FROM contexts").columns


def test_batches_number_their_roles_for_themselves(tmp_path: Path) -> None:
    def batch(names: tuple[str, ...], roles: list[int]) -> TokenizedBatch:
        none = np.empty(0, np.int64)
        return TokenizedBatch(
            none.astype(np.uint32), none.astype(np.int32), none, none.astype(np.int32), none, none,
            none, np.array(roles, np.uint8), names,
        )  # fmt: skip

    roles = _Roles(tmp_path / "roles.bin")
    one = roles.add(batch(("user", "judge"), [0, 1, 1]), 3)
    two = roles.add(batch(("user", "critic", "judge"), [2, 1, 0, 0]), 3)
    roles.close()
    assert one.to_pylist() + two.to_pylist() == ["user", *["judge"] * 3, "critic", "user"]
    assert roles.names == ["user", "judge", "critic"]
    assert (tmp_path / "roles.bin").read_bytes() == bytes([0, 1, 1, 1, 2, 0])
