"""Text from a model that is held, several prompts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featuredb.errors import QueryError
from featuredb.steering.hooks import HeldModel
from featuredb.steering.prompts import PromptBatch

_KEPT_CHOICES = 50
"""Most likely tokens that a sample is drawn from, as transformers does by default."""


@dataclass(frozen=True)
class Sampling:
    """How new tokens are chosen. temperature 0: always the most likely one."""

    max_new_tokens: int = 40
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raise `QueryError` for what cannot be."""
        if self.max_new_tokens < 1:
            raise QueryError(f"at least one token is generated, not {self.max_new_tokens}")
        if not 0 <= self.temperature < 100:
            raise QueryError(f"a temperature is from 0 to 100, not {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise QueryError(f"top_p is above 0 and at most 1, not {self.top_p:g}")


@dataclass(frozen=True, eq=False)
class GeneratedBatch:
    """Prompts with what was generated after them.

    ids: int64 [B, P + N]. real: bool [B, P + N], False for padding and what follows the end.
    prompt: P. roles: of the prompts' tokens, for chats.
    """

    ids: Tensor
    real: Tensor
    prompt: int
    roles: tuple[tuple[str | None, ...], ...] | None = None

    def new_ids(self, row: int) -> list[int]:
        """The tokens that were generated for a prompt."""
        kept = self.real[row, self.prompt :]
        tokens: list[int] = self.ids[row, self.prompt :][kept].tolist()
        return tokens


def pad_of(model: Any) -> int:
    """A token to pad with, which the mask leaves out."""
    for value in (model.generation_config.pad_token_id, *_ends(model)):
        if value is not None:
            return int(value)
    return 0


def generate(
    held: HeldModel, prompts: PromptBatch, sampling: Sampling, streamer: Any = None
) -> GeneratedBatch:
    """Go on from each prompt until the model ends its text, or `max_new_tokens` are made.

    The same seed draws the same tokens for the same prompts. streamer: as of transformers.

    Raises:
        QueryError: The model's probabilities are not numbers any more, as of edits too strong.
    """
    from transformers import GenerationConfig

    model = held.loaded.model
    ends = _ends(model)
    how: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        how = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": _KEPT_CHOICES,
        }
    room = held.loaded.context_length - prompts.ids.shape[1]
    config = GenerationConfig(
        max_new_tokens=min(sampling.max_new_tokens, room),
        pad_token_id=pad_of(model),
        eos_token_id=ends or None,
        **how,
    )
    extra = {} if bool(prompts.real.all()) else {"attention_mask": _on(held, prompts.real.long())}
    with _seeded(sampling.seed), _own_settings(model):
        try:
            ids = model.generate(
                _on(held, prompts.ids), generation_config=config, streamer=streamer, **extra
            )
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise QueryError(
                "the steered model's probabilities are no numbers any more: give a smaller strength"
            ) from error
    ids = ids.cpu()
    width = prompts.ids.shape[1]
    new = ids[:, width:]
    ended = torch.isin(new, torch.tensor(ends or [-1]))
    after = ended.cumsum(1) - ended.long() > 0
    return GeneratedBatch(ids, torch.cat([prompts.real, ~after], 1), width, prompts.roles)


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Set a model's own defaults aside, which fill what a configuration leaves open."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw by a seed, and leave the caller's own draws as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _ends(model: Any) -> list[int]:
    given = model.generation_config.eos_token_id
    if given is None:
        return []
    listed: Sequence[int] = given if isinstance(given, list) else [given]
    return [int(token) for token in listed]


def _on(held: HeldModel, tensor: Tensor) -> Tensor:
    return tensor.to(held.loaded.device)
