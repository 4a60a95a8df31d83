"""A sparse autoencoder, or transcoder, as tensors and the rule that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from featuredb.errors import SaeError
from ingest.model.device import not_placed
from ingest.sae.activations import Activation
from ingest.sae.codes import LaunchedCodes, SparseCodes, even_pieces, joined
from ingest.sae.cross_layer import CrossLayer
from ingest.sae.encoder import Encoder
from ingest.sae.normalize import Normalization, undo
from ingest.sae.split import SplitEncoder, can_split


@dataclass(frozen=True, eq=False)
class Decoder:
    """y = f W_dec + b_dec [+ x W_skipᵀ], then the normalization undone."""

    W_dec: Tensor
    """[d_sae, d_out]"""
    b_dec: Tensor
    """[d_out]"""
    W_skip: Tensor | None = None
    """[d_out, d_in]; skip transcoders only."""
    undoes: Normalization = "none"
    """The normalization to undo with the statistics of x; always "none" for a transcoder, whose
    output is not in the units of its input."""
    offset: Tensor | None = None
    """[d_sae]: added to each positive activation before decoding; None for nothing."""

    @property
    def needs_input(self) -> bool:
        """Whether decoding takes x as well as the activations."""
        return self.W_skip is not None or self.undoes != "none"

    def reconstruct(self, acts: Tensor, x: Tensor | None) -> Tensor:
        """y [N, d_out] from acts [N, d_sae] and, where `needs_input`, x [N, d_in]."""
        if self.offset is not None:
            acts = acts + self.offset * (acts > 0)
        y = torch.addmm(self.b_dec, acts, self.W_dec)
        if x is not None and self.W_skip is not None:
            y = y + x @ self.W_skip.T
        if x is not None and self.undoes != "none":
            y = undo(self.undoes, y, x)
        return y


@dataclass(frozen=True, eq=False, repr=False)
class LoadedSae:
    """A loaded SAE: f = activation((norm(x) - b_pre) W_enc + b_enc); x̂ = f W_dec + b_dec.

    A feature is active where encode(x) is not zero, and nowhere else. Activations are in the
    release's own encode() units, so `decode(encode(x), x)` is the reconstruction; a decoder norm
    is folded in only where the release's own encoder multiplies by it.
    """

    encoder: Encoder
    decoder: Decoder
    name: str
    """A short name made from the folder: letters, digits, dot, dash and underscore."""
    format: str
    """saelens, gemma_scope, gemma_scope_2, sparsify, dictionary_learning, openai, llama_scope,
    llamascopium, circuit_tracer, qwen_scope, kissane or goodfire."""
    architecture: str
    """The release's own word for it, e.g. "jumprelu", "topk", "BatchTopKSAE"."""
    hook: str | None
    """Where the input is read, e.g. "blocks.9.hook_resid_post"; None if the files do not say."""
    hook_out: str | None
    """Where a transcoder's output belongs; None for an SAE, and where the files do not say."""
    model_name: str | None
    prepend_bos: bool | None
    context_size: int | None
    stated_l0: float | None
    """The mean number of active features the release claims, or k for top-k rules."""
    config: Mapping[str, Any]
    """The release's own configuration, as read."""
    files: tuple[Path, ...]
    """The weight files, sorted."""
    hash: str
    """SHA-256 over the bytes of `files`, in that order, in hexadecimal."""
    source: str
    """The reference, as given."""
    processed_weights: bool = False
    """Trained on a model whose weights TransformerLens had centered and whose value biases it had
    folded, and not yet attached to a model without that."""
    excluded_tokens: bool | tuple[int, ...] = False
    """Token ids whose activations it was not trained on, True for the tokenizer's special ones."""
    cross_layer: CrossLayer | None = None
    """Its place among SAEs that write to several layers together. Its own W_dec is then the sum of
    what it writes to each."""
    places_out: tuple[int, ...] = ()
    """The places of `cross_layer` that it writes to."""

    @property
    def d_in(self) -> int:
        return self.encoder.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.encoder.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.decoder.W_dec.shape[1]

    @property
    def device(self) -> torch.device:
        return self.encoder.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """What encode and decode compute in; float32 unless another was asked for."""
        return self.encoder.W_enc.dtype

    @property
    def W_enc(self) -> Tensor:
        """float32 [d_in, d_sae]: encoder directions, one column per feature."""
        return self.encoder.W_enc.float()

    @property
    def W_dec(self) -> Tensor:
        """float32 [d_sae, d_out]: decoder directions, one row per feature, per unit of encode()."""
        return self.decoder.W_dec.float()

    @property
    def hooks_out(self) -> tuple[str, ...]:
        """Where it writes: several places for one of a cross-layer transcoder or crosscoder."""
        if self.cross_layer is None:
            return () if self.hook_out is None else (self.hook_out,)
        sites = (self.cross_layer.sites[place] for place in self.places_out)
        return tuple(site for site in sites if site is not None)

    @property
    def needs_input_to_decode(self) -> bool:
        """Whether `decode` must be given x: a skip connection, or a normalization to undo."""
        return self.decoder.needs_input

    def encode(self, x: Tensor) -> Tensor:
        """Activations float32 [..., d_sae] of x [..., d_in], computed in the SAE's dtype.

        x must be finite: checking that is left to whoever has the model's activations at hand.

        Raises SaeError where the last dimension of x is not d_in.
        """
        z = self.encoder.pre_activations(self._rows(x))
        return self.encoder.activation.dense(z).float().reshape(*x.shape[:-1], self.d_sae)

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Exactly the non-zeros of encode(x), by row, then by feature; rows are flattened.

        The dense matrix of activations is never built, and its pre-activations only of some rows at
        a time. No gradient flows through it.

        Raises SaeError where the last dimension of x is not d_in, and where a finite x gives a NaN,
        which no rule would take for active.
        """
        with torch.no_grad():
            pieces = even_pieces(self._rows(x), self.d_sae)
            return joined([self._sparse(piece) for piece in pieces], list(map(len, pieces)))

    def launch(
        self, x: Tensor, keep: Tensor | None, per_row: float
    ) -> tuple[list[LaunchedCodes], Tensor]:
        """As `encode_sparse`, without waiting for the device: for each piece of the rows.

        x [N, d_in]. keep: bool [N], the rows that are wanted; a rule with a fixed number of
        features a row gives the others too. per_row: the most activations per row to leave room
        for. The second result, bool [], is true where a sum may have overflowed.
        """
        with torch.no_grad():
            pieces = even_pieces(self._rows(x), self.d_sae)
            kept = [None] * len(pieces) if keep is None else keep.tensor_split(len(pieces))
            launched, large = [], []
            for piece, wanted in zip(pieces, kept, strict=True):
                piece = self.encoder.centered(piece)
                large.append((piece.norm(dim=1) > self.encoder.largest_input).any())
                capacity = max(1, int(per_row * len(piece)))
                z = self.encoder.product(piece)
                launched.append(self.encoder.activation.launched(z, wanted, capacity))
            return launched, torch.stack(large).any()

    def _sparse(self, x: Tensor) -> SparseCodes:
        centered = self.encoder.centered(x)
        if not bool((centered.norm(dim=1) > self.encoder.largest_input).any()):
            return self.encoder.active(x, centered)
        z = self.encoder.product(centered)
        if bool((z.isnan() & centered.isfinite().all(dim=1, keepdim=True)).any()):
            raise SaeError(
                f"SAE {self.name} gives NaN pre-activations, as its sums overflow {self.dtype}: "
                "its weights, its scale or its hook are wrong"
            )
        return self.encoder.activation.sparse(z)

    def decode(self, acts: Tensor, x: Tensor | None = None) -> Tensor:
        """The reconstruction float32 [..., d_out] of acts [..., d_sae].

        `x` [..., d_in], the input that gave `acts`, is needed where `needs_input_to_decode`; any
        other SAE ignores it. Raises SaeError where x is needed and missing, a shape is wrong, or
        the SAE rebuilds nothing by itself (`cross_layer`).
        """
        if self.cross_layer is not None:
            raise SaeError(
                f"SAE {self.name} rebuilds nothing by itself: it is one of "
                f"{len(self.cross_layer.sites)} SAEs whose layers write together "
                "(sae.cross_layer.towards(place) is what it adds to each)"
            )
        if acts.shape[-1] != self.d_sae:
            raise SaeError(
                f"SAE {self.name} decodes [..., {self.d_sae}] activations, not {_shape(acts)}"
            )
        if self.needs_input_to_decode and x is None:
            what = "a skip connection" if self.decoder.W_skip is not None else "a normalized input"
            raise SaeError(f"SAE {self.name} has {what}: pass the input too, as decode(acts, x)")
        self._refuse_before_values()
        flat = acts.reshape(-1, self.d_sae).to(self.device, self.dtype)
        rows = (
            self._rows(x).to(self.dtype) if x is not None and self.needs_input_to_decode else None
        )
        y = self.decoder.reconstruct(flat, rows)
        return y.float().reshape(*acts.shape[:-1], self.d_out)

    def normalized(self, kind: Normalization) -> LoadedSae:
        """The same SAE with its input normalized so, and its output back."""
        undoes = self.decoder.undoes if self.hook_out else kind
        return replace(
            self,
            encoder=replace(self.encoder, normalization=kind),
            decoder=replace(self.decoder, undoes=undoes),
        )

    def shifted(self, bias: Tensor) -> LoadedSae:
        """The same SAE for inputs that are larger by `bias` [d_in], and its output too."""
        bias = bias.to(self.device, self.dtype)
        b_pre = bias if self.encoder.b_pre is None else self.encoder.b_pre + bias
        b_dec = self.decoder.b_dec if self.hook_out else self.decoder.b_dec + bias
        return replace(
            self,
            encoder=replace(self.encoder, b_pre=b_pre),
            decoder=replace(self.decoder, b_dec=b_dec),
        )

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LoadedSae:
        """The same SAE with its tensors on `device` and in `dtype`; None leaves either alone.

        Raises SaeError where the device has too little memory for it, or does not know its dtype.
        """
        try:
            return replace(
                self,
                encoder=_moved(self.encoder, device, dtype),
                decoder=_moved(self.decoder, device, dtype),
            )
        except RuntimeError as error:
            raise SaeError(not_placed(f"SAE {self.name}", device, error)) from error

    def encoder_only(self) -> LoadedSae:
        """The same SAE without the values of its decoder, for an ingest: it only encodes."""
        return replace(self, decoder=_moved(self.decoder, "meta", None))

    def can_encode_in(self, encoding: str, model_dtype: torch.dtype) -> bool:
        """Whether `encoded_in` may be called, for the hidden states of a model of that dtype."""
        if encoding == "screened":
            from ingest.sae.screened import can_screen  # here: it imports numba

            return can_screen(self.encoder, model_dtype)
        return can_split(self.encoder, model_dtype)

    def encoded_in(self, encoding: str) -> LoadedSae:
        """The same SAE, which encodes bfloat16 rows by parts ("bfloat16x3", `ingest.sae.split`) or
        looks twice at what may be active ("screened", `ingest.sae.screened`)."""
        if encoding == "screened":
            from ingest.sae.screened import ScreenedEncoder

            return replace(self, encoder=ScreenedEncoder.of(self.encoder))
        return replace(self, encoder=SplitEncoder.of(self.encoder))

    def _refuse_before_values(self) -> None:
        """Raise SaeError where the SAE reads heads without the model's value bias."""
        if self.processed_weights and (self.hook or "").endswith("hook_z"):
            raise SaeError(
                f"SAE {self.name} reads hook_z minus the model's value biases, which "
                "TransformerLens folds away and which are in the model's files: ingest subtracts "
                "them; here call sae.without_value_bias(b_V) first (zeros if x lacks them already)"
            )

    def without_value_bias(self, bias: Tensor) -> LoadedSae:
        """An SAE of folded value biases, for a model that has `bias` [d_in], heads concatenated."""
        return replace(self.shifted(bias), processed_weights=False)

    def _rows(self, x: Tensor) -> Tensor:
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise SaeError(f"SAE {self.name} reads [..., {self.d_in}] inputs, not {_shape(x)}")
        self._refuse_before_values()
        return x.reshape(-1, self.d_in).to(self.device, self.encoder.row_dtype(x.dtype))

    def __repr__(self) -> str:
        where = f" at {self.hook}" if self.hook else ""
        return (
            f"LoadedSae({self.name!r}, {self.format} {self.architecture}, "
            f"d_in={self.d_in}, d_sae={self.d_sae}{where})"
        )


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


_Part = TypeVar("_Part", Encoder, Decoder)


def _moved(part: _Part, device: Any, dtype: torch.dtype | None) -> _Part:
    """A copy with every tensor in it, the activation's too, on `device` and in `dtype`."""
    changes = _moved_fields(part, device, dtype)
    if isinstance(part, Encoder):
        inner = _moved_fields(part.activation, device, dtype)
        changes["activation"] = replace(part.activation, **inner)
    return replace(part, **changes)


def _moved_fields(
    part: Encoder | Decoder | Activation, device: Any, dtype: torch.dtype | None
) -> dict[str, Any]:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {
        name: value.to(device=device, dtype=dtype)
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
