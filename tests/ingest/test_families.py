"""Every family's hooks, against what the layers compute of one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from featuredb.errors import HookError
from ingest.model.hooks import forward_to_hooks, resolve_hook
from ingest.model.hooks.families import FAMILIES
from ingest.model.load import unembedding
from ingest.sae import load_sae
from tests.ingest.families import (
    CONFIGS,
    EXPERTS,
    GATED,
    LAYER_NORM,
    LAYERS,
    MULTIMODAL,
    NO_PRE_NORM,
    PARALLEL,
    POST_NORM,
    SUBLAYER_NORM,
    WIDTH,
    build,
    build_multimodal,
)
from tests.tiny import tiny_sae

TOLERANCE = 1e-5
_NORM = "model.layers.1.post_attention_layernorm"
IDS = torch.arange(4, 18).reshape(2, 7)
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0


def read(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """What passes the hooks, at the positions that are no padding."""
    points = [resolve_hook(model, name) for name in names]
    values = forward_to_hooks(model, points, IDS, MASK)
    assert [point.width for point in points] == [values[name].shape[-1] for name in names]
    return {name: value[MASK.bool()] for name, value in values.items()}


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= TOLERANCE * max(1, float(b.abs().max()))


def module(model: nn.Module, hook: str) -> Any:
    return model.get_submodule(resolve_hook(model, hook).module)


def hidden_states(model: Any) -> list[Tensor]:
    with torch.no_grad():
        states = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    return [state[MASK.bool()] for state in states]


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_hooks_of_a_layer_agree_with_its_modules(name: str) -> None:
    """The equation of each family's layer, and hidden_states as transformers returns them."""
    torch.set_num_threads(1)
    model = build(name)
    states = hidden_states(model)
    scale = 0.5 if name == "granite" else 1.0
    eps = float(getattr(model.config, "rms_norm_eps", 0))
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        names = ["hook_resid_pre", "hook_resid_post", "hook_attn_in", "hook_attn_out"]
        names += ["hook_mlp_out", "attn.hook_z"]
        names += [f"{part}.{end}" for part in ("attn", "mlp") for end in ("hook_in", "hook_out")]
        if name not in PARALLEL:
            names.append("hook_resid_mid")
        norms = [] if name in NO_PRE_NORM else ["ln1", "ln2"]
        ends = ("hook_in", "hook_normalized", "hook_out")
        names += [f"{norm}.{end}" for norm in norms for end in ends]
        x = read(model, *(at + each for each in names))
        v = {each: x[at + each] for each in names}
        pre, post, mid = v["hook_resid_pre"], v["hook_resid_post"], v.get("hook_resid_mid")

        close(pre, states[layer])
        close(pre, v["hook_attn_in"])
        if layer + 1 < LAYERS:  # the last hidden state has passed the final norm
            close(post, states[layer + 1])
        if name in POST_NORM:
            assert mid is not None
            close(module(model, at + "ln1.hook_out")(pre + v["hook_attn_out"]), mid)
            close(module(model, at + "ln2.hook_out")(mid + v["hook_mlp_out"]), post)
        elif mid is None:
            close(pre + v["hook_attn_out"] + v["hook_mlp_out"], post)
        else:
            close(pre + scale * v["hook_attn_out"], mid)
            if not name.startswith("gemma4"):
                close(mid + scale * v["hook_mlp_out"], post)

        close(module(model, at + "attn.hook_z")(v["attn.hook_z"]), v["attn.hook_out"])
        if layer not in EXPERTS.get(name, ()):
            (hidden,) = read(model, at + "mlp.hook_post").values()
            assert hidden.shape[-1] == 48
            close(module(model, at + "mlp.hook_post")(hidden), v["mlp.hook_out"])
        else:
            with pytest.raises(HookError, match="experts"):
                resolve_hook(model, at + "mlp.hook_post")
        if name in SUBLAYER_NORM:
            close(module(model, at + "hook_attn_out")(v["attn.hook_out"]), v["hook_attn_out"])
            if name != "gemma4_experts":
                close(module(model, at + "hook_mlp_out")(v["mlp.hook_out"]), v["hook_mlp_out"])
        else:
            close(v["attn.hook_out"], v["hook_attn_out"])
            close(v["mlp.hook_out"], v["hook_mlp_out"])

        if name in POST_NORM:
            close(v["mlp.hook_in"], mid if mid is not None else pre)
        elif name in NO_PRE_NORM:
            close(v["attn.hook_in"], pre)
            close(v["mlp.hook_in"], mid if mid is not None else pre)
        else:
            close(v["attn.hook_in"], v["ln1.hook_out"])
            close(v["mlp.hook_in"], v["ln2.hook_out"])
            close(v["ln1.hook_in"], pre)
            close(v["ln2.hook_in"], pre if mid is None else mid)
        for norm in norms:
            given, out = v[f"{norm}.hook_in"], v[f"{norm}.hook_out"]
            if name in LAYER_NORM:
                close(v[f"{norm}.hook_normalized"], out)
                continue
            unit = given * torch.rsqrt(given.pow(2).mean(-1, keepdim=True) + eps)
            close(v[f"{norm}.hook_normalized"], unit)
            gain = module(model, f"{at}{norm}.hook_out").weight
            offset = FAMILIES[model.config.model_type].unit_offset
            close(unit * (gain + 1 if offset else gain), out)


