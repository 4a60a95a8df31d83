"""Stores packed as single files, with recorded answers."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

from featuredb.database import Database

HERE = Path(__file__).parent

Question = dict[str, Any]


def pack(store: Path, archive: Path) -> None:
    """The store as a .tar.gz with bytes that depend only on names and content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(p for p in store.rglob("*") if p.is_file() and p.name != "LOCK"):
            entry = tarfile.TarInfo(path.relative_to(store).as_posix())
            entry.size = path.stat().st_size
            entry.mode = 0o644
            with open(path, "rb") as content:
                tar.addfile(entry, content)
    archive.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))


def unpack(archive: Path, store: Path) -> Path:
    """The inverse of `pack`."""
    with tarfile.open(archive) as tar:
        tar.extractall(store, filter="data")
    return store


def answer(db: Database, question: Question) -> list[dict[str, Any]]:
    """The rows of a question's answer from the handle.

    A question is ``{"call": method, "arguments": [...], "named": {...}}`` or
    ``{"sql": text, "parameters": [...]}``.
    """
    rows: list[dict[str, Any]]
    if "sql" in question:
        rows = db.sql(question["sql"], question["parameters"]).to_arrow_table().to_pylist()
    else:
        ask = getattr(db, question["call"])
        rows = ask(*question["arguments"], **question["named"]).table.to_pylist()
    return rows
