"""`featuredb sql`"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.output import Output
from featuredb.results import Rows


@click.command("sql")
@options.database
@click.argument("query", metavar="QUERY|-")
@options.limit(None, "rows; default all of them, of which a table shows 100")
@options.output
def command(db: str, query: str, k: int | None, output: Output) -> None:
    """Any SQL over the database's views and macros.

    QUERY - reads the statement from standard input.

    Views: documents, contexts, activations, features, neighbors, saes, runs. Macros:
    top_contexts(feature, k := 20), near(feature, k := 20) and one for every other question.
    """
    from queries.sql import duckdb_errors

    statement = options.text_or_stdin(query)
    if not statement.strip():
        raise click.UsageError("there is no SQL in QUERY")
    with featuredb.open(db) as database:
        relation = database.sql(statement)
        # A relation is lazy: what DuckDB refuses only while running is first heard of here.
        with duckdb_errors(Path(db).expanduser().absolute()), _interruptible():
            # Read batch by batch: DuckDB does not notice Ctrl-C while it makes a whole table.
            reader = (relation if k is None else relation.limit(k)).to_arrow_reader()
            answer = Rows(reader.read_all())
    output.write(answer, rows=k)


@contextmanager
def _interruptible() -> Iterator[None]:
    """DuckDB reports Ctrl-C as a RuntimeError of these words."""
    try:
        yield
    except RuntimeError as error:
        if "interrupted" not in str(error):
            raise
        raise KeyboardInterrupt from error
