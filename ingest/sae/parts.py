"""What every format reader returns, and helpers that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from ingest.sae.cross_layer import CrossLayer
from ingest.sae.encoder import Encoder
from ingest.sae.sae import Decoder


@dataclass(frozen=True)
class SaeFiles:
    """Location and name of the weights, for formats that encode facts in paths."""

    weights: Path
    """The weight file."""
    label: PurePath
    """The same file as the user knows it: for a hub reference, owner/repo/path/in/repo."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """Facts a catalog gives that the files lack: norm_scaling_factor, l0, model_name, and
    overrides of the configuration."""

    @property
    def folder(self) -> Path:
        return self.weights.parent


@dataclass(frozen=True)
class SaeParts:
    """An SAE as a format reader returns it."""

    encoder: Encoder
    decoder: Decoder
    format: str
    architecture: str
    config: Mapping[str, Any]
    hook: str | None = None
    hook_out: str | None = None
    model_name: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    stated_l0: float | None = None
    excluded_tokens: bool | tuple[int, ...] = False
    """Token ids whose activations it was not trained on, True for the tokenizer's special ones."""
    processed_weights: bool = False
    """Trained on a model whose weights TransformerLens had centered, see `LoadedSae`."""
    files: tuple[Path, ...] = ()
    """Weight files besides the one that was named."""
    cross_layer: CrossLayer | None = None
    places_out: tuple[int, ...] = ()
    """As in `LoadedSae`."""


def fold_decoder_norms(
    W_enc: Tensor, b_enc: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """W_enc·‖d‖, b_enc·‖d‖, W_dec/‖d‖: for encoders that multiply z by the decoder norms.

    The reconstruction is unchanged. A feature with a zero decoder row keeps it, and never fires.
    """
    norms = W_dec.norm(dim=1)
    return W_enc * norms, b_enc * norms, W_dec / norms.clamp_min(1e-30).unsqueeze(1)
