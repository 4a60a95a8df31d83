"""Edits of rows against decode(edited) - decode(code), computed densely in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from featuredb.errors import HookError, QueryError, SaeError
from featuredb.steering.rows import SaeEdits, by_sae, edit_rows
from ingest.model.load import LoadedModel
from ingest.sae.normalize import Normalization
from tests.ingest.families import WIDTH
from tests.steering.models import (
    RULES,
    K,
    attach,
    encoded,
    loaded,
    random_sae,
    resolved,
    steered,
)

HOOK = "blocks.1.hook_resid_post"
_OPS: list[tuple[str, Callable[[Any], Any]]] = [
    ("=3", lambda a: 0 * a + 3),
    ("=0", lambda a: 0 * a),
    ("+=1.5", lambda a: a + 1.5),
    ("+=-2", lambda a: a - 2),
    ("*=0.5", lambda a: a * 0.5),
    ("*=-1", lambda a: -a),
]
_NORMS: list[Normalization] = ["none", "constant_norm_rescale", "layer_norm"]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded("llama")


def _rows(n: int = 50, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(9)) * 2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", _NORMS)
@pytest.mark.parametrize("offset", [False, True])
def test_edits_of_the_code(
    model: LoadedModel, rule: str, norm: Normalization, offset: bool
) -> None:
    sae = random_sae(rule, normalization=norm, offset=offset)
    at, x = attach(model, sae, HOOK), _rows()
    for number, (op, change) in enumerate(_OPS):
        edits = [resolved(f"{number}{op}"), resolved("20=1")]
        right = x.double().numpy() + steered(
            sae, x.double().numpy(), [(number, change), (20, lambda a: 0 * a + 1)]
        )
        assert np.abs(edit_rows(at, edits, x).numpy() - right).max() < 1e-5


@pytest.mark.parametrize("rule", ["relu", "jumprelu", "gated"])
def test_only_edited_rows_are_encoded(model: LoadedModel, rule: str) -> None:
    at = attach(model, random_sae(rule), HOOK)
    reader = SaeEdits(at, [resolved("3=1"), resolved("17=1")]).reader
    assert reader._encoder.W_enc.shape == (WIDTH, 2)
    torch.testing.assert_close(reader.codes(_rows()), at.sae.encode(_rows())[:, [3, 17]])


def test_a_no_op_changes_no_bit(model: LoadedModel) -> None:
    x = _rows()
    for rule in RULES:
        at = attach(model, random_sae(rule), HOOK)
        for edit in ("3+=0", "3*=1"):
            assert edit_rows(at, [resolved(edit)], x) is x
        silent = int((at.sae.encode(x) == 0).all(dim=0).int().argmax())
        if (at.sae.encode(x)[:, silent] == 0).all():
            assert edit_rows(at, [resolved(f"{silent}=0")], x) is x


def test_rows_that_are_not_chosen_stay(model: LoadedModel) -> None:
    at, x = attach(model, random_sae("relu"), HOOK), _rows(4)
    chosen = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
    both = edit_rows(at, [resolved("1=2"), resolved("2=3")], x, chosen)
    assert torch.equal(both[2], x[2])
    for row, edits in ((0, ["1=2"]), (1, ["2=3"]), (3, ["1=2", "2=3"])):
        alone = edit_rows(at, [resolved(e) for e in edits], x[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone)


def test_two_edits_of_one_feature_at_other_rows(model: LoadedModel) -> None:
    at, x = attach(model, random_sae("relu"), HOOK), _rows(2)
    chosen = torch.tensor([[True, False], [False, True]])
    found = edit_rows(at, [resolved("1=2"), resolved("1*=0")], x, chosen)
    torch.testing.assert_close(found[:1], edit_rows(at, [resolved("1=2")], x[:1]))
    torch.testing.assert_close(found[1:], edit_rows(at, [resolved("1=0")], x[1:]))


def test_adding_a_direction(model: LoadedModel) -> None:
    at, x = attach(model, random_sae("topk"), HOOK), _rows()
    found = edit_rows(at, [resolved("5+=2.5", method="direction")], x)
    torch.testing.assert_close(found, x + 2.5 * at.sae.W_dec[5])


def test_projecting_out(model: LoadedModel) -> None:
    at, x = attach(model, random_sae("relu"), HOOK), _rows()
    unit = at.sae.W_dec[5] / at.sae.W_dec[5].norm()
    found = edit_rows(at, [resolved("5=0", method="project")], x)
    torch.testing.assert_close(found, x - (x @ unit)[:, None] * unit, atol=1e-5, rtol=1e-5)
    two = edit_rows(at, [resolved("5=0", method="project"), resolved("6=0", method="project")], x)
    assert (two @ at.sae.W_dec[[5, 6]].T).abs().max() < 1e-5
    kept = edit_rows(at, [resolved("5=4", method="project")], x)
    along = kept @ at.sae.W_dec[5] / at.sae.W_dec[5].square().sum()
    torch.testing.assert_close(along, torch.full_like(along, 4.0), atol=1e-5, rtol=1e-5)


def test_a_forced_feature_pushes_one_out_where_asked(model: LoadedModel) -> None:
    at, x = attach(model, random_sae("topk"), HOOK), _rows()
    code = encoded(at.sae, x.double().numpy())
    found = edit_rows(at, [resolved("5=3")], x, push_out=True).numpy()
    for row, before in enumerate(code):
        after = before.copy()
        after[5] = 3
        if before[5] == 0 and (before > 0).sum() == K:
            after[np.flatnonzero(before)[np.argmin(before[before > 0])]] = 0
        right = x[row].numpy() + (after - before) @ at.sae.W_dec.double().numpy()
        assert np.abs(found[row] - right).max() < 1e-5
    with pytest.raises(QueryError, match="has no k"):
        SaeEdits(attach(model, random_sae("relu"), HOOK), [resolved("5=3")], push_out=True)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_writes_elsewhere(model: LoadedModel, skip: bool) -> None:
    sae = random_sae("relu", d_out=WIDTH, skip=skip)
    at = attach(model, sae, "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    applied, x = SaeEdits(at, [resolved("3=2")]), _rows()
    assert applied.writes == (at.hook_out,)
    delta = applied.delta(_rows(), applied.change(x), applied.writes[0])
    assert delta is not None
    right = steered(sae, x.double().numpy(), [(3, lambda a: 0 * a + 2)])
    assert np.abs(delta.numpy() - right).max() < 1e-5


def test_what_cannot_be_written_is_refused(model: LoadedModel) -> None:
    normalized = attach(model, random_sae("relu"), "blocks.1.ln2.hook_normalized")
    with pytest.raises(HookError, match="computes again"):
        SaeEdits(normalized, [resolved("3=2")])
    unknown = attach(model, random_sae("relu", d_out=8), HOOK)
    with pytest.raises(SaeError, match="do not say where it writes"):
        SaeEdits(unknown, [resolved("3=2")])
    zero = random_sae("relu")
    zero.decoder.W_dec[3] = 0
    with pytest.raises(SaeError, match="no decoder direction"):
        by_sae([attach(model, zero, HOOK)], [resolved("3=2")])
