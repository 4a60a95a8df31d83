"""A conversation as a chat template writes it, and where its messages are in that text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featuredb.errors import CorpusError

Chat = Sequence[Mapping[str, str]]
_MARK = re.compile("\ue000([0-9]+)\ue001")


def rendered(tokenizer: Any, chat: Chat, name: str) -> str:
    """The chat as the tokenizer's template writes it; "" for a chat without messages.

    Raises:
        CorpusError: there is no template, or it refuses the chat, called `name`.
    """
    if not chat:
        return ""
    try:
        return str(tokenizer.apply_chat_template(list(chat), tokenize=False))
    except Exception as error:  # a template may raise anything, through Jinja or by itself
        raise CorpusError(f"the chat template refuses {name}: {error}") from error


def content_spans(
    tokenizer: Any, chat: Chat, text: str
) -> Iterator[tuple[Mapping[str, str], int, int]]:
    """Where each message's content lies in the rendered `text`: (message, start, end).

    The chat is rendered once more with a mark in place of each content, which shows what the
    template itself writes around it; a content that the template changes is then what lies
    between. Where even that fails, contents are looked for in order.
    """
    marked = [{**message, "content": f"\ue000{i}\ue001"} for i, message in enumerate(chat)]
    try:
        pieces = _MARK.split(rendered(tokenizer, marked, "a chat") if chat else "")
    except CorpusError:
        pieces = []
    at = 0
    for place in range(0, len(pieces) - 1, 2):
        message = chat[int(pieces[place + 1])]
        before, after = pieces[place], pieces[place + 2]
        if not text.startswith(before, at):
            at = max(text.find(before, at), at)
        at += len(before)
        span = _content_at(text, at, message["content"], after)
        if span is not None:
            yield message, at, span
            at = span
    if not pieces:
        for message in chat:
            found = text.find(message["content"].strip(), at)
            if found >= 0:
                end = found + len(message["content"].strip())
                yield message, found, end
                at = end


def _content_at(text: str, at: int, content: str, after: str) -> int | None:
    """The end of the content that begins at `at` and is followed by `after`; None if unknown."""
    for written in (content, content.strip()):
        end = at + len(written)
        if text.startswith(written, at) and text.startswith(after, end):
            return end
    end = text.find(after, at) if after else len(text)
    return end if end >= 0 else None
