"""Tiny models and random SAEs of every rule, and the equations of steering in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featuredb.steering.edits import Edit
from featuredb.steering.resolve import ResolvedEdit
from featuredb.steering.where import EditScope
from featuredb.store.snapshot import LoadCheck, Sae
from ingest.attached import AttachedSae
from ingest.model.load import LoadedModel
from ingest.sae import LoadedSae
from ingest.sae.activations import Gated, GroupMax, JumpReLU, ReLU, TopK
from ingest.sae.encoder import Encoder
from ingest.sae.normalize import Normalization
from ingest.sae.sae import Decoder
from tests.ingest.families import LAYERS, VOCAB, WIDTH, build

Array = npt.NDArray[np.float64]

torch.set_num_threads(1)
D_SAE, K = 24, 4
RULES = ("relu", "jumprelu", "gated", "topk", "groupmax")


def loaded(family: str) -> LoadedModel:
    """A tiny model of a family, without a tokenizer."""
    model = build(family).eval().requires_grad_(False)
    return LoadedModel(
        model=model, tokenizer=None, id=family, revision=None, path=Path(family), weights_hash="0",
        tokenizer_hash="0", dtype=torch.float32, device=torch.device("cpu"), d_model=WIDTH,
        n_layers=LAYERS, vocab_size=VOCAB, context_length=64, architecture=type(model).__name__,
    )  # fmt: skip


def random_sae(
    rule: str,
    *,
    d_in: int = WIDTH,
    d_out: int | None = None,
    seed: int = 0,
    normalization: Normalization = "none",
    offset: bool = False,
    skip: bool = False,
) -> LoadedSae:
    """Random weights. d_out: a transcoder, which undoes nothing."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    activation: Any = {
        "relu": ReLU(),
        "jumprelu": JumpReLU(random(D_SAE).abs()),
        "gated": Gated(random(D_SAE), random(D_SAE), random(D_SAE).exp()),
        "topk": TopK(K),
        "groupmax": GroupMax(K),
    }[rule]
    encoder = Encoder(
        random(d_in, D_SAE) / d_in**0.5,
        activation,
        None if rule == "gated" else random(D_SAE) * 0.1,
        random(d_in) * 0.1,
        normalization,
    )
    out = d_out or d_in
    decoder = Decoder(
        random(D_SAE, out) / out**0.5,
        random(out),
        random(out, d_in) if skip else None,
        "none" if d_out else normalization,
        random(D_SAE).abs() if offset else None,
    )
    return LoadedSae(
        encoder=encoder, decoder=decoder, name=rule, format="made", architecture=rule, hook=None,
        hook_out=None, model_name=None, prepend_bos=None, context_size=None, stated_l0=None,
        config={}, files=(), hash="", source="",
    )  # fmt: skip


def attach(
    model: LoadedModel, sae: LoadedSae, hook: str, hook_out: str | None = None, name: str = "s"
) -> AttachedSae:
    """An SAE at its hooks of a model."""
    return AttachedSae(
        name, sae, model.hook(hook), None if hook_out is None else model.hook(hook_out)
    )


def resolved(edit: str | Edit, sae: str = "s", method: str = "code") -> ResolvedEdit:
    """An edit whose value is a plain number."""
    given = Edit.parse(edit, method) if isinstance(edit, str) else edit
    record = Sae(sae, "", "", "", "", "", None, 1, 1, D_SAE, "float32", _CHECK)
    scope = EditScope.parse(given.where)
    return ResolvedEdit(given, record, int(given.feature), float(given.value), scope, {})


_CHECK = LoadCheck(0, 0.0, None, 0.0, 1.0, None)


def encoded(sae: LoadedSae, x: Array) -> Array:
    """[N, d_sae] from the papers' equations."""
    e = sae.encoder
    z = (_normalized(e.normalization, x) - _np(e.b_pre)) @ _np(e.W_enc)
    rule = e.activation
    if isinstance(rule, Gated):
        magnitude = z * _np(rule.scale) + _np(rule.b_mag)
        return np.asarray((z + _np(rule.b_gate) > 0) * np.maximum(magnitude, 0))
    z = z + _np(e.b_enc)
    if isinstance(rule, JumpReLU):
        return np.asarray(z * (z > _np(rule.threshold)))
    if isinstance(rule, TopK):
        kth = np.sort(z, axis=1)[:, -rule.k][:, None]
        return np.asarray(np.maximum(z, 0) * (z >= kth))
    if isinstance(rule, GroupMax):
        groups = z.reshape(len(z), rule.k, -1)
        best = groups == groups.max(axis=2, keepdims=True)
        return np.asarray((np.maximum(groups, 0) * best).reshape(len(z), -1))
    return np.asarray(np.maximum(z, 0))


def decoded(sae: LoadedSae, codes: Array, x: Array) -> Array:
    """[N, d_out], in the units of x."""
    d = sae.decoder
    lifted = codes if d.offset is None else codes + _np(d.offset) * (codes > 0)
    y = lifted @ _np(d.W_dec) + _np(d.b_dec)
    if d.W_skip is not None:
        y = y + x @ _np(d.W_skip).T
    if d.undoes == "layer_norm":
        y = y * x.std(axis=1, ddof=1, keepdims=True) + x.mean(axis=1, keepdims=True)
    if d.undoes == "constant_norm_rescale":
        y = y * np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
    return np.asarray(y)


def steered(
    sae: LoadedSae, x: Array, edits: Sequence[tuple[int, Callable[[Array], Array]]]
) -> Array:
    """What edits of the code add, [N, d_out]: decode(edited) - decode(code)."""
    code = encoded(sae, x)
    after = code.copy()
    for feature, change in edits:
        after[:, feature] = change(code[:, feature])
    return decoded(sae, after, x) - decoded(sae, code, x)


def _normalized(kind: str, x: Array) -> Array:
    if kind == "layer_norm":
        centered = x - x.mean(axis=1, keepdims=True)
        return np.asarray(centered / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5))
    if kind == "constant_norm_rescale":
        return np.asarray(x * x.shape[1] ** 0.5 / np.linalg.norm(x, axis=1, keepdims=True))
    return x


def _np(tensor: torch.Tensor | None) -> Array:
    return np.asarray(0.0) if tensor is None else tensor.double().numpy()
