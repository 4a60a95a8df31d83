"""How near labels are in meaning to a query. Vectors are kept in LanceDB, in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.errors import MissingExtraError
from featuredb.render.progress import log
from featuredb.steering.sentences import SentenceEncoder
from ingest.demo.cache import cache_folder

_SLOW = 1_000
"""Texts from which on embedding them is announced."""


def closeness(encoder: str | None, texts: Sequence[str], query: str) -> list[float]:
    """Cosine of each text to the query, by a sentence encoder. Exact: no index misses any.

    Each text is embedded once per encoder, and kept. Raises `ModelError`, `MissingExtraError` where
    no encoder is named and all-MiniLM-L6-v2 is not there.
    """
    found = _encoder(encoder)
    if found is None:
        raise MissingExtraError(
            "searching by meaning needs a sentence encoder: name one with encoder, a folder or a "
            "hub name, or fetch the default with `hf download "
            "sentence-transformers/all-MiniLM-L6-v2`"
        )
    vectors = _vectors(found, encoder, texts)
    cosines: list[float] = (vectors @ found.vectors([query])[0]).tolist()
    return cosines


@cache
def _encoder(name: str | None) -> SentenceEncoder | None:
    """Loaded once: a search takes less than that."""
    return SentenceEncoder.find(name)


def _vectors(
    encoder: SentenceEncoder, name: str | None, texts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """The vector of each text, float32 [n, width]."""
    import lancedb

    database = lancedb.connect(str(cache_folder().parent / "meaning"))
    # A folder is the same however it is spelled.
    called = os.path.abspath(name) if name is not None and Path(name).exists() else str(name)
    table_name = f"v{sha256(called.encode()).hexdigest()[:16]}"
    known: dict[str, npt.NDArray[np.float32]] = {}
    table = None
    if table_name in database.list_tables().tables:
        table = database.open_table(table_name)
        kept = table.to_arrow()
        flat = kept.column("vector").combine_chunks().flatten().to_numpy()
        rows = flat.reshape(len(kept), -1)
        known = dict(zip(kept.column("text").to_pylist(), rows, strict=True))
    missing = [text for text in texts if text not in known]
    if missing:
        if len(missing) >= _SLOW:
            log.info(f"embedding {len(missing):,} labels, once")
        new = encoder.vectors(missing)
        data = pa.table(
            {
                "text": pa.array(missing, pa.string()),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(new.ravel()), new.shape[1]),
            }
        )
        if table is None:
            database.create_table(table_name, data, exist_ok=True)
        else:
            table.add(data)
        known |= dict(zip(missing, new, strict=True))
    return np.stack([known[text] for text in texts])
