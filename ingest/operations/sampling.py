"""A sample of a corpus that is read once: what `plan` ingests to measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingest.inputs import Inputs
from ingest.load_check.spread import Spread, keys
from ingest.tokens.contexts import TokenizedBatch


class _Context(NamedTuple):
    """One context as if it were a document of its own. roles: names, for chats. text: its window's
    part of the document's, None if the document has none."""

    document: pa.RecordBatch
    token_ids: npt.NDArray[np.uint32]
    roles: list[str] | None
    text: str | None
    n_tokens: int


@dataclass(frozen=True)
class SampledInputs(Inputs):
    """Inputs of which only a sample of the contexts is ingested, each as a document of its own."""

    sample: Sequence[_Context] = ()

    def contexts(self) -> Iterator[tuple[pa.RecordBatch, TokenizedBatch]]:
        """The sample, in one batch. Any first part of it is from all over the corpus."""
        sample = self.sample
        n = len(sample)
        texts = [each.text or "" for each in sample]
        roles = [role for each in sample for role in each.roles or ()]
        names = sorted(set(roles))
        codes = {name: code for code, name in enumerate(names)}
        yield (
            pa.concat_batches([each.document for each in sample]),
            TokenizedBatch(
                token_ids=np.concatenate([each.token_ids for each in sample]),
                context_lengths=np.array([len(each.token_ids) for each in sample], np.int32),
                context_document=np.arange(n, dtype=np.int64),
                context_index=np.zeros(n, np.int32),
                char_start=np.zeros(n, np.int64),
                char_end=np.array([len(text) for text in texts], np.int64),
                n_tokens=np.array([each.n_tokens for each in sample], np.int64),
                roles=np.array([codes[role] for role in roles], np.uint8) if names else None,
                role_names=tuple(names),
                texts=tuple(texts) if sample[0].text is not None else None,
            ),
        )


class Sampler:
    """Chooses the contexts that the load check of an ingest looks at, while a corpus is read."""

    def __init__(self, inputs: Inputs, tokens: int) -> None:
        self._inputs = inputs
        self._spread = Spread(tokens)
        self._seen = 0
        self._chosen: dict[int, _Context] = {}

    def add(self, documents: pa.RecordBatch, tokenized: TokenizedBatch, contexts: int) -> None:
        """The first `contexts` contexts of a batch."""
        lengths = tokenized.context_lengths[:contexts]
        self._spread.add(lengths)
        ends = np.cumsum(lengths, dtype=np.int64)
        chosen = {}
        for row in self._spread.rows.tolist():
            at = row - self._seen
            chosen[row] = (
                self._chosen[row]
                if at < 0
                else self._context(documents, tokenized, at, int(ends[at]))
            )
        self._chosen = chosen
        self._seen += contexts

    def inputs(self) -> Inputs:
        """Inputs of the sample. Of a corpus without contexts, the inputs themselves."""
        if not self._chosen:
            return self._inputs
        rows = np.array(list(self._chosen), np.int64)
        order = rows[np.argsort(keys(rows))].tolist()
        given = vars(self._inputs) | {"max_tokens": None}
        return SampledInputs(**given, sample=[self._chosen[row] for row in order])

    def _context(
        self, documents: pa.RecordBatch, tokenized: TokenizedBatch, at: int, end: int
    ) -> _Context:
        row = int(tokenized.context_document[at])
        start = end - int(tokenized.context_lengths[at])
        bos = int(self._inputs.bos.token is not None)
        n_tokens = int(tokenized.n_tokens[row])
        text: str | None = None
        if tokenized.texts is not None:
            text = tokenized.texts[row]
        elif "text" in documents.schema.names:
            text = documents.column("text")[row].as_py()
        if text is not None:
            if tokenized.char_start[at] >= 0:
                text = text[tokenized.char_start[at] : tokenized.char_end[at]]
            else:
                text = text[: len(text) * (end - start - bos) // n_tokens]
        roles = None
        if tokenized.roles is not None:
            roles = [tokenized.role_names[code] for code in tokenized.roles[start:end]]
        metadata = ["source", "source_offset", *self._inputs.corpus.metadata_schema.names]
        return _Context(
            documents.select(metadata).take(pa.array([row])),
            tokenized.token_ids[start:end].copy(),
            roles,
            text,
            n_tokens,
        )
