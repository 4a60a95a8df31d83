"""New text gets what an ingest of it would have stored: windows, BOS, roles or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featuredb
from featuredb.errors import ModelError
from ingest.extract.new_text import encode_texts
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def opened(folder: Path, documents: list[dict[str, Any]], **options: Any) -> featuredb.Database:
    bos = options.pop("prepend_bos", True)
    model = tiny_model(folder / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    about = {"hook_name": "blocks.1.hook_resid_post", "prepend_bos": bos, "context_size": 16}
    featuredb.ingest(
        folder / "x.fdb",
        corpus=str(write_jsonl(folder / "corpus.jsonl", documents)),
        model=str(model),
        saes=[str(tiny_sae(folder / "sae", metadata=about))],
        dtype="float32",
        exact=True,
        check=False,
        progress=False,
        **options,
    )
    return featuredb.open(folder / "x.fdb")


TEXTS = [
    *tiny_documents(12),
    {"text": "<s> river bridge"},
    {"text": "<s><s> river bridge" * 9},
    {"text": " river<s> bridge"},
]
CHATS = [{"messages": [{"role": "user", "content": d["text"]}]} for d in tiny_documents(8)]


@pytest.mark.parametrize(
    ("documents", "options"),
    [
        (TEXTS, {}),
        (TEXTS, {"stride": 4}),
        (TEXTS, {"stride": 15}),
        (TEXTS, {"stride": 7, "prepend_bos": False}),
        (TEXTS, {"prepend_bos": False, "keep_sinks": True}),
        (TEXTS, {"stride": 5, "keep_bos": True}),
        (CHATS, {"stride": 6, "messages_column": "messages"}),
    ],
)
def test_a_stored_text_run_again_is_as_it_is_stored(
    tmp_path: Path, documents: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    with opened(tmp_path, documents, **options) as db:
        rows = db.sql("SELECT text FROM documents ORDER BY document_id").fetchall()
        for (text,) in rows:
            stored = db.fires_on(text, k=1000)
            again = encode_texts(db._store, [text])[0]
            assert again.tokens == stored.tokens
            dense = np.zeros((len(stored.tokens), 96), np.float32)
            encoded = again.encoded[0]
            dense[encoded.token_index, encoded.feature_id] = encoded.activation
            expected = np.zeros_like(dense)
            for row in stored:
                expected[:, row.feature_id] = row.activations
            np.testing.assert_allclose(dense, expected, atol=1e-4)
        ids = db.sql("SELECT token_ids FROM contexts WHERE context_index = 0").fetchall()
        if options.get("prepend_bos", True):
            assert all(c[:2] != [0, 0] for (c,) in ids)


def test_a_model_of_ids_needs_no_tokenizer(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    about = {"hook_name": "blocks.1.hook_resid_post", "prepend_bos": False, "context_size": 16}
    sae = tiny_sae(tmp_path / "sae", metadata=about)
    games = write_jsonl(tmp_path / "games.jsonl", [{"ids": [5, 300, 7, 5]}, {"ids": [9] * 16}])
    given: dict[str, Any] = {"model": str(model), "saes": [str(sae)], "check": False}
    featuredb.ingest(tmp_path / "x.fdb", corpus=str(games), tokens_column="ids", **given)
    with featuredb.open(tmp_path / "x.fdb") as db:
        rows = db.sql("SELECT feature_id FROM features ORDER BY count DESC LIMIT 1").fetchall()
        feature = rows[0][0]
        assert set("".join(db.top_contexts(feature, k=2)[0].tokens)) <= set("<>0123456789")
        with pytest.raises(ModelError, match="has no tokenizer"):
            db.fires_on("e4 e5")
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "e4 e5"}])
    with pytest.raises(ModelError, match="has no tokenizer"):
        featuredb.ingest(tmp_path / "y.fdb", corpus=str(texts), **given)
    assert not list((tmp_path / "y.fdb").glob("*"))


def test_rows_as_long_as_the_context_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(tmp_path / "model")
    sae = tiny_sae(tmp_path / "sae")
    for name, length, warned in (("long", 32, True), ("fitting", 31, False)):
        rows = write_jsonl(tmp_path / f"{name}.jsonl", [{"ids": [5] * length}] * 3)
        caplog.clear()
        featuredb.ingest(
            tmp_path / f"{name}.fdb", corpus=str(rows), model=str(model), saes=[str(sae)],
            tokens_column="ids", check=False,
        )  # fmt: skip
        assert ("have 32 tokens" in caplog.text) == warned
