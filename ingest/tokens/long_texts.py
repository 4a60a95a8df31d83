"""Cut long texts so that the tokens of the pieces are those of the whole.

A tokenizer holds several hundred bytes for each token it is at, so a text of many megabytes is
better given to it in pieces. The pieces begin with a single space between two ASCII letters.
`may_cut` looks at each step of a tokenizer and says yes only where no step can tell such a piece
from the same characters in the whole text:

- added tokens: none contains a letter followed by a space, or takes the space behind a letter;
- normalization: character by character, or nothing across letter and space;
- pre-tokenization: no split holds a letter and the space behind it, and where it begins and ends
  is decided by what lies on its own side. Regular expressions are scanned from the left, so this
  is so where it is so for each of their alternatives, of which `_ALTERNATIVES` has the usual ones;
- the model: a split at a time; or, where nothing splits there, byte-pair merges none of which
  joins a letter to the space behind it.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PIECE_CHARACTERS = 1 << 18
"""A longer text is cut: its pieces keep all cores busy and hold some 30 MB each at a time."""

_PLACE = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")
# As it is in the text, in vocabularies of SentencePiece, and in byte-level ones.
_LETTER_SPACE = re.compile("[A-Za-z][ ▁Ġ]")

_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Each of these takes every ASCII letter, so that a match ends between letter and space.
_WORDS = (
    {r" ?\p{L}+"},
    {r"[^\r\n\p{L}\p{N}]?\p{L}+"},
    {r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"},
    {*_CASED},
    {way + _ENDING + "?" for way in _CASED},
)
_ALTERNATIVES = {
    *set().union(*_WORDS),
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _ENDING,
    r" ?\p{N}+", r"\p{N}+", r"\p{N}", r"\p{N}{1,3}", r"\p{N}{1,2}", "[0-9]",
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+",
}  # fmt: skip
_KEEPING = {("Isolated", False), ("Isolated", True), ("Removed", True)}

_LOCAL = {
    "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Precompiled",
}  # fmt: skip
_ONE_SPACE = {"String": " "}
_SPACES_GONE = {"type": "Replace", "pattern": _ONE_SPACE, "content": "▁"}
_ONE_SPLIT_AT_A_TIME = {"ByteLevel", "Digits", "Punctuation", "Split"}


def may_cut(tokenizer_json: str) -> bool:
    """Whether texts may be cut as `pieces` does for this tokenizer, given its ``tokenizer.json``.

    False where that is not certain: an unknown step counts as one that looks around.
    """
    config = json.loads(tokenizer_json)
    if any(_crosses(token) for token in config.get("added_tokens") or ()):
        return False
    normalizers = list(_steps(config.get("normalizer"), "normalizers"))
    if not all(_is_local(each) for each in normalizers):
        return False
    if any(_trims_the_first(each) for each in _steps(config.get("post_processor"), "processors")):
        return False
    apart = _apart(
        list(_steps(config.get("pre_tokenizer"), "pretokenizers")),
        "▁" if _SPACES_GONE in normalizers else " ",
    )
    return _merges_apart(config["model"]) if apart is None else apart


def pieces(text: str, size: int = PIECE_CHARACTERS) -> Iterator[tuple[int, str]]:
    """`text` in pieces of `size` (at least 1) characters or a few more, and where each begins.

    A piece ends at the first place after `size` that may be cut; without one it is all the rest.
    """
    first = 0
    while len(text) - first > size:
        match = _PLACE.search(text, first + size)
        if match is None:
            break
        yield first, text[first : match.start()]
        first = match.start()
    yield first, text[first:]


def _steps(step: Mapping[str, Any] | None, names: str) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for each in step[names]:
            yield from _steps(each, names)
    else:
        yield step


def _crosses(token: Mapping[str, Any]) -> bool:
    content: str = token["content"]
    return bool(
        _LETTER_SPACE.search(content)
        or (token["rstrip"] and content[-1:] in string.ascii_letters)
        or (token["single_word"] and content[:1] in (" ", "▁"))
    )


def _is_local(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer makes the same of a piece as of those characters in the whole."""
    if step["type"] == "Replace":
        return step == _SPACES_GONE or step["pattern"] == {"Regex": " {2,}"}
    return step["type"] in _LOCAL


def _apart(steps: Sequence[Mapping[str, Any]], space: str) -> bool | None:
    """Whether pre-tokenization splits between a letter and the space behind it, the same way in a
    piece as in the whole; None where it splits the same way, but not there.

    space: what the space has become by then.
    """
    for at, step in enumerate(steps):
        kind = step["type"]
        # What comes after the split sees one side of it at a time.
        followed = all(each["type"] in _ONE_SPLIT_AT_A_TIME for each in steps[at + 1 :])
        if kind == "Metaspace":
            if space == "Ġ" or step["replacement"] != "▁":
                return False
            if step.get("split", True):
                return followed
            space = "▁"
        elif kind in ("Digits", "Punctuation") or (space == "▁" and _is_one_space(step)):
            continue
        elif space != " ":
            return False
        elif kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer"):
            return followed
        elif kind == "ByteLevel":
            if step.get("use_regex", True):
                return followed
            space = "Ġ"
        elif kind == "Split":
            ways = set(_alternatives(step))
            if not ways <= _ALTERNATIVES or (step["behavior"], step["invert"]) not in _KEEPING:
                return False
            if any(words <= ways for words in _WORDS):
                return followed
        else:
            return False
    return None


def _is_one_space(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Split" and step["pattern"] == _ONE_SPACE)


def _alternatives(step: Mapping[str, Any]) -> list[str]:
    """The alternatives of a regular expression, those inside brackets left together."""
    pattern: str = step["pattern"].get("Regex", "")
    alternatives, depth, start = [], 0, 0
    for at, character in enumerate(pattern):
        depth += (character in "([") - (character in ")]")
        if character == "|" and depth == 0:
            alternatives.append(pattern[start:at])
            start = at + 1
    return [*alternatives, pattern[start:]]


def _trims_the_first(step: Mapping[str, Any]) -> bool:
    """Whether the space of a text's first token counts otherwise than that of the others."""
    trims = step.get("trim_offsets", False) and step.get("add_prefix_space", False)
    return step["type"] in ("ByteLevel", "RobertaProcessing") and bool(trims)


def _merges_apart(model: Mapping[str, Any]) -> bool:
    """Whether byte-pair merges of a text without splits never join a letter to a space."""
    if model["type"] != "BPE" or model.get("ignore_merges") or model.get("dropout"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    words = model["vocab"]
    # A letter that is known is never part of a run of unknown characters.
    known = all(letter in words for letter in string.ascii_letters)
    return known and not any(_LETTER_SPACE.search(word) for word in words)
