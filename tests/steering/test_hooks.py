"""Edits inside real models: exact, everywhere they should act and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from featuredb.errors import QueryError
from featuredb.steering.hooks import EditCounts, held
from featuredb.steering.passes import TokenFacts
from featuredb.steering.rows import by_sae
from ingest.attached import AttachedSae
from ingest.model.hooks import forward_to_hooks
from ingest.model.load import LoadedModel
from queries.conditions import Condition
from tests.ingest.families import VOCAB, WIDTH
from tests.steering.models import attach, loaded, random_sae, resolved, steered

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "opt", "qwen3_5_text")
HOOK = "blocks.1.hook_resid_post"
LATER = "blocks.2.hook_resid_pre"

_MODELS: dict[str, LoadedModel] = {}


def _model(family: str) -> LoadedModel:
    return _MODELS.setdefault(family, loaded(family))


@contextmanager
def _editing(
    model: LoadedModel, saes: Sequence[AttachedSae], edits: Sequence[str], **facts: Any
) -> Iterator[tuple[Any, EditCounts]]:
    """sae names are given as in `name/3=1`, `s` where there is none."""
    ready = []
    for edit in edits:
        name, slash, rest = edit.partition("/")
        ready.append(resolved(rest, name) if slash else resolved(edit))
    applied = by_sae(saes, ready)
    with held(model) as it, it.editing(applied, TokenFacts(**facts), saes) as counts:
        yield model.model, counts


def _ids(rows: int = 1, columns: int = 7, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (rows, columns), generator=draw)


def _by_hand(model: LoadedModel, edits: dict[str, Any], ids: Tensor) -> Tensor:
    """Logits where each hook's output has a function applied, by plain torch hooks."""
    handles = []
    for name, change in edits.items():
        module = model.model.get_submodule(model.hook(name).module)

        def hook(_: Any, __: Any, output: Any, change: Any = change) -> Any:
            value = output if isinstance(output, Tensor) else output[0]
            rows = value.reshape(-1, value.shape[-1]).double().numpy()
            new = torch.from_numpy(change(rows)).to(value.dtype).reshape(value.shape)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        handles.append(module.register_forward_hook(hook))
    try:
        logits: Tensor = model.model(input_ids=ids).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["relu", "jumprelu", "gated", "topk"])
