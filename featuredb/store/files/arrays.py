"""Arrays of a remote database: small ones are fetched whole, large ones by rows."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from featuredb.errors import CorruptDatabaseError
from featuredb.store.files.remote import RemoteFiles, Span


class RangedArray:
    """An array of a `RemoteFiles` that is too large to fetch: indexing reads the selected rows.

    Replaces a memory map that is indexed by row number or slice, with or without further axes:
    ``a[3]``, ``a[3:9]``, ``a[3:9, 1]``.
    """

    def __init__(
        self,
        remote: RemoteFiles,
        path: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        offset: int,
    ) -> None:
        self.dtype, self.shape = dtype, shape
        self._remote, self._path, self._offset = remote, path, offset
        self._row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            rows = self._rows(start, max(start, stop))[::step]
            return rows[(slice(None), *rest)]
        row = range(len(self))[first]
        return self._rows(row, row + 1)[(0, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self._rows(0, len(self)), dtype)

    def fetch(self, spans: Iterable[Span]) -> None:
        """Prefetch rows, start <= i < stop each. Raises as `RemoteFiles.fetch`."""
        self._remote.fetch(
            self._path,
            [(self._offset + a * self._row, self._offset + b * self._row) for a, b in spans],
        )

    def _rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        low, high = (self._offset + i * self._row for i in (start, stop))
        data = self._remote.read(self._path, low, high)
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


def fetch_rows(array: Any, spans: Iterable[Span]) -> None:
    """Prefetch rows of an array of the store in as few requests as possible."""
    if isinstance(array, RangedArray):
        array.fetch(spans)


def remote_array(remote: RemoteFiles, path: str) -> npt.NDArray[Any]:
    """A ``.npy`` file: in memory if small, otherwise a `RangedArray`."""
    head = remote.read(path, 0, 128)
    dtype, shape, offset = _header(remote, path, head)
    return _array(remote, path, dtype, shape, offset)


def remote_matrix(remote: RemoteFiles, path: str) -> npt.NDArray[Any]:
    """A ``.npy`` file, loaded into memory."""
    loaded: npt.NDArray[Any] = np.load(io.BytesIO(remote.straight(path)), allow_pickle=False)
    return loaded


def remote_flat(remote: RemoteFiles, path: str, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """A headerless binary file: in memory if small, otherwise a `RangedArray`."""
    dtype = np.dtype(kind)
    return _array(remote, path, dtype, (remote.size(path) // dtype.itemsize,), 0)


def _array(
    remote: RemoteFiles, path: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int
) -> npt.NDArray[Any]:
    if remote.size(path) and remote.is_whole(path):
        data = remote.read(path, offset, remote.size(path))
        return np.frombuffer(data, dtype).reshape(shape)
    # Used as a memory map, by rows.
    return cast("npt.NDArray[Any]", RangedArray(remote, path, dtype, shape, offset))


def _header(
    remote: RemoteFiles, path: str, head: bytes
) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(file)
    except (ValueError, KeyError) as error:
        raise CorruptDatabaseError(f"{remote / path} is not a NumPy file: {error}") from error
    if fortran:
        raise CorruptDatabaseError(f"{remote / path} is not in the order of rows")
    return dtype, shape, file.tell()
