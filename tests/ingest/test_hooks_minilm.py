"""A real encoder, MiniLM: its hooks, and an ingest of it from documents to answers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import featuredb
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from ingest.model.hooks import forward_to_hooks, resolve_hook
from ingest.model.load import LoadedModel, bos_token_id, load_model, unembedding
from ingest.operations.ingest import ingest
from ingest.options import IngestOptions
from ingest.sae import load_sae
from tests.content import activations
from tests.minilm import minilm_folder
from tests.tiny import tiny_sae, write_jsonl

LAYERS, WIDTH = 6, 384
HOOK_LAYER = 3
CONTEXT, FEATURES = 32, 192
CLS = 101
SENTENCES = [
    "The river rose overnight and carried the old bridge away.",
    "Enzymes lower the energy that a reaction needs to begin.",
    "",
    "She tuned the violin while the orchestra waited.",
    "Ein Satz auf Deutsch, mit Umlauten: Übermut tut selten gut.",
    "Copper conducts heat and electricity better than iron does. " * 6,
    "def area(r): return 3.14159 * r ** 2",
    "no",
    "The treaty of 1648 ended a war that had lasted thirty years; cities lay empty, fields fallow.",
    "Comets are ice and dust. Near the sun they grow a tail that always points away from it.",
    "Prices fell by 12.5 % in March and rose again in April.",
]
DOCUMENTS: list[dict[str, Any]] = [
    {"text": text, "length": "long" if len(text) > 60 else "short"} for text in SENTENCES
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(minilm_folder(), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def padded(loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    batch = loaded.tokenizer(SENTENCES[:2] + SENTENCES[3:5], padding=True, return_tensors="pt")
    assert not batch.attention_mask.bool().all()
    return batch.input_ids, batch.attention_mask


def hidden_states(model: Any, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found: tuple[Tensor, ...] = model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
    return found


def through_hooks(
    loaded: LoadedModel, names: list[str], padded: tuple[Tensor, Tensor]
) -> list[Tensor]:
    hooks = [resolve_hook(loaded.model, name) for name in names]
    return list(forward_to_hooks(loaded.model, hooks, *padded).values())


def by_hand(
    model: nn.Module, paths: dict[str, str], padded: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """What passes each module's "input" or "output" in a full forward pass, by module path."""
    seen: dict[str, Tensor] = {}

    def hook(path: str, side: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            seen[path] = args[0] if side == "input" else output

        return look

    handles = [
        model.get_submodule(path).register_forward_hook(hook(path, side))
        for path, side in paths.items()
    ]
    hidden_states(model, *padded)
    for handle in handles:
        handle.remove()
    return seen


def test_the_model_as_loaded(loaded: LoadedModel) -> None:
    assert loaded.architecture == "BertModel"
    assert (loaded.n_layers, loaded.d_model, loaded.context_length) == (LAYERS, WIDTH, 512)
    assert bos_token_id(loaded, None) == bos_token_id(loaded, True) == CLS
    assert unembedding(loaded) is None


def test_residual_stream_is_hidden_states_exactly(
    loaded: LoadedModel, padded: tuple[Tensor, Tensor]
) -> None:
    states = hidden_states(loaded.model, *padded)
    assert len(states) == LAYERS + 1
    names = [f"blocks.{i}.hook_resid_{end}" for i in range(LAYERS) for end in ("pre", "post")]
    got = iter(through_hooks(loaded, names, padded))
    for before, after in pairwise(states):
        assert torch.equal(next(got), before)
        assert torch.equal(next(got), after)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_parts_of_a_layer_against_hooks_placed_by_hand(
    loaded: LoadedModel, padded: tuple[Tensor, Tensor], layer: int
) -> None:
    inside = f"encoder.layer.{layer}"
    places = {
        "hook_attn_out": (f"{inside}.attention.output.dense", "output"),
        "attn.hook_z": (f"{inside}.attention.self", "output"),
        "hook_resid_mid": (f"{inside}.attention.output", "output"),
        "mlp.hook_post": (f"{inside}.intermediate", "output"),
        "hook_mlp_out": (f"{inside}.output.dense", "output"),
    }
    seen = by_hand(loaded.model, dict(places.values()), padded)
    got = through_hooks(loaded, [f"blocks.{layer}.{name}" for name in places], padded)
    for value, (path, _) in zip(got, places.values(), strict=True):
        expected = seen[path][0] if isinstance(seen[path], tuple) else seen[path]
        assert torch.equal(value, expected), path


def test_a_layer_is_its_parts_with_a_norm_after_each(
    loaded: LoadedModel, padded: tuple[Tensor, Tensor]
) -> None:
    names = ["hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"]
    pre, attn, mid, mlp, post = through_hooks(loaded, [f"blocks.2.{n}" for n in names], padded)
    layer = loaded.model.get_submodule("encoder.layer.2")
    with torch.no_grad():
        assert torch.allclose(layer.attention.output.LayerNorm(attn + pre), mid, atol=1e-6)
        assert torch.allclose(layer.output.LayerNorm(mlp + mid), post, atol=1e-6)


def test_z_is_attention_over_the_values(loaded: LoadedModel, padded: tuple[Tensor, Tensor]) -> None:
    x, z = through_hooks(loaded, ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"], padded)
    attention = loaded.model.get_submodule("encoder.layer.1.attention.self")
    mask = padded[1].bool()

    def heads(projection: nn.Module) -> Tensor:
        value: Tensor = projection(x)
        return value.reshape(*value.shape[:2], 12, WIDTH // 12).transpose(1, 2)

    with torch.no_grad():
        query, key, value = (heads(getattr(attention, n)) for n in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3) / (WIDTH // 12) ** 0.5
        # An encoder attends both ways, except to padding.
        weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
        expected = (weights @ value).transpose(1, 2).flatten(2)
    assert torch.allclose(z[mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layers_run"),
    [
        ("hook_embed", 0),
        ("blocks.0.hook_resid_pre", 0),
        ("blocks.3.attn.hook_z", 3),
        ("blocks.3.hook_resid_post", 4),
        ("encoder.layer.5", 6),
    ],
)
def test_layers_after_the_hook_do_not_run(
    loaded: LoadedModel, padded: tuple[Tensor, Tensor], name: str, layers_run: int
) -> None:
    finished: list[int] = []

    def note(number: int) -> Any:
        return lambda *_: finished.append(number)

    hook = resolve_hook(loaded.model, name)
    layers = enumerate(loaded.model.encoder.layer)
    handles = [layer.output.register_forward_hook(note(number)) for number, layer in layers]
    forward_to_hooks(loaded.model, [hook], *padded)
    for handle in handles:
        handle.remove()
    assert finished == list(range(layers_run))


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sae(
        tmp_path_factory.mktemp("sae"),
        d_in=WIDTH,
        d_sae=FEATURES,
        hook=f"blocks.{HOOK_LAYER}.hook_resid_post",
        bias=-0.4,
    )


@pytest.fixture(scope="module")
def root(sae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm")
    options = IngestOptions(
        corpus=str(write_jsonl(folder / "corpus.jsonl", DOCUMENTS)),
        model=str(minilm_folder()),
        saes=[str(sae_folder)],
        names=["random"],
        context_size=CONTEXT,
        dtype="float32",
        device="cpu",
        check=False,
    )
    ingest(folder / "minilm.fdb", options)
    return folder / "minilm.fdb"


@pytest.fixture(scope="module")
def dense(loaded: LoadedModel, sae_folder: Path, root: Path) -> list[npt.NDArray[np.float32]]:
    """Per context float32 [t, features]: each window alone, unpadded, through the whole model."""
    sae = load_sae(sae_folder)
    check = read_snapshot(Layout(root)).saes[0].check
    assert check.sink_threshold is not None
    limit = check.sink_threshold * check.median_norm
    contexts = []
    for text in SENTENCES:
        ids = loaded.tokenizer(text, add_special_tokens=False).input_ids
        for start in range(0, len(ids), CONTEXT - 1):
            window = torch.tensor([[CLS, *ids[start : start + CONTEXT - 1]]])
            x = hidden_states(loaded.model, window)[HOOK_LAYER + 1][0]
            with torch.no_grad():
                acts = sae.encode(x).numpy() * (x.norm(dim=1) <= limit).numpy()[:, None]
            acts[0] = 0.0
            contexts.append(acts)
    return contexts


def test_stored_activations_are_the_sae_on_hidden_states(
    root: Path, dense: list[npt.NDArray[np.float32]]
) -> None:
    got = activations(root, "random")
    want = np.concatenate(dense)
    have = np.zeros_like(want)
    starts = np.cumsum([0] + [len(context) for context in dense])
    at = starts[got.column("context_id").to_numpy()] + got.column("token_index").to_numpy()
    have[at, got.column("feature_id").to_numpy()] = got.column("activation").to_numpy()
    assert (have != 0).sum() == got.num_rows > 1_000
    # Batches pad and reorder sums, so a value this close to the threshold may fall either side.
    close = np.abs(want) < 1e-5
    assert ((have != 0) == (want != 0))[~close].all()
    assert np.allclose(have, want, rtol=2**-11 + 1e-4, atol=1e-5)


def strongest(dense: list[npt.NDArray[np.float32]]) -> Iterator[tuple[int, dict[int, float]]]:
    """Ten features and, by context id, each one's maximum in the contexts it fires in."""
    peaks = np.stack([context.max(axis=0) for context in dense])
    for feature in np.argsort(-peaks.max(axis=0))[:10]:
        own = peaks[:, feature]
        yield int(feature), {int(context): float(own[context]) for context in own.nonzero()[0]}


def test_top_contexts(root: Path, dense: list[npt.NDArray[np.float32]]) -> None:
    db = featuredb.open(root)
    for feature, peaks in strongest(dense):
        rows = list(db.top_contexts(feature, k=50))
        assert {row.context_id: row.activation for row in rows} == pytest.approx(peaks, rel=1e-3)
        assert [row.activation for row in rows] == sorted(
            (r.activation for r in rows), reverse=True
        )
        for row in rows:
            own = dense[row.context_id][:, feature]
            assert own[row.token_index] == pytest.approx(own.max(), rel=1e-3)
            assert row.tokens[row.token_index - row.window_start] == row.token
            assert row.token != "[CLS]"
        long = [row.context_id for row in rows if row.length == "long"]
        found = db.top_contexts(feature, k=50, where="length = 'long'")
        assert [row.context_id for row in found] == long


def test_an_encoder_promotes_no_tokens(root: Path) -> None:
    """Its files hold no head, and none is made up."""
    rows = featuredb.open(root).sql("SELECT promoted_tokens, suppressed_tokens FROM features")
    assert rows.fetchall() == [([], [])] * FEATURES
