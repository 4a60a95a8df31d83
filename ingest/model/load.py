"""Load a language model: weights, tokenizer, and what identifies both.

The output of transformers is suppressed: no progress bars, no warnings. Warnings that matter
(weights missing from the files) are errors here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featuredb.errors import ModelError, first_line
from featuredb.store.files.atomic import sha256_of
from ingest.model.device import choose_device, choose_dtype, not_placed
from ingest.model.files import HUB, TOKENIZER_FILES, locate, tokenizer_files, weight_files
from ingest.model.hooks.families import base_of, family_of, join
from ingest.model.hooks.hook_point import HookPoint
from ingest.model.hooks.resolve import resolve_hook
from ingest.model.missing import first_needed
from ingest.model.quiet import quiet

# Names of the final norm in architectures without a row in the table.
_USUAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode on its device, its tokenizer, and what identifies them."""

    model: Any
    """The transformers model; its parameters ask for no gradients."""
    tokenizer: Any
    """None for a model of ids that stand for no text."""
    id: str
    """As it was named: a hub id, or the folder's own name."""
    revision: str | None
    """The hub's commit; None for a local folder."""
    path: Path
    """The local folder the files were read from."""
    weights_hash: str
    """SHA-256 over the bytes of the weight files, sorted by name, in hexadecimal."""
    tokenizer_hash: str
    """SHA-256 over tokenizer.json, or over the vocabulary files, if any, where there is none."""
    dtype: torch.dtype
    device: torch.device
    d_model: int
    n_layers: int
    vocab_size: int
    """Rows of the embedding matrix; at least the tokenizer's own count."""
    context_length: int
    """The longest input the model takes, in tokens."""
    architecture: str
    """The model's class, e.g. "LlamaForCausalLM"."""
    compiled: bool = False
    """Whether passes that only read run what torch compiles of its layers."""
    lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    """Held for a forward pass with hooks: they sit in the one model, and every pass fires them."""
    maskless: dict[tuple[str, ...], bool] = field(default_factory=dict, init=False, repr=False)
    """By hooks: whether real tokens are the same without a mask over padding, where it was tried.
    See `ingest.extract.forward`."""
    layers: dict[str, Callable[..., Any]] = field(default_factory=dict, init=False, repr=False)
    """What torch has compiled of them, by path. See `ingest.model.compiled`."""
    _hooks: dict[str, HookPoint] = field(default_factory=dict, init=False, repr=False)
    """Hook points that were asked for, by name: a set of SAEs asks for each many times."""

    def hook(self, name: str) -> HookPoint:
        """The hook point called `name`. Runs the model where only that tells its width.

        Raises HookError where the model has no such place.
        """
        with self.lock:
            if name not in self._hooks:
                self._hooks[name] = resolve_hook(self.model, name)
            return self._hooks[name]


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The linear map from the residual stream to logits, and the norm before it."""

    weight: Tensor
    """[vocab, d_model], the model's own tensor, in its dtype and on its device."""
    gain: Tensor | None
    """float32 [d_model]: what the final norm multiplies by (1 + weight in Gemma); None if the
    model has no final norm."""
    center: bool
    """Whether that norm subtracts the mean first (layer norm) or not (RMS norm)."""

    @property
    def W_U(self) -> Tensor:
        """float32 [vocab, d_model]: a view where the model is float32, else a copy, made here."""
        return self.weight.float()


