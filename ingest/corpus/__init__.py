"""Read a corpus in any format as a stream of record batches."""

from ingest.corpus.corpus import RESERVED_NAMES, CorpusReader, open_corpus

__all__ = ["RESERVED_NAMES", "CorpusReader", "open_corpus"]
