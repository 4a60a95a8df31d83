"""A corpus of any shape, as a stream of record batches."""

from ingest.corpus.corpus import RESERVED_NAMES, Corpus, open_corpus

__all__ = ["RESERVED_NAMES", "Corpus", "open_corpus"]
