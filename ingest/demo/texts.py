"""Turning the training corpora's own formats into plain prose."""

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
    """One Brown corpus file as prose: tags gone, punctuation set, a line per paragraph.

    In the source a token is ``word/tag``, blank lines part the paragraphs, and a headline's
    tags end in ``-hl``. Its doubled ``? ?``, ``! !`` and ``; ;`` become one mark, and a mark
    after a closing quote moves inside it, where American print has it.
    """
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", tagged):
        tokens = [token.rpartition("/") for token in block.split() if "/" in token]
        for _, run in groupby(tokens, key=lambda token: token[2].endswith("-hl")):
            lines.append(_set_prose([word for word, _, _ in run]))
    return "\n".join(lines)


def _set_prose(words: list[str]) -> str:
    """Join words with the spacing of print, without a space inside quotes and brackets."""
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
    """The plain-text part of a raw e-mail, quoted lines dropped; empty if it has none.

    Cut at 6,000 characters, so that a few machine-written digests do not crowd out the rest.
    """
    try:
        part = _plain_part(email.message_from_string(message.partition("\n")[2]))
        payload = part.get_payload(decode=True) if part is not None else None
        if part is None or not isinstance(payload, bytes):
            return ""
        text = payload.decode(part.get_content_charset() or "latin-1", errors="replace")
    except (LookupError, ValueError, email.errors.MessageError):
        return ""  # An unknown charset or a broken header: some of it is spam, after all.
    kept = [line for line in text.splitlines() if not line.lstrip().startswith((">", "|"))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()[:_MAX_BODY]


def _plain_part(message: Message) -> Message | None:
    parts = (part for part in message.walk() if part.get_content_type() == "text/plain")
    return next(parts, None)
