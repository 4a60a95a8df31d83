"""``CURRENT`` round-trips, and damage to it is detected."""

from __future__ import annotations

import pytest

from featuredb.store.current import Pointer

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("digest", [None, DIGEST])
@pytest.mark.parametrize("name", ["000001", "1234567"])
def test_it_survives_writing_and_reading(name: str, digest: str | None) -> None:
    pointer = Pointer(name, digest)
    assert Pointer.parse(pointer.line()) == pointer
    assert pointer.line().startswith(name.encode())


def test_every_flipped_bit_and_every_truncation_is_seen() -> None:
    line = Pointer("000001", DIGEST).line()
    for bit in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="it is damaged"):
            Pointer.parse(bytes(damaged))
    for length in range(len(line)):
        with pytest.raises(ValueError, match="it is damaged"):
            Pointer.parse(line[:length])


@pytest.mark.parametrize("line", [b"", b"1\n", b"000001", b"000001\r\n", b"000001 \n", b"\xff\n"])
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="it is damaged"):
        Pointer.parse(line)
