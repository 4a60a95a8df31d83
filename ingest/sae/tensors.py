"""Read weight files safely: no unpickling of code, every tensor checked.

`Tensors` hands out tensors by the names their release gives them, as finite float32, and keeps
the first source of every size it meets (`d_in`, `d_sae`, …), so that a contradiction is reported
with both of its sides. It remembers which names were read: a tensor that no reader understood
changes what encode() gives, so the file is refused (`refuse_leftovers`).
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuredb.errors import SaeError, first_line

# Tensors of training that encode() and decode() do not depend on.
_HARMLESS = {
    "step",
    "stats_last_nonzero",  # OpenAI: steps since a feature last fired
    "num_batches_not_active",  # the same, in other trainers
    "num_tokens_since_fired",
    "sparsity",  # how often each feature fires
    "log_feature_sparsity",
}

_ALIGNMENT = 16
"""Bytes, of an array's first number. MKL's sums of float32 are the same for all that begin so."""


class Tensors:
    """The tensors of one weight file, taken out by name.

    around: what lies beside the state dictionary in a trainer's checkpoint.
    """

    def __init__(
        self, file: Path, tensors: Mapping[Any, Any], around: Mapping[Any, Any] | None = None
    ) -> None:
        self.file = file
        self.around: Mapping[Any, Any] = around or {}
        self._tensors = _without_wrappers(file, tensors)
        self._sizes: dict[str, tuple[int, str]] = {}
        self._read = set(_HARMLESS)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the tensor `name`, None where there is none."""
        tensor = self._tensors.get(name)
        return tuple(tensor.shape) if isinstance(tensor, Tensor) else None

    def ignore(self, *names: str) -> None:
        """Leave these out of account: the reader knows them, and encode() does not use them."""
        self._read.update(names)

    def ignore_ones(self, *names: str) -> None:
        """As `ignore`, for factors that are 1. Others stay leftovers."""
        self.ignore(*(n for n in names if n in self and bool((self._tensors[n] == 1).all())))

    def words(self) -> dict[str, Any]:
        """What the file holds besides tensors, in the state dictionary and around it."""
        everything = {str(name): value for name, value in self.around.items()} | self._tensors
        return {n: value for n, value in everything.items() if not isinstance(value, Tensor)}

    def refuse_leftovers(self) -> None:
        """Raise SaeError where the file holds a tensor that no reader took."""
        everything = {str(name): value for name, value in self.around.items()} | self._tensors
        left = [
            f"{name} {list(value.shape)}"
            for name, value in sorted(everything.items())
            if isinstance(value, Tensor) and name not in self._read
        ]
        if left:
            shown = ", ".join(left[:10])
            raise SaeError(
                f"{self.file}: refused: it also holds {shown}, which the reader of this format "
                "does not know: without it the activations could be wrong"
            )

    def size(self, axis: str, n: Any, source: str) -> None:
        """Record that `source` gives `axis` the size n; None says nothing.

        Raises SaeError where another source gave another size, and where n is zero.
        """
        if n is None:
            return
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise SaeError(f"{self.file}: {source} is {n!r}, which is not a size")
        if n == 0:
            what = "features" if axis == "d_sae" else axis
            raise SaeError(f"{self.file}: {source} says there are no {what}: nothing to store")
        known, first = self._sizes.setdefault(axis, (n, source))
        if known != n:
            raise SaeError(
                f"{self.file}: contradictory shapes: {first} makes {axis} {known}, "
                f"but {source} makes it {n}"
            )

    def __getitem__(self, axis: str) -> int:
        """A size already known."""
        return self._sizes[axis][0]

    def take(self, name: str, *axes: str) -> Tensor:
        """The tensor `name`, float32, with one named size per dimension.

        Raises SaeError where it is missing, has other dimensions, contradicts a size met before,
        or holds NaN or infinity.
        """
        tensor = self._find(name)
        shape = list(tensor.shape)
        if len(shape) != len(axes):
            raise SaeError(
                f"{self.file}: {name} has shape {shape}, but should be [{', '.join(axes)}]"
            )
        for axis, n in zip(axes, shape, strict=True):
            self.size(axis, n, f"{name} {shape}")
        return self._finite(name, tensor)

    def take_scalar(self, name: str) -> Tensor:
        """The one-element tensor `name`, as float32 []."""
        tensor = self._find(name)
        if tensor.numel() != 1:
            raise SaeError(f"{self.file}: {name} has shape {list(tensor.shape)}, not one number")
        return self._finite(name, tensor).reshape(())

    def take_threshold(self, name: str) -> Tensor:
        """The tensor `name` as float32 [] or [d_sae]."""
        return self.take_scalar(name) if self._find(name).numel() == 1 else self.take(name, "d_sae")

    def plain(self, name: str, default: Any) -> Any:
        """The entry `name` that is not a tensor but a word, a number or a dictionary of them."""
        return self._tensors.get(name, default)

    def number(self, name: str) -> int | None:
        """The tensor or plain number `name` as an int; None where it is missing."""
        value = self._tensors.get(name)
        self._read.add(name)
        return None if value is None else int(value)

    def missing_numbers(self, *names: str) -> bool:
        """Whether any of the tensors `names` holds a NaN, some releases' way of saying unset."""
        self._read.update(names)
        return any(bool(torch.isnan(self._find(name).float()).any()) for name in names)

    def _find(self, name: str) -> Tensor:
        self._read.add(name)
        tensor = self._tensors.get(name)
        if not isinstance(tensor, Tensor):
            names = ", ".join(self.names()) or "nothing"
            raise SaeError(f"{self.file}: no tensor {name!r}; it holds {names}")
        return tensor

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            raise SaeError(
                f"{self.file}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not "
                "floating-point numbers: quantized weights are not supported"
            )
        tensor = tensor.detach().float()
        # One pass with no temporary mask; an overflow to infinity only sends us to the exact test.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise SaeError(f"{self.file}: {name} holds NaN or infinite values")
        # The product of one row depends on where the weights begin, which a file's header shifts.
        return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def read_tensors(file: Path) -> Tensors:
    """The tensors of a weight file. Raises SaeError where it cannot be read or holds none."""
    if file.suffix == ".npz":
        return Tensors(file, _read_npz(file))
    if file.suffix == ".safetensors":
        return Tensors(file, _read_safetensors(file))
    content = read_torch(file)
    if not isinstance(content, dict):
        raise SaeError(f"{file}: holds a {type(content).__name__}, not a state dict of tensors")
    for key in ("ae", "sae"):  # what dictionary_learning's backups and Llamascopium nest it under
        if isinstance(content.get(key), Mapping):
            rest = {name: value for name, value in content.items() if name != key}
            return Tensors(file, content[key], rest)
    return Tensors(file, content)


