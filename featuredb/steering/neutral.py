"""Neutral prompts: short texts over whose last token features are measured.

What comes before the last token is run once, and so is everything before the hook. Each feature
then costs one token through the layers after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from featuredb.errors import QueryError
from featuredb.steering.forward import Passed, Prefix, ResumedModel
from ingest.model.hooks import HookPoint
from ingest.model.load import no_tokenizer

PROMPTS = ("From my experience,", "We talked about the", "She said that", "It is a")
"""The first is that of arXiv 2505.20063, on which the output score is taken."""


class NeutralPrompt:
    """A prompt, what the model makes of it, and how it goes on when its last token is changed."""

    def __init__(
        self, model: ResumedModel, text: str, bos: int | None, hooks: Sequence[HookPoint]
    ) -> None:
        """hooks: where values are read before a change, and after it those that it can reach.

        Raises:
            QueryError: The text has no token.
            ModelError: The model has no tokenizer.
        """
        self._model = model
        self._after = [hook for hook in hooks if model.reaches(hook)]
        tokenizer = model.model.tokenizer
        if tokenizer is None:
            raise no_tokenizer(model.model.path)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if not ids:
            raise QueryError(f"the prompt {text!r} has no tokens: give a text")
        row = torch.tensor([[*([] if bos is None else [bos]), *ids]], device=model.model.device)
        self._prefix: Prefix | None = model.prefix(row[:, :-1])
        self._ids = row if self._prefix is None else row[:, -1:]
        passed = model.full(self._ids, hooks, cache=self._cache(1), keep=1)
        self._hidden = passed.hidden
        self.values = self._last(passed)
        """What passes each hook at the last token, [1, width], by name."""
        self.log_probabilities = passed.logits[0, -1].float().log_softmax(0)
        """Of the next token, float32 [vocab]."""

    def changed(self, deltas: Mapping[HookPoint, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Add float32 [n, width] to what passes hooks at the last token, a row each.

        Returns:
            Logits of the next token, [n, vocab], and what passes hooks after the change, float32
            [n, width], by name.
        """
        n = len(next(iter(deltas.values())))
        ids = self._ids.expand(n, -1)
        hidden = None if self._hidden is None else self._hidden.expand(n, -1, -1)
        add = {}
        for hook, delta in deltas.items():
            add[hook] = delta.new_zeros(n, ids.shape[1], delta.shape[1])
            add[hook][:, -1] = delta
        passed = self._model.resume(
            ids, hidden, add=add, hooks=self._after, cache=self._cache(n), keep=1
        )
        return passed.logits[:, -1], self._last(passed)

    def _cache(self, rows: int) -> object:
        return None if self._prefix is None else self._prefix.for_rows(rows)

    @staticmethod
    def _last(passed: Passed) -> dict[str, Tensor]:
        return {name: value[:, -1].float() for name, value in passed.values.items()}
