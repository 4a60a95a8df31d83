"""Activations and tokens as two tables: Goodfire's DuckDB files, and folders of such tables.

``tokens(sequence_id, token_idx, token, decoded_token)`` has every token of every sequence, and
``activations(feature_id, sequence_id, token_idx, strength)`` every activation. Goodfire published
the activations of its SAEs of DeepSeek R1 so. A folder has ``tokens.parquet`` and
``activations.parquet``, or both as CSV or Arrow, where other usual names of the columns do, too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
from pyarrow import csv as pc

from featuredb.database import Database
from featuredb.errors import IngestError, first_line
from featuredb.interchange.reading import Reading
from featuredb.store.files.atomic import sha256_of
from featuredb.store.snapshot import Sae
from ingest.operations.import_activations import (
    MOST_TOKENS,
    ImportedActivations,
    Sequences,
    SourceFacts,
    beyond,
)
from queries.catalog import literals

_NAMES = {
    "sequence_id": ("sequence_id", "context_id"),
    "token_idx": ("token_idx", "token_index", "position"),
    "token": ("token", "token_id"),
    "decoded_token": ("decoded_token", "token_text", "text"),
    "feature_id": ("feature_id", "feature", "latent"),
    "strength": ("strength", "activation", "value"),
}
_TABLES = {
    "tokens": ("sequence_id", "token_idx", "token", "decoded_token"),
    "activations": ("feature_id", "sequence_id", "token_idx", "strength"),
}
_KINDS = {
    "sequence_id": "text",
    "decoded_token": "text in UTF-8",
    "strength": "a number that float32 holds",
}
"""What a column has, where that is no whole number."""

_BATCH = 1 << 18

_HEADER = 1 << 16
"""Characters that the names of a CSV file's columns are looked for in."""

_SHOWN = 40
"""Characters of a cell in a message."""


def read_goodfire(path: Path, reading: Reading) -> TokenTables:
    """A DuckDB file with both tables. Raises `IngestError`."""
    connection = reading.scratch()
    try:
        # For a file of another type, DuckDB would fetch the extension that reads it.
        connection.execute(f"ATTACH {literals.text(str(path))} AS source (TYPE duckdb, READ_ONLY)")
        # No view in it reads another file.
        connection.execute("SET enable_external_access = false")
    except duckdb.Error as error:
        raise IngestError(f"{path} is not a DuckDB database: {first_line(error)}") from error
    tables = {table: (path, f"source.{table}") for table in _TABLES}
    return TokenTables(connection, tables, path, "goodfire", reading)


def read_parquet(path: Path, reading: Reading) -> TokenTables:
    """A folder with ``tokens.parquet`` and ``activations.parquet``. Raises `IngestError`."""
    files = _files(path, "parquet")
    tables = {t: (file, literals.rows(literals.text(str(file)))) for t, file in files.items()}
    return TokenTables(reading.scratch(), tables, path, "tables", reading)


def read_csv(path: Path, reading: Reading) -> TokenTables:
    """A folder with ``tokens.csv`` and ``activations.csv``. Raises `IngestError`."""
    tables = {table: (file, _csv(file)) for table, file in _files(path, "csv").items()}
    return TokenTables(reading.scratch(), tables, path, "tables", reading)


def read_arrow(path: Path, reading: Reading) -> TokenTables:
    """A folder with ``tokens.arrow`` and ``activations.arrow``. Raises `IngestError`."""
    connection = reading.scratch()
    tables = {}
    for table, file in _files(path, "arrow").items():
        connection.register(f"{table}_file", _arrow(file))
        tables[table] = file, f"{table}_file"
    return TokenTables(connection, tables, path, "tables", reading)


def _files(path: Path, ending: str) -> dict[str, Path]:
    """The file of each table."""
    files = {table: path / f"{table}.{ending}" for table in _TABLES}
    for file in files.values():
        if not file.is_file():
            raise IngestError(f"{path} has no {file.name}")
    return files


