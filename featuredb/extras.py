"""Modules of the extra ``featuredb[ingest]``, imported where something needs them."""

from __future__ import annotations

import importlib
from typing import Any

from featuredb.errors import MissingExtraError


def needs(module: str, purpose: str) -> Any:
    """The module of that name; `purpose`, what it is needed for, begins the error.

    Raises `MissingExtraError` where a package that it imports is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("featuredb", "ingest", "queries", ""):
            raise
        raise MissingExtraError(
            f"{purpose} needs {missing}, which is not installed: pip install 'featuredb[ingest]'"
        ) from error
