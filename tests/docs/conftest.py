"""The database that the documentation's examples are run against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tests.make_store
from featuredb.store import schemas
from tests.make_store import MadeSae, World, make_store

TOPICS = ("History", "Geography", "Arts", "Mathematics", "People", "Technology")
WORDS = (" the", " of", " music", " king", " river", " theorem", " engine", " city", ".", " in")
CONTEXT = 16
FEATURES = 40


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the columns of the demo's, in which every question of the cookbook has an
    answer. Its features 0, 1, 2, … replace those in the pages, in the cookbook's order."""
    path = tmp_path_factory.mktemp("docs") / "made.fdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.make_store, "_no_logits", _logits)
        make_store(path, made_world())
    return path


def made_world() -> World:
    """What `made_store` holds."""
    rng = np.random.default_rng(0)
    documents, metadata = [], {name: list[str]() for name in ("id", "title", "topic", "url")}
    for number in range(72):
        own = rng.integers(1, len(WORDS) + 1, int(rng.integers(20, 45))).tolist()
        step = CONTEXT - 1
        documents.append([[0, *own[i : i + step]] for i in range(0, len(own), step)])
        metadata["id"].append(f"Page_{number}")
        metadata["title"].append(f"Page {number}")
        metadata["topic"].append(TOPICS[number % len(TOPICS)])
        metadata["url"].append(f"https://example.org/{number}")
    topics = [metadata["topic"][d] for d, own in enumerate(documents) for _ in own]
    contexts = [np.array(c) for own in documents for c in own]
    dense = [_activations(rng, c, topics[n], n) for n, c in enumerate(contexts)]
    decoder = rng.normal(size=(FEATURES, 24)).astype(np.float32)
    decoder[9] = decoder[8] + 0.05 * decoder[7]
    sae = MadeSae("sae", dense, decoder, decoder.copy(), "blocks.13.hook_resid_post")
    return World(
        documents, dict(metadata), ["<s>", *WORDS], [sae], 0, CONTEXT, texts=[]
    )  # fmt: skip


def _activations(
    rng: np.random.Generator, context: np.ndarray, topic: str, number: int
) -> np.ndarray:
    """float32 [n_tokens, FEATURES]: by word, by topic, together, alone, rare, dense, silent."""
    n = len(context)
    dense = np.where(rng.random((n, FEATURES)) < 0.03, rng.random((n, FEATURES)) + 0.5, 0)
    strength = rng.random(n) * 8 + 1
    word = WORDS.index(" music") + 1
    dense[:, 0] = np.where(context == word, strength, 0)
    dense[:, 1] = np.where(context <= word, strength, dense[:, 1])
    for feature, only in ((3, "History"), (4, "Geography")):
        dense[:, feature] = strength * ((topic == only) & (context % 3 == 0))
    dense[:, 5] = dense[:, 6] = np.where(context == 7, strength, 0)
    dense[:, 7] = 60.0 * ((number == 11) & (np.arange(n) == 5))
    dense[:, 10] = strength * (number in (4, 5))
    dense[:, -1] = 0
    return dense.astype(np.float32)


def _logits(made: MadeSae) -> pa.Table:
    """Every feature promotes the same words."""
    n = len(made.decoder)
    promoted = pa.array(
        [[{"token": w, "logit": 1.0} for w in (" music", " the", " of")]] * n,
        pa.list_(schemas.TOKEN_LOGIT),
    )
    return pa.table([pa.array(range(n), pa.int64()), promoted, promoted], schema=schemas.LOGITS)
