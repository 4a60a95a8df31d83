"""`featuredb sql`"""

from __future__ import annotations

import os
import re
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

_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
"""No statement is one word: that is the name of a view or macro."""


class _WithNames(click.Command):
    """A command whose help lists every view and macro, which take a moment to import."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from queries import QUESTIONS
        from queries.catalog.views import RELATIONS

        super().format_help_text(ctx, formatter)
        macros = [macro.name for each in QUESTIONS.values() for macro in each.public_macros]
        for title, names in (("Views", [each.name for each in RELATIONS]), ("Macros", macros)):
            with formatter.section(title), formatter.indentation():
                formatter.write_text(", ".join(sorted(names)))


@click.command("sql", cls=_WithNames)
@options.pinned_database
@click.argument("query", metavar="[QUERY|-]", required=False)
@options.limit(None, "rows (default: all, of which a table shows 100)")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory limit for DuckDB, not counting the answer. What does not fit spills to a "
    "temporary folder. Default: 80 % of the machine's.",
)
@options.model
@options.output
def command(
    db: str,
    snapshot: int | None,
    query: str | None,
    k: int | None,
    memory: str | None,
    model: str | None,
    output: Output,
) -> None:
    """Run SQL over a database's views and macros.

    QUERY - reads the statement from standard input. Without a QUERY the views and macros are
    listed, and with the name of one as QUERY its columns, each with what it is.
    """
    from featuredb.store.files.location import location_of
    from queries.sql import duckdb_errors

    if query is None or _NAME.fullmatch(query):
        with featuredb.open(db, snapshot=snapshot, memory=memory) as database:
            output.write(database.schema(query))
        return
    statement = options.text_or_stdin(query)
    if not statement.strip():
        raise click.UsageError("there is no SQL in QUERY")
    with featuredb.open(db, snapshot=snapshot, model=model, memory=memory) as database:
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
    from queries.sql import fetched

    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(fetched, relation).result()
        except KeyboardInterrupt:
            click.echo("featuredb: interrupted", err=True)
            remove_spills()
            os._exit(ExitCode.INTERRUPTED)
