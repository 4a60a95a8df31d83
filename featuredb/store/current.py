"""``CURRENT``: one line with the live snapshot's name and checksum."""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple, Self

from featuredb.errors import CorruptDatabaseError
from featuredb.store.layout import Layout

_LINE = re.compile(rb"(\d{6,})(?: ([0-9a-f]{64}) ([0-9a-f]{8}))?\n")


class Pointer(NamedTuple):
    """The live snapshot's name, as ``000001``, and the SHA-256 of its file in hexadecimal.

    sha256 is None if the line has only the name, as written by hand to repair the file.
    """

    name: str
    sha256: str | None

    def line(self) -> bytes:
        """``NAME SHA256 CRC32``. The CRC-32 of the preceding text distinguishes damage to the line
        from damage to the snapshot."""
        if self.sha256 is None:
            return f"{self.name}\n".encode()
        payload = f"{self.name} {self.sha256}"
        return f"{payload} {zlib.crc32(payload.encode()):08x}\n".encode()

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Inverse of `line`. Raises ValueError for any other input."""
        match = _LINE.fullmatch(line)
        if match is not None:
            name, digest = (
                part.decode() if part is not None else None for part in match.group(1, 2)
            )
            pointer = cls(name or "", digest)
            if pointer.line() == line:
                return pointer
        raise ValueError("it is damaged")


def read_pointer(layout: Layout) -> Pointer:
    """Read ``CURRENT``. Raises `CorruptDatabaseError` if it is damaged, and OSError."""
    try:
        return Pointer.parse(layout.current.read_bytes())
    except ValueError as error:
        raise CorruptDatabaseError(
            f"{layout.current} cannot be read ({error}): restore it from a copy, or write the "
            "name of the newest file in snapshots/ into it, as 000001 and a line break"
        ) from error
