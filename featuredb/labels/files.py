"""Files that labels are read from: their bytes, and what JSON in them says."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featuredb.errors import FeatureDBError, LabelError, first_line


def read_bytes(path: Path, raising: type[FeatureDBError] = LabelError) -> bytes:
    """A file, decompressed where its name ends in ``.gz``. Raises `raising`."""
    return b"".join(read_lines(path, raising))


def read_lines(path: Path, raising: type[FeatureDBError] = LabelError) -> Iterator[bytes]:
    """Its lines, one after another, as `read_bytes`."""
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        what = first_line(error)
        raise raising(f"{path} is a damaged gzip file ({what}): get it again") from None
    except OSError as error:
        raise raising(f"cannot read {path}: {error.strerror or first_line(error)}") from None


def is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, by its name."""
    return path.suffix.lower() == ".gz"


def parsed(data: bytes | str) -> Any:
    """What JSON says. Raises `ValueError`, also where it is nested too deeply or is no UTF-8."""
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        value = json.loads(text)
        if "\\u" in text:  # may be half a character, which can be read and not written
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it has half a character (a lone surrogate)") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value
