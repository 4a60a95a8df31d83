"""`featuredb sql`"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

import featuredb
from featuredb.cli import options
from featuredb.cli.exit_codes import ExitCode
from featuredb.cli.output import Output
from featuredb.store.files.scratch import remove_spills
from queries.answers import Rows

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


@click.command("sql")
@options.pinned_database
@click.argument("query", metavar="QUERY|-")
@options.limit(None, "rows (default: all, of which a table shows 100)")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory limit for DuckDB, not counting the answer. What does not fit spills to a "
    "temporary folder. Default: 80 % of the machine's.",
)
@options.output
def command(
    db: str, snapshot: int | None, query: str, k: int | None, memory: str | None, output: Output
) -> None:
    """Run SQL over a database's views and macros.

    QUERY - reads the statement from standard input.

    Views: documents, contexts, activations, features, neighbors, saes, ingests. Macros:
    top_contexts(feature, k := 20), near(feature, k := 20) and one for every other question.
    """
    from featuredb.store.files.location import location_of
    from queries.sql import duckdb_errors

    statement = options.text_or_stdin(query)
    if not statement.strip():
        raise click.UsageError("there is no SQL in QUERY")
    with featuredb.open(db, snapshot=snapshot, memory=memory) as database:
        relation = database.sql(statement)
        # A relation is lazy: errors that DuckDB finds only while running are raised here.
        with duckdb_errors(location_of(database.location)):
            answer = Rows(_fetch(relation if k is None else relation.limit(k)))
    output.write(answer, rows=k)


def _fetch(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    """Run the statement in a thread, so that Ctrl-C is handled.

    DuckDB looks for signals between the parts of a plan, and one part may take hours. So it works
    in a thread, and an interrupt ends the process under it: the database is open for reading, and
    no output has been written.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(relation.to_arrow_table).result()
        except KeyboardInterrupt:
            click.echo("featuredb: interrupted", err=True)
            remove_spills()
            os._exit(ExitCode.INTERRUPTED)
