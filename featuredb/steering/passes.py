"""One forward pass as a model was called: which tokens it reads, and which of them are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featuredb.errors import QueryError
from featuredb.steering.where import EditScope, TokenSet


@dataclass(frozen=True)
class TokenFacts:
    """What places of a text need to be known of a database and of a prompt.

    bos: the token that contexts begin with. ids: the token ids of each text that a place names.
    roles: of each prompt of a batch, the role of each token, padding included. New tokens are the
    assistant's.
    """

    bos: int | None = None
    ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    roles: Sequence[Sequence[str | None]] | None = None


@dataclass(eq=False)
class ForwardPass:
    """A pass over tokens [B, T], the columns from `past` of sequences of past + T tokens.

    ids: int64 [B, T], None where the model was given embeddings. real: bool [B, past + T], False
    for padding, None where there is none. prompt: columns of the prompt. generated: the first
    column that counts as generated.
    """

    batch: int
    tokens: int
    past: int
    ids: Tensor | None
    real: Tensor | None
    prompt: int
    generated: int
    facts: TokenFacts
    device: torch.device
    held: dict[TokenSet, Tensor] = field(default_factory=dict)
    """Where conditions on features hold, and other sets, bool [B, T]."""

    def chosen(self, scope: EditScope, sinks: Tensor | None) -> Tensor | None:
        """bool [B · T], the tokens of a scope, padding not among them. None for all.

        sinks: bool [B, T], needed where the scope names them.
        """
        if scope.everywhere and self.real is None:
            return None
        meant = self._union(scope.any_of, sinks)
        if scope.but:
            meant = meant & ~self._union(scope.but, sinks)
        if self.real is not None:
            meant = meant & self.real[:, self.past :]
        return meant.expand(self.batch, self.tokens).reshape(-1)

    def count(self, chosen: Tensor | None) -> tuple[int | Tensor, int | Tensor]:
        """How many tokens of the prompt, and how many places of generation, are chosen."""
        before = min(max(self.generated - self.past, 0), self.tokens)
        if chosen is None:
            return self.batch * before, self.batch * (self.tokens - before)
        grid = chosen.reshape(self.batch, self.tokens)
        return grid[:, :before].sum(), grid[:, before:].sum()

    def _union(self, terms: Sequence[Sequence[TokenSet]], sinks: Tensor | None) -> Tensor:
        union: Tensor | None = None
        for term in terms:
            both: Tensor | None = None
            for each in term:
                mask = self._mask(each, sinks)
                both = mask if both is None else both & mask
            assert both is not None
            union = both if union is None else union | both
        assert union is not None
        return union

    def _mask(self, tokens: TokenSet, sinks: Tensor | None) -> Tensor:
        """bool [B or 1, T]"""
        if tokens.kind == "sinks":
            assert sinks is not None
            return sinks
        if tokens not in self.held:
            self.held[tokens] = self._computed(tokens)
        return self.held[tokens]

    def _computed(self, tokens: TokenSet) -> Tensor:
        columns = torch.arange(self.past, self.past + self.tokens, device=self.device)[None]
        match tokens.kind:
            case "everywhere":
                return torch.ones_like(columns, dtype=torch.bool)
            case "prompt":
                return columns < self.generated
            case "generated":
                return columns >= self.generated
            case "positions":
                return self._between(tokens, columns)
            case "bos":
                first = self._positions(columns) == 0
                return first if self.ids is None else first & (self.ids == self.facts.bos)
            case "token":
                if self.ids is None:
                    raise QueryError(
                        "the model was given embeddings, so an edit at given tokens cannot apply"
                    )
                known = torch.tensor(self.facts.ids[tokens.text], device=self.device)
                return torch.isin(self.ids, known)
            case "role":
                return self._roles(tokens.text)
            case _:
                raise QueryError(
                    f"whether {tokens.text} holds is known only after the edit that asks for it: "
                    "give a condition on a feature of the same hook or an earlier one"
                )

    def _positions(self, columns: Tensor) -> Tensor:
        """Of each token in its text, from 0, padding not counted."""
        if self.real is None:
            return columns
        return (self.real.cumsum(dim=1) - 1)[:, self.past :]

    def _between(self, tokens: TokenSet, columns: Tensor) -> Tensor:
        position = self._positions(columns)
        length = self.prompt if self.real is None else self.real[:, : self.prompt].sum(1, True)
        start, stop = tokens.start or 0, tokens.stop
        mask = position >= (length + start if start < 0 else start)
        if stop is None:
            return mask
        from_end = stop < 0 or (stop == 0 and start < 0)
        return mask & (position < (length + stop if from_end else stop))

    def _roles(self, role: str) -> Tensor:
        assert self.facts.roles is not None
        rows = [
            [
                (roles[column] if column < len(roles) else "assistant") == role
                for column in range(self.past, self.past + self.tokens)
            ]
            for roles in self.facts.roles
        ]
        grid = torch.tensor(rows, device=self.device)
        return grid.repeat_interleave(self.batch // len(rows), 0)
