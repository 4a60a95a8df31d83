"""Activations and tokens as two tables: Goodfire's DuckDB files, and folders of such tables.

``tokens(sequence_id, token_idx, token, decoded_token)`` has every token of every sequence, and
``activations(feature_id, sequence_id, token_idx, strength)`` every activation. Goodfire published
the activations of its SAEs of DeepSeek R1 so. A folder has ``tokens.parquet`` and
``activations.parquet``, or both as CSV or Arrow, where other usual names of the columns do, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from ingest.operations.import_activations import ImportedActivations, Sequences, SourceFacts
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
_TYPES = {"decoded_token": "VARCHAR", "strength": "FLOAT", "sequence_id": "VARCHAR"}
_BATCH = 1 << 18


def read_goodfire(path: Path, reading: Reading) -> TokenTables:
    """A DuckDB file with both tables. Raises `IngestError`."""
    connection = reading.scratch()
    try:
        connection.execute(f"ATTACH {literals.text(str(path))} AS source (READ_ONLY)")
    except duckdb.Error as error:
        raise IngestError(f"{path} is not a DuckDB database: {first_line(error)}") from error
    return TokenTables(connection, {t: f"source.{t}" for t in _TABLES}, path, "goodfire", reading)


def read_tables(path: Path, reading: Reading) -> TokenTables:
    """A folder with both tables, as Parquet, CSV or Arrow. Raises `IngestError`."""
    connection = reading.scratch()
    where = {}
    for table in _TABLES:
        found = [p for e in ("parquet", "csv", "arrow") if (p := path / f"{table}.{e}").is_file()]
        if len(found) != 1:
            what = "no" if not found else "more than one"
            raise IngestError(f"{path} has {what} {table}.parquet, {table}.csv or {table}.arrow")
        spelled = literals.text(str(found[0]))
        if found[0].suffix == ".arrow":
            connection.register(f"{table}_file", _arrow(found[0]))
            where[table] = f"{table}_file"
        elif found[0].suffix == ".csv":
            # Every column is text, so that no token is taken for a number, a date or nothing.
            where[table] = (
                f"read_csv({spelled}, all_varchar = true, header = true, nullstr = '\\N', "
                "hive_partitioning = false)"
            )
        else:
            where[table] = literals.rows(spelled)
    return TokenTables(connection, where, path, "tables", reading)


def _arrow(path: Path) -> pa.Table:
    try:
        return pf.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise IngestError(f"{path} is not an Arrow file: {first_line(error)}") from error


class TokenTables:
    """See `ingest.operations.import_activations.ActivationSource`."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        where: dict[str, str],
        path: Path,
        form: str,
        reading: Reading,
    ) -> None:
        self._connection = connection
        self._path = path
        self._form = form
        self._reading = reading
        self._sorted = False
        for table, columns in _TABLES.items():
            self._view(table, where[table], columns)
        self._number()

    def _view(self, table: str, where: str, columns: Sequence[str]) -> None:
        """A view of a table with these names and types. Raises `IngestError`."""
        there = [c.lower() for c in self._ask(f"SELECT * FROM {where} LIMIT 0").columns]
        chosen = []
        for column in columns:
            name = next((n for n in _NAMES[column] if n in there), None)
            if name is None and column == "token":
                # Without ids, each text is a token.
                name = next((n for n in _NAMES["decoded_token"] if n in there), None)
                chosen.append(f"(dense_rank() OVER (ORDER BY {name}) - 1)::BIGINT AS token")
                continue
            if name is None:
                wanted = " or ".join(_NAMES[column])
                raise IngestError(f"{self._path}: {table} has no column {wanted}")
            kind = _TYPES.get(column, "BIGINT")
            chosen.append(f'CAST("{name}" AS {kind}) AS {column}')
        self._run(f"CREATE VIEW {table} AS SELECT {', '.join(chosen)} FROM {where}")

    def _number(self) -> None:
        """Number the sequences, by id. Raises `IngestError` unless each has all of its tokens."""
        self._run(
            "CREATE TABLE sequences AS SELECT sequence_id, count(*) AS n, row_number() OVER "
            "(ORDER BY try_cast(sequence_id AS BIGINT), sequence_id) - 1 AS number, "
            "min(token_idx) = 0 AND max(token_idx) + 1 = count(*) "
            "AND count(DISTINCT token_idx) = count(*) AS whole FROM tokens GROUP BY sequence_id"
        )
        broken = self._ask("SELECT sequence_id FROM sequences WHERE NOT whole ORDER BY number")
        for (sequence,) in broken.limit(1).fetchall():
            raise IngestError(
                f"{self._path}: sequence {sequence} does not have each token_idx from 0 on once"
            )
        strange = self._ask(
            "SELECT sequence_id, token_idx FROM activations "
            "ANTI JOIN tokens USING (sequence_id, token_idx) ORDER BY ALL LIMIT 1"
        ).fetchall()
        for sequence, token in strange:
            raise IngestError(
                f"{self._path}: an activation is at token {token} of sequence {sequence}, "
                "which is not among the tokens"
            )

    @cached_property
    def facts(self) -> SourceFacts:
        n, longest, tokens = self._one("SELECT count(*), max(n), sum(n)::BIGINT FROM sequences")
        if not n:
            raise IngestError(f"{self._path} has no tokens")
        rows, last = self._one("SELECT count(*), max(feature_id) FROM activations")
        files = [self._path] if self._path.is_file() else sorted(self._path.glob("*.*"))
        return SourceFacts(
            format=self._form,
            source=str(self._path),
            fingerprint=sha256_of(*files),
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
        rows = self._ask(
            "SELECT token, min(decoded_token), count(DISTINCT decoded_token) FROM tokens GROUP BY 1"
        ).fetchall()
        for token, _, n in rows:
            if n > 1 or token is None or token < 0:
                what = f"{n} texts" if n > 1 else "no id"
                raise IngestError(f"{self._path}: token {token} has {what}")
        texts = [""] * (max(token for token, _, _ in rows) + 1)
        for token, text, _ in rows:
            texts[token] = text or ""
        return texts

    def sequences(self) -> Iterator[Sequences]:
        ids = self._ask("SELECT sequence_id, n FROM sequences ORDER BY number").to_arrow_table()
        lengths = ids.column("n").to_numpy().astype(np.int32)
        names = ids.column("sequence_id").combine_chunks()
        stream = self._ask(
            "SELECT token FROM tokens JOIN sequences USING (sequence_id) ORDER BY number, token_idx"
        ).to_arrow_reader(_BATCH)
        waiting = np.empty(0, np.uint32)
        done = 0
        for batch in stream:
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
        columns = self._ask(
            f"FROM numbered WHERE number >= {first} AND number < {end}"
        ).to_arrow_table()
        return ImportedActivations(*(column.to_numpy() for column in columns.columns))

    def _one(self, query: str) -> Any:
        return self._ask(query).fetchall()[0]

    def _ask(self, query: str) -> duckdb.DuckDBPyRelation:
        try:
            return self._connection.sql(query)
        except duckdb.Error as error:
            raise self._unreadable(error) from error

    def _run(self, statement: str) -> None:
        try:
            self._connection.execute(statement)
        except duckdb.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: duckdb.Error) -> IngestError:
        return IngestError(f"{self._path} cannot be read: {first_line(error)}")


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
