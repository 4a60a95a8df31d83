"""Attribution: parts that add up, and gradients, against dense autograd; removal over texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import QueryError
from featuredb.steering.attribution import _Pass, _rows
from featuredb.steering.forward import adding
from featuredb.steering.removal import recorded_places
from tests.steering.models import attach, loaded, random_sae

IDS = [1, 9, 23, 40, 12, 33]
TARGET = 17


@pytest.mark.parametrize("rule", ["relu", "topk"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "opt"])
def test_against_dense_autograd(family: str, rule: str) -> None:
    model = loaded(family)
    sae = attach(model, random_sae(rule), "blocks.1.hook_resid_post")
    with torch.no_grad():
        logit = float(model.model(torch.tensor([IDS])).logits[0, -1, TARGET])
    done = _Pass.run(model, [sae], IDS, TARGET)
    rows = list(_rows(sae, done, [str(i) for i in IDS], 1))
    direct = sum(row["direct"] or 0.0 for row in rows)
    assert direct == pytest.approx(logit, rel=1e-3)
    assert done.share == pytest.approx(1.0, rel=1e-3) or family == "gemma2"  # capped logits
    # All that passes the hook, by its gradient: features, bias and error.
    delta = torch.zeros(1, len(IDS), 32, requires_grad=True)
    with adding(model.model, sae.hook, delta):
        out = model.model(torch.tensor([IDS])).logits[0, -1, TARGET]
    (gradient,) = torch.autograd.grad(out, delta)
    codes = sae.sae.encode(done.read[sae.hook.name])
    for row in rows:
        if row["part"] == "feature":
            place, feature = row["token_index"] + 1, row["feature_id"]
            assert row["activation"] == pytest.approx(float(codes[place, feature]))
            dense = float(codes[place, feature] * sae.sae.W_dec[feature] @ gradient[0, place])
            assert row["attribution"] == pytest.approx(dense, rel=1e-3, abs=1e-5)
    assert sum(row["part"] == "feature" for row in rows) == int((codes != 0).sum())
    whole = sum(row["attribution"] for row in rows if "attribution" in row)
    assert whole == pytest.approx(
        float((done.read[sae.hook.name] * gradient[0]).sum()), rel=1e-3, abs=1e-4
    )


def test_a_transcoder_where_it_writes() -> None:
    model = loaded("llama")
    sae = attach(
        model, random_sae("relu", d_out=32, seed=3), "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    )
    done = _Pass.run(model, [sae], IDS, TARGET)
    rows = list(_rows(sae, done, [str(i) for i in IDS], 1))
    assert sum(row["direct"] or 0.0 for row in rows) == pytest.approx(done.logit, rel=1e-3)


def test_answers(db: featuredb.Database, steerable: Path) -> None:
    answer = db.attribute(" river bridge stone", " water")
    for sae in ("early", "late"):
        parts = [r.direct for r in answer if r.sae == sae and r.direct is not None]
        assert sum(parts) == pytest.approx(answer.logit, rel=1e-3)
    shown = str(answer)
    assert "·water" in shown
    assert "after" in shown
    with pytest.raises(QueryError, match="did you mean ' "):
        db.attribute("river", "water")
    with pytest.raises(QueryError, match="ids are 0 to"):
        db.attribute("river", 10**6)
    with pytest.raises(QueryError, match="no tokens"):
        db.attribute("", " water")
    call = ["attribute", str(steerable), " river", "--token", " water", "--format", "json"]
    ran = CliRunner().invoke(main, call)
    assert ran.exit_code == 0, ran.output


def test_removal(db: featuredb.Database, steerable: Path, tmp_path: Path) -> None:
    texts = [" river bridge stone water", " music paint planet"]
    control = [" axiom theorem prime number"]
    answer = db.ablate(["early/3", "early/7", "late/2"], texts, control, (1.0, 0.25))
    assert [(r.texts, r.dose) for r in answer] == [
        ("target", 0.0), ("target", 0.25), ("target", 1.0),
        ("control", 0.0), ("control", 0.25), ("control", 1.0),
    ]  # fmt: skip
    # As a user would write it.
    tokenizer, bos = db.tokenizer, db.snapshot.corpora[0].bos_token_id
    losses = []
    places = recorded_places(db._store, "early/3")
    edits = [f"{name}=0 @ {places}" for name in ("early/3", "early/7", "late/2")]
    assert places.startswith("not bos")
    with db.intervene(edits) as model, torch.no_grad():
        for text in texts:
            text_ids = tokenizer(text, add_special_tokens=False).input_ids
            ids = torch.tensor([[bos, *text_ids]], device=model.device)
            losses.append(float(model(ids, labels=ids).loss))
    assert answer[2].loss == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert answer[2].change == pytest.approx(answer[2].loss - answer[0].loss)
    assert answer[5].change_low is None
    by_sql = db.ablate(db.sql("SELECT sae, feature_id FROM features LIMIT 3"), texts[0])
    assert {r.n_features for r in by_sql} == {3}
    assert "target loss" in str(answer)
    wrong: list[dict[str, Any]] = [
        {"doses": (2.0,)},
        {"doses": ()},
        {"features": []},
        {"target": [""]},
    ]
    for bad in wrong:
        given: dict[str, Any] = {"features": ["early/3"], "target": texts} | bad
        with pytest.raises(QueryError):
            db.ablate(**given)
    (tmp_path / "t.txt").write_text("\n".join(texts))
    ran = CliRunner().invoke(
        main, ["ablate", str(steerable), "early/3", "--target", str(tmp_path / "t.txt")]
    )
    assert ran.exit_code == 0, ran.output
    assert CliRunner().invoke(main, ["ablate", str(steerable), "--target", "x"]).exit_code == 2
