"""Where an edit acts: which tokens of a text.

``everywhere``; ``prompt``; ``generated``; ``3``, ``0:5``, ``-4:`` (positions from the start, BOS
counted, or from the end of the prompt); ``token " the"``; ``role user``; ``bos``; ``sinks``
(positions of enormous norm, where the database records nothing); ``12 > 0.5x`` (a condition on
another feature). ``and`` joins what must hold together, a comma what may hold instead, and what
begins with ``not`` is subtracted last: ``generated and 12 > 0, not token " the"``.

``generated`` is where new tokens are predicted from: the last token of the prompt and every new
token but the last, so n new tokens have n such places. ``prompt`` is every token before those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

from featuredb.errors import QueryError

Kind = Literal[
    "everywhere", "prompt", "generated", "bos", "sinks", "positions", "token", "role", "feature"
]

_PIECE = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[^,"'])+)\s*(?:,|$)""")
_AND = re.compile(r"""\s+and\s+(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")
_POSITION = re.compile(r"-?\d+")
_RANGE = re.compile(r"(-?\d+)?\s*:\s*(-?\d+)?")
_TOKEN = re.compile(r"""token\s*[ :=]\s*("[^"]*"|'[^']*'|\S+)""", re.DOTALL)
_ROLE = re.compile(r"role\s*[ :=]\s*(\S+)")


@dataclass(frozen=True)
class TokenSet:
    """Some tokens of a text, by one property.

    start, stop: of positions, below 0 from the end of the prompt, None for open. text: of a token,
    a role, or the condition on a feature as it was spelled.
    """

    kind: Kind
    start: int | None = None
    stop: int | None = None
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> TokenSet:
        """From one property. Raises `QueryError`."""
        text = text.strip()
        if text in ("everywhere", "prompt", "generated", "bos", "sinks"):
            return cls(text)  # type: ignore[arg-type]
        if _POSITION.fullmatch(text):
            at = int(text)
            return cls("positions", at, at + 1)
        if match := _RANGE.fullmatch(text):
            start, stop = (int(part) if part else None for part in match.groups())
            return cls("positions", start or 0, stop)
        if match := _TOKEN.fullmatch(text):
            word = match[1]
            return cls("token", text=word[1:-1] if word[0] in "\"'" else word)
        if match := _ROLE.fullmatch(text):
            return cls("role", text=match[1].strip("\"'"))
        if re.search("[<>]", text):
            return cls("feature", text=text)
        raise QueryError(
            f"{text!r} is no place of a text: give everywhere, prompt, generated, bos, sinks, a "
            'position such as 3, 0:5 or -2:, token " the", role user, or a feature with a bound '
            "such as 12 > 0.5x"
        )

    @property
    def empty(self) -> bool:
        """Whether no text has such tokens."""
        if self.kind != "positions" or self.start is None or self.stop is None:
            return False
        if self.start < 0 <= self.stop:
            # The end of the prompt is position 0 after it.
            return False
        return self.stop <= self.start

    def apart(self, other: TokenSet) -> bool:
        """Whether no text has a token in both."""
        kinds = {self.kind, other.kind}
        if kinds == {"prompt", "generated"}:
            return True
        if self.kind != other.kind:
            return False
        if self.kind == "positions":
            return _apart(self, other) or _apart(other, self)
        return self.kind in ("token", "role") and self.text != other.text


def _apart(first: TokenSet, second: TokenSet) -> bool:
    """Whether positions end before others begin, both counted from the same end."""
    if first.stop is None or second.start is None or first.start is None:
        return False
    # A range from the end of the prompt may end there, at 0, and others from the start not begin.
    if (first.start < 0) != (second.start < 0):
        return False
    if first.start < 0 and first.stop == 0:
        return False
    return first.stop <= second.start


@dataclass(frozen=True)
class EditScope:
    """Tokens that are in all sets of one of `any_of`, and not in all sets of one of `but`."""

    any_of: tuple[tuple[TokenSet, ...], ...]
    but: tuple[tuple[TokenSet, ...], ...] = ()

    @classmethod
    def parse(cls, text: str) -> EditScope:
        """From a text as above. Raises `QueryError` for one that no token can satisfy, too."""
        if not isinstance(text, str) or not text.strip():
            raise QueryError(f"{text!r} is no place of a text: give a text such as 'generated'")
        pieces, end = [], 0
        while end < len(text):
            match = _PIECE.match(text, end)
            if match is None:
                raise QueryError(f"{text!r} is no place of a text: a quote or a comma is missing")
            pieces.append(match[1].strip())
            end = match.end()
        any_of: list[tuple[TokenSet, ...]] = []
        but: list[tuple[TokenSet, ...]] = []
        for piece in pieces:
            rest = re.sub(r"^not\s+", "", piece)
            term = tuple(TokenSet.parse(part) for part in _AND.split(rest))
            (any_of if rest == piece else but).append(term)
        where = cls(tuple(any_of) or ((TokenSet("everywhere"),),), tuple(but))
        if all(where._never(term) for term in where.any_of):
            raise QueryError(f"no token is ever {text!r}, so the edit can never apply")
        return where

    @property
    def everywhere(self) -> bool:
        """Whether every token is meant."""
        return not self.but and (TokenSet("everywhere"),) in self.any_of

    @property
    def sets(self) -> tuple[TokenSet, ...]:
        """Every set that is named."""
        return tuple(each for term in (*self.any_of, *self.but) for each in term)

    def apart(self, other: EditScope) -> bool:
        """Whether no text has a token in both, as far as the words alone say."""
        return all(
            self._without(mine, other) or other._without(theirs, self) or _disjoint(mine, theirs)
            for mine, theirs in product(self.any_of, other.any_of)
        )

    def _without(self, term: tuple[TokenSet, ...], other: EditScope) -> bool:
        """Whether `other` subtracts all of a term."""
        return any(set(minus) <= set(term) for minus in other.but)

    def _never(self, term: tuple[TokenSet, ...]) -> bool:
        return (
            any(each.empty for each in term)
            or any(one.apart(two) for one, two in product(term, term))
            or any(set(minus) <= {*term, TokenSet("everywhere")} for minus in self.but)
        )


def _disjoint(mine: tuple[TokenSet, ...], theirs: tuple[TokenSet, ...]) -> bool:
    return any(one.apart(two) for one, two in product(mine, theirs))
