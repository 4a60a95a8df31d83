"""What steering does, measured: against dense passes, killed and resumed, shown and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import QueryError, StorageError, UnknownFeatureError
from featuredb.steering import measure
from featuredb.steering.output_score import output_scores
from featuredb.store.files.atomic import sha256_of
from featuredb.store.store import Store
from ingest.derive.logits import strongest_tokens
from ingest.extract.recorded import recorded
from ingest.model.load import unembedding
from ingest.tokens.vocabulary import known_ids

PROMPTS = ["river bridge", "stone water tower music paint"]


@pytest.fixture(scope="module")
def path(steerable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with all features of `early` measured, and three of `late`."""
    path = tmp_path_factory.mktemp("measured") / "x.fdb"
    shutil.copytree(steerable, path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "_CHUNK", 40)
        with featuredb.open(path) as db:
            fires = db.sql("SELECT feature_id FROM features WHERE sae = 'early' AND count > 0")
            names = [f"early/{f}" for (f,) in fires.fetchall()]
        featuredb.measure(path, [*names, "late/3", "late/1", "late/2"], prompts=PROMPTS)
    return path


def test_every_figure_against_dense_passes(path: Path) -> None:
    store = Store.open(path)
    loaded = recorded(store)
    model, saes = loaded.model, loaded.saes
    early = saes[0]
    lens, known = unembedding(model), known_ids(model.tokenizer, model.vocab_size)
    assert lens is not None
    bos = store.snapshot.corpora[0].bos_token_id
    layer = model.model.model.layers[1]
    maxima = {s.name: store.features.max_activation(store.snapshot.sae(s.name)) for s in saes}
    with featuredb.open(path) as db:
        rows = {r["feature_id"]: r for r in db.sql("FROM effects").to_arrow_table().to_pylist()
                if r["sae"] == "early"}  # fmt: skip
    assert len(rows) > 80

    def run(ids: list[int], change: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Log probabilities of the next token, and both SAEs' codes at the last."""
        seen: dict[str, torch.Tensor] = {}

        def at_early(_m: object, _a: object, out: torch.Tensor) -> torch.Tensor:
            new = out.clone()
            new[0, -1] += 0 if change is None else change
            seen["early"] = new[0, -1:]
            return new

        def at_late(_m: object, _a: object, out: torch.Tensor) -> None:
            seen["late"] = out[0, -1:]

        handles = [
            layer.register_forward_hook(at_early),
            model.model.model.layers[2].register_forward_hook(at_late),
        ]
        with torch.no_grad():
            logits = model.model(torch.tensor([ids], device=model.device)).logits[0, -1]
        for handle in handles:
            handle.remove()
        codes = [s.sae.encode(seen[s.name])[0].cpu() for s in saes]
        logits = logits.cpu()
        return logits.log_softmax(0), codes[0], codes[1], logits

    for feature in list(rows)[::17]:
        row, v = rows[feature], float(maxima["early"][feature])
        kls, units, moves, spreads, others, least = [], [], [], [], [], np.inf
        shares = torch.zeros(2, model.vocab_size)
        for number, prompt in enumerate(PROMPTS):
            ids = [bos, *model.tokenizer(prompt, add_special_tokens=False).input_ids]
            before, code, late_code, _ = run(ids, None)
            by = v - float(code[feature])
            after, moved, late_moved, _ = run(ids, by * early.sae.W_dec[feature])
            kl = float((before.exp() * (before - after)).sum())
            kls.append(kl)
            units.append(kl / abs(by))
            least = min(least, abs(by))
            change = (moved - code).abs()
            change[feature] = 0
            tenth = torch.from_numpy(np.nan_to_num(maxima["early"])) * 0.1
            moves.append(int(((change >= tenth) & (change > 0)).sum()))
            spreads.append(float(change.sum()) / abs(by))
            others.append(float((late_moved - late_code).abs().sum()) / abs(by))
            shares += torch.stack([before.exp(), after.exp()])
            if number == 0:
                loudest = 10 * float(code.max())
                _, _, _, logits = run(ids, loudest * early.sae.W_dec[feature])
                promoted = strongest_tokens(early.sae.W_dec[feature : feature + 1], lens, known)
                probabilities = logits.softmax(0)
                ranks = probabilities.argsort(descending=True).argsort()
                top = promoted[True][1][0].tolist()
                score = (1 - min(int(ranks[t]) for t in top) / model.vocab_size) * max(
                    float(probabilities[t]) for t in top
                )
                assert row["output_score"] == pytest.approx(score, rel=1e-4)
        assert row["strength"] == pytest.approx(v)
        assert row["kl"] == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-6)
        # Log probabilities are rounded at 5e-7, however small the step is that they are divided by.
        assert row["kl_per_unit"] == pytest.approx(np.mean(units), rel=1e-3, abs=1e-6 / least)
        assert row["moved"] == np.mean(moves)
        assert row["collateral"] == pytest.approx(np.mean(spreads), rel=1e-4)
        (other,) = row["collateral_others"]
        assert other["sae"] == "late"
        assert other["collateral"] == pytest.approx(np.mean(others), rel=1e-3)
        factor = (shares[1] / shares[0]).log()
        texts = store.texts.token_texts
        for name, sign in (("raised_tokens", 1), ("lowered_tokens", -1)):
            seen = shares[1 if sign > 0 else 0] >= 2e-4
            wanted = torch.where(seen & torch.from_numpy(known), factor * sign, -torch.inf)
            best = wanted.argsort(descending=True)[: len(row[name])].tolist()
            assert [t["token"] for t in row[name]] == [texts[t] for t in best]
            changes = [t["change"] for t in row[name]]
            assert changes == pytest.approx([float(factor[t]) for t in best], rel=1e-3, abs=1e-5)


