"""Convert the formats of the training corpora to plain prose."""

from __future__ import annotations

import email
import email.errors
import re
from email.message import Message
from itertools import groupby

_OPENING = {"(", "[", "``", "`"}
_CLOSING = {")", "]", ",", ".", ";", ":", "?", "!", "''", "'"}
_PRINTED = {"``": '"', "''": '"', "`": "'"}
_MAX_BODY = 6_000


def untag_brown(tagged: str) -> str:
    """A Brown corpus file as prose: no tags, normal punctuation, a line per paragraph.

    In the source a token is ``word/tag``, blank lines separate paragraphs, and a headline's tags
    end in ``-hl``. Doubled ``? ?``, ``! !`` and ``. ;`` become one mark, and a mark after a
    closing quote moves inside it, as in American print.
    """
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", tagged):
        tokens = [token.rpartition("/") for token in block.split() if "/" in token]
        for _, run in groupby(tokens, key=lambda token: token[2].endswith("-hl")):
            lines.append(_set_prose([word for word, _, _ in run]))
    return "\n".join(lines)


def _set_prose(words: list[str]) -> str:
    """Join words with normal spacing, without a space inside quotes and brackets."""
    text = ""
    glued = True
    previous = ""
    for word in words:
        doubled = word == previous and word in {"?", "!", ";"}
        abbreviated = word == "." and text.endswith(".")
        if doubled or abbreviated:
            continue
        if word in {",", ".", "?", "!"} and previous == "''":
            text = text.removesuffix('"') + word + '"'
        else:
            text += "" if glued or word in _CLOSING else " "
            text += _PRINTED.get(word, word)
        glued = word in _OPENING
        previous = word
    return text


def email_body(message: str) -> str:
    """The plain-text part of a raw e-mail without quoted lines, or an empty text.

    Cut at 6,000 characters, so that a few long automatic digests do not dominate.
    """
    try:
        part = _plain_part(email.message_from_string(message.partition("\n")[2]))
        payload = part.get_payload(decode=True) if part is not None else None
        if part is None or not isinstance(payload, bytes):
            return ""
        text = payload.decode(part.get_content_charset() or "latin-1", errors="replace")
    except (LookupError, ValueError, email.errors.MessageError):
        return ""  # An unknown charset or a broken header, as spam has.
    lines = [line for line in text.splitlines() if not line.lstrip().startswith((">", "|"))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()[:_MAX_BODY]


def _plain_part(message: Message) -> Message | None:
    parts = (part for part in message.walk() if part.get_content_type() == "text/plain")
    return next(parts, None)
