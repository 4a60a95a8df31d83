"""Whose each character of a rendered chat is, whatever the template does with the contents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from featuredb.errors import CorpusError
from ingest.corpus.chat import NO_MESSAGE, parse_chat, render_chat
from ingest.tokens.tokenize import tokenize_chats

# As reasoning models have it: what was thought is cut out and written in a block of its own, for
# turns after the last question only, and an empty block where nothing was.
REASONING = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' and not m.content.startswith('<tool_response>') -%}
{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set said = m.content -%}{%- set thought = '' -%}
{%- if m.reasoning_content is string -%}{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in said -%}
{%- set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- said -}}
{%- for call in m.tool_calls or [] -%}
{{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
{{- call.function.arguments | tojson ~ '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}"""

# One system turn is put before the first question, turns are numbered, contents are trimmed.
MERGING = """{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}
{%- set rest = messages[1:] -%}{%- else -%}{%- set system = 'Be brief.' -%}
{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
{%- if loop.first -%}
{%- set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ m['content'] -%}
{%- else -%}{%- set content = m['content'] -%}{%- endif -%}
[{{ loop.index }}] {{ m['role'] | upper }}: {{ content.strip() }}
{% endfor -%}"""

# A macro, a block set, a join, a replacement, a filter block, the last turn first.
TRICKS = """{%- macro shown(text) -%}({{ text | trim | replace('\\n', ' / ') }}){%- endmacro -%}
{%- for m in messages | reverse -%}
{%- set line -%}{{ m.role }}={{ shown(m.content) }}{%- endset -%}
{{ [line, ';'] | join('') }}
{%- filter upper %}{{ ' '.join(m.content.split()) }}{% endfilter %}
{% endfor %}"""

# What loses track of a text: it is found again by a mark in its place.
LOSING = "{% for m in messages %}{{ '<{}>{}|'.format(m.role, m.content) }}{% endfor %}"


def tokenizer_of(template: str | None) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" the cat sat", " on the mat"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, bos_token="<s>"
    )


def owned(template: str, chat: Sequence[dict[str, Any]]) -> str:
    """The rendered text with what is each message's in brackets: ``0[…]``."""
    tokenizer = tokenizer_of(template)
    found = render_chat(tokenizer, chat, "a chat")
    pieces, last = [], NO_MESSAGE
    for character, owner in zip(found.text, found.owner.tolist(), strict=True):
        if owner != last:
            pieces.append("]" * (last != NO_MESSAGE) + f"{owner}[" * (owner != NO_MESSAGE))
        pieces.append(character)
        last = owner
    return "".join(pieces) + "]" * (last != NO_MESSAGE)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, MODEL = "<|im_start|>user\n", "<|im_start|>assistant\n"
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"river": "Po", "n": [1]}}}


@pytest.mark.parametrize(
    ("template", "chat", "expected"),
    [
        (
            REASONING,
            [turn("user", "the cat"), turn("assistant", "<think>\nsat\n</think>\n\non the mat")],
            f"{USER}0[the cat]<|im_end|>\n{MODEL}<think>\n1[sat]\n</think>\n\n1[on the mat]"
            "<|im_end|>\n",
        ),
        (
            REASONING,
            [turn("user", "cat"), turn("assistant", "mat", reasoning_content="sat")],
            f"{USER}0[cat]<|im_end|>\n{MODEL}<think>\n1[sat]\n</think>\n\n1[mat]<|im_end|>\n",
        ),
        (  # the thought of an earlier turn is left out, the same words elsewhere are not it
            REASONING,
            [
                turn("user", "user"),
                turn("assistant", "<think>user</think>"),
                turn("user", "user"),
                turn("assistant", "user"),
            ],
            f"{USER}0[user]<|im_end|>\n{MODEL}<|im_end|>\n{USER}2[user]<|im_end|>\n"
            f"{MODEL}<think>\n\n</think>\n\n3[user]<|im_end|>\n",
        ),
        (  # a call is what the model says, whole
            REASONING,
            [turn("user", "Po?"), turn("assistant", "", tool_calls=[CALL, CALL])],
            f"{USER}0[Po?]<|im_end|>\n{MODEL}<think>\n\n</think>\n\n"
            + 2
            * '\n<tool_call>\n{"name": "1[tide]", "arguments": 1[{"river": "Po", "n": [1]}]}\n'
            "</tool_call>" + "<|im_end|>\n",
        ),
        (  # content that looks like the template's markup
            REASONING,
            [turn("user", f"{MODEL}the<|im_end|>\n{USER}"), turn("assistant", USER)],
            f"{USER}0[{MODEL}the<|im_end|>\n{USER}]<|im_end|>\n{MODEL}<think>\n\n</think>\n\n"
            f"1[{USER}]<|im_end|>\n",
        ),
        (
            MERGING,
            [turn("system", "sys"), turn("user", " a\n"), turn("assistant", " USER: a ")],
            "[1] USER: <<SYS>>\n0[sys]\n<</SYS>>\n\n1[ a]\n[2] ASSISTANT: 2[USER: a]\n",
        ),
        (
            MERGING,
            [turn("user", ""), turn("user", "brief")],
            "[1] USER: <<SYS>>\nBe brief.\n<</SYS>>\n[2] USER: 1[brief]\n",
        ),
        (
            TRICKS,
            [turn("a", "x\ny"), turn("b", " z ")],
            "b=(1[z]);1[Z]a=(0[x / y]);0[X] 0[Y]",
        ),
        (
            LOSING,
            [turn("a", "a"), turn("b", ""), turn("c", " a "), turn("d", "a")],
            "<a>0[a]|<b>|<c> 2[a] |<d>3[a]|",
        ),
        (
            "{% for m in messages %}{{ '%s!' % m.content }}{{ '%s' | format(m.content) }}"
            "{{ {'said': m.content} | tojson }}{{ m.content[:1] }}{% endfor %}",
            [turn("a", "xy")],
            '0[xy]!0[xy{"said": "xy"}x]',
        ),
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text | trim }}{% endfor %};"
            "{% endfor %}",
            [turn("a", [{"type": "text", "text": "x "}, {"type": "text", "text": "y"}])],
            "0[xy];",
        ),
        (  # a template that wants strings
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            [turn("a", [{"type": "text", "text": "x "}, "y"]), turn("b", "z")],
            "a: 0[x y]\nb: 1[z]\n",
        ),
        (
            "{{ bos_token }}{% if strftime_now is defined %}{{ 'now' }}{% endif %}"
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
            [turn("a", "x"), turn("b", "y")],
            "<s>now0[x]1[y]",
        ),
    ],
)
def test_whose_each_character_is(template: str, chat: Any, expected: str) -> None:
    assert owned(template, chat) == expected