def test_output_scores_of_a_batch() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0], [5.0, 0.0, 0.0, 0.0]])
    scores = output_scores(logits, torch.tensor([[1, 3], [1, 2]]))
    shares = logits.softmax(1)
    assert scores.tolist() == pytest.approx(
        [(1 - 1 / 4) * float(shares[0, 3]), (1 - 1 / 4) * float(shares[1, 1])]
    )


def test_killed_and_run_again(
    path: Path, steerable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Path(shutil.copytree(steerable, tmp_path / "y.fdb"))
    features = [f"early/{f}" for f in range(0, 60, 3)]
    monkeypatch.setattr(measure, "_CHUNK", 8)
    real = measure._Measurement.rows
    chunks: list[int] = []

    def rows(self: measure._Measurement, features: list[int]) -> object:
        if len(chunks) == 1:
            chunks.append(0)
            raise KeyboardInterrupt
        chunks.append(len(features))
        return real(self, features)

    monkeypatch.setattr(measure._Measurement, "rows", rows)
    with pytest.raises(KeyboardInterrupt):
        featuredb.measure(again, features, prompts=PROMPTS)
    with featuredb.open(again) as db:
        assert db.sql("SELECT count(*) FROM effects").fetchall() == [(8,)]
    answer = featuredb.measure(again, features, prompts=PROMPTS)
    assert chunks == [8, 0, 8, 4]
    whole = featuredb.measure(path, features, prompts=PROMPTS)
    for name in ("kl", "output_score", "collateral", "collateral_forecast"):
        one, other = (table.column(name).to_numpy() for table in (answer.table, whole.table))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    # Nothing is left to do, and nothing is written.
    number = featuredb.open(again).snapshot.number
    featuredb.measure(again, features, prompts=PROMPTS)
    assert featuredb.open(again).snapshot.number == number
    featuredb.measure(again, features[:2], prompts=PROMPTS[:1])
    assert featuredb.open(again).snapshot.number == number + 1


def test_shown(path: Path) -> None:
    with featuredb.open(path) as db:
        card = str(db.feature("early/0"))
        assert "neutral prompts" in card
        assert "raises" in card
        assert "neutral prompts" not in str(db.feature("late/5"))
        joined = db.sql("SELECT f.density FROM effects JOIN features AS f USING (sae, feature_id)")
        assert len(joined.fetchall()) > 80
    ran = CliRunner().invoke(main, ["measure", str(path), "late/1", *_prompts()])
    assert ran.exit_code == 0, ran.output
    assert "output score" in ran.stdout
    ran = CliRunner().invoke(main, ["feature", str(path), "early/0", "--format", "json"])
    assert ran.exit_code == 0, ran.output


def _prompts() -> list[str]:
    return [word for prompt in PROMPTS for word in ("--prompt", prompt)]


def test_refused(path: Path) -> None:
    before = sha256_of(path / "CURRENT")
    with pytest.raises(UnknownFeatureError):
        featuredb.measure(path, ["early/1234"])
    with pytest.raises(QueryError, match="never fires"):
        featuredb.measure(path, ["early/95"])
    with pytest.raises(QueryError, match="at least one"):
        featuredb.measure(path, prompts=[])
    with pytest.raises(QueryError, match="no tokens"):
        featuredb.measure(path, ["late/9"], prompts=[""])
    with pytest.raises(StorageError, match="measuring"):
        featuredb.measure("s3://bucket/x.fdb")
    assert sha256_of(path / "CURRENT") == before
