"""Rules that make a label of what is stored about a feature. No model, no randomness.

A label says on what a feature fires, then where, as far as rules can tell:

**On what.** A class of words (`word_classes`) that has `MOST` of the firing mass that the top
tokens have; else the forms of one word; else a beginning or an end that they share; else the words
themselves. A token's mass is its count times its mean activation. Where the words that are named
have less than `FEW` of all firing mass, it says that the tokens vary.

**Where.** From the stored top contexts: what stands before or after the peak, whether it is at the
beginning of the text, and a value of the documents' metadata that they share far beyond chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featuredb.labels.word_classes import classes_of

MOST = 0.6
"""Share from which on something is said of all."""

FEW = 0.1
"""Share of the firing mass below which top tokens do not say what a feature fires on."""

CONTENT = 0.3
"""Share of the top tokens' mass from which on words that mean something are named alone."""

_HALF = 0.5
"""Share of that mass that forms of a word, or words with one end, have."""

_LEAST = 8
"""Contexts that are needed to say where it fires."""

_LIFT = 3.0
"""How many times as often as in all documents a value is found in its documents."""

_PIECE = 3
"""Characters of a shared beginning or end at least."""

_WORDS = 3
"""Words that are named at most."""


@dataclass(frozen=True)
class FeatureFacts:
    """What the rules look at.

    tokens: the top tokens with their share of all firing mass, greatest first. before, after: the
    tokens beside the peaks of its top contexts. starts: how many of these are the text's first or
    second token. values: by metadata column, how many of its documents have a value, and
    the share that all documents have. promoted: tokens whose logits stand out.
    """

    tokens: Sequence[tuple[str, float]]
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    starts: int = 0
    contexts: int = 0
    values: Mapping[str, Mapping[str, tuple[int, float]]] | None = None
    promoted: Sequence[str] = ()


def label_of(facts: FeatureFacts) -> str:
    """The label."""
    what, names = _what(facts.tokens)
    named = sum(share for token, share in facts.tokens if _quoted(token.strip()) in what)
    if what.startswith(('"', "“")) and named < FEW:
        what = f"various tokens, such as {what}"
    text = what + _beside(facts, names)
    if facts.contexts >= _LEAST and facts.starts >= MOST * facts.contexts:
        text += " at the beginning of texts"
    text += _documents(facts)
    if facts.promoted:
        text += f", promotes {_listed(_words_of(facts.promoted)[:2])}"
    return text


def _what(tokens: Sequence[tuple[str, float]]) -> tuple[str, set[str]]:
    """What the tokens have in common, and the classes that most of them are in."""
    total = sum(share for _, share in tokens) or 1.0
    by_class: Counter[str] = Counter()
    by_word: dict[str, float] = {}
    spelled: dict[str, str] = {}
    for token, share in tokens:
        word = token.strip().lower() or token
        spelled.setdefault(word, token.strip() or token)
        by_word[word] = by_word.get(word, 0) + share / total
        for name in classes_of(token):
            by_class[name] += share / total  # type: ignore[assignment]
    words = sorted(by_word, key=lambda word: -by_word[word])
    names = {name for name, share in by_class.items() if share >= MOST}
    if by_word[words[0]] >= MOST and words[0].isalpha():
        return _quoted(spelled[words[0]]), names
    if names:
        named = max(names, key=lambda name: (by_class[name], name))
        rest = [w for w in words if named not in classes_of(w) and by_word[w] >= 1 - MOST - 0.15]
        return " and ".join([named, *(_quoted(spelled[word]) for word in rest)]), names
    first = words[0] if by_word[words[0]] >= _HALF and words[0].isalpha() else ""
    content = {w: share for w, share in by_word.items() if _is_content(w)}
    if (whole := sum(content.values())) >= CONTENT:
        by_word = {word: share / whole for word, share in content.items()}
        words = [word for word in words if word in content]
    for rule in (_forms, _ending):
        found = rule(by_word)
        if found:
            return found, names
    if first:
        return _quoted(spelled[first]), names
    # As many as it takes to have most of the mass, and none that has little of it.
    chosen: list[str] = []
    for word in words[:_WORDS]:
        if chosen and (
            by_word[word] < 0.25 * by_word[chosen[0]] or sum(by_word[w] for w in chosen) >= MOST
        ):
            break
        chosen.append(word)
    return _listed([spelled[word] for word in chosen]), names