def _csv(file: Path) -> str:
    """The rows of a CSV file.

    All are text, so that no token is taken for a number, a date or nothing. The dialect is not
    guessed, so that a broken row is not taken for another one.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            header = lines.readline(_HEADER)
    except UnicodeDecodeError:
        raise IngestError(f"{file} is not in UTF-8: save it so") from None
    except OSError as error:
        raise IngestError(f"{file} cannot be read: {error.strerror}") from error
    mark = next((m for m in ";\t" if m in header and "," not in header), ",")
    names = next(csv.reader([header], delimiter=mark), [])
    if not names or not all(names) or len({n.lower() for n in names}) < len(names):
        raise IngestError(f"{file} does not begin with the names of its columns")
    columns = ", ".join(f"{literals.text(name)}: 'VARCHAR'" for name in names)
    listed = ", ".join(map(literals.text, names))
    return (
        f"read_csv({literals.text(str(file))}, auto_detect = false, header = true, "
        f"delim = {literals.text(mark)}, quote = '\"', escape = '\"', hive_partitioning = false, "
        f"columns = {{{columns}}}, force_not_null = [{listed}])"
    )


def _arrow(path: Path) -> pa.Table:
    try:
        table = pf.read_table(path)
        table.validate(full=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise IngestError(f"{path} is not an Arrow file: {first_line(error)}") from error
    # DuckDB does not know halves.
    half = {field.name for field in table.schema if field.type == pa.float16()}
    return table.cast(
        pa.schema([f.with_type(pa.float32()) if f.name in half else f for f in table.schema])
    )


def _cell(column: str, name: str, kind: str) -> str:
    """SQL of a cell as what our column has, NULL where it is something else."""
    match column:
        case "decoded_token" if kind == "BLOB":
            return f'TRY(decode("{name}"))'
        case "decoded_token" | "sequence_id":
            return f'CAST("{name}" AS VARCHAR)'
        case "strength":
            return f'TRY_CAST("{name}" AS FLOAT)'
    # A cast alone rounds what is not whole.
    number = f'TRY_CAST("{name}" AS BIGINT)'
    return f'CASE WHEN {number} = TRY_CAST("{name}" AS DOUBLE) THEN {number} END'


@contextmanager
def _reads(path: Path) -> Iterator[None]:
    """Raise `IngestError` for what DuckDB cannot read, with the file and line where it says it."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        file = re.search(r"^  file = (.*)$", str(error), re.MULTILINE)
        line = re.search(r"CSV Error on Line: (\d+)\n(?:Original Line: .*\n)?(.*)", str(error))
        reason = f"line {line[1]}: {first_line(line[2])}" if line else first_line(error)
        raise IngestError(f"{file[1] if file else path} cannot be read: {reason}") from error


