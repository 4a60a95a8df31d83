"""Mistakes that hardly change an SAE's scores, so that only a comparison detects them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.attached import AttachedSae
from ingest.load_check.alternatives import _hooks, _named_as, _place, find_alternatives
from ingest.load_check.sample import SampleTokens, explain
from ingest.sae import load_sae
from ingest.sae.activations import JumpReLU, ReLU
from tests.ingest.loads import HOOK, explaining_sae, offset_model, open_model, states_at
from tests.tiny import tiny_documents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offset_model(tmp_path_factory.mktemp("quiet"))


def test_a_threshold_that_costs_next_to_nothing_when_it_is_lost(
    folder: Path, tmp_path: Path
) -> None:
    model = open_model(folder)
    right = load_sae(explaining_sae(tmp_path, model, noise=20, architecture="jumprelu"))
    # Features that should be silent, each with a tiny contribution.
    W_dec = right.decoder.W_dec.clone()
    W_dec[40:] *= 0.17
    right = replace(right, decoder=replace(right.decoder, W_dec=W_dec))
    lost = replace(right, encoder=replace(right.encoder, activation=ReLU()))
    x = states_at(model, HOOK)
    before, after = explain(right, x, x), explain(lost, x, x)
    assert after.l0 == 2 * before.l0
    assert before.variance_explained - 0.02 < after.variance_explained
    assert after.variance_explained < before.variance_explained

    ids = [
        [0, *model.tokenizer(d["text"], add_special_tokens=False).input_ids[:31]]
        for d in tiny_documents()
    ]
    starts = np.cumsum([0, *map(len, ids)]).astype(np.int64)
    sample = SampleTokens(np.concatenate(ids).astype(np.uint32), starts, 0, True)
    hook = model.hook(HOOK)

    def found(activation: ReLU | JumpReLU) -> list[str]:
        sae = replace(lost, encoder=replace(lost.encoder, activation=activation))
        better = find_alternatives(
            model, AttachedSae("sae", sae, hook), sample, None, refused=False
        )
        return [other.sentence() for other in better]

    assert right.stated_l0 is None
    assert isinstance(right.encoder.activation, JumpReLU)
    assert found(right.encoder.activation) == []
    (said,) = found(ReLU())
    assert "largest activations of each token" in said
    assert "a threshold that was lost" in said


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("blocks.2.hook_resid_post", "blocks.1.hook_resid_post"),
        ("blocks.3.hook_resid_pre", "blocks.1.hook_resid_post"),
        ("transformer.h.2.output", "transformer.h.1.output"),
        ("transformer.h.2", "transformer.h.1.output"),
        ("h.2", "transformer.h.1.output"),
        ("h.3.input", "transformer.h.1.output"),
    ],
)
def test_a_place_is_compared_with_the_same_others_whatever_it_is_called(
    folder: Path, name: str, other: str
) -> None:
    model = open_model(folder)
    given = model.hook(name)
    assert _place(given) == "transformer.h.2.output"
    found = {_place(hook): _named_as(given, hook) for hook in _hooks(model, given, everywhere=True)}
    assert "transformer.h.2.output" not in found
    assert {f"transformer.h.{n}.output" for n in (0, 1, 3)} <= found.keys()
    assert found["transformer.h.1.output"] == other