WORDS = st.text("ab \n<>|é猫/", max_size=12) | st.sampled_from(
    ["<think>", "a</think>b", "<|im_start|>user\n", "<tool_response>x", "user", "\ue0000\ue001"]
)
CHATS = st.lists(
    st.builds(turn, st.sampled_from(["system", "user", "assistant"]), WORDS), min_size=1, max_size=5
)


@settings(deadline=None)
@given(chat=CHATS, template=st.sampled_from([REASONING, MERGING, TRICKS, LOSING]))
@example(chat=[turn("system", "a")], template=MERGING)
def test_the_text_is_that_of_transformers_and_owners_hold_their_words(
    chat: list[dict[str, Any]], template: str
) -> None:
    tokenizer = tokenizer_of(template)
    found = render_chat(tokenizer, chat, "a chat")
    assert found.text == tokenizer.apply_chat_template(chat, tokenize=False)
    for number, message in enumerate(chat):
        own = "".join(np.array(list(found.text))[found.owner == number])
        # No character is from a message that does not have it, in whichever case.
        assert set(own) <= set(message["content"]) | set(message["content"].upper()) | {" ", "/"}
        if template is REASONING and message["role"] != "assistant":
            assert own == message["content"]
        if template is REASONING and "</think>" not in message["content"]:
            assert own == message["content"]


@settings(deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["user", "assistant"]), st.text("a b猫🙂\n", max_size=8)),
        max_size=5,
    ),
    space=st.sampled_from(["", " ", "\n", "  "]),
)
def test_tokens_have_the_role_of_their_first_visible_character(
    turns: list[tuple[str, str]], space: str
) -> None:
    tokenizer = tokenizer_of(
        "{% for m in messages %}[{{ m.role }}]" + space + "{{ m.content }}[/]{% endfor %}"
    )
    chat = [turn(role, content) for role, content in turns]
    batch = tokenize_chats(tokenizer, [chat], context_size=500, bos_id=None)
    roles: list[str] = []
    text = ""
    for role, content in turns:
        for piece, whose in (
            (f"[{role}]{space}", "template"),
            (content, role),
            ("[/]", "template"),
        ):
            text += piece
            roles += [whose] * len(piece)
    assert batch.roles is not None
    encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    at = 0.0
    # By hand, from the bytes: where each token begins, and its first character that is seen.
    starts = np.cumsum([0, *(len(c.encode()) for c in text)])
    for token, code in zip(encoded.tokens, batch.roles.tolist(), strict=True):
        first = int(np.searchsorted(starts, at, side="right")) - 1
        end = int(np.searchsorted(starts, at + len(token), side="left"))
        seen = [i for i in range(first, end) if not text[i].isspace()]
        assert batch.role_names[code] == roles[seen[0] if seen else first], (token, text)
        at += len(token)


def message(**keys: Any) -> str:
    return json.dumps(keys)


def test_a_message_is_read_without_its_nulls() -> None:
    rows = [message(role="user", content="a", name=None), message(role="tool", content=None)]
    assert parse_chat(rows, "row 0") == [turn("user", "a"), turn("tool", "")]
    assert parse_chat([message(role="a", tool_calls=[CALL])], "row 0") == [
        turn("a", "", tool_calls=[CALL])
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (None, "message 0 of row 7 is null"),
        ("plain", "is not an object"),
        (message(content="a"), "message 0 of row 7 has no role"),
        (message(role=None, content="a"), "has no role"),
        (message(role="", content="a"), "has no role"),
        (message(role=3, content="a"), "has no role"),
        (message(role="user", content=3), "is not text but 'int'"),
        (message(role="user", content={"text": "a"}), "is not text but None"),
        (message(role="user", content=[{"type": "image", "url": "x"}]), "not text but 'image'"),
        (message(role="user", content=[{"type": "text"}]), "not text but 'text'"),
    ],
)
def test_messages_that_cannot_be_read_name_their_row(row: str | None, said: str) -> None:
    with pytest.raises(CorpusError, match="message 0 of row 7") as caught:
        parse_chat([row], "row 7")
    assert said in str(caught.value)
