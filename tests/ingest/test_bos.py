"""Whether contexts begin with BOS: chosen, stated by SAEs, or left to the tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import IngestError, ModelError, PlanMismatchError
from featuredb.store.snapshot import Corpus
from ingest.operations import ingest as operation
from tests.content import activations, assert_same_content
from tests.logs import logged
from tests.tiny import HOOK, WIDTH, tiny_documents, tiny_model, tiny_sae, write_jsonl

BOS = 0


@dataclass(frozen=True)
class World:
    """A model whose tokenizer adds no BOS, and SAEs that ask for one, ask for none, or are silent.

    silent is in dictionary_learning's format, which has no key for it.
    """

    folder: Path

    def ingest(self, path: Path, *saes: str, **options: Any) -> Corpus:
        """Ingest, and give the stored corpus."""
        given: dict[str, Any] = {
            "corpus": str(self.folder / "corpus.jsonl"),
            "model": str(self.folder / "model"),
            "saes": [str(self.folder / sae) for sae in saes],
            "names": list(saes),
            "hook": HOOK,
            "dtype": "float32",
            "context_size": 32,
            "check": False,
        }
        return featuredb.ingest(path, **(given | options)).snapshot.corpora[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bos")
    write_jsonl(folder / "corpus.jsonl", tiny_documents(30))
    write_jsonl(folder / "more.jsonl", tiny_documents(9, seed=5))
    tiny_model(folder / "model")
    about = {"hook_name": HOOK, "context_size": 32}
    tiny_sae(folder / "with", metadata=about | {"prepend_bos": True})
    tiny_sae(folder / "without", seed=3, metadata=about | {"prepend_bos": False})
    generator = torch.Generator().manual_seed(4)
    encoder = torch.randn(40, WIDTH, generator=generator)
    weights = {
        "encoder.weight": encoder,
        "encoder.bias": torch.zeros(40),
        "decoder.weight": encoder.T.contiguous(),
        "bias": torch.zeros(WIDTH),
    }
    (folder / "silent").mkdir()
    torch.save(weights, folder / "silent" / "ae.pt")
    trainer = {"dict_class": "AutoEncoder", "activation_dim": WIDTH, "dict_size": 40}
    (folder / "silent" / "config.json").write_text(json.dumps({"trainer": trainer}))
    return World(folder)


@pytest.fixture(scope="module")
def stored(world: World) -> Path:
    """The SAE that asks for BOS."""
    world.ingest(world.folder / "with.fdb", "with")
    return world.folder / "with.fdb"


@pytest.fixture
def mine(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "mine.fdb"))


@pytest.mark.parametrize(
    ("saes", "bos", "token", "decided_by"),
    [
        (("with",), None, BOS, "sae"),
        (("without",), None, None, "sae"),
        (("silent",), None, None, "tokenizer"),
        (("silent",), True, BOS, "option"),
        (("silent",), False, None, "option"),
        (("silent", "with"), None, BOS, "sae"),
        (("with", "silent"), None, BOS, "sae"),
        (("without", "silent"), None, None, "sae"),
        (("with",), False, None, "option"),
        (("without",), True, BOS, "option"),
        (("with", "without", "silent"), True, BOS, "option"),
        (("with", "without", "silent"), False, None, "option"),
    ],
)
def test_who_decides(
    world: World,
    tmp_path: Path,
    saes: tuple[str, ...],
    bos: bool | None,
    token: int | None,
    decided_by: str,
) -> None:
    path = tmp_path / "db.fdb"
    with logged() as messages:
        corpus = world.ingest(path, *saes, bos=bos)
    assert (corpus.bos_token_id, corpus.bos_from) == (token, decided_by)
    with featuredb.open(path) as db:
        (told,) = db.info()["corpora"]
        assert (told["bos_token_id"], told["bos_from"]) == (token, decided_by)
        rows = db.sql("SELECT DISTINCT token_id FROM tokens WHERE token_index = 0").fetchall()
        first = {token_id for (token_id,) in rows}
    assert (first == {BOS}) == (token == BOS)
    index = pc.min(activations(path, saes[0])["token_index"]).as_py()
    assert index == (0 if token is None else 1)
    wrong = {"with": False, "without": True}
    contradicted = [sae for sae in saes if bos is not None and wrong.get(sae) == bos]
    warnings = [message for message in messages if "the files of SAE" in message]
    assert len(warnings) == len(contradicted)
    for sae, warning in zip(contradicted, warnings, strict=True):
        assert warning == (
            f"the files of SAE {sae} say that it was trained {sae} a BOS token: leave out "
            f"{'--bos' if bos else '--no-bos'} if they are right"
        )


def test_saes_that_disagree_need_a_choice(world: World, tmp_path: Path) -> None:
    saes = ("silent", "without", "with")
    with pytest.raises(IngestError, match="give --bos or --no-bos to choose for both") as caught:
        world.ingest(tmp_path / "db.fdb", *saes)
    assert "SAE with was trained with a BOS token and SAE without without one" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    options: dict[str, Any] = {"corpus": str(world.folder / "corpus.jsonl"), "hook": HOOK}
    options |= {"model": str(world.folder / "model"), "context_size": 32, "check": False}
    options |= {"saes": [str(world.folder / sae) for sae in saes], "names": list(saes)}
    planned = featuredb.plan(tmp_path / "db.fdb", bos=True, **options)
    corpus = world.ingest(tmp_path / "db.fdb", *saes, bos=True)
    assert planned["tokens_with_bos"] == corpus.tokens.rows > corpus.n_tokens


def test_a_silent_sae_is_added_to_either(world: World, mine: Path, tmp_path: Path) -> None:
    featuredb.add_saes(mine, [str(world.folder / "silent")], ["silent"], hook=HOOK, check=False)
    world.ingest(tmp_path / "both.fdb", "with", "silent")
    assert_same_content(mine, tmp_path / "both.fdb")
    plain = tmp_path / "plain.fdb"
    world.ingest(plain, "without")
    featuredb.add_saes(plain, [str(world.folder / "silent")], ["silent"], hook=HOOK, check=False)
    world.ingest(tmp_path / "neither.fdb", "without", "silent")
    assert_same_content(plain, tmp_path / "neither.fdb")


def test_an_sae_that_asks_for_another_is_added_by_choice(world: World, mine: Path) -> None:
    other = [str(world.folder / "without")]
    refused = (
        r"SAE without was trained without a BOS token and the contexts are stored with BOS token "
        r"0: ingest it into a database of its own, or give --bos to add it all the same"
    )
    with pytest.raises(IngestError, match=refused):
        featuredb.add_saes(mine, other, ["without"], check=False)
    with pytest.raises(IngestError, match="stored with BOS token 0: leave out --no-bos"):
        featuredb.add_saes(mine, other, ["without"], bos=False, check=False)
    with logged() as messages:
        featuredb.add_saes(mine, other, ["without"], bos=True, check=False)
    assert sum("the files of SAE without say" in message for message in messages) == 1
    with featuredb.open(mine) as db:
        assert [sae["name"] for sae in db.info()["saes"]] == ["with", "without"]


def test_a_corpus_has_the_bos_of_the_database(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the SAE's files say, and before the model is loaded."""
    path, more = tmp_path / "db.fdb", str(world.folder / "more.jsonl")
    world.ingest(path, "with", bos=False)
    with monkeypatch.context() as patch:
        patch.setattr("ingest.inputs.load_model", None)
        with pytest.raises(IngestError, match="stored without a BOS token: leave out --bos, or"):
            featuredb.append(path, more, bos=True)
    with logged() as messages:
        outcome = featuredb.append(path, more, check=False)
    assert not any("the files of SAE" in message for message in messages)
    first, second = outcome.snapshot.corpora
    assert (second.bos_token_id, second.bos_from) == (first.bos_token_id, first.bos_from)
    assert not featuredb.append(path, more, bos=False, check=False).fresh


