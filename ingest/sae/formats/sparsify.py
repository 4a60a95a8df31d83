"""EleutherAI sparsify: `{hookpoint}/cfg.json` and `{hookpoint}/sae.safetensors`.

Formulas: sparsify/sparse_coder.py and fused_encoder.py of eai-sparsify 1.3. The folder is named
after the module it hooks (`layers.5.mlp`). An SAE reads that module's output. A transcoder reads
its input and writes its output.

EleutherAI/clt-training (the same files) scales with `normalize_io`: x̂ = x √d / in_norm, the output
times out_norm / √d, and decodes (f + post_enc·1[f > 0]) · post_enc_scale. The scales fold into the
weights. encode() gives f for x̂.
"""

from __future__ import annotations

import re
from typing import Any

from featuredb.errors import SaeError
from ingest.sae.activations import Activation, GroupMax, TopK
from ingest.sae.config import refuse_unheeded
from ingest.sae.encoder import Encoder
from ingest.sae.parts import SaeFiles, SaeParts
from ingest.sae.sae import Decoder
from ingest.sae.tensors import Tensors, companion, read_json, require

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
NEEDS = f"sparsify: {CONFIG} and {WEIGHTS}"

_DEFAULT_EXPANSION = 32
_MODULE = re.compile(r"(\w+\.)*(layers|h|layer|blocks)\.\d+(\.\w+)*|(\w+\.)*embed\w*")


def read(place: SaeFiles, tensors: Tensors) -> SaeParts:
    """Load the sparse coder of one hookpoint. Raises SaeError if its files are inconsistent."""
    file = companion(place.weights, CONFIG, "a sparse coder of sparsify")
    raw = read_json(file)
    require(file, raw, ["d_in", "k"])
    if raw.get("signed"):
        raise SaeError(f"{file}: signed activations are not supported")
    for key in ("n_targets", "n_sources"):
        if raw.get(key):
            raise SaeError(
                f"{file}: {key} is {raw[key]}: a cross-layer transcoder of clt-training, which is "
                "not supported"
            )
    if raw.get("coalesce_topk") not in (None, "none"):
        raise SaeError(f"{file}: coalesce_topk {raw['coalesce_topk']!r} is not supported")
    refuse_unheeded(file, raw, frozenset({"normalize_io", "signed"}))
    tensors.size("d_in", raw["d_in"], f"{CONFIG} d_in")
    # num_latents 0 means "not set". The width is then a multiple of d_in.
    expanded = raw["d_in"] * raw.get("expansion_factor", _DEFAULT_EXPANSION)
    tensors.size("d_sae", raw.get("num_latents") or expanded, f"{CONFIG} num_latents")
    transcode = bool(raw.get("transcode"))
    W_enc = tensors.take("encoder.weight", "d_sae", "d_in").T
    # A transcoder's output has the width of its input in this format, but another hook.
    b_dec = tensors.take("b_dec", "d_in")
    scale_in, scale_out = _scales(raw, tensors)
    W_dec = tensors.take("W_dec", "d_sae", "d_in")
    if "post_enc_scale" in tensors:
        W_dec = W_dec * tensors.take("post_enc_scale", "d_sae").unsqueeze(1)
    skip = tensors.take("W_skip", "d_in", "d_in") if raw.get("skip_connection") else None
    hookpoint = _hookpoint(place)
    run = _run_config(place)
    return SaeParts(
        encoder=Encoder(
            W_enc=W_enc * scale_in,
            activation=_activation(file.as_posix(), raw, tensors["d_sae"]),
            b_enc=tensors.take("encoder.bias", "d_sae"),
            b_pre=None if transcode else b_dec / scale_in,
        ),
        decoder=Decoder(
            W_dec=W_dec * scale_out,
            b_dec=b_dec * scale_out,
            W_skip=None if skip is None else skip * (scale_in * scale_out),
            offset=tensors.take("post_enc", "d_sae") if "post_enc" in tensors else None,
        ),
        format="sparsify",
        architecture=raw.get("activation") or "topk",
        config=raw,
        hook=f"{hookpoint}.input" if hookpoint and transcode else hookpoint,
        hook_out=hookpoint if transcode else None,
        model_name=run.get("model"),
        context_size=run.get("ctx_len"),
        stated_l0=float(raw["k"]),
    )


def _scales(raw: dict[str, Any], tensors: Tensors) -> tuple[float, float]:
    """What the input and the output are multiplied by: 1 unless `normalize_io`."""
    if not raw.get("normalize_io"):
        return 1.0, 1.0
    norms = [float(tensors.take_scalar(name)) for name in ("in_norm", "out_norm")]
    if min(norms) <= 0:
        raise SaeError(f"{tensors.file}: in_norm or out_norm is {min(norms)}, which is no norm")
    root = tensors["d_in"] ** 0.5
    return root / norms[0], norms[1] / root


def _activation(file: str, raw: dict[str, Any], d_sae: int) -> Activation:
    k, rule = int(raw["k"]), raw.get("activation") or "topk"
    if not 0 < k <= d_sae:
        raise SaeError(f"{file}: k is {k}, which is not between 1 and the {d_sae} features")
    if rule == "topk":
        return TopK(k)
    if rule == "groupmax":
        if d_sae % k:
            raise SaeError(f"{file}: {d_sae} features do not divide into k = {k} groups")
        return GroupMax(k)
    raise SaeError(f"{file}: activation {rule!r} is not supported: topk and groupmax are")


def _hookpoint(place: SaeFiles) -> str | None:
    """The module path from the folder name. With several seeds each has a folder."""
    names = [part for part in place.label.parts[-3:-1] if not re.fullmatch(r"seed_?\d+", part)]
    return names[-1] if names and _MODULE.fullmatch(names[-1]) else None


def _run_config(place: SaeFiles) -> dict[str, Any]:
    """config.json of the training run, in the parent folder of the hookpoints."""
    for folder in (place.folder.parent, place.folder.parent.parent):
        file = folder / "config.json"
        if file.is_file():
            return read_json(file)
    return {}
