"""Render chats with a chat template, and say of each character which message it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featuredb.errors import CorpusError, first_line
from ingest.corpus.tracked import NOWHERE, origins_of, tracked, tracking_template

Chat = Sequence[Mapping[str, Any]]

_MARK = "\ue000"

NO_MESSAGE = -1
"""The owner of text that the template writes."""

_HEADERS = ("role", "name", "tool_call_id", "id")
"""Who speaks, and to what: a template that writes these writes a heading, not what was said."""


class RenderedChat(NamedTuple):
    """A chat as text. owner int64 [characters]: the message each is from, or `NO_MESSAGE`."""

    text: str
    owner: npt.NDArray[np.int64]


def parse_chat(messages: Sequence[str | None], name: str) -> Chat:
    """The messages of a chat, each given as JSON; `name` names the chat.

    A key that is null is left out, and a content that is missing, as beside a tool call, is empty.

    Raises:
        CorpusError: a message is null or no object, or its role or content is not text.
    """
    chat = []
    for number, written in enumerate(messages):
        where = f"message {number} of {name}"
        try:
            message = None if written is None else json.loads(written)
        except ValueError:  # a list of plain strings
            message = written
        if not isinstance(message, dict):
            what = "null" if message is None else "not an object"
            raise CorpusError(
                f'{where} is {what}: give {{"role": …, "content": …}}, or leave it out'
            )
        message = {key: value for key, value in message.items() if value is not None}
        role, content = message.get("role"), message.setdefault("content", "")
        if not isinstance(role, str) or not role:
            raise CorpusError(f"{where} has no role: name who says it, or leave the message out")
        if not isinstance(content, str):
            _check_parts(content, where)
        chat.append(message)
    return chat


def _check_parts(content: Any, where: str) -> None:
    """Raise `CorpusError` unless a content that is no string is a list of texts."""
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if not isinstance(content, list) or _text_of(part) is None:
            raise CorpusError(
                f"the content of {where} is not text but {kind!r}: only strings and lists of "
                '{"type": "text", "text": …} can be read'
            )


def _text_of(part: Any) -> str | None:
    """The text of a part of a content, None if it is something else."""
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text")
    return part if isinstance(part, str) else None


def render_chat(tokenizer: Any, chat: Chat, name: str) -> RenderedChat:
    """Render a chat with the tokenizer's template. A chat without messages gives "".

    What a message says is its content, its reasoning and its tool calls. Contents in parts are
    given to the template as they are if it writes all of them, else as one string.

    Raises:
        CorpusError: there is no template, or it refuses the chat. `name` names the chat.
    """
    if not chat:
        return RenderedChat("", np.empty(0, np.int64))
    whole = [{**message, "content": _whole(message["content"])} for message in chat]
    if whole != list(chat):
        try:
            rendered = _rendered(tokenizer, chat, name)
        except CorpusError:  # a template that wants strings
            rendered = None
        if rendered is not None and all(
            _says(rendered, number, text)
            for number, message in enumerate(chat)
            for text in _texts(message["content"])
        ):
            return rendered
    return _with_lost(tokenizer, _rendered(tokenizer, whole, name), whole)


def _whole(content: Any) -> str:
    return "".join(_texts(content))


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [_text_of(part) or "" for part in content]


def _says(found: RenderedChat, number: int, text: str) -> bool:
    """Whether a message's text is in what is the message's."""
    pairs = zip(found.text, found.owner.tolist(), strict=True)
    return text.strip() in "".join(character for character, owner in pairs if owner == number)


def _rendered(tokenizer: Any, chat: Chat, name: str) -> RenderedChat:
    try:
        text = str(tokenizer.apply_chat_template(list(chat), tokenize=False))
    except Exception as error:  # a template may raise anything
        raise CorpusError(f"the chat template refuses {name}: {first_line(error)}") from error
    try:
        same = _tracked(tokenizer, chat)
    except Exception:  # a tokenizer that renders in a way of its own
        same = text
    if same != text:
        same = text
    codes = np.frombuffer(origins_of(same).encode("utf-32-le", "surrogatepass"), np.uint32)
    return RenderedChat(text, codes.astype(np.int64) - 1)


def _tracked(tokenizer: Any, chat: Chat) -> str:
    """The same text with the origin of each character."""
    from transformers.utils import chat_template_utils

    messages = [
        {
            key: value if key in _HEADERS else tracked(value, chr(ord(NOWHERE) + 1 + number))
            for key, value in message.items()
        }
        for number, message in enumerate(chat)
    ]
    # transformers lets templates read reasoning by any of its names.
    alias = getattr(chat_template_utils, "_alias_reasoning_fields", lambda chat: chat)
    text: str = tracking_template(tokenizer.get_chat_template()).render(
        messages=alias(messages),
        tools=None,
        documents=None,
        add_generation_prompt=False,
        **tokenizer.special_tokens_map,
    )
    return text


def _with_lost(tokenizer: Any, found: RenderedChat, chat: Chat) -> RenderedChat:
    """The same, with the contents that no character is from.

    A template can do what loses track of a text, such as ``'{}'.format(content)``. Where a mark in
    its place shows up in the text, the content is there.
    """
    text, owner = found.text, found.owner.copy()
    present = set(owner.tolist())
    for number, message in enumerate(chat):
        content = message["content"].strip()
        if number in present or not content:
            continue
        marked = [{**m, "content": _MARK} if m is message else m for m in chat]
        try:
            before, mark, _ = tokenizer.apply_chat_template(marked, tokenize=False).partition(_MARK)
        except Exception:  # a template may raise anything
            continue
        start = text.find(content, len(before))
        if (
            mark
            and start >= 0
            and text.startswith(before)
            and not text[len(before) : start].strip()
        ):
            owner[start : start + len(content)] = number
    return RenderedChat(text, owner)