def test_every_row_is_tested() -> None:
    tested = {build(name).config.model_type for name in CONFIGS} | set(MULTIMODAL)
    assert set(FAMILIES) - tested == {"qwen3_5_moe"}  # qwen3_5_moe_text with images
    assert FAMILIES["qwen3_5_moe"] is FAMILIES["qwen3_5_moe_text"]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_final_norm_and_one_matrix(name: str) -> None:
    """The logit lens takes the gain and the mean of the final norm from the table."""
    model = build(name)
    loaded: Any = type("Loaded", (), {"model": model, "d_model": WIDTH})
    lens = unembedding(loaded)
    if name in ("bert", "esm"):
        assert lens is None
        return
    assert lens is not None
    (x,) = read(model, f"blocks.{LAYERS - 1}.hook_resid_post").values()
    if lens.center:
        x = x - x.mean(-1, keepdim=True)
    if name != "opt_post_norm":  # it has no final norm
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    x = x if lens.gain is None else x * lens.gain
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()]
    ours = x @ lens.W_U.T
    # Up to a bias, a scale and a soft cap, which do not change what a direction promotes.
    both = torch.stack([(each - each.mean(0)).flatten() for each in (ours, logits)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


@pytest.mark.parametrize("name", MULTIMODAL)
@pytest.mark.parametrize(
    "path",
    [
        *("layers.1", "model.layers.1", "language_model.layers.1"),
        *("model.language_model.layers.1", "language_model.model.layers.1"),
        "language_model.layers.2.input",
    ],
)
def test_the_text_half_of_a_model_that_sees_images(name: str, path: str) -> None:
    model = build_multimodal(name)
    (value,) = read(model, path).values()
    close(value, hidden_states(model)[2])
    close(value, read(model, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"])


@pytest.mark.parametrize("path", ["language_model.layers.1", "model.language_model.layers.1"])
def test_a_text_model_under_the_name_of_a_multimodal_one(path: str) -> None:
    assert resolve_hook(build("gemma3_text"), path).module == "model.layers.1"


@pytest.mark.parametrize(
    "name", ["blocks.0.hook_resid_post", "model.layers.0", "layers.1.mlp", "hook_embed"]
)
def test_gemma_3n_is_refused_by_name(name: str) -> None:
    config = transformers.Gemma3nTextConfig(**GATED, num_kv_shared_layers=0)
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(config)
    with pytest.raises(HookError, match=r"gemma3n_text is not supported.*AltUp"):
        resolve_hook(model, name)


@pytest.mark.parametrize("kind", ["Starcoder2", "Bloom", "ModernBert"])
def test_residual_stream_of_a_family_without_a_row(kind: str) -> None:
    more: dict[str, dict[str, Any]] = {
        "Starcoder2": GATED,
        "Bloom": {"hidden_size": WIDTH, "vocab_size": 64, "n_head": 4, "n_layer": LAYERS},
        "ModernBert": {key: GATED[key] for key in GATED if key != "num_key_value_heads"},
    }
    config = getattr(transformers, f"{kind}Config")(
        **{**more[kind], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    states = hidden_states(model)
    for layer in range(LAYERS):
        pre, post = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"
        x = read(model, pre, post)
        close(x[pre], states[layer])
        if layer + 1 < LAYERS:
            close(x[post], states[layer + 1])
    with pytest.raises(HookError, match=r"no row in the table.*layers\.2|no row.*h\.2"):
        resolve_hook(model, "blocks.0.hook_mlp_out")


def test_layers_that_cannot_be_told_apart() -> None:
    config = transformers.T5Config(
        vocab_size=64, d_model=WIDTH, num_layers=2, num_decoder_layers=2, num_heads=4, d_kv=8
    )
    model = transformers.T5Model(config)
    with pytest.raises(HookError, match=r"which of encoder\.block, decoder\.block is meant"):
        resolve_hook(model, "blocks.0.hook_resid_post")


def test_a_list_inside_a_layer_is_not_the_layers() -> None:
    """As many parts in each layer as the configuration says there are layers (LongCat)."""
    config = transformers.BloomConfig(hidden_size=WIDTH, vocab_size=64, n_head=4, n_layer=2)
    model = transformers.BloomModel(config)
    model.h[0].parts = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    assert resolve_hook(model, "blocks.1.hook_resid_post").module == "h.1"
    model.h.append(nn.Linear(2, 2))
    with pytest.raises(HookError, match="where its layers are"):
        resolve_hook(model, "blocks.1.hook_resid_post")


def test_values_that_are_no_vector_for_each_token() -> None:
    with pytest.raises(HookError, match="not one vector for each token"):
        read(build("qwen3"), "layers.0.self_attn.q_norm")  # [batch, tokens, heads, width]


@pytest.mark.parametrize("name", ["gemma3_text", "gemma2", "gemma4_text"])
def test_a_name_of_two_places_is_refused(name: str) -> None:
    with pytest.raises(HookError, match=r"hook_resid_mid or blocks\.1\.mlp\.hook_in"):
        resolve_hook(build(name), "blocks.1.hook_mlp_in")


@pytest.mark.parametrize("name", sorted(NO_PRE_NORM))
def test_no_norm_before_the_sublayers(name: str) -> None:
    with pytest.raises(HookError, match=r"attn\.hook_in and mlp\.hook_in"):
        resolve_hook(build(name), "blocks.1.ln2.hook_normalized")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("blocks.1.mlp.hook_inn", "blocks.1.mlp.hook_in"),
        ("blocks.1.hook_mlp_inp", "blocks.1.hook_mlp_in"),
        ("blocks.1.hook_attn_outt", "blocks.1.hook_attn_out"),
        ("blocks.1.ln2.hook_inn", "blocks.1.ln2.hook_in"),
        ("blocks.1.hook_residpre", "blocks.1.hook_resid_pre"),
        ("layers.1.mlpp.input", "model.layers.1.mlp.input"),
        ("model.layers.1.post_attention_layernorm.inputs", f"{_NORM}.input"),
        ("model.layers.1.post_attention_layernorm.in", f"{_NORM}.input"),
        ("layers.1.post_attention_layernorms.output", f"{_NORM}.output"),
    ],
)
def test_suggestions_stay_on_the_same_side(name: str, wanted: str) -> None:
    with pytest.raises(HookError) as caught:
        resolve_hook(build("llama"), name)
    found = str(caught.value).partition("did you mean ")[2].partition("?")[0].split(", ")
    assert found[0] == wanted
    side = wanted.rpartition("_" if "hook" in wanted else ".")[2]
    other = {"in": ("out", "normalized"), "input": ("out",), "pre": ("post", "out")}
    assert not any(end in each for each in found for end in other.get(side, ("_in", "_pre")))
    # Before the norm is "hook_mlp_in", after it "mlp.hook_in".
    assert {each.rpartition(".")[0] for each in found if "hook" in each} <= {
        wanted.rpartition(".")[0]
    }


@torch.no_grad()
def test_a_saelens_transcoder_for_gemma_3_reads_after_the_norm(tmp_path: Path) -> None:
    """SAELens writes both names, and its `hook_name` is TransformerLens's place before the norm."""
    path = "model.layers.1.pre_feedforward_layernorm.output"
    about = {"hook_name": "blocks.1.hook_mlp_in", "hf_hook_name": path}
    about |= {"hook_name_out": "blocks.1.hook_mlp_out", "hf_hook_name_out": "model.layers.1.mlp"}
    sae = load_sae(tiny_sae(tmp_path, architecture="transcoder", d_out=WIDTH, metadata=about))
    assert (sae.hook, sae.hook_out) == (path, "model.layers.1.mlp")
    values = read(build("gemma3_text"), path, "blocks.1.mlp.hook_in", "blocks.1.hook_resid_mid")
    close(values[path], values["blocks.1.mlp.hook_in"])
    assert not torch.allclose(values[path], values["blocks.1.hook_resid_mid"])