def load_model(
    ref: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    torch_compile: bool = False,
) -> LoadedModel:
    """Load the model that `ref` names: a folder, a `.gguf` file, or a hub id.

    `device` "auto" is the GPU if there is one. `dtype` "auto" is bfloat16 on a GPU or CPU that
    computes in it natively, else float16 on a GPU for a model published in it, else float32.
    `torch_compile` marks it to be compiled before the first pass that only reads.

    Raises ModelError where the folder or its weights are missing, they or the tokenizer are
    damaged, the files leave out weights that the layers or the logit lens need, the architecture is
    not one transformers has, or the device is not one torch has here.
    """
    place = choose_device(device)
    choose_dtype(dtype, place)  # an unknown one is refused before anything is fetched
    folder, gguf, commit = locate(ref, revision)
    files = [folder / gguf] if gguf else weight_files(folder)
    extra = {"gguf_file": gguf} if gguf else {}
    with quiet():
        tokenizer = _load_tokenizer(folder, gguf)
        config = _load_config(folder, extra)
        kind = choose_dtype(dtype, place, getattr(config, "dtype", None))
        model, missing = _load_weights(folder, config, kind, extra)
    try:
        model = model.to(place).eval().requires_grad_(False)
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(not_placed(str(ref), place, error)) from error
    if tokenizer is not None:
        # Texts are tokenized whole and cut to contexts later; this silences a warning about it.
        tokenizer.model_max_length = int(1e30)
    text = model.config.get_text_config()
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=str(ref).removeprefix(HUB)
        if commit
        else Path(gguf).stem
        if gguf
        else folder.resolve().name,
        revision=commit,
        path=folder,
        weights_hash=sha256_of(*files),
        tokenizer_hash=sha256_of(*(files if gguf else tokenizer_files(folder))),
        dtype=kind,
        device=place,
        d_model=int(text.hidden_size),
        n_layers=int(text.num_hidden_layers),
        vocab_size=int(model.get_input_embeddings().weight.shape[0]),
        context_length=int(getattr(text, "max_position_embeddings", 0) or 2048),
        architecture=type(model).__name__,
        compiled=torch_compile,
    )
    if missing:
        _refuse_missing(loaded, missing)
    return loaded