def test_a_forward_pass_equals_one_edited_by_hand(family: str, rule: str) -> None:
    model, sae, ids = _model(family), random_sae(rule), _ids(2)
    right = _by_hand(
        model,
        {HOOK: lambda x: x + steered(sae, x, [(3, lambda a: 0 * a + 2), (5, lambda a: a - 1)])},
        ids,
    )
    with _editing(model, [attach(model, sae, HOOK)], ["3=2", "5+=-1"]) as (steered_model, counts):
        found = steered_model(input_ids=ids).logits
    assert (found - right).abs().max() < 1e-5
    assert (found - model.model(input_ids=ids).logits).abs().max() > 1e-3
    assert counts.prompt == [14, 14]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_sae_sees_the_edited_stream(family: str) -> None:
    model, ids = _model(family), _ids(2)
    first, same, later = (random_sae("relu", seed=i) for i in range(3))
    saes = [
        attach(model, later, "blocks.2.hook_resid_post", name="later"),
        attach(model, first, HOOK, name="first"),
        attach(model, same, HOOK, name="same"),
    ]

    def at_hook(x: Any) -> Any:
        x = x + steered(first, x, [(3, lambda a: 0 * a + 2)])
        return x + steered(same, x, [(3, lambda a: a * 2)])

    def after(x: Any) -> Any:
        return x + steered(later, x, [(1, lambda a: a + 1)])

    right = _by_hand(model, {HOOK: at_hook, "blocks.2.hook_resid_post": after}, ids)
    with _editing(model, saes, ["later/1+=1", "same/3*=2", "first/3=2"]) as (steered_model, _):
        found = steered_model(input_ids=ids).logits
    assert (found - right).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_edits_where_it_writes(family: str, skip: bool) -> None:
    model, ids = _model(family), _ids(2)
    sae = random_sae("relu", d_out=WIDTH, skip=skip)
    at = attach(model, sae, "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    seen = forward_to_hooks(model.model, [at.hook], ids)[at.hook.name]
    delta = steered(sae, seen.reshape(-1, WIDTH).double().numpy(), [(3, lambda a: 0 * a + 4)])
    right = _by_hand(model, {"blocks.1.hook_mlp_out": lambda x: x + delta}, ids)
    with _editing(model, [at], ["3=4"]) as (steered_model, _):
        found = steered_model(input_ids=ids).logits
    assert (found - right).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_no_op_leaves_every_bit(family: str) -> None:
    """Alone, batched, left-padded, with and without the cache."""
    model = _model(family)
    at = attach(model, random_sae("jumprelu"), HOOK)
    batch, mask = _ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[0, :4], mask[2, :1] = 0, 0
    calls: list[dict[str, Any]] = [
        {"input_ids": batch[:1]},
        {"input_ids": batch},
        {"input_ids": batch, "attention_mask": mask},
        {"input_ids": batch, "attention_mask": mask, "use_cache": False},
    ]

    def outputs() -> list[Tensor]:
        found = [model.model(**call).logits for call in calls]
        cached = model.model(input_ids=batch[:, :5], use_cache=True)
        step = {"input_ids": batch[:, 5:6], "past_key_values": cached.past_key_values}
        return [*found, cached.logits, model.model(**step).logits]

    before = outputs()
    with _editing(model, [at], ["3+=0", "5*=1", "7=1 @ 50"]):
        after = outputs()
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


_PLAIN: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_with_the_cache_equals_that_without(family: str) -> None:
    model, ids = _model(family), _ids(1, 6)
    at = attach(model, random_sae("relu"), HOOK)
    texts = {}
    for where in ("everywhere", "generated", "prompt", "-2:", "2:9"):
        for cache in (True, False):
            with _editing(model, [at], [f"3=9 @ {where}"]) as (steered_model, counts):
                made = steered_model.generate(ids, use_cache=cache, **_PLAIN)
            texts[where, cache] = made[0].tolist()
            if cache:
                edited = {"everywhere": (5, 8), "generated": (0, 8), "prompt": (5, 0)}
                edited |= {"-2:": (1, 8), "2:9": (3, 4)}
                assert (counts.prompt[0], counts.generated[0]) == edited[where]
        assert texts[where, True] == texts[where, False], where


def test_left_padding_changes_nothing_but_rounding() -> None:
    model = _model("llama")
    at = attach(model, random_sae("relu"), HOOK)
    ids = _ids(1, 5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    for where in ("everywhere", "1:3", "-2:", "-1", "generated"):
        made = []
        for given, attention in ((ids, None), (padded, mask)):
            with _editing(model, [at], [f"3=9 @ {where}"]) as (steered_model, counts):
                extra = {} if attention is None else {"attention_mask": attention}
                out = steered_model.generate(given, **extra, **_PLAIN)
            made.append((out[0, given.shape[1] :].tolist(), counts.prompt, counts.generated))
        assert made[0] == made[1], where


def test_places_of_a_text() -> None:
    """Which tokens each place means, in a batch of two texts, the first padded on the left."""
    model = _model("gpt2")
    at = attach(model, random_sae("relu"), HOOK)
    ids = torch.tensor([[0, 0, 1, 7, 8, 9], [1, 9, 8, 7, 7, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    roles = [[None, None, "system", "user", "user", "assistant"], [None] + ["user"] * 5]
    meant = {
        "everywhere": [[2, 3, 4, 5], [0, 1, 2, 3, 4, 5]],
        "bos": [[2], [0]],
        "everywhere, not bos": [[3, 4, 5], [1, 2, 3, 4, 5]],
        "0:2, -1": [[2, 3, 5], [0, 1, 5]],
        "-3:-1": [[3, 4], [3, 4]],
        'token " a"': [[3], [3, 4]],
        'token " a" and -2:, bos': [[2], [0, 4]],
        "role user": [[3, 4], [1, 2, 3, 4, 5]],
        'role user, not token " a"': [[4], [1, 2, 5]],
        "generated": [[], []],
    }
    for where, columns in meant.items():
        facts = {"bos": 1, "ids": {" a": [7]}, "roles": roles}
        with held(model) as it:
            applied = by_sae([at], [resolved(f"3+=5 @ {where}", method="direction")])
            with it.editing(applied, TokenFacts(**facts), [at], [at.hook]) as counts:  # type: ignore[arg-type]
                model.model(input_ids=ids, attention_mask=mask)
                after = it.recorded[at.hook.canonical]
        before = forward_to_hooks(model.model, [at.hook], ids, mask)[at.hook.name]
        changed = (after - before).abs().amax(dim=2) > 1e-4
        assert [row.nonzero()[:, 0].tolist() for row in changed] == columns, where
        assert counts.prompt == [sum(map(len, columns))]


def test_a_condition_on_another_feature() -> None:
    model, ids = _model("llama"), _ids(2, 12)
    first, second = random_sae("relu", seed=1), random_sae("relu", seed=2)
    saes = [
        attach(model, first, "blocks.0.hook_resid_post", name="a"),
        attach(model, second, HOOK, name="b"),
    ]
    before = forward_to_hooks(model.model, [a.hook for a in saes], ids)
    codes = first.encode(before[saes[0].hook.name])
    other = int((codes > 0.3).sum(dim=(0, 1)).sub(12).abs().argmin())
    holds = codes[..., other] > 0.3
    assert 0 < holds.sum() < holds.numel()
    edit = resolved("3+=5 @ a/4 > 0.3", "b", method="direction")
    (tokens,) = edit.scope.sets
    of_a = resolved("4=0", "a").sae
    edit.conditions[tokens] = Condition(of_a, other, ((">", 0.3),), "")  # type: ignore[index]
    at = saes[1].hook
    with (
        held(model) as it,
        it.editing(by_sae(saes, [edit]), TokenFacts(), saes, [at]) as counts,
    ):
        model.model(input_ids=ids)
        after = it.recorded[at.canonical]
    assert torch.equal((after - before[HOOK]).abs().amax(2) > 1e-4, holds)
    assert counts.prompt == [int(holds.sum())]
    late = resolved("3+=5 @ b/4 > 0.3", "a", method="direction")
    late.conditions[late.scope.sets[0]] = Condition(resolved("4=0", "b").sae, 4, (), "")  # type: ignore[index]
    with (
        held(model) as it,
        pytest.raises(QueryError, match="comes after"),
        it.editing(by_sae(saes, [late]), TokenFacts(), saes),
    ):
        pass


@pytest.mark.parametrize(
    ("where", "words"), [("role user", "a chat"), ("bos", "no BOS"), ("sinks", "knows no sinks")]
)
def test_places_that_nothing_is_known_of(where: str, words: str) -> None:
    model = _model("llama")
    at = attach(model, random_sae("relu"), HOOK)
    with pytest.raises(QueryError, match=words), _editing(model, [at], [f"3=1 @ {where}"]):
        pass


def test_one_caller_at_a_time_and_nothing_left_behind() -> None:
    model, ids = _model("llama"), _ids()
    at = attach(model, random_sae("relu"), HOOK)
    before = model.model(input_ids=ids).logits
    errors: list[BaseException] = []

    def other() -> None:
        try:
            with held(model):
                pass
        except QueryError as error:
            errors.append(error)

    def failing() -> None:
        with _editing(model, [at], ["3=9"]) as (steered_model, _):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            other()
            # What only reads is never edited, and needs the model's lock.
            reads.append(forward_to_hooks(model.model, [at.hook], ids)[HOOK])
            with pytest.raises((ValueError, IndexError, RuntimeError)):
                steered_model(input_ids=ids + VOCAB)
            assert not torch.equal(steered_model(input_ids=ids).logits, before)
            raise KeyError("mine")

    reads: list[Tensor] = []
    with pytest.raises(KeyError, match="mine"):
        failing()
    assert len(errors) == 2
    assert "being steered already" in str(errors[0])
    assert torch.equal(reads[0], forward_to_hooks(model.model, [at.hook], ids)[HOOK])
    assert torch.equal(model.model(input_ids=ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())
    assert "generate" not in vars(model.model)
    assert not model.lock.locked()
