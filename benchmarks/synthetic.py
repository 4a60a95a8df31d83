"""Synthetic activations with the distribution of real ones, at any size, and a store of them.

Each of 16,384 features has a density drawn log-normally and cut to between 1e-6 and 0.2, scaled so
that 39 features are active per token. Features are bursty: one is on or off in a whole document,
and where it is on it fires `BURST` times as often as on average. Values are log-normal with a scale
of each feature's own. With these the entropy of a position, given its feature, is 7.7 bits (6.1
where it is known which documents have the feature on), of a value at float16 11.6 bits:
`entropies` computes both.

Documents have a few hundred to a few thousand tokens drawn by Zipf's law from made-up words, and a
topic. They are cut into contexts of 256 tokens. Everything follows from the seed and the number of
the partition, so that partitions are made in any order, in any process.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.store.positions import position_bits
from featuredb.store.values import stored_values
from ingest.extract.runs import Codes
from ingest.tokens.contexts import TokenizedBatch

CONTEXT = 256
BITS = position_bits(CONTEXT)
BURST = 3.0
SPREAD_OF_LENGTHS = 0.7
SPREAD_OF_VALUES = 0.534
VOCABULARY = 49_152
TOPICS = ("History", "Science", "Law", "Sport", "Music", "Travel", "Code", "Medicine")

Floats = npt.NDArray[np.float64]


class Documents(NamedTuple):
    """Documents of one partition: n_tokens int64 [documents], n_contexts int64 [documents]."""

    n_tokens: npt.NDArray[np.int64]
    n_contexts: npt.NDArray[np.int64]


class Entropies(NamedTuple):
    """Bits per activation: of its position given the feature, of its value at float16."""

    position: float
    position_in_documents: float
    value: float


@dataclass(frozen=True)
class World:
    """What is made. partition_tokens: of a partition, reached with its last document.

    document_tokens: the median length of a document.
    """

    partitions: int
    partition_tokens: int
    features: int = 16_384
    l0: float = 39.0
    dimensions: int = 768
    seed: int = 0
    document_tokens: float = float(np.exp(6.5))

    @classmethod
    def of(cls, activations: int, seed: int = 0, documents: int | None = None) -> World:
        """About that many activations, at most 10 million to a partition, in 2 or more.

        documents: so many or some more, instead of documents of about 850 tokens.
        """
        partitions = max(2, round(activations / 10_000_000))
        tokens = round(activations / partitions / cls.l0)
        if documents is None:
            return cls(partitions, tokens, seed=seed)
        median = tokens * partitions / documents / np.exp(SPREAD_OF_LENGTHS**2 / 2)
        return cls(partitions, tokens, seed=seed, document_tokens=float(median))

    @cached_property
    def density(self) -> Floats:
        """Share of tokens on which each feature fires, float64 [features]. They sum to `l0`."""
        drawn = np.exp(self._rng(1).normal(0.0, 1.9, self.features))
        for _ in range(50):
            drawn = np.clip(drawn * (self.l0 / drawn.sum()), 1e-6, 0.2)
        return drawn

    @cached_property
    def scale(self) -> npt.NDArray[np.float32]:
        """Median activation of each feature, float32 [features]."""
        return np.exp(self._rng(2).normal(0.5, 0.5, self.features)).astype(np.float32)

    def directions(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Decoder and encoder rows, float32 [features, dimensions], in clusters of about 16."""
        rng = self._rng(3)
        centers = rng.standard_normal((self.features // 16, self.dimensions), np.float32)
        own = centers[rng.integers(0, len(centers), self.features)]
        shape = (self.features, self.dimensions)
        decoder = own + rng.standard_normal(shape, np.float32)
        encoder = decoder + 0.3 * rng.standard_normal(shape, np.float32)
        return decoder, encoder

    @cached_property
    def words(self) -> list[str]:
        """How each token reads: a space and two or three syllables."""
        syllables = ["".join(s) for s in itertools.product("bdfgklmnprstvz", "aeiou")]
        pairs = [" " + a + b for a, b in itertools.product(syllables, repeat=2)]
        triples = (p + s for s in syllables for p in pairs)
        return [*pairs, *itertools.islice(triples, VOCABULARY - len(pairs))]

    def documents(self, partition: int) -> Documents:
        """The documents of a partition, without their content."""
        rng = self._rng(4, partition)
        least, most = min(16, self.document_tokens / 4), 8_192
        n = 16 + round(7 * self.partition_tokens / self.document_tokens)
        drawn = rng.normal(np.log(self.document_tokens), SPREAD_OF_LENGTHS, n)
        lengths = np.clip(np.exp(drawn), least, most).astype(np.int64)
        n = int(np.searchsorted(np.cumsum(lengths), self.partition_tokens)) + 1
        return Documents(lengths[:n], -(-lengths[:n] // CONTEXT))

    def first_contexts(self) -> npt.NDArray[np.int64]:
        """First context of each partition, closed by the number of contexts."""
        sizes = [int(self.documents(p).n_contexts.sum()) for p in range(self.partitions)]
        return np.concatenate(([0], np.cumsum(sizes)))

    def batch(self, partition: int) -> tuple[pa.RecordBatch, TokenizedBatch]:
        """The texts of a partition as the corpus store takes them."""
        documents = self.documents(partition)
        rng = self._rng(5, partition)
        total, n = int(documents.n_tokens.sum()), len(documents.n_tokens)
        ids = np.searchsorted(self._zipf, rng.random(total)).astype(np.uint32)
        ends = np.cumsum(documents.n_tokens)
        offsets = pa.array(np.concatenate(([0], ends)), pa.int32())
        spelled = pa.ListArray.from_arrays(offsets, self._word_array.take(pa.array(ids)))
        n_contexts = int(documents.n_contexts.sum())
        within = _ranks(documents.n_contexts)
        left = np.repeat(documents.n_tokens, documents.n_contexts) - within * CONTEXT
        topics = pa.array(rng.integers(0, len(TOPICS), n, np.int32))
        texts = pa.RecordBatch.from_pydict(
            {
                "text": pc.binary_join(spelled, ""),
                "source": pa.array(["made"] * n, pa.string()),
                "source_offset": pa.array(range(n), pa.int64()),
                "topic": pa.DictionaryArray.from_arrays(topics, list(TOPICS)).cast(pa.string()),
            }
        )
        return texts, TokenizedBatch(
            token_ids=ids,
            context_lengths=np.minimum(left, CONTEXT).astype(np.int32),
            context_document=np.repeat(np.arange(n), documents.n_contexts),
            context_index=within.astype(np.int32),
            char_start=np.full(n_contexts, -1, np.int64),
            char_end=np.full(n_contexts, -1, np.int64),
            n_tokens=documents.n_tokens,
        )

    def codes(self, partition: int) -> Codes:
        """The activations of a partition, in token order, features ascending within a token.

        A feature that is on fires on each token independently: as many points as a Poisson
        process gives are thrown on the document's tokens, and tokens hit twice count once.
        """
        documents = self.documents(partition)
        rng = self._rng(6, partition)
        rate = self.density * BURST
        on = (self.density / rate).astype(np.float32)
        document, feature = np.nonzero(
            rng.random((len(documents.n_tokens), self.features), np.float32) < on
        )
        lengths = documents.n_tokens[document]
        thrown = rng.poisson(-np.log1p(-rate[feature]) * lengths)
        # A token's place and a feature are one key, of 32 bits where they fit: sorting is most of
        # the work, and takes twice as long with 64.
        bits = (self.features - 1).bit_length()
        tokens = int(documents.n_tokens.sum())
        kind = np.uint32 if tokens << bits <= 1 << 32 else np.uint64
        first = (np.cumsum(documents.n_tokens) - documents.n_tokens)[document]
        place = rng.random(int(thrown.sum()), np.float32)
        place *= np.repeat(lengths.astype(np.float32), thrown)
        keys: npt.NDArray[Any] = place.astype(kind)
        # Rounding may bring a place up to the length of its document.
        np.minimum(keys, np.repeat((lengths - 1).astype(kind), thrown), out=keys)
        keys += np.repeat(first.astype(kind), thrown)
        keys <<= kind(bits)
        keys |= np.repeat(feature.astype(kind), thrown)
        keys.sort()
        keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]
        features = (keys & kind((1 << bits) - 1)).astype(
            np.uint16 if self.features <= 1 << 16 else np.uint32
        )
        keys >>= kind(bits)
        value = rng.standard_normal(len(keys), np.float32)
        value *= np.float32(SPREAD_OF_VALUES)
        np.exp(value, out=value)
        value *= self.scale[features]
        return Codes(self._positions(documents)[keys], features, stored_values(value))

    def entropies(self) -> Entropies:
        """Of the distribution drawn from. A feature's scale is taken as known."""
        rate = self.density * BURST
        each = self.density / self.l0
        octaves = SPREAD_OF_VALUES / np.log(2)
        # A float16 has 1,024 steps an octave, equal in value and not in its logarithm.
        steps = 10 + np.log2(np.log(2)) + 0.5
        return Entropies(
            float((each * _binary(self.density) / self.density).sum()),
            float((each * _binary(rate) / rate).sum()),
            float(0.5 * np.log2(2 * np.pi * np.e * octaves**2) + steps),
        )

    @cached_property
    def _zipf(self) -> Floats:
        weights = 1.0 / np.arange(1, VOCABULARY + 1) ** 1.05
        return np.asarray(np.cumsum(weights / weights.sum())[:-1])

    @cached_property
    def _word_array(self) -> pa.Array:
        return pa.array(self.words, pa.string())

    def _positions(self, documents: Documents) -> npt.NDArray[np.uint32]:
        """Position in the run of each token of a partition, uint32 [tokens]."""
        within = _ranks(documents.n_tokens)
        first = np.cumsum(documents.n_contexts) - documents.n_contexts
        context = np.repeat(first, documents.n_tokens) + within // CONTEXT
        return (context << BITS | within % CONTEXT).astype(np.uint32)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])


def _ranks(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, … within each of consecutive groups of these sizes."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _binary(p: Floats) -> Floats:
    """Bits of a draw that is true with probability p."""
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
