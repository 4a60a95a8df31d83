"""What a model is to go on from: plain texts, or chats through its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from featuredb.errors import QueryError, first_line
from featuredb.store.store import Store
from ingest.corpus.chat import render_chat
from ingest.model.load import LoadedModel, no_tokenizer
from queries.arguments import check_text

Message: TypeAlias = "Mapping[str, Any]"
Prompts: TypeAlias = "str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]]"
"""One text, several, one chat, or several chats."""

_UNOWNED = "template"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as tokens. text: as it was given, or what is said last. roles: None for a text."""

    text: str
    ids: tuple[int, ...]
    roles: tuple[str, ...] | None


@dataclass(frozen=True)
class PromptBatch:
    """Prompts, padded on the left: int64 and bool [B, P], and roles with None for padding."""

    ids: Tensor
    real: Tensor
    roles: tuple[tuple[str | None, ...], ...] | None


def encode_prompts(store: Store, model: LoadedModel, prompts: Prompts) -> list[EncodedPrompt]:
    """Tokens of prompts, BOS first where the database's contexts begin with it.

    Raises:
        QueryError: There is no prompt, one is empty, too long or no text, or the model has no chat
            template.
        ModelError: The model has no tokenizer.
    """
    if model.tokenizer is None:
        raise no_tokenizer(model.path)
    bos = store.snapshot.corpora[0].bos_token_id
    encoded = [_encoded(model, each, bos) for each in _listed(prompts)]
    for each in encoded:
        if not each.ids:
            raise QueryError("a prompt is empty, and contexts begin with no BOS: give a text")
        if len(each.ids) >= model.context_length:
            raise QueryError(
                f"a prompt has {len(each.ids):,} tokens, and the model takes "
                f"{model.context_length:,}: give a shorter one"
            )
    return encoded


def batch_of(prompts: Sequence[EncodedPrompt], pad: int) -> PromptBatch:
    """Prompts side by side."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    real = torch.zeros((len(prompts), width), dtype=torch.bool)
    roles: list[tuple[str | None, ...]] = []
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        real[row, width - len(prompt.ids) :] = True
        roles.append((*[None] * (width - len(prompt.ids)), *(prompt.roles or ())))
    known = all(prompt.roles is not None for prompt in prompts)
    return PromptBatch(ids, real, tuple(roles) if known else None)


def _listed(prompts: Prompts) -> list[str | Sequence[Message]]:
    if isinstance(prompts, str):
        return [prompts]
    given = list(cast("Sequence[Any]", prompts))
    if not given:
        raise QueryError("there is no prompt: give a text, or a list of messages")
    return [given] if isinstance(given[0], Mapping) else given


def _encoded(model: LoadedModel, prompt: str | Sequence[Message], bos: int | None) -> EncodedPrompt:
    if isinstance(prompt, str):
        ids = _tokens(model, check_text(prompt, "a prompt"))
        return EncodedPrompt(prompt, ids if bos is None else (bos, *ids), None)
    chat: list[dict[str, Any]] = []
    for message in prompt:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise QueryError(
                f"{message!r} is no message: give {{'role': 'user', 'content': …}}, or a text"
            )
        chat.append({"content": "", **message})
    if model.tokenizer.chat_template is None:
        raise QueryError(
            f"{model.id} has no chat template: give the prompt as a text instead of messages"
        )
    try:
        text: str = model.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # the template's own, in Jinja
        raise QueryError(f"the chat template refuses the chat: {first_line(error)}") from error
    tokens = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple(tokens.input_ids)
    roles = _roles(model, chat, text, tokens.offset_mapping)
    if bos is not None and ids[:1] != (bos,):
        ids, roles = (bos, *ids), (_UNOWNED, *roles)
    said = chat[-1]["content"] if chat else ""
    return EncodedPrompt(said if isinstance(said, str) else text, ids, roles)


def _tokens(model: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text, add_special_tokens=False).input_ids)


def _roles(
    model: LoadedModel, chat: list[dict[str, Any]], text: str, offsets: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """Who says each token: the role of the message that its first character is from."""
    rendered = render_chat(model.tokenizer, chat, "the prompt")
    if not text.startswith(rendered.text):
        raise QueryError("the chat template writes a prompt for an answer in another way: it "
                         "cannot be said who says what")  # fmt: skip
    owner = rendered.owner.tolist() + [-1] * (len(text) - len(rendered.text))
    return tuple(
        chat[owner[start]]["role"] if start < end and owner[start] >= 0 else _UNOWNED
        for start, end in offsets
    )
