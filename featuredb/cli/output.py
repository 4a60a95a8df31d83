"""Writing answers: format and destination."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from featuredb.errors import StorageError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

    from featuredb.render.formats import Format
    from queries.answers import Answer, Info

CHOICES = ("table", "json", "jsonl", "csv", "parquet")
_ENDINGS = {"json": "json", "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "parquet": "parquet"}
_AS_TEXT = ("", "txt", "text", "log", "md")
"""Endings of files that get the table."""


@dataclass(frozen=True)
class Output:
    """A format and a path, None for standard output."""

    form: Literal["table", "json", "jsonl", "csv", "parquet"] = "table"
    path: str | None = None

    @classmethod
    def choose(cls, form: str | None, path: str | None) -> Output:
        """From `--format` and `-o`. Refuses Parquet on a terminal before any work."""
        suffix = Path(path).suffix[1:].lower() if path else ""
        ending = _ENDINGS.get(suffix)
        if not (form or ending) and suffix not in _AS_TEXT:
            raise click.UsageError(
                f"no format is known by the ending of {path}: give --format, or end it in .txt, "
                + ", ".join(f".{known}" for known in _ENDINGS)
            )
        chosen = cast("Format | Literal['table']", form or ending or "table")
        if chosen == "parquet" and path is None and sys.stdout.isatty():
            raise click.UsageError("parquet is binary: write it to a file with -o FILE, or a pipe")
        return cls(chosen, path)

    def write(self, answer: Answer | Info, *, rows: int | None = None) -> None:
        """Write the answer. rows: how many rows a table of SQL shows.

        Raises `StorageError` where the file cannot be written.
        """
        data = self._table(answer, rows) if self.form == "table" else self._data(answer)
        if self.path is None:
            sys.stdout.flush()
            rest = memoryview(data)
            while rest:  # with PYTHONUNBUFFERED a write may be partial
                rest = rest[sys.stdout.buffer.write(rest) :]
            sys.stdout.buffer.flush()
            return
        try:
            with open(self.path, "wb") as file:
                file.write(data)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def check_streams(self) -> None:
        """Raises `click.UsageError` unless `stream` can write there."""
        if self.form != "parquet" or self.path is None:
            raise click.UsageError("this is a table of millions of rows: give -o FILE.parquet")

    def stream(self, reader: pa.RecordBatchReader) -> None:
        """Write batches to the Parquet file as they come. Before the last there is no such file.

        Raises `StorageError` where it cannot be written.
        """
        import pyarrow.parquet as pq

        from featuredb.store.files.atomic import temporary_name

        path = Path(cast("str", self.path)).absolute()
        temporary = temporary_name(path)
        try:
            # Opened before the first batch is asked for, which may take a minute to count.
            with (
                open(temporary, "wb") as file,
                pq.ParquetWriter(file, reader.schema, compression="zstd") as writer,
            ):
                for batch in reader:
                    writer.write_batch(batch)
            temporary.replace(path)
        except OSError as error:
            raise StorageError(
                f"cannot write {self.path}: {error.strerror or first_line(error)}"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _table(self, answer: Answer | Info, rows: int | None) -> bytes:
        from featuredb.render.page import Page, page_for
        from featuredb.render.text import to_text

        page = page_for(sys.stdout) if self.path is None else Page()
        text = to_text(answer, page if rows is None else replace(page, rows=rows)) + "\n"
        # A terminal that cannot show a character gets its escape, not a crash.
        encoding = (sys.stdout.encoding if self.path is None else None) or "utf-8"
        return text.encode(encoding, "backslashreplace")

    def _data(self, answer: Answer | Info) -> bytes:
        from featuredb.render.characters import neutralize
        from featuredb.render.formats import to_bytes

        data = to_bytes(answer, cast("Format", self.form))
        if self.form == "csv" and self.path is None and sys.stdout.isatty():
            # CSV cannot escape control characters: a program gets them, a terminal must not.
            return "\n".join(map(neutralize, data.decode().split("\n"))).encode()
        return data
