"""Render chats with a chat template and locate the messages in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featuredb.errors import CorpusError

Chat = Sequence[Mapping[str, str]]
_MARK = re.compile("\ue000([0-9]+)\ue001")


def rendered(tokenizer: Any, chat: Chat, name: str) -> str:
    """Render a chat with the tokenizer's template. A chat without messages gives "".

    Raises:
        CorpusError: there is no template, or it refuses the chat. `name` names the chat.
    """
    if not chat:
        return ""
    try:
        return str(tokenizer.apply_chat_template(list(chat), tokenize=False))
    except Exception as error:  # a template may raise anything
        raise CorpusError(f"the chat template refuses {name}: {error}") from error


def content_spans(
    tokenizer: Any, chat: Chat, text: str
) -> Iterator[tuple[Mapping[str, str], int, int]]:
    """Locate each message's content in the rendered `text`, as (message, start, end).

    The chat is rendered again with a mark in place of each content. This shows what the template
    writes around it. A content that the template changes is the text in between. If that fails,
    contents are searched for in order.
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
            content = message["content"].strip()
            start = text.find(content, at)
            if start >= 0:
                at = start + len(content)
                yield message, start, at


def _content_at(text: str, at: int, content: str, after: str) -> int | None:
    """Return the end of the content that starts at `at`, before `after`. None if unknown."""
    for written in (content, content.strip()):
        end = at + len(written)
        if text.startswith(written, at) and text.startswith(after, end):
            return end
    end = text.find(after, at) if after else len(text)
    return end if end >= 0 else None
