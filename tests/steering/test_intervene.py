"""`Database.intervene`, on a database whose SAEs' files are gone."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

import featuredb
from featuredb import Database, Edit
from featuredb.errors import FeatureDBError, ModelError, QueryError, SaeError
from ingest.extract.recorded import recorded
from tests.tiny import tiny_model

PROMPT = " river bridge stone water"


def _generated(model: Any, db: Database, **options: Any) -> list[int]:
    given = db.tokenizer(PROMPT, return_tensors="pt").to(model.device)
    made = model.generate(
        **given, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **options
    )
    tokens: list[int] = made[0].tolist()
    return tokens


def test_the_model_itself_steered_for_a_while(db: Database) -> None:
    with db.intervene("early/3+=0") as model:
        plain = _generated(model, db)
    with db.intervene(["early/3=30x", Edit("late/5", "set", 0, where="prompt")]) as steered:
        assert steered is model
        one, two = _generated(steered, db), _generated(steered, db, use_cache=False)
        threads: list[list[int]] = []
        thread = Thread(target=lambda: threads.append(_generated(steered, db)))
        thread.start()
        thread.join()
        fires = db.encode([PROMPT + " x"]).table
    assert one == two == threads[0] != plain == _generated(model, db)
    assert fires.equals(db.encode([PROMPT + " x"]).table)


def test_the_stream_is_edited_as_the_stored_sae_says(db: Database) -> None:
    with db.intervene("early/7=5") as model:
        ids = torch.tensor([[0, *db.tokenizer(PROMPT).input_ids]], device=model.device)
        after = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    before = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    early = recorded(db._store).saes[0].sae
    code = early.encode(before)
    edited = code.clone()
    edited[..., 7] = 5
    right = before + early.decode(edited) - early.decode(code)
    assert (after - right).abs().max() < 1e-5
    assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("early/95=10x", "never fires"),
        ("early/96=1", "no feature 96"),
        ("early/3=1e38", "overflows"),
        ("early/3=1 @ late/3 > 0", "comes after"),
        ("early/3=1 @ role user", "a chat"),
        ('early/3=1 @ token "bridges of"', "no token"),
        ("3=1", "does not say of which SAE"),
    ],
)
def test_edits_that_cannot_be(db: Database, edit: str, words: str) -> None:
    with pytest.raises(FeatureDBError, match=words), db.intervene(edit):
        pass


def test_only_one_at_a_time(db: Database, steerable: Path) -> None:
    with (
        db.intervene("early/3=1"),
        featuredb.open(steerable) as other,
        pytest.raises(QueryError, match="being steered already"),
        other.intervene("late/3=1"),
    ):
        pass
    with db.intervene("early/3=1"):
        pass


def test_another_model_only_where_allowed(steerable: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=5)
    with featuredb.open(steerable, model=other) as db:
        with (
            pytest.raises(ModelError, match="is not the one this database"),
            db.intervene("early/3=1"),
        ):
            pass
        with db.intervene("early/3=1", other_model=True) as model:
            assert model.name_or_path == str(other)
    narrow = tiny_model(tmp_path / "narrow", width=16)
    with (
        featuredb.open(steerable, model=narrow) as db,
        pytest.raises((SaeError, FeatureDBError), match="cannot be steered with it"),
        db.intervene("early/3=1", other_model=True),
    ):
        pass
