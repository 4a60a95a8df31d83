"""The load check: a right load passes, each wrong one is refused in a line that names the mistake.

The model is built so that an SAE explains it analytically. See `tests.ingest.loads`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import featuredb
from featuredb.errors import HookError, LoadCheckError, ModelError
from featuredb.store.snapshot import LoadCheck
from ingest.extract.device import DeviceMemory
from ingest.inputs import load_inputs
from ingest.load_check.check import check_load
from ingest.load_check.sample import SampleTokens
from ingest.model.load import LoadedModel
from ingest.options import IngestOptions
from ingest.sae import load_sae
from ingest.tokens.bos import Bos
from tests.ingest.loads import HOOK, WIDTH, explaining_sae, offset_model, open_model, states_at
from tests.logs import logged
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loads")
    offset_model(folder / "model")
    write_jsonl(folder / "corpus.jsonl", tiny_documents())
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return open_model(folder / "model")


def check(
    folder: Path,
    sae: Path,
    *,
    bos: bool | None = None,
    said: list[str] | None = None,
    **told: object,
) -> LoadCheck:
    """The load check alone, on the corpus. `bos` False leaves the BOS out, even if the SAE states
    one."""
    options = IngestOptions(
        corpus=str(folder / "corpus.jsonl"),
        model=str(folder / "model"),
        saes=[str(sae)],
        names=["sae"],
        dtype="float32",
        device="cpu",
        **told,  # type: ignore[arg-type]
    )
    inputs = load_inputs(options)
    if bos is False:
        inputs = replace(inputs, bos=Bos(None, "option"))
    pieces = [t for _, t in inputs.contexts()]
    tokens = torch.cat([torch.from_numpy(t.token_ids.astype("int64")) for t in pieces]).numpy()
    lengths = torch.cat([torch.from_numpy(t.context_lengths) for t in pieces])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.long().cumsum(0)]).numpy()
    sample = SampleTokens(tokens, starts, inputs.bos.token, inputs.bos.token is not None)
    measured = check_load(
        inputs.loaded,
        sample,
        memory=DeviceMemory(512),
        sink_threshold=None if options.keep_sinks else options.sink_threshold,
        refuse=options.check,
    )
    return measured["sae"].check


def explained(found: LoadCheck) -> float:
    """Variance explained, which only a transcoder may lack."""
    assert found.variance_explained is not None
    return found.variance_explained


def refused(folder: Path, sae: Path, **more: object) -> str:
    with pytest.raises(LoadCheckError) as caught:
        check(folder, sae, **more)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("SAE sae ")
    assert message.endswith("--no-check goes on all the same")
    return message


def test_a_right_load_passes(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    found = check(folder, explaining_sae(tmp_path, model))
    assert explained(found) > 0.85
    assert found.tokens > 1_000
    assert found.dead_share == 0


@pytest.mark.parametrize(
    "hook", ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post", "blocks.3.hook_resid_post"]
)
def test_a_wrong_layer(folder: Path, model: LoadedModel, tmp_path: Path, hook: str) -> None:
    message = refused(folder, explaining_sae(tmp_path, model), hook=hook)
    assert f"explains none of the variance at {hook} (-" in message
    assert "it does explain 0.9" in message
    assert f"at {HOOK}: was it trained there?" in message


def test_pre_for_post(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    message = refused(folder, explaining_sae(tmp_path, model), hook="blocks.2.hook_resid_pre")
    assert f"at {HOOK}: was it trained there?" in message
    mid = explaining_sae(tmp_path / "mid", model, hook="blocks.2.hook_resid_mid")
    message = refused(folder, mid, hook=HOOK)
    assert "at blocks.2.hook_resid_mid: was it trained there?" in message


def test_off_by_one_where_layers_hardly_differ(tmp_path: Path) -> None:
    """The SAE explains most of the neighboring layers too. Only the comparison detects it."""
    hook = "blocks.1.hook_resid_post"
    tiny_model(tmp_path / "model")
    write_jsonl(tmp_path / "corpus.jsonl", tiny_documents())
    sae = explaining_sae(tmp_path / "sae", open_model(tmp_path / "model"), hook=hook)
    assert explained(check(tmp_path, sae)) > 0.9
    for wrong in ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"):
        assert explained(check(tmp_path, sae, hook=wrong, check=False)) > 0.8
        message = refused(tmp_path, sae, hook=wrong)
        assert f"of the variance at {wrong}, but it does explain 0.9" in message
        assert f"at {hook}: was it trained there?" in message


def test_a_missing_bos(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    message = refused(folder, explaining_sae(tmp_path, model), bos=False)
    assert "once each context begins with a BOS token" in message
    assert "ingest with --bos" in message


@pytest.mark.parametrize("bos", [None, False])
def test_the_advice_to_begin_with_a_bos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bos: bool | None
) -> None:
    """An option, since most formats have no key for it. Whoever has chosen needs no advice."""
    hook = "blocks.1.hook_resid_post"
    tiny_model(tmp_path / "model")
    write_jsonl(tmp_path / "corpus.jsonl", tiny_documents())
    silent = {"hook_name": hook, "context_size": 32}
    model = open_model(tmp_path / "model")
    sae = explaining_sae(tmp_path / "sae", model, hook=hook, metadata=silent)
    monkeypatch.setattr("ingest.load_check.check.begins_with_sinks", lambda *_: True)
    path = tmp_path / "db.fdb"
    with logged() as messages:
        featuredb.ingest(
            path, corpus=str(tmp_path / "corpus.jsonl"), model=str(tmp_path / "model"),
            saes=[str(sae)], dtype="float32", device="cpu", bos=bos,
        )  # fmt: skip
    advice = [message for message in messages if "if SAE sae was trained with a BOS" in message]
    assert [message.endswith("ingest to another path with --bos") for message in advice] == (
        [True] if bos is None else []
    )


@pytest.mark.parametrize("wrong", ["layer_norm", "constant_norm_rescale"])
def test_a_wrong_normalization(
    folder: Path, model: LoadedModel, tmp_path: Path, wrong: str
) -> None:
    sae = explaining_sae(tmp_path, model, normalize_activations=wrong)
    message = refused(folder, sae)
    assert "it does explain 0.9" in message
    assert f"without normalization: its files state {wrong}" in message


def test_a_lost_scale(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    """Trained on inputs scaled to a mean norm of √d, as `expected_average_only_in` means."""
    point = states_at(model, HOOK)
    scale = WIDTH**0.5 / float(point.norm(dim=1).mean())
    message = refused(folder, explaining_sae(tmp_path, model, scale=scale))
    assert "with its input scaled by 0.2" in message
    assert "its normalization was lost" in message


def test_topk_read_as_relu(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    right = explaining_sae(tmp_path / "right", model, noise=200, architecture="topk", k=20)
    assert check(folder, right).l0 <= 20
    message = refused(folder, explaining_sae(tmp_path / "wrong", model, noise=200))
    assert "largest activations of each token: a TopK SAE read as ReLU" in message


def test_a_lost_threshold(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    right = explaining_sae(tmp_path, model, noise=200, architecture="jumprelu")
    assert explained(check(folder, right)) > 0.85
    file = right / "sae_weights.safetensors"
    weights = load_file(file)
    weights["threshold"] *= 0
    save_file(weights, file)
    assert "or a threshold that was lost" in refused(folder, right)


def test_an_l0_far_above_the_stated_one(
    folder: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest import inputs

    sae = explaining_sae(tmp_path, model)
    monkeypatch.setattr(inputs, "load_sae", lambda ref: replace(load_sae(ref), stated_l0=3.0))
    message = refused(folder, sae)
    assert "where its files state 3: the usual causes are a TopK SAE read as ReLU" in message


def test_widths_that_do_not_fit_name_both(folder: Path, tmp_path: Path) -> None:
    sae = tiny_sae(tmp_path, d_in=48, hook=HOOK)
    with pytest.raises(HookError, match=rf"sae reads 48 dimensions but {HOOK} gives 32"):
        check(folder, sae)


def test_noise_explains_nothing_and_the_usual_causes_are_listed(
    folder: Path, tmp_path: Path
) -> None:
    message = refused(folder, tiny_sae(tmp_path, hook=HOOK))
    assert "the usual causes are a wrong layer" in message


def test_not_a_number_in_the_model_is_named(
    folder: Path, model: LoadedModel, tmp_path: Path
) -> None:
    sae = explaining_sae(tmp_path, model)
    bad = offset_model(tmp_path / "model")
    weights = load_file(bad / "model.safetensors")
    weights["transformer.h.1.mlp.c_proj.bias"][0] = float("nan")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    write_jsonl(tmp_path / "corpus.jsonl", tiny_documents())
    with pytest.raises(ModelError, match=f"gives NaN or infinite values at {HOOK}"):
        check(tmp_path, sae)


def test_no_check_measures_and_goes_on(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    found = check(
        folder, explaining_sae(tmp_path, model), hook="blocks.0.hook_resid_post", check=False
    )
    assert explained(found) < 0
