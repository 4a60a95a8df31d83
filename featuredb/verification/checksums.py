"""Files against the bytes and rows in the snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from featuredb.render.progress import Progress
from featuredb.store.files.atomic import sha256_of
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File
from featuredb.verification.remedies import remedy
from featuredb.verification.report import Problem


def check_file(layout: Layout, file: File, bar: Progress) -> Iterator[Problem]:
    """Size, SHA-256, and the number of rows where a format states it. At most one problem."""
    path = layout.root / file.path
    try:
        size = path.stat().st_size
        if size != file.bytes:
            what = f"has {size:,} bytes, should have {file.bytes:,}"
            yield Problem(file.path, what, remedy(file.path))
            return
        if sha256_of(path, advance=bar.advance) != file.sha256:
            what = "has changed since it was written (SHA-256)"
            yield Problem(file.path, what, remedy(file.path))
            return
        rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else file.rows
        if rows != file.rows:
            what = f"has {rows:,} rows, should have {file.rows:,}"
            yield Problem(file.path, what, remedy(file.path))
    except FileNotFoundError:
        yield Problem(file.path, "is missing", remedy(file.path))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        yield Problem(file.path, what, remedy(file.path))