def _is_content(word: str) -> bool:
    """Whether it is a word that says what a text is about, as far as a list can tell."""
    return word.isalpha() and len(word) >= _PIECE and not _FUNCTION.intersection(classes_of(word))


_FUNCTION = {
    "prepositions",
    "articles",
    "pronouns",
    "conjunctions",
    "question words",
    "demonstratives",
    "auxiliary verbs",
    "quantifiers",
}


def _forms(by_word: Mapping[str, float]) -> str:
    """Words with one stem, such as music, musical and musicians."""
    for stem in sorted((w for w in by_word if len(w) > _PIECE and w.isalpha()), key=len):
        forms = [word for word in by_word if word.startswith(stem[: max(4, len(stem) - 2)])]
        if len(forms) > 1 and sum(by_word[word] for word in forms) >= _HALF:
            most = max(by_word[word] for word in forms)
            short = min((w for w in forms if by_word[w] >= most / 2), key=lambda w: (len(w), w))
            return f"forms of {_quoted(short)}"
    return _shared(by_word, 1, "words beginning with {}-")


def _ending(by_word: Mapping[str, float]) -> str:
    """Words with one end, such as those in -ism."""
    return _shared(by_word, -1, "words ending in -{}")


def _shared(by_word: Mapping[str, float], step: int, template: str) -> str:
    """The longest piece that words with most of the mass begin with, in the template. step: -1 to
    read them from their ends."""
    words = {word[::step]: share for word, share in by_word.items() if word.isalpha()}
    first = list(words)[:8]
    pieces = {_common(a, b) for i, a in enumerate(first) for b in first[:i]}
    for piece in sorted((p for p in pieces if len(p) >= _PIECE), key=lambda p: (-len(p), p)):
        having = [word for word in words if word.startswith(piece)]
        if len(having) > 2 and sum(words[word] for word in having) >= _HALF:
            found = piece[::step]
            return f"forms of {_quoted(found)}" if piece in having else template.format(found)
    return ""


def _common(a: str, b: str) -> str:
    """What both begin with."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return a[: next(differ, min(len(a), len(b)))]


def _beside(facts: FeatureFacts, names: set[str]) -> str:
    """What stands before and after, where it is mostly the same and says something."""
    if facts.contexts < _LEAST:
        return ""
    sides = {"after": facts.before, "before": facts.after}
    classes = {}
    for side, tokens in sides.items():
        counts: Counter[str] = Counter()
        for token, n in Counter(tokens).items():
            counts.update(dict.fromkeys(classes_of(token), n))
        classes[side] = {n for n, c in counts.items() if c >= MOST * facts.contexts}
    near = classes["after"] | classes["before"]
    if "months" in names and "digits" in near:
        return " in dates"
    if "digits" in names:
        if "months" in near:
            return " in dates"
        if "digits" in near:
            return " inside numbers"
    for side, tokens in sides.items():
        token, count = Counter(tokens).most_common(1)[0] if tokens else ("", 0)
        if count >= MOST * facts.contexts and token.strip() and (token.strip() not in ",."):
            return f" {side} {_quoted(token.strip())}"
        told = sorted(classes[side] - {"commas", "periods", "spaces", "prepositions"})
        if told:
            return f" {side} {told[0]}"
    return ""


def _documents(facts: FeatureFacts) -> str:
    """A value that most of its documents have, far more often than all documents."""
    for column, values in (facts.values or {}).items():
        documents = sum(n for n, _ in values.values())
        if documents < _LEAST:
            continue
        value, (n, base) = max(values.items(), key=lambda each: (each[1][0], each[0]))
        if n >= MOST * documents and n >= _LIFT * base * documents:
            return f", where {column} is {value}"
    return ""


def _words_of(tokens: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(token.strip() or token for token in tokens))


def _listed(words: Sequence[Any]) -> str:
    quoted = [_quoted(word) for word in words]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _quoted(word: str) -> str:
    return f"“{word}”" if '"' in word else f'"{word}"'
