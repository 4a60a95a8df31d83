"""What a source does not say itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """How a source is read: what it does not say itself.

    name: of the SAE. hook, model: where and on what it ran, empty if unknown. features: how many
    the SAE has, None for as many as the source shows. tokenizer: a folder or a hub name, for
    sources with token ids only.
    """

    name: str | None = None
    hook: str = ""
    model: str = ""
    features: int | None = None
    tokenizer: str | None = None
