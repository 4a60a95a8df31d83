"""Archives of the current format: small stores, packed, with the answers they gave.

    python -m tests.archives.make

writes ``format-<number>/`` beside this file, once for each format number. It never overwrites an
archive, because an archive is only useful if it is older than the code.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import featuredb
from featuredb.database import Database
from featuredb.store import schemas
from tests.archives.packed import HERE, Question, answer, pack
from tests.make_store import MadeSae, World, make_store
from tests.tiny import tiny_model, tiny_sae, write_jsonl

_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


def world() -> World:
    """Two SAEs on one hook and one on another. Ties, silence, nulls, values beyond float16."""
    rng = np.random.default_rng(20)
    vocabulary = ["<s>", " river", " bridge", " 水", "B", "\n", " the", " king", "'q'", " stone"]
    documents = []
    for n_tokens in [0, 1, *rng.integers(2, 40, 28).tolist()]:
        own = rng.integers(1, len(vocabulary), n_tokens).tolist()
        documents.append([[0, *own[i : i + 7]] for i in range(0, n_tokens, 7)])
    contexts = [c for document in documents for c in document]
    levels = np.array([0.5, 1.0, 1.0, 2.0, 3.25, 0.1, 1e-9], np.float32)
    saes = []
    for name, d_sae, hook in (("first", 24, 0), ("an/other", 10, 0), ("elsewhere", 6, 1)):
        dense = []
        for context in contexts:
            active = rng.random((len(context), d_sae)) < 0.15
            active[:, -1] = False
            values = rng.choice(levels, active.shape)
            if name == "an/other":
                values[:, 0] *= 40_000
            dense.append(np.where(active, values, 0).astype(np.float32))
        decoder, encoder = rng.normal(size=(2, d_sae, 6)).astype(np.float32)
        hooked = f"blocks.{hook}.hook_resid_post"
        saes.append(MadeSae(name, dense, decoder, encoder, hooked))
    n = len(documents)
    metadata: dict[str, list[Any]] = {
        "topic": [["art", None, "it's"][i % 3] for i in range(n)],
        "year": [1900 + i for i in range(n)],
    }
    return World(documents, metadata, vocabulary, saes, 0, 8, partitions=3)


def ingested(path: Path, folder: Path) -> None:
    """Chats through a small real model: roles, sinks, a logit lens, two SAEs."""
    model = tiny_model(folder / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = _TEMPLATE
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    chats = []
    for i in range(10):
        told = [{"role": "user", "content": " river bridge stone"}]
        told.append({"role": "assistant", "content": " music paint" * (i + 1)})
        chats.append({"messages": told, "topic": ["Art", None][i % 2]})
    featuredb.ingest(
        path,
        corpus=str(write_jsonl(folder / "chats.jsonl", chats)),
        model=str(model),
        saes=[str(tiny_sae(folder / name, d_sae=d, seed=d)) for name, d in (("a", 20), ("b", 12))],
        names=["a", "b"],
        messages_column="messages",
        dtype="float32",
        sink_threshold=1.05,
        check=False,
    )


def questions(db: Database) -> list[Question]:
    """The questions for a store: every kind, in Python and in SQL, without answers."""
    asked: list[Question] = []
    for sae in db.saes:
        densest = (
            "SELECT feature_id FROM features WHERE sae = ? ORDER BY count DESC, feature_id LIMIT 1"
        )
        for feature in (db.sql(densest, [sae.name]).fetchall()[0][0], sae.d_sae - 1):
            name = f"{sae.name}/{feature}"
            asked.append(_call("top_contexts", name, k=3, window=2))
            asked.append(_sql("FROM top_contexts(?, k := 6, window_size := 3)", name))
            asked += [_call("near", name, k=5, by=by) for by in ("decoder", "coactivation")]
            asked += [
                _sql(f"FROM {m}(?, k := 4)", name) for m in ("near_encoder", "near_coactivation")
            ]
            asked.append(_call("feature", name))
            asked.append(_sql("FROM feature_activations(?) ORDER BY ALL", name))
    for context in (0, 5):
        asked.append(_call("fires_in", context, k=4))
        asked.append(_sql("FROM fires_in(?, k := 3)", context))
    asked.append(_call("search", "river music", k=5))
    asked.append(_sql("FROM search('bridge', k := 5)"))
    asked.append(
        _sql(
            "SELECT sae, topic, count(*) AS n, sum(activation) AS total FROM activations "
            "JOIN contexts USING (context_id) JOIN documents USING (document_id) "
            "GROUP BY ALL ORDER BY ALL"
        )
    )
    asked.append(_sql("SELECT role, token, count(*) AS n FROM tokens GROUP BY ALL ORDER BY ALL"))
    asked.append(_sql("SELECT sae, context_id, token_index, norm FROM sinks ORDER BY ALL"))
    asked.append(_sql("FROM examples ORDER BY ALL LIMIT 20"))
    asked.append(_sql("SELECT sae, d_sae, recorded_tokens, rows FROM saes ORDER BY sae"))
    return asked


def _call(method: str, *arguments: Any, **named: Any) -> Question:
    return {"call": method, "arguments": list(arguments), "named": named}


def _sql(query: str, *parameters: Any) -> Question:
    return {"sql": query, "parameters": list(parameters)}


def main() -> None:
    target = HERE / f"format-{schemas.FORMAT_VERSION}"
    if target.exists():
        sys.exit(f"{target} is there: archives are written once, remove it to write it anew")
    target.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        made, chats = Path(folder) / "made.fdb", Path(folder) / "chats.fdb"
        make_store(made, world())
        with mock.patch.object(platform, "node", return_value="archive"):
            ingested(chats, Path(folder))
        for store in (made, chats):
            with featuredb.open(store) as db:
                asked = [q | {"rows": answer(db, q)} for q in questions(db)]
            lines = ",\n".join(json.dumps(q, ensure_ascii=False) for q in asked)
            (target / f"{store.stem}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
            pack(store, target / f"{store.stem}.tar.gz")


if __name__ == "__main__":
    main()