def test_going_on_with_another_choice(
    world: World, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db.fdb"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(operation, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            world.ingest(path, "with")
    with pytest.raises(PlanMismatchError, match=r"\(BOS was 0, is now None\)") as caught:
        world.ingest(path, "with", bos=False)
    assert "\n" not in str(caught.value)
    # The same contexts, only chosen by somebody else.
    world.ingest(path, "with", bos=True)
    assert_same_content(path, stored)
    already = r"already holds a database of other inputs \(BOS was 0, is now None\): add"
    with pytest.raises(IngestError, match=already):
        world.ingest(path, "with", bos=False)


def test_a_bos_that_the_tokenizer_does_not_have(world: World, tmp_path: Path) -> None:
    model = Path(shutil.copytree(world.folder / "model", tmp_path / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    ids = write_jsonl(tmp_path / "ids.jsonl", [{"ids": [5, 6, 7]}])
    given: dict[str, Any] = {"model": str(model), "corpus": str(ids), "tokens_column": "ids"}
    for bos in (True, None):
        with pytest.raises(ModelError, match="no tokenizer that says which: --no-bos leaves it"):
            world.ingest(tmp_path / "db.fdb", "with", bos=bos, **given)
    assert world.ingest(tmp_path / "db.fdb", "with", bos=False, **given).bos_token_id is None


def test_command_line(world: World, tmp_path: Path) -> None:
    path, folder = tmp_path / "db.fdb", world.folder
    call = ["ingest", str(path), "--corpus", str(folder / "corpus.jsonl"), "--no-check",
            "--model", str(folder / "model"), "--sae", str(folder / "silent"), "--name", "silent",
            "--hook", HOOK, "--context-size", "32", "--bos"]  # fmt: skip
    ran = CliRunner().invoke(main, call)
    assert ran.exit_code == 0, ran.output
    with featuredb.open(path) as db:
        assert db.info()["corpora"][0]["bos_from"] == "option"
    ran = CliRunner().invoke(
        main, ["append", str(path), "--corpus", str(folder / "corpus.jsonl"), "--no-bos"]
    )
    assert ran.exit_code == 5
    assert "stored with BOS token 0: leave out --no-bos" in ran.stderr
