"""A real store from plain arrays, through the real write path, for the query tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.store import schemas
from featuredb.store.feature_order import read_feature_order
from featuredb.store.files.atomic import folder_in_place
from featuredb.store.files.parquet import ParquetFiles
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.positions import position_bits
from featuredb.store.snapshot import Draft, IngestRecord, LoadCheck, Model, Recording, Sae, Snapshot
from featuredb.store.values import stored_values
from featuredb.store.vectors.directions import Directions, write_vectors
from ingest.extract.feature_orders import with_feature_orders
from ingest.extract.runs import Codes, Extent, Sinks, write_run
from ingest.publish import publish
from ingest.tokens.bos import Bos
from ingest.tokens.contexts import TokenizedBatch
from ingest.tokens.store import CorpusHeader, store_corpus

Float32 = npt.NDArray[np.float32]


@dataclass
class MadeSae:
    """One SAE's content.

    dense: per context, float32 [n_tokens, d_sae] of raw activations (rounded on the way in).
    Row 0 is ignored when the world has a BOS. decoder, encoder: float32 [d_sae, d]. sinks: a
    context and a token each. excluded: token ids. Neither is recorded, nor contexts from `end` on.
    """

    name: str
    dense: list[Float32]
    decoder: Float32
    encoder: Float32
    hook: str = "blocks.0.hook_resid_post"
    sinks: frozenset[tuple[int, int]] = frozenset()
    excluded: tuple[int, ...] = ()
    end: int | None = None
    sha256: str = "0"


@dataclass
class World:
    """The content of a test store.

    documents: per document its contexts, each a list of token ids (BOS included when bos is set).
    metadata: one value per document and column.
    """

    documents: list[list[list[int]]]
    metadata: dict[str, list[Any]]
    vocabulary: list[str]
    saes: list[MadeSae]
    bos: int | None = 0
    context_size: int = 16
    partitions: int = 2
    texts: list[str] = field(default_factory=list)

    @property
    def contexts(self) -> list[list[int]]:
        """All contexts in id order."""
        return [c for document in self.documents for c in document]

    def recorded(self, sae: MadeSae, context: int) -> list[int]:
        """The tokens of a context that an SAE records."""
        if sae.end is not None and context >= sae.end:
            return []
        return [
            index
            for index, token in enumerate(self.contexts[context])
            if (index or self.bos is None)
            and token not in sae.excluded
            and (context, index) not in sae.sinks
        ]


def make_store(path: Path, world: World) -> Snapshot:
    """Write `world` as a database at `path` and publish it."""
    layout = Layout(path)
    vocab_size = len(world.vocabulary)
    metadata = pa.table(world.metadata) if world.metadata else None
    header = CorpusHeader(
        id="0",
        source="made",
        fingerprint="made",
        context_size=world.context_size,
        stride=None,
        bos=Bos(world.bos, None),
        metadata=metadata.schema if metadata is not None else pa.schema([]),
        first_document=0,
        first_context=0,
        vocab_size=vocab_size,
    )
    corpus = store_corpus(layout, header, [_batch(world, metadata)])
    final = layout.corpora / "vocabulary"
    with folder_in_place(final) as folder:
        words = pa.table(
            [
                pa.array(range(vocab_size), pa.uint32()),
                pa.array([t.encode() for t in world.vocabulary], pa.binary()),
                pa.array(world.vocabulary, pa.string()),
                pa.array([i == world.bos for i in range(vocab_size)]),
            ],
            schema=schemas.VOCABULARY,
        )
        pq.write_table(words, folder / "vocabulary.parquet")
        listed = file_entry(layout, folder / "vocabulary.parquet", folder, final, vocab_size)
    vectors = tuple(
        write_vectors(layout, s.name, Directions(s.decoder, s.encoder)) for s in world.saes
    )
    draft = Draft(
        number=1,
        position_bits=position_bits(world.context_size),
        model=Model("made", "made", None, "0", "0", "Made", "float32", 4, 1, vocab_size),
        recording=Recording(False, False, "float16"),
        vocabulary=listed,
        corpora=(corpus,),
        saes=tuple(_sae(s) for s in world.saes),
        vectors=vectors,
    )
    draft = with_feature_orders(layout, draft, {s.name: _counts(s) for s in world.saes})
    runs = {s.name: _runs(layout, world, s, i, draft) for i, s in enumerate(world.saes)}
    logits = {s.name: _no_logits(s) for s in world.saes}
    record = IngestRecord(
        1, "made", "", "", "", "0", tuple(runs), corpus.n_tokens, 0, 0.0, "cpu", "here"
    )
    return publish(layout, draft, runs, logits, [record])


def stored(world: World, sae: MadeSae) -> list[Float32]:
    """`sae.dense` as stored: rounded, zero where nothing is recorded."""
    answer = []
    for context, dense in enumerate(sae.dense):
        kept = np.zeros_like(dense)
        for token in world.recorded(sae, context):
            active = dense[token] != 0
            kept[token, active] = stored_values(dense[token, active]).astype(np.float32)
        answer.append(kept)
    return answer


def _batch(world: World, metadata: pa.Table | None) -> tuple[pa.RecordBatch, TokenizedBatch]:
    n = len(world.documents)
    contexts = world.contexts
    lengths = [len(c) for c in contexts]
    per_document = [len(d) for d in world.documents]
    extra = int(world.bos is not None)
    texts = world.texts or [
        "".join(world.vocabulary[t] for c in d for t in c[extra:]) for d in world.documents
    ]
    columns: dict[str, Any] = {
        "text": pa.array(texts, pa.string()),
        "source": pa.array(["made"] * n, pa.string()),
        "source_offset": pa.array(range(n), pa.int64()),
    }
    if metadata is not None:
        columns |= {name: metadata.column(name).combine_chunks() for name in metadata.schema.names}
    tokenized = TokenizedBatch(
        token_ids=np.array([t for c in contexts for t in c], np.uint32),
        context_lengths=np.array(lengths, np.int32),
        context_document=np.repeat(np.arange(n), per_document).astype(np.int64),
        context_index=np.array([i for d in world.documents for i in range(len(d))], np.int32),
        char_start=np.full(len(contexts), -1, np.int64),
        char_end=np.full(len(contexts), -1, np.int64),
        n_tokens=np.array([sum(len(c) - extra for c in d) for d in world.documents], np.int64),
    )
    return pa.RecordBatch.from_pydict(columns), tokenized


def _sae(made: MadeSae) -> Sae:
    d_sae, d = made.decoder.shape
    check = LoadCheck(0, 0.0, 1.0, 0.0, 1.0, None)
    return Sae(
        made.name,
        "made",
        "made",
        "relu",
        made.sha256,
        made.hook,
        None,
        d,
        d,
        d_sae,
        "float32",
        check,
        excluded_tokens=made.excluded,
    )


def _counts(made: MadeSae) -> npt.NDArray[np.int64]:
    counts = np.zeros(len(made.decoder), np.int64)
    for dense in made.dense:
        counts += np.count_nonzero(dense, axis=0)
    return counts


def _runs(layout: Layout, world: World, made: MadeSae, index: int, draft: Draft) -> Sequence[Any]:
    contexts = world.contexts
    n_contexts = len(contexts) if made.end is None else made.end
    edges = np.linspace(0, n_contexts, world.partitions + 1).astype(int)
    segments = []
    for number, (low, high) in enumerate(pairwise(edges)):
        position, feature, value = [], [], []
        recorded = 0
        # Longest first, as batches come: the writer must restore the order.
        for context in sorted(range(low, high), key=lambda c: -len(contexts[c])):
            recorded += len(world.recorded(made, context))
            for token in world.recorded(made, context):
                for f in np.flatnonzero(made.dense[context][token]):
                    position.append(((context - low) << draft.position_bits) | token)
                    feature.append(int(f))
                    value.append(made.dense[context][token, f])
        codes = Codes(
            np.array(position, np.uint32),
            np.array(feature, np.uint16),
            stored_values(np.array(value, np.float32)),
        )
        sinks = sorted(sink for sink in made.sinks if low <= sink[0] < high)
        places = np.array(sinks, np.int64).reshape(-1, 2)
        left_out = Sinks(places[:, 0], places[:, 1].astype(np.int32), np.ones(len(sinks), "f4"))
        extent = Extent(int(low), int(high), recorded)
        entry = draft.saes[index].order
        assert entry is not None
        order = read_feature_order(ParquetFiles(layout.root), entry.path)
        name = f"r{number}-{index}"
        segments.append(
            write_run(layout, name, made.name, len(made.decoder), codes, left_out, extent, order)
        )
    return segments


def _no_logits(made: MadeSae) -> pa.Table:
    n = len(made.decoder)
    empty = pa.array([[]] * n, pa.list_(schemas.TOKEN_LOGIT))
    return pa.table([pa.array(range(n), pa.int64()), empty, empty], schema=schemas.LOGITS)
