"""Tokens that an SAE was not trained on are not recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import featuredb
from featuredb.errors import SaeError
from featuredb.verification import verify
from ingest.extract.new_text import encode_texts
from tests.tiny import HOOK, tiny_documents, tiny_model, tiny_sae, write_jsonl

TEXTS = [*tiny_documents(12), {"text": " river<s> bridge<s>"}, {"text": "<s> tower<s><s> stone"}]


def ingested(folder: Path, excluded: Any, **options: Any) -> Path:
    about: dict[str, Any] = {"hook_name": HOOK, "prepend_bos": True, "context_size": 32}
    if excluded is not None:
        about["exclude_special_tokens"] = excluded
    name = f"{excluded}{len(options)}"
    sae = tiny_sae(folder / f"sae {name}", metadata=about)
    featuredb.ingest(
        folder / f"{name}.fdb",
        corpus=str(write_jsonl(folder / "corpus.jsonl", TEXTS)),
        model=str(tiny_model(folder / "model")),
        saes=[str(sae)],
        names=["s"],
        dtype="float32",
        device="cpu",  # a GPU's sums differ from batch to batch
        keep_sinks=True,
        check=False,
        **options,
    )
    return folder / f"{name}.fdb"


def activations(path: Path) -> set[tuple[int, int, int, float]]:
    with featuredb.open(path) as db:
        rows = db.sql("SELECT context_id, token_index, feature_id, activation FROM activations")
        return set(rows.fetchall())


@pytest.mark.parametrize(
    ("excluded", "ids"), [(True, {0}), ([393, 0], {0, 393}), ([393], {393}), (False, set())]
)
@pytest.mark.parametrize("options", [{}, {"keep_bos": True}])
def test_excluded_positions_are_not_recorded(
    tmp_path: Path, excluded: Any, ids: set[int], options: dict[str, Any]
) -> None:
    every = activations(ingested(tmp_path, None, **options))
    path = ingested(tmp_path, excluded, **options)
    with featuredb.open(path) as db:
        tokens = db.sql("SELECT context_id, token_index, token_id FROM tokens").fetchall()
        left_out = {(c, i) for c, i, token in tokens if token in ids}
        recorded = [(c, i) for c, i, _ in tokens if (i or options) and (c, i) not in left_out]
        assert db.snapshot.recorded_tokens("s") == len(recorded)
        assert db.snapshot.sae("s").excluded_tokens == tuple(sorted(ids))
        text = TEXTS[-2]["text"]
        assert isinstance(text, str)
        new = encode_texts(db._store, [text])[0].encoded[0]
        stored = db.fires_on(text, k=1000)
        assert len(new.token_index) == sum(row.n_tokens for row in stored)
    assert activations(path) == {row for row in every if row[:2] not in left_out}
    assert verify(path).ok


def test_what_is_no_list_of_ids_is_refused(tmp_path: Path) -> None:
    for wrong in ("all", [1.5], [-1], {"ids": [1]}, 3):
        with pytest.raises(SaeError, match="exclude_special_tokens is"):
            ingested(tmp_path, wrong)


def test_a_changed_configuration_is_refused_where_more_is_added(tmp_path: Path) -> None:
    path = ingested(tmp_path, True)
    about = {"hook_name": HOOK, "prepend_bos": True, "context_size": 32}
    sae = tiny_sae(tmp_path / "sae True0", metadata=about)
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": " river"}])
    with pytest.raises(SaeError, match="exclude other tokens"):
        featuredb.append(path, corpus=str(more), saes=[str(sae)], check=False)
