"""How close two texts are in meaning, by a small sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featuredb.errors import ModelError, first_line
from ingest.model.quiet import quiet

_DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
_LONGEST = 256


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """Mean of the last hidden states, as all-MiniLM-L6-v2 and its like are used."""

    model: Any
    tokenizer: Any

    @classmethod
    def find(cls, reference: str | None) -> SentenceEncoder | None:
        """A folder or a hub name. Default: all-MiniLM-L6-v2 where it is installed, else None.

        Raises `ModelError` where one is named and cannot be loaded.
        """
        from transformers import AutoModel, AutoTokenizer

        try:
            with quiet():
                name, local = reference or _DEFAULT, reference is None
                tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
                model = AutoModel.from_pretrained(name, local_files_only=local)
        except Exception as error:  # transformers and the hub each have their own
            if reference is None:
                return None
            raise ModelError(
                f"{reference} is no sentence encoder that can be loaded: {first_line(error)}"
            ) from error
        return cls(model.eval(), tokenizer)

    @torch.inference_mode()
    def closeness(self, one: Sequence[str], two: Sequence[str]) -> npt.NDArray[np.float64]:
        """Cosines of texts, pair by pair, float64 [n], those below 0 as 0."""
        first, second = (self._embedded(texts) for texts in (one, two))
        cosines: npt.NDArray[np.float64] = (first * second).sum(1).clamp_min(0).double().numpy()
        return cosines

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """A unit vector for each text, float32 [n, width]. Texts of one length go together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts, batch = [], 64
        for start in range(0, len(order), batch):
            parts.append(self._embedded([texts[i] for i in order[start : start + batch]]).numpy())
        joined = np.concatenate(parts)
        vectors = np.empty_like(joined)
        vectors[order] = joined
        return vectors

    def _embedded(self, texts: Sequence[str]) -> torch.Tensor:
        given = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"
        )
        hidden = self.model(**given).last_hidden_state
        real = given["attention_mask"][..., None]
        mean = (hidden * real).sum(1) / real.sum(1).clamp_min(1)
        return torch.nn.functional.normalize(mean, dim=1)
