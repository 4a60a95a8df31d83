"""The causal check: against dense passes, tested for chance, stored and shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import QueryError, UnknownFeatureError
from featuredb.steering.causal import REACH, sign_test
from featuredb.store.store import Store
from ingest.extract.recorded import recorded


@pytest.fixture(scope="module")
def path(steerable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ablated") / "x.fdb"
    return Path(shutil.copytree(steerable, path))


def test_the_change_of_the_loss_against_dense_passes(path: Path) -> None:
    store = Store.open(path)
    loaded = recorded(store)
    early, model = loaded.saes[0], loaded.model.model
    with featuredb.open(path) as db:
        (row,) = db.effect("early/7", k=5, save=False)
        stored = db.sql("FROM feature_activations('early/7')").fetchnumpy()
        top = db.top_contexts("early/7", 5, per_document=True, distinct=True)
        changes, tokens = [], 0
        for context, peak in zip(
            top.table["context_id"].to_pylist(), top.table["token_index"].to_pylist(), strict=True
        ):
            ids = torch.from_numpy(store.texts.token_ids(context).astype(np.int64))[None]
            ids = ids.to(model.device)
            places = np.sort(stored["token_index"][stored["context_id"] == context])
            places = places[(places <= peak + REACH) & (places < ids.shape[1] - 1)]

            def ablate(_m: object, _a: object, out: torch.Tensor, at: object = places) -> object:
                new = out.clone()
                code = early.sae.encode(out[0, at])[:, 7:8]  # type: ignore[index]
                new[0, at] -= code * early.sae.W_dec[7]  # type: ignore[index]
                return new

            with torch.no_grad():
                before = model(ids).logits[0].log_softmax(1)
                handle = model.model.layers[1].register_forward_hook(ablate)
                after = model(ids).logits[0].log_softmax(1)
                handle.remove()
            if not len(places):
                continue
            following = ids[0, places + 1]
            changes.append(float((before - after)[places].gather(1, following[:, None]).mean()))
            tokens += len(places)
    assert row.loss_change == pytest.approx(np.mean(changes), abs=1e-5)
    assert row.share_raised == np.mean(np.array(changes) > 0)
    assert (row.n_contexts, row.n_tokens) == (len(changes), tokens)
    assert row.p == sign_test(np.array(changes))
    assert row.loss_change_low < row.loss_change < row.loss_change_high


def test_the_control_against_dense_passes(path: Path) -> None:
    """What the feature adds at its peaks is taken away at matched tokens where it is silent."""
    store = Store.open(path)
    loaded = recorded(store)
    early, model = loaded.saes[0], loaded.model.model
    with featuredb.open(path) as db:
        fire = "FROM features SELECT feature_id WHERE sae = 'early' AND count > 0"
        numbers = [number for (number,) in db.sql(f"{fire} ORDER BY ALL").fetchall()]
        number = next(n for n in numbers if len(db.silent_contexts(f"early/{n}", 5, seed=3)) == 5)
        feature = f"early/{number}"
        (row,) = db.effect(feature, k=5, seed=3, save=False)
        top = db.top_contexts(feature, 5, per_document=True, distinct=True)
        silent = db.silent_contexts(feature, 5, like="tokens", seed=3)
    peaks = top.table["activation"].to_pylist()
    by_document: dict[int, list[float]] = {}
    for place, each in enumerate(silent):
        ids = torch.from_numpy(store.texts.token_ids(each.context_id).astype(np.int64))[None]
        ids = ids.to(model.device)
        at = each.token_index
        if at + 1 == ids.shape[1]:
            continue
        taken = peaks[place % len(peaks)] * early.sae.W_dec[number]

        def take(
            _m: object, _a: object, out: torch.Tensor, at: int = at, taken: torch.Tensor = taken
        ) -> torch.Tensor:
            new = out.clone()
            new[0, at] -= taken
            return new

        with torch.no_grad():
            before = model(ids).logits[0, at].log_softmax(0)
            handle = model.model.layers[1].register_forward_hook(take)
            after = model(ids).logits[0, at].log_softmax(0)
            handle.remove()
        change = float((before - after)[ids[0, at + 1]])
        by_document.setdefault(each.document_id, []).append(change)
    assert by_document
    wanted = np.mean([np.mean(changes) for changes in by_document.values()])
    assert row.control_change == pytest.approx(wanted, abs=1e-5)


def test_sign_test() -> None:
    # scipy.stats.binomtest(9, 10).pvalue and (5, 10), zeros left out
    assert sign_test(np.array([1.0] * 9 + [-1.0, 0.0])) == pytest.approx(0.021484375)
    assert sign_test(np.array([1.0, -1.0] * 5)) == 1.0
    assert sign_test(np.zeros(3)) == 1.0


def test_many_at_once_are_stored(path: Path) -> None:
    features = [f"early/{f}" for f in (3, 7, 11)] + ["late/5"]
    with featuredb.open(path) as db:
        answer = db.effect(features, k=4, sample=True)
    assert [(r.sae, r.feature_id) for r in answer] == [
        ("early", 3), ("early", 7), ("early", 11), ("late", 5),
    ]  # fmt: skip
    assert {r.n_tested for r in answer} == {4}
    assert all(r.q >= r.p for r in answer)
    with featuredb.open(path) as db:
        kept = db.sql("SELECT feature_id, q, ablated_by FROM effects ORDER BY sae, feature_id")
        rows = kept.fetchall()
    assert [q for _, q, _ in rows] == [r.q for r in answer]
    assert featuredb.verify(path).ok
    ran = CliRunner().invoke(main, ["effect", str(path), "late/5", "-k", "3", "--no-save"])
    assert ran.exit_code == 0, ran.output
    assert "late/5" in ran.stdout


def test_refused(path: Path) -> None:
    with featuredb.open(path) as db:
        with pytest.raises(UnknownFeatureError):
            db.effect("early/1234")
        with pytest.raises(QueryError, match="never fires"):
            db.effect("early/95")
        with pytest.raises(QueryError, match="at least one"):
            db.effect([])
