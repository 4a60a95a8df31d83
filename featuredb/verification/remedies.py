"""What to do about a damaged file. It depends on what the file is made from."""

from __future__ import annotations

_COPY = "restore it from a copy (or delete it and `featuredb pull` it, where it was pushed)"

RESTORE = f"{_COPY}, or ingest again"

_BY_FOLDER = {
    "derived": (
        f"{RESTORE}; it is computed from the activations, which stay what they are: what SQL says "
        "of them from the view `activations` is right"
    ),
    "matrices": f"{RESTORE}; the directions it is computed from are in vectors.lance",
    "user": f"{_COPY}, or write it anew; `--snapshot N` asks older snapshots, with what they had",
    "catalog.duckdb": (
        f"{_COPY}, or append to, compact or drop from the database, which writes it anew; only "
        "other DuckDB clients read it, Python and the command line do not"
    ),
    "CURRENT": (
        "restore it from a copy, or write the name of the newest file in snapshots/ into it, "
        "as 000001 and a line break"
    ),
    "snapshots": (
        "restore it from a copy, or write the name of an older file in snapshots/ into CURRENT, "
        "as 000001 and a line break"
    ),
}


def remedy(path: str) -> str:
    """What to do about `path`, relative to the database's folder."""
    return _BY_FOLDER.get(path.partition("/")[0], RESTORE)
