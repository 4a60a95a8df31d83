"""Files of JSON, one object a line or one a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featuredb.errors import FeatureDBError, LabelError
from featuredb.labels.files import parsed, read_lines


def json_lines(path: Path, raising: type[FeatureDBError] = LabelError) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, gzipped where its name ends so. Raises `raising`."""
    for number, line in enumerate(read_lines(path, raising), 1):
        if not line.strip():
            continue
        try:
            value = parsed(line)
        except ValueError as error:
            raise raising(f"{path}, line {number}, is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise raising(f"{path}, line {number}, is not a JSON object")
        yield value