def read_torch(file: Path) -> Any:
    """What a .pt or .pth file holds, read with torch's weights-only unpickler.

    Raises SaeError where the file is damaged, or holds anything but tensors and plain values.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to RuntimeError here
        with file.open("rb") as handle:
            pickled = handle.read(1) == b"\x80"
        if pickled or (isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(file)):
            raise SaeError(
                f"{file}: refused: it is not a plain checkpoint of tensors; a pickle that names "
                "other objects can run code when it is opened"
            ) from error
        reason = "it is not one" if isinstance(error, pickle.UnpicklingError) else error
        raise SaeError(
            f"{file}: cannot be read as a torch checkpoint: {first_line(reason)}"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises SaeError where the file is not one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaeError(f"{file}: cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise SaeError(f"{file}: holds a JSON {type(value).__name__}, not an object")
    return value


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a safetensors file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            names: list[str] = handle.keys()
            return {name: list(handle.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{file}: cannot be read as safetensors: {first_line(error)}") from error


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping. Raises SaeError where the file is not one."""
    import yaml

    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SaeError(f"{file}: cannot be read as YAML: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise SaeError(f"{file}: holds a YAML {type(value).__name__}, not a mapping")
    return value


def companion(weights: Path, name: str, looks_like: str, *, above: bool = False) -> Path:
    """The file `name` beside `weights` (with `above`, else in the folder above it).

    Raises SaeError where it is missing, saying what the weights look like.
    """
    folders = (weights.parent, weights.parent.parent) if above else (weights.parent,)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise SaeError(f"{name} is missing beside {weights}: this looks like {looks_like}")


def require(file: Path, config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise SaeError naming the keys that `config`, read from `file`, should have and has not."""
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise SaeError(f"{file}: missing {', '.join(missing)}")


def _without_wrappers(file: Path, tensors: Mapping[Any, Any]) -> dict[str, Any]:
    """Names as the class has them, without what torch.compile and data parallelism add."""
    plain: dict[str, Any] = {}
    wrapped = all(str(name).startswith("module.") for name in tensors)
    for name, value in tensors.items():
        bare = str(name).replace("_orig_mod.", "")
        bare = bare.removeprefix("module.") if wrapped else bare
        if bare in plain:
            raise SaeError(f"{file}: holds {bare} twice, with and without torch.compile's prefix")
        plain[bare] = value
    return plain


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise SaeError(f"{file}: cannot be read as safetensors: {first_line(error)}") from error
    return loaded


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        # numpy leaves a file it opened itself open when it turns out not to be an archive
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files}
    except Exception as error:  # zipfile, zlib, numpy and torch each have their own
        raise SaeError(f"{file}: cannot be read as npz: {first_line(error)}") from error
