"""Decompression of corpus files, detected by their first bytes."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import zstandard

CHUNK_BYTES = 1 << 20
ENDINGS = frozenset({".gz", ".zst", ".xz", ".bz2", ".lz4"})
ERRORS = (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError)
"""Raised for what cannot be opened, read or decompressed."""

_ZSTD, _XZ = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"
_ARROW_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4"}
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 2 to 4 of a frame of Zstandard that holds no data. The first is 0x50 to 0x5f."""
_WIDEST_WINDOW = 1 << 31
"""What ``zstd --long=31`` writes. Memory is taken as the window fills."""


def opened(path: Path) -> BinaryIO:
    """Open a file for reading its decompressed bytes. Files joined end to end are read as one.

    Raises one of `ERRORS`, as reading does.
    """
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(_ZSTD) or (head[1:4] == _SKIPPABLE and head[0] >> 4 == 5):
        return io.BufferedReader(_Zstd(path), CHUNK_BYTES)
    if head.startswith(_XZ):
        return cast(BinaryIO, lzma.open(path))
    codec = next((name for mark, name in _ARROW_CODECS.items() if head.startswith(mark)), None)
    if codec is None:
        return path.open("rb", buffering=CHUNK_BYTES)
    compressed = pa.CompressedInputStream(pa.OSFile(str(path)), codec)
    return cast(BinaryIO, io.BufferedReader(compressed, CHUNK_BYTES))


class _Zstd(io.RawIOBase):
    """Frames of Zstandard, one after another.

    pyarrow refuses windows above 128 MiB, and `zstandard`'s own reader ends without an error where
    a file is cut short.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self._ready = memoryview(b"")
        self._inside = False
        self._frame = _frame()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            piece = self._rest or self._file.read(CHUNK_BYTES >> 5)
            self._rest = b""
            if not piece:
                if self._inside:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._ready = memoryview(self._frame.decompress(piece))
            self._inside = not self._frame.eof
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = _frame()
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _frame() -> zstandard.ZstdDecompressionObj:
    return zstandard.ZstdDecompressor(max_window_size=_WIDEST_WINDOW).decompressobj()
