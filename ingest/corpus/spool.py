"""Spool documents from Python or standard input to a temporary file.

A corpus is read several times: for its types, its hash and its documents. A source that can be
read only once is kept on disk as long as the corpus is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import numpy as np

from featuredb.errors import CorpusError
from ingest.corpus.arrays import clock, decoded


def spool_documents(documents: Iterable[Any], path: Path, column: str) -> Path:
    """Write strings (as `column`), mappings and None to a JSON Lines file at `path`.

    Raises:
        CorpusError: an element or a value is of another type, or cannot be written as UTF-8.
    """
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
                reason = "an integer has too many digits; give it as text"
                if "Exceeds the limit" not in str(error):
                    reason = str(error)
                raise CorpusError(f"document {number} cannot be kept as JSON: {reason}") from error
    return path


def spool_stream(stream: BinaryIO, folder: Path) -> Path:
    """Write all of `stream` to a file in `folder`."""
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return path


def _plain(value: Any) -> Any:
    """A value that JSON has no type for. Dates, decimals and durations become text."""
    match value:
        case np.datetime64() | np.timedelta64():
            return None if np.isnat(value) else _moment(value)
        case np.ndarray() if value.dtype.kind in "mM":
            return [_plain(item) for item in value]
        case np.generic() | np.ndarray():
            return value.tolist()
        case datetime() | date() | time():
            return None if value != value else value.isoformat()  # NaT is no date
        case timedelta():
            return clock(value // timedelta(microseconds=1), "us")
        case Decimal():
            return f"{value:f}"
        case UUID():
            return str(value)
        case Enum():
            return value.value
        case os.PathLike():
            return os.fspath(value)
        case bytes():
            return decoded(value)
        case set() | frozenset():
            return sorted(value)
        case _ if type(value).__name__ in ("NAType", "NaTType"):
            return None
        case _ if hasattr(value, "tolist"):  # a tensor
            return value.tolist()
    raise TypeError(f"a value is a {type(value).__name__}")


def _moment(value: np.datetime64 | np.timedelta64) -> str:
    if isinstance(value, np.datetime64):
        return str(value)
    return clock(int(value.astype("timedelta64[ns]").astype(np.int64)), "ns")