class TokenTables:
    """See `ingest.operations.import_activations.ActivationSource`."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        tables: Mapping[str, tuple[Path, str]],
        path: Path,
        form: str,
        reading: Reading,
    ) -> None:
        """tables: the file of each, and its rows in SQL."""
        self._connection = connection
        self._files = sorted({file for file, _ in tables.values()})
        self._path = path
        self._form = form
        self._reading = reading
        self._sorted = False
        for table, (file, rows) in tables.items():
            self._view(table, file, rows)
        self._number()

    def _view(self, table: str, file: Path, rows: str) -> None:
        """A view of a table with our names and types. Raises `IngestError` where it does not have
        them."""
        with _reads(file):
            given = self._connection.sql(f"SELECT * FROM {rows} LIMIT 0")
            there = {c.lower(): str(t) for c, t in zip(given.columns, given.types, strict=True)}
        names = {c: next((n for n in _NAMES[c] if n in there), None) for c in _TABLES[table]}
        missing = [c for c, name in names.items() if name is None and c != "token"]
        for column in missing:
            wanted = " or ".join(_NAMES[column])
            raise IngestError(f"{file}: {table} has no column {wanted}")
        cells = {c: _cell(c, name, there[name]) for c, name in names.items() if name is not None}
        wrong = {c: f"({cell}) IS NULL" for c, cell in cells.items()}
        if "decoded_token" in wrong:  # an unknown text is none
            wrong["decoded_token"] += f' AND "{names["decoded_token"]}" IS NOT NULL'
        self._refuse(file, rows, {c: (str(names[c]), when) for c, when in wrong.items()})
        # Without ids, each text is a token.
        cells.setdefault("token", f"dense_rank() OVER (ORDER BY {cells.get('decoded_token')}) - 1")
        chosen = ", ".join(f"{cells[column]} AS {column}" for column in _TABLES[table])
        self._run(f"CREATE VIEW {table} AS SELECT {chosen} FROM {rows}")

    def _refuse(self, file: Path, rows: str, wrong: Mapping[str, tuple[str, str]]) -> None:
        """Raise `IngestError` for the first wrong cell. wrong: of each column its name in the file,
        and when a cell is wrong."""
        cases = " ".join(
            f'WHEN {when} THEN [{literals.text(column)}, left("{name}"::VARCHAR, {_SHOWN})]'
            for column, (name, when) in wrong.items()
        )
        found = self._rows(
            f"SELECT wrong[1], wrong[2] FROM (SELECT CASE {cases} END AS wrong FROM {rows}) "
            "WHERE wrong IS NOT NULL LIMIT 1"
        )
        for column, cell in found:
            name, kind = wrong[column][0], _KINDS.get(column, "a whole number")
            what = f"a row has no {name}" if cell is None else f"{name} {cell!r} is not {kind}"
            raise IngestError(f"{file}: {what}")

    def _number(self) -> None:
        """Number the sequences, by id. Raises `IngestError` unless each has all of its tokens."""
        self._run(
            "CREATE TABLE sequences AS SELECT sequence_id, count(*) AS n, row_number() OVER "
            "(ORDER BY try_cast(sequence_id AS BIGINT), sequence_id) - 1 AS number, "
            "min(token_idx) = 0 AND max(token_idx) + 1 = count(*) "
            "AND count(DISTINCT token_idx) = count(*) AS whole FROM tokens GROUP BY sequence_id"
        )
        broken = self._rows(
            "SELECT sequence_id FROM sequences WHERE NOT whole ORDER BY number LIMIT 1"
        )
        for (sequence,) in broken:
            raise IngestError(
                f"{self._path}: sequence {sequence} does not have each token_idx from 0 on once"
            )
        strange = self._rows(
            "SELECT sequence_id, token_idx FROM activations "
            "ANTI JOIN tokens USING (sequence_id, token_idx) ORDER BY ALL LIMIT 1"
        )
        for sequence, token in strange:
            raise IngestError(
                f"{self._path}: an activation is at token {token} of sequence {sequence}, "
                "which is not among the tokens"
            )

    @cached_property
    def facts(self) -> SourceFacts:
        ((n, longest, tokens),) = self._rows(
            "SELECT count(*), max(n), sum(n)::BIGINT FROM sequences"
        )
        if not n:
            raise IngestError(f"{self._path} has no tokens")
        ((rows, last),) = self._rows("SELECT count(*), max(feature_id) FROM activations")
        return SourceFacts(
            format=self._form,
            source=str(self._path),
            fingerprint=sha256_of(*self._files),
            name=self._reading.name or self._path.stem,
            hook=self._reading.hook,
            model=self._reading.model,
            d_sae=self._reading.features or (last + 1 if last is not None else 1),
            context_size=longest,
            n_tokens=tokens,
            n_activations=rows,
            metadata=pa.schema([("sequence_id", pa.string())]),
        )

    def vocabulary(self) -> list[str]:
        rows = self._rows(
            "SELECT token, min(decoded_token), count(DISTINCT decoded_token) FROM tokens GROUP BY 1"
        )
        for token, _, n in rows:
            if not 0 <= token < MOST_TOKENS:
                raise beyond(self._path, "token", token, MOST_TOKENS)
            if n > 1:
                raise IngestError(f"{self._path}: token {token} has {n} texts")
        texts = [""] * (max(token for token, _, _ in rows) + 1)
        for token, text, _ in rows:
            texts[token] = text or ""
        return texts

    def sequences(self) -> Iterator[Sequences]:
        ids = self._table("SELECT sequence_id, n FROM sequences ORDER BY number")
        lengths = ids.column("n").to_numpy().astype(np.int32)
        names = ids.column("sequence_id").combine_chunks()
        waiting = np.empty(0, np.uint32)
        done = 0
        for batch in self._batches(
            "SELECT token FROM tokens JOIN sequences USING (sequence_id) ORDER BY number, token_idx"
        ):
            waiting = np.concatenate([waiting, batch.column(0).to_numpy().astype(np.uint32)])
            ends = np.cumsum(lengths[done:])
            whole = int(np.searchsorted(ends, len(waiting), side="right"))
            if whole:
                taken = int(ends[whole - 1])
                metadata = pa.record_batch([names.slice(done, whole)], names=["sequence_id"])
                yield Sequences(waiting[:taken], lengths[done : done + whole], metadata)
                waiting, done = waiting[taken:], done + whole

    def activations(self, first: int, end: int) -> ImportedActivations:
        if not self._sorted:
            # Once, so that a range of sequences is a range of rows.
            self._run(
                "CREATE TABLE numbered AS SELECT number, token_idx, feature_id, strength "
                "FROM activations JOIN sequences USING (sequence_id) ORDER BY number"
            )
            self._sorted = True
        columns = self._table(f"FROM numbered WHERE number >= {first} AND number < {end}")
        return ImportedActivations(*(column.to_numpy() for column in columns.columns))

    def _rows(self, query: str) -> list[Any]:
        with _reads(self._path):
            return self._connection.sql(query).fetchall()

    def _table(self, query: str) -> pa.Table:
        with _reads(self._path):
            return self._connection.sql(query).to_arrow_table()

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        with _reads(self._path):
            yield from self._connection.sql(query).to_arrow_reader(_BATCH)

    def _run(self, statement: str) -> None:
        with _reads(self._path):
            self._connection.execute(statement)


@dataclass(frozen=True)
class _Tables:
    """Both tables of one SAE of a database, as they are asked for."""

    database: Database
    sae: Sae

    def tokens(self) -> pa.RecordBatchReader:
        """Every token, by context."""
        return self.database.sql(
            "SELECT context_id AS sequence_id, (token_index - 1)::BIGINT AS token_idx, "
            "t.token_id::BIGINT AS token, v.text AS decoded_token FROM ("
            "SELECT context_id, unnest(token_ids) AS token_id, "
            "generate_subscripts(token_ids, 1) AS token_index FROM contexts) AS t "
            "JOIN vocabulary AS v ON v.token_id = t.token_id ORDER BY 1, 2"
        ).to_arrow_reader(_BATCH)

    def activations(self) -> pa.RecordBatchReader:
        """Every activation, by feature, then place."""
        return self.database.sql(
            "SELECT feature_id, context_id AS sequence_id, token_index::BIGINT AS token_idx, "
            "activation::FLOAT AS strength FROM activations WHERE sae = ? ORDER BY 1, 2, 3",
            [self.sae.name],
        ).to_arrow_reader(_BATCH)

    def each(self) -> Iterator[tuple[str, pa.RecordBatchReader]]:
        yield "tokens", self.tokens()
        yield "activations", self.activations()


def write_goodfire(database: Database, sae: Sae, path: Path) -> int:
    """See `ActivationFormat`."""
    with duckdb.connect(str(path)) as file:
        for name, reader in _Tables(database, sae).each():
            file.register("featuredb_rows", reader)
            file.execute(f"CREATE TABLE {name} AS FROM featuredb_rows")
            file.unregister("featuredb_rows")
        return int(file.sql("SELECT count(*) FROM activations").fetchall()[0][0])


def write_parquet(database: Database, sae: Sae, path: Path) -> int:
    """See `ActivationFormat`."""
    return _write(database, sae, path, "parquet")


def write_csv(database: Database, sae: Sae, path: Path) -> int:
    """See `ActivationFormat`."""
    return _write(database, sae, path, "csv")


def write_arrow(database: Database, sae: Sae, path: Path) -> int:
    """See `ActivationFormat`."""
    return _write(database, sae, path, "arrow")


def _write(database: Database, sae: Sae, path: Path, ending: str) -> int:
    path.mkdir()
    count = 0
    for name, reader in _Tables(database, sae).each():
        file = path / f"{name}.{ending}"
        with _writer(file, reader.schema, ending) as writer:
            count = 0
            for batch in reader:
                writer.write(batch) if ending == "arrow" else writer.write_batch(batch)
                count += len(batch)
    return count


def _writer(file: Path, schema: pa.Schema, ending: str) -> Any:
    match ending:
        case "parquet":
            return pq.ParquetWriter(file, schema, compression="zstd")
        case "csv":
            return pc.CSVWriter(file, schema)
    return pa.ipc.new_file(file, schema)
