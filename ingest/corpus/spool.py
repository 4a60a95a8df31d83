"""Spool documents from Python or standard input to a temporary file.

A corpus is read several times: for its types, its hash and its documents. A source that can be
read only once is kept on disk as long as the corpus is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featuredb.errors import CorpusError


def spool_documents(documents: Iterable[Any], folder: Path, column: str) -> Path:
    """Write strings (as `column`), mappings and None to a JSON Lines file in `folder`.

    Raises:
        CorpusError: an element or a value is of another type, or cannot be written as UTF-8.
    """
    path = folder / "documents.jsonl"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, document in enumerate(documents):
            if isinstance(document, Mapping):
                record = dict(document)
            elif document is None or isinstance(document, str):
                record = {column: document}
            else:
                raise CorpusError(
                    f"document {number} is a {type(document).__name__}; "
                    f"give strings, or mappings from column names to values"
                )
            try:
                file.write(json.dumps(record, ensure_ascii=False, default=_plain) + "\n")
            except (TypeError, ValueError) as error:
                # UnicodeEncodeError, for half of a surrogate pair, is a ValueError.
                raise CorpusError(f"document {number} cannot be kept as JSON: {error}") from error
    return path


def spool_stream(stream: BinaryIO, folder: Path) -> Path:
    """Write all of `stream` to a file in `folder`."""
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"a value is a {type(value).__name__}")
