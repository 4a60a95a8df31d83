"""Characters split over tokens are joined in running text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from featuredb.render.characters import spelled


def test_a_character_stands_in_the_token_that_completes_it() -> None:
    assert spelled([" ", "<0xC3>", "<0x98>", "rsted"]) == [" ", "", "Ø", "rsted"]
    assert spelled([" <0xE6>", "<0x97><0xA5>", " x"]) == [" ", "日", " x"]


def test_bytes_that_complete_nothing_stay() -> None:
    assert spelled(["<0x98>rsted"]) == ["<0x98>rsted"]
    assert spelled(["a", "<0xC3>"]) == ["a", "<0xC3>"]
    assert spelled(["<0xE6>", "<0x97>", "x"]) == ["<0xE6>", "<0x97>", "x"]
    assert spelled([]) == []


def test_what_looks_like_a_byte_of_ascii_is_six_characters() -> None:
    assert spelled([" apple", "<0x41>", "<0x0A>", "<0xC3>", "<0x98>"]) == [
        " apple", "<0x41>", "<0x0A>", "", "Ø"
    ]  # fmt: skip


@given(st.text(st.characters(exclude_characters="<", codec="utf-8")), st.integers(1, 4))
def test_any_text_cut_into_bytes_anywhere_reads_the_same(text: str, step: int) -> None:
    raw = text.encode()
    pieces = [raw[i : i + step] for i in range(0, len(raw), step)]
    tokens = [
        "".join(f"<0x{byte:02X}>" if byte > 127 else chr(byte) for byte in piece)
        for piece in pieces
    ]
    assert "".join(spelled(tokens)) == text
