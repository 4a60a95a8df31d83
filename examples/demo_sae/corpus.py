"""The training text of the demo's SAE."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from examples.demo_sae.activations import Windows, load_tokenizer, make_windows
from ingest.demo import fetch

_EMAILS = 700
_EMAIL_SEED = 0
_WINDOW_SEED = 0


@dataclass(frozen=True)
class Corpus:
    """The text in windows. `source` is each window's source: wikipedia, brown or email."""

    windows: Windows
    source: npt.NDArray[np.str_]
    tokenizer: Any


def training_corpus() -> Corpus:
    """Fetch, tokenize and cut all of the training text."""
    documents = training_documents()
    tokenizer = load_tokenizer(fetch.model_folder())
    windows = make_windows(documents, tokenizer, _WINDOW_SEED)
    source = np.array([name.partition("/")[0] for name, _ in documents])
    return Corpus(windows, source[windows.document], tokenizer)


def training_documents() -> list[tuple[str, str]]:
    """Every Wikipedia summary, the Brown corpus and 700 e-mails, as (id, text).

    The id's part before the first slash names the source. Spam is excluded, because
    features would memorize its repeated templates.
    """
    table = pq.read_table(fetch.wikipedia_corpus(), columns=["id", "text"])
    wikipedia = [
        (f"wikipedia/{name}", text)
        for name, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    ]
    emails = [document for document in fetch.spam_assassin_text() if "ham" in document[0]]
    random.Random(_EMAIL_SEED).shuffle(emails)
    return [*wikipedia, *fetch.brown_text(), *emails[:_EMAILS]]
