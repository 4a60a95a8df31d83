"""Writing answers: format and destination."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import click

from featuredb.errors import StorageError
from featuredb.store.files.atomic import output_in_place

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

        # Opened before the first batch is asked for, which may take a minute to count.
        with (
            self._file_in_place() as file,
            pq.ParquetWriter(file, reader.schema, compression="zstd") as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)

    def write_each(self, answers: Iterator[Answer]) -> None:
        """Write answers that follow one another as one, as they come where the format allows.

        Raises as `stream`, and what `answers` raises.
        """
        if self.form in ("table", "json"):
            import pyarrow as pa

            parts = list(answers)
            self.write(replace(parts[0], table=pa.concat_tables([part.table for part in parts])))
        elif self.path is None:
            sys.stdout.flush()
            self._append(sys.stdout.buffer, answers)
            sys.stdout.buffer.flush()
        else:
            with self._file_in_place() as file:
                self._append(file, answers)

    @contextmanager
    def _file_in_place(self) -> Iterator[BinaryIO]:
        """A file under a temporary name, which gets its own at the end. Raises as `stream`."""
        with (
            output_in_place(Path(cast("str", self.path))) as temporary,
            open(temporary, "wb") as file,
        ):
            yield file

    def _append(self, file: BinaryIO, answers: Iterator[Answer]) -> None:
        import pyarrow.parquet as pq

        if self.form == "parquet":
            first = next(answers)
            with pq.ParquetWriter(file, first.table.schema, compression="zstd") as writer:
                for answer in chain([first], answers):
                    writer.write_table(answer.table)
            return
        for number, answer in enumerate(answers):
            data = self._data(answer)
            header = self.form == "csv" and number > 0
            file.write(data.partition(b"\n")[2] if header else data)
            file.flush()

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