def bos_token_id(loaded: LoadedModel, prepend_bos: bool | None) -> int | None:
    """Return the token each context begins with, or None.

    Where `prepend_bos` is None, the tokenizer's own behavior decides.
    Without a BOS token the CLS or else the EOS token is used, as in TransformerLens.

    Raises ModelError where one is asked for and the tokenizer has none of the three.
    """
    tokenizer = loaded.tokenizer
    if prepend_bos is None:
        if tokenizer is None:
            return None
        with quiet():
            plain = tokenizer("a", add_special_tokens=False).input_ids
            special = tokenizer("a", add_special_tokens=True).input_ids
        begins = len(special) > len(plain) and special[0] in tokenizer.all_special_ids
        return int(special[0]) if begins and special[: len(plain)] != plain else None
    if not prepend_bos:
        return None
    for name in ("bos_token_id", "cls_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    why = "has no tokenizer that says which" if tokenizer is None else "has none in its tokenizer"
    raise ModelError(
        f"contexts are to begin with a BOS token, and {loaded.id} {why}: --no-bos leaves it out"
    )


def unembedding(loaded: LoadedModel) -> Unembedding | None:
    """Return the map from the last layer's residual stream to logits, for the logit lens.

    None where there is no such linear map: a model without a language-modeling head, an encoder
    (whose head is not linear), or one that projects to another width first.
    """
    model: nn.Module = loaded.model
    head = loaded.model.get_output_embeddings()
    family = family_of(model)
    if head is None or (family is not None and not family.linear_head):
        return None
    if head.weight.shape[1] != loaded.d_model:
        return None
    norm = final_norm(loaded)
    weight = getattr(norm, "weight", None)
    gain = weight.detach().float() if isinstance(weight, Tensor) else None
    if gain is not None and family is not None and family.unit_offset:
        gain = gain + 1.0
    center = (
        isinstance(norm, nn.LayerNorm) if family is None else norm is not None and not family.rms
    )
    return Unembedding(head.weight.detach(), gain, center=center)


def token_direction(loaded: LoadedModel, token_id: int, matrix: str) -> npt.NDArray[np.float32]:
    """A token's row of the embedding or the unembedding, float32 [d].

    The row of the ``unembedding`` is scaled by the final norm's gain and, for a layer norm,
    centered: its product with a decoder direction is what the logit lens shows.

    Raises ModelError where the model has no such matrix, or no such row.
    """
    if matrix == "embedding":
        rows = loaded.model.get_input_embeddings().weight.detach()
        lens = None
    else:
        lens = unembedding(loaded)
        if lens is None:
            raise ModelError(
                f"{loaded.id} has no linear map to logits, and so no unembedding: ask for the "
                "embedding"
            )
        rows = lens.weight
    row = rows[token_id].float()
    if lens is not None and lens.gain is not None:
        row = row * lens.gain
    if lens is not None and lens.center:
        row = row - row.mean()
    result: npt.NDArray[np.float32] = row.cpu().numpy()
    return result


def final_norm(loaded: LoadedModel) -> nn.Module | None:
    """The norm before the unembedding. None where there is none."""
    family = family_of(loaded.model)
    base, _ = base_of(loaded.model)
    candidates = _USUAL_NORMS if family is None else (family.final_norm,)
    modules = dict(loaded.model.named_modules())
    return next(
        (modules[join(base, path)] for path in candidates if path and join(base, path) in modules),
        None,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder. Raises `ModelError`."""
    tokenizer = _load_tokenizer(folder, None)
    if tokenizer is None:
        raise no_tokenizer(folder)
    return tokenizer


def _load_tokenizer(folder: Path, gguf: str | None) -> Any:
    from transformers import AutoTokenizer

    if gguf is None and not tokenizer_files(folder):
        if (folder / "tokenizer_config.json").exists():
            raise no_tokenizer(folder)
        return None
    extra = {"gguf_file": gguf} if gguf else {}
    try:
        return AutoTokenizer.from_pretrained(folder, **extra)
    except Exception as error:  # tokenizers, sentencepiece and json each have their own
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from (
            error
        )


def no_tokenizer(folder: Path) -> ModelError:
    """The error of a folder without a tokenizer where one is needed."""
    return ModelError(
        f"{folder} has no tokenizer: tokenizer.json (or {', '.join(TOKENIZER_FILES[1:])}) "
        "is missing"
    )


def _refuse_missing(loaded: LoadedModel, missing: Sequence[str]) -> None:
    """Raise ModelError if a tensor that the files leave out is needed."""
    needed = first_needed(loaded.model, missing)
    if needed is None:
        lens = unembedding(loaded)
        parts = [] if lens is None else [p for p in (lens.weight, lens.gain) if p is not None]
        if all(bool(torch.isfinite(part).all()) for part in parts):
            return
        needed = missing[0]
    raise ModelError(
        f"the weights in {loaded.path} leave out {len(missing)} of the model's tensors, among them "
        f"{needed}, which is needed: put back the whole checkpoint"
    )


def _load_config(folder: Path, extra: dict[str, Any]) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, **extra)
    except Exception as error:  # ValueError for an unknown model_type, OSError, JSON errors
        raise ModelError(f"{folder}: {first_line(error)}") from error


def _load_weights(
    folder: Path, config: Any, dtype: torch.dtype, extra: dict[str, Any]
) -> tuple[Any, list[str]]:
    """The model, and the tensors that its files leave out."""
    import transformers

    names = config.architectures or []
    named = getattr(transformers, names[0], None) if names else None
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    if names and not is_model:
        raise ModelError(
            f"{folder}: transformers {transformers.__version__} has no architecture {names[0]!r}"
        )
    # A folder that names its class is loaded as that class, so that no head is made up.
    loader: Any = named if is_model else transformers.AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **extra
        )
    except Exception as error:  # safetensors, torch, zipfile and transformers each have their own
        raise ModelError(f"the weights in {folder} cannot be loaded: {first_line(error)}") from (
            error
        )
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    if mismatched:
        # transformers would go on with random numbers in their place
        raise ModelError(
            f"the weights in {folder} have other shapes than the model's for {len(mismatched)} "
            f"tensors, the first of them {mismatched[0]}"
        )
    return model, sorted(report["missing_keys"])
