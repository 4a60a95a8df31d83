"""Text that is safe to show: corpora contain escape sequences, which a terminal would execute."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

# Everything that moves the cursor, starts an escape sequence, reorders the line or shows nothing:
# C0 and C1 controls, soft hyphen, bidirectional and invisible formatting, line separators,
# interlinear marks, lone surrogates, tags. The zero-width joiners stay: Persian, Hindi and emoji
# use them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_WIDTHLESS = ("Mn", "Me", "Cf")  # accents and joiners, visible only with a letter
# Of a character of several bytes: a token that spells out one of ASCII means those six characters.
_BYTE = re.compile("<0x([89A-F][0-9A-F])>")
_PICTURES = {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}


def neutralize(text: str) -> str:
    """The text on one line, each unsafe character as a visible one (⏎, ⇥, ␛, <U+202E>)."""
    return _UNSAFE.sub(_picture, text)


LONGEST_TOKEN = 20
"""Characters of a single token that are shown."""


def label(token: str) -> str:
    """A single token: neutralized, its spaces as `·`, never invisible, a long one cut."""
    if not token:
        return "(empty)"
    if all(unicodedata.category(character) in _WIDTHLESS for character in token):
        return "".join(f"<U+{ord(character):04X}>" for character in token)
    text = neutralize(token).replace(" ", "·")
    return text if len(text) <= LONGEST_TOKEN else f"{text[: LONGEST_TOKEN - 1]}…"


def spelled(tokens: Iterable[str]) -> list[str]:
    """Consecutive tokens as they read together, one string for each.

    A token may hold part of a character, written as its bytes (``<0xE6>``). The token that
    completes the character gets it. Bytes that complete none stay as they are written.
    """
    tokens = list(tokens)
    if not any("<0x" in token for token in tokens):
        return tokens
    pieces = [_as_bytes(token) for token in tokens]
    read = [""] * len(tokens)
    at, ends = 0, list(accumulate(map(len, pieces)))
    for character in b"".join(pieces).decode("utf-8", "surrogateescape"):
        code = ord(character)
        is_byte = 0xDC80 <= code <= 0xDCFF
        at += 1 if is_byte else len(character.encode())
        shown = f"<0x{code - 0xDC00:02X}>" if is_byte else character
        read[bisect_left(ends, at)] += shown
    return read


def _as_bytes(token: str) -> bytes:
    pieces = _BYTE.split(token)
    # Odd pieces are what the pattern's group caught: two hexadecimal digits.
    return b"".join(
        bytes.fromhex(piece) if i % 2 else piece.encode("utf-8", "replace")
        for i, piece in enumerate(pieces)
    )


def escape_json(document: str) -> str:
    r"""JSON text with the unsafe characters as `\uXXXX`: the same document, safe to print.

    The encoder leaves none of them outside strings except the newlines between rows.
    """
    return _UNSAFE.sub(lambda match: _escape(match[0]), document)


def _picture(match: re.Match[str]) -> str:
    character = match[0]
    if character in _PICTURES:
        return _PICTURES[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    return f"<U+{ord(character):04X}>"


def _escape(character: str) -> str:
    if character == "\n":
        return character
    return "".join(
        f"\\u{unit:04x}"
        for unit in memoryview(character.encode("utf-16-le", "surrogatepass")).cast("H")
    )
