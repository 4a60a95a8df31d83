"""Which texts a database has already, by their hashes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featuredb.store.corpora import text_hash
from featuredb.store.files.location import load_array
from featuredb.store.layout import Layout
from featuredb.store.snapshot import Corpus


class StoredTexts:
    """The hashes of all texts of some corpora."""

    def __init__(self, layout: Layout, corpora: Sequence[Corpus]) -> None:
        self._hashes = {
            corpus.called: _hashes(layout, corpus)
            for corpus in corpora
            if corpus.text_hashes is not None
        }

    def has(self, texts: Sequence[str | None]) -> npt.NDArray[np.bool_]:
        """Of which texts there is one, bool [n]. A null is none."""
        hashes = np.array([text_hash(text or "") for text in texts], np.uint64)
        found = np.zeros(len(texts), np.bool_)
        for known in self._hashes.values():
            found |= np.isin(hashes, known)
        return found & np.array([text is not None for text in texts], np.bool_)

    def repeated(self, layout: Layout, corpus: Corpus) -> dict[str, int]:
        """How many documents of another corpus have a text of each of these, by its name."""
        if corpus.text_hashes is None:
            return {}
        own = _hashes(layout, corpus)
        counts = {name: int(np.isin(own, known).sum()) for name, known in self._hashes.items()}
        return {name: count for name, count in counts.items() if count}


def _hashes(layout: Layout, corpus: Corpus) -> npt.NDArray[np.uint64]:
    assert corpus.text_hashes is not None
    hashes: npt.NDArray[np.uint64] = load_array(layout.root, corpus.text_hashes.path)[:, 0]
    return hashes
