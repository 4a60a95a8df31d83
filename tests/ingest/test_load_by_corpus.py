"""What is stored of the load check by corpus, against a dense computation of everything."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import featuredb
from featuredb.store.snapshot import CorpusCheck, Sae, Snapshot
from ingest import prepare
from ingest.model.hooks import forward_to_hooks
from ingest.sae import load_sae
from tests.content import assert_same_content
from tests.ingest.loads import HOOK, explaining_sae, offset_model, open_model
from tests.logs import logged
from tests.tiny import tiny_documents, tiny_sae, write_jsonl

OTHER = "blocks.0.hook_resid_post"


@dataclass(frozen=True)
class World:
    """Two corpora of which the second has other words, and SAEs at two hooks."""

    folder: Path

    def options(self, *saes: str) -> dict[str, Any]:
        return {
            "corpus": str(self.folder / "a.jsonl"),
            "model": str(self.folder / "model"),
            "saes": [str(self.folder / sae) for sae in saes],
            "names": list(saes),
            "dtype": "float32",
            "device": "cpu",
            "check": False,
        }

    def append(self, path: Path, corpus: str) -> Snapshot:
        outcome = featuredb.append(
            path, str(self.folder / f"{corpus}.jsonl"), device="cpu", check=False
        )
        return outcome.snapshot

    def add(self, path: Path, sae: str) -> Snapshot:
        outcome = featuredb.add_saes(
            path, [str(self.folder / sae)], [sae], device="cpu", check=False
        )
        return outcome.snapshot


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("by_corpus")
    offset_model(folder / "model")
    documents = tiny_documents(60)
    write_jsonl(folder / "a.jsonl", documents[:30])
    for document in documents[30:]:
        document["text"] = document["text"].upper()
    write_jsonl(folder / "b.jsonl", documents[30:45])
    write_jsonl(folder / "c.jsonl", documents[45:])
    explaining_sae(folder / "good", open_model(folder / "model"))
    tiny_sae(folder / "early", hook=OTHER, seed=5, d_sae=64)
    tiny_sae(folder / "late", hook=HOOK, seed=6, d_sae=40)
    return World(folder)


@pytest.fixture(scope="module")
def grown(world: World) -> Path:
    """Corpus a with SAE good, then corpus b, then SAE early."""
    path = world.folder / "grown.fdb"
    featuredb.ingest(path, **world.options("good"))
    world.append(path, "b")
    world.add(path, "early")
    return path


def sae_of(path: Path, name: str) -> Sae:
    with featuredb.open(path) as db:
        return db.snapshot.sae(name)


def contexts_of(path: Path, corpus: str) -> list[npt.NDArray[np.int64]]:
    """Token ids of each context, straight from the files."""
    with featuredb.open(path) as db:
        entry = next(c for c in db.snapshot.corpora if c.id == corpus)
    tokens = np.fromfile(path / entry.tokens.path, np.uint16).astype(np.int64)
    return np.split(tokens, np.load(path / entry.index.path)[1:-1, 1])


def expected(world: World, path: Path, sae: Sae, corpus: str) -> dict[str, Any]:
    """The check of a corpus, densely, over all of its contexts."""
    model = open_model(world.folder / "model")
    loaded, point = load_sae(world.folder / sae.name), model.hook(sae.hook)

    def states(of: str) -> list[torch.Tensor]:
        ids = [torch.from_numpy(each)[None] for each in contexts_of(path, of)]
        return [forward_to_hooks(model.model, [point], i)[sae.hook][0, 1:].float() for i in ids]

    with featuredb.open(path) as db:
        first = db.snapshot.corpora[0].id
    median = torch.cat(states(first)).norm(dim=1).median()
    assert sae.check.median_norm == pytest.approx(float(median), rel=1e-4)
    active, left, kept = [], [], []
    for x in states(corpus):
        x = x[x.norm(dim=1) <= 10 * median]
        acts = loaded.encode(x)
        active.append((acts != 0).sum(dim=1).numpy())
        left.append((x - loaded.decode(acts)).square().sum(dim=1).numpy())
        kept.append(x.numpy())
    mean = np.concatenate(kept).mean(axis=0)
    varies = [np.square(x - mean).sum(axis=1) for x in kept]
    shares = [1 - a.sum() / b.sum() for a, b in zip(left, varies, strict=True)]
    l0 = [counts.mean() for counts in active]
    return {
        "contexts": len(kept),
        "tokens": sum(map(len, kept)),
        "l0": np.concatenate(active).mean(),
        "l0_low": np.quantile(l0, 0.1),
        "l0_high": np.quantile(l0, 0.9),
        "variance_explained": 1 - np.concatenate(left).sum() / np.concatenate(varies).sum(),
        "variance_explained_low": np.quantile(shares, 0.1),
        "variance_explained_high": np.quantile(shares, 0.9),
    }


def as_dict(check: CorpusCheck) -> dict[str, Any]:
    return {name: getattr(check, name) for name in CorpusCheck.__struct_fields__}


@pytest.mark.parametrize("name", ["good", "early"])
def test_each_corpus_is_measured(world: World, grown: Path, name: str) -> None:
    sae = sae_of(grown, name)
    assert [check.corpus for check in sae.checks] == ["0", "1"]
    for check in sae.checks:
        wanted = expected(world, grown, sae, check.corpus)
        found = {field: value for field, value in as_dict(check).items() if field != "corpus"}
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert check.l0_low <= check.l0 <= check.l0_high
    with featuredb.open(grown) as db:
        info = db.info()
        told = next(each for each in info["saes"] if each["name"] == name)
        assert told["load_check"] == [as_dict(check) for check in sae.checks]
        sizes = [corpus["tokens"] for corpus in info["corpora"]]
        shares = [check.variance_explained or 0 for check in sae.checks]
        mean = np.average(shares, weights=sizes)
        assert told["variance_explained"] == pytest.approx(mean)
        sql = db.sql("SELECT variance_explained FROM saes WHERE sae = ?", [name]).fetchall()
        assert sql == [(told["variance_explained"],)]


def test_the_spread_is_reported(world: World, tmp_path: Path) -> None:
    path = tmp_path / "db.fdb"
    with logged() as messages:
        featuredb.ingest(path, **world.options("good"))
    (check,) = sae_of(path, "good").checks
    assert (
        f"in 80 % of {check.contexts} contexts: variance explained "
        f"{check.variance_explained_low:.3f} to {check.variance_explained_high:.3f}, "
        f"L0 {check.l0_low:.1f} to {check.l0_high:.1f}"
    ) in messages
    world.append(path, "b")
    with logged() as messages:
        world.add(path, "early")
    assert sum("contexts of corpus" in message for message in messages) == 2


def test_a_dropped_corpus_takes_its_figures_along(grown: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(grown, tmp_path / "mine.fdb"))
    featuredb.drop(path, corpus="0")
    for name in ("good", "early"):
        sae = sae_of(path, name)
        assert [check.corpus for check in sae.checks] == ["1"]
        with featuredb.open(path) as db:
            told = next(each for each in db.info()["saes"] if each["name"] == name)
        assert told["variance_explained"] == pytest.approx(sae.checks[0].variance_explained)


def test_growing_in_any_order_gives_the_same_beyond_the_sample(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sinks too, which a median over the sample decides: it is of the first corpus's."""
    monkeypatch.setattr(prepare, "SAMPLE_TOKENS", 200)
    one, other = tmp_path / "one.fdb", tmp_path / "other.fdb"
    featuredb.ingest(one, **world.options("good"))
    world.append(one, "b")
    world.append(one, "c")
    world.add(one, "early")
    world.add(one, "late")
    featuredb.ingest(other, **world.options("good", "early", "late"))
    world.append(other, "b")
    world.append(other, "c")
    assert_same_content(one, other)
    for name in ("good", "early", "late"):
        mine, theirs = sae_of(one, name), sae_of(other, name)
        assert mine.check.median_norm == theirs.check.median_norm
        assert [c.corpus for c in mine.checks] == [c.corpus for c in theirs.checks]
        assert all(check.tokens < 300 for check in (*mine.checks, *theirs.checks))


def test_an_sae_at_a_known_hook_has_its_sinks(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the sample that decided them is not the one that would be drawn now."""
    path = tmp_path / "db.fdb"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "SAMPLE_TOKENS", 100)
        featuredb.ingest(path, **world.options("good"))
    world.add(path, "late")
    world.add(path, "early")
    good, late, early = (sae_of(path, name).check for name in ("good", "late", "early"))
    assert late.median_norm == good.median_norm
    assert late.tokens > good.tokens
    assert early.median_norm != good.median_norm
