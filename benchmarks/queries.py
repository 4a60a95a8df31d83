"""Latency of each question, warm, on a finished database, with what its plan reads.

Run ``python -m benchmarks.queries demo.fdb``, or of a store that ``benchmarks.store --keep`` made.
Features are drawn from those that fire, evenly over their order by count, so that dense and rare
ones are both measured. Beside each question stands the test of tests/queries that compares its
answer with an independent computation.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import featuredb
from featuredb.database import Database
from featuredb.errors import FeatureDBError

Question = Callable[[Any], object]


@dataclass(frozen=True)
class Subject:
    """What a question is put to. pair: a feature and the next denser one. word: a token's text."""

    feature: int
    other: int
    context: int
    word: str


@dataclass(frozen=True)
class Asked:
    """A question in each interface. Empty: there is none. few: put to fewer subjects."""

    name: str
    oracle: str
    python: Callable[[Database, Subject], object] | None = None
    sql: str = ""
    cli: str = ""
    few: bool = False


ASKED: tuple[Asked, ...] = (
    Asked("top contexts, kept ready", "test_against_oracle",
          lambda d, s: d.top_contexts(s.feature), "FROM top_contexts({f})", "top {f}"),
    Asked("top contexts, from all activations", "test_against_oracle",
          lambda d, s: d.top_contexts(s.feature, k=100), "FROM top_contexts({f}, k := 100)",
          "top {f} -k 100"),
    Asked("top contexts, one per document", "test_paging",
          lambda d, s: d.top_contexts(s.feature, per_document=True, distinct=True),
          "FROM top_contexts({f}, per_document := true)", "top {f} --per-document --distinct"),
    Asked("all activations of a feature", "test_against_oracle",
          lambda d, s: d.activations(s.feature).arrow(), "FROM feature_activations({f})"),
    Asked("a sample of the whole range", "test_draws",
          lambda d, s: d.sample_contexts(s.feature), "FROM sample_contexts({f})", "sample {f}"),
    Asked("where it is silent", "test_draws",
          lambda d, s: d.silent_contexts(s.feature), "FROM silent_contexts({f})", "silent {f}"),
    Asked("everything about a feature", "test_against_oracle",
          lambda d, s: d.feature(s.feature), "FROM features WHERE feature_id = {f}", "feature {f}"),
    Asked("near, from the graph", "test_against_oracle",
          lambda d, s: d.near(s.feature), "FROM near({f})", "near {f}"),
    Asked("near, exact", "test_against_oracle", lambda d, s: d.near(s.feature, k=60),
          cli="near {f} -k 60", few=True),
    Asked("near by co-activation", "test_against_oracle",
          lambda d, s: d.near(s.feature, by="coactivation"), "FROM near_coactivation({f})",
          "near {f} --by coactivation"),
    Asked("both on a token", "test_find",
          lambda d, s: d.find(all=[s.feature, s.other]), 'FROM "both"({f}, {g})',
          "find --all {f} --all {g}"),
    Asked("one without the other, by context", "test_find",
          lambda d, s: d.find(all=[s.feature], none=[s.other], unit="context"),
          "FROM without({f}, {g}, unit := 'context')",
          "find --all {f} --none {g} --unit context"),
    Asked("within 5 tokens, in order", "test_find",
          lambda d, s: d.find(all=[s.feature, s.other], within=5, ordered=True),
          "FROM within({f}, {g}, 5, in_order := true)",
          "find --all {f} --all {g} --within 5 --ordered"),
    Asked("at least one of two, by document", "test_find",
          lambda d, s: d.find(any=[s.feature, s.other], at_least=1, unit="document"),
          "FROM at_least([{f}, {g}], 1, unit := 'document')",
          "find --any {f} --any {g} --at-least 1 --unit document"),
    Asked("co-activation of a pair", "test_coactivation",
          lambda d, s: d.coactivation(s.feature, s.other), "FROM coactivation({f}, {g})",
          "coactive {f} --with {g}"),
    Asked("what fires on the same tokens", "test_coactive",
          lambda d, s: d.coactive(s.feature), "FROM coactive({f})", "coactive {f}", few=True),
    Asked("what fires in the same documents", "test_coactive",
          lambda d, s: d.coactive(s.feature, unit="document"),
          "FROM coactive({f}, unit := 'document')", "coactive {f} --unit document", few=True),
    Asked("two features compared", "test_compare", lambda d, s: d.compare(s.feature, s.other),
          "FROM compare({f}, {g})", "compare {f} {g}", few=True),
    Asked("what fires in a stored context", "test_against_oracle",
          lambda d, s: d.fires_in(s.context), "FROM fires_in({c})", "fires --context {c}"),
    Asked("search by tokens", "test_search", lambda d, s: d.search(s.word),
          "FROM search('{w}')", "search '{w}'", few=True),
    Asked("search by evidence", "test_evidence", lambda d, s: d.search(s.word, by="evidence"),
          "FROM evidence('{w}')", "search '{w}' --by evidence", few=True),
)  # fmt: skip


def timed(question: Question, arguments: Sequence[Any]) -> list[float]:
    """Milliseconds of each call, after one call that is not counted."""
    question(arguments[0])
    times = []
    for argument in arguments:
        began = time.perf_counter()
        question(argument)
        times.append(1_000 * (time.perf_counter() - began))
    return times


def cold(database: str, command: str, rounds: int = 5) -> list[float]:
    """Milliseconds of a command of ``featuredb`` in a new process, such as ``"top 1234"``."""
    verb, *arguments = command.split()
    arguments = [argument.strip("'") for argument in arguments]
    line = [sys.executable, "-m", "featuredb.cli", verb, database, *arguments]
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(line, check=True, capture_output=True)
        times.append(1_000 * (time.perf_counter() - began))
    return times


def subjects(db: Database, n: int) -> list[Subject]:
    """What to ask about: features evenly over their order by count, contexts over the corpus."""
    ranked = db.sql(
        "SELECT feature_id, top_tokens[1].token FROM features WHERE count > 0 "
        "ORDER BY count DESC, feature_id"
    ).fetchall()
    n_contexts = sum(c.n_contexts for c in db.snapshot.corpora)
    at = [i * len(ranked) // n for i in range(n)]
    return [
        Subject(ranked[i][0], ranked[max(i - 1, 1 - i % 2)][0], j * n_contexts // n,
                "".join(filter(str.isalnum, ranked[i][1] or "")) or "the")
        for j, i in enumerate(at)
    ]  # fmt: skip


def filled(template: str, subject: Subject) -> str:
    """The SQL or command for a subject."""
    return template.format(f=subject.feature, g=subject.other, c=subject.context, w=subject.word)


def read_by(db: Database, query: str) -> tuple[float, int]:
    """Megabytes that a query reads and the rows of its largest scan, by EXPLAIN ANALYZE."""
    rows = db.sql(f"EXPLAIN (ANALYZE, FORMAT json) {query}").fetchall()
    plan = json.loads(rows[0][1])

    def scans(operator: dict[str, Any]) -> list[int]:
        own = [operator["intermediate_rows"]] if "SCAN" in operator["type"] else []
        return own + [n for child in operator.get("children", []) for n in scans(child)]

    largest = max((n for top in plan["operator"] for n in scans(top)), default=0)
    return plan["io"]["total_bytes_read"] / 1e6, largest


def measured(times: Sequence[float]) -> str:
    """The median and the 95th percentile, in milliseconds."""
    slow = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    return f"{statistics.median(times):.1f} ({slow:.1f})"


@click.command()
@click.argument("database")
@click.option("--features", default=40, help="Features asked of each question.")
@click.option("--only", default="", help="Questions whose names contain this.")
@click.option("--plan", is_flag=True, help="Megabytes and rows that the densest feature reads.")
@click.option("--cli", is_flag=True, help="Each command in a new process.")
def main(database: str, features: int, only: str, plan: bool, cli: bool) -> None:
    """Print the time of each question on DATABASE, one with a single SAE."""
    db = featuredb.open(database)
    asked = subjects(db, features)
    few = asked[:: max(1, features // 10)]
    table = Table("question", "oracle", "Python ms (95 %)", "SQL ms (95 %)")
    for heading in ["MB read, rows scanned"] * plan + ["new process, ms"] * cli:
        table.add_column(heading)
    with Console(stderr=True).status("") as status:
        for question in ASKED:
            if only not in question.name:
                continue
            status.update(question.name)
            about = few if question.few else asked
            cells = [question.name, question.oracle]
            try:
                cells += _row(db, database, question, about, plan, cli)
            except FeatureDBError as error:
                cells.append(str(error))
            table.add_row(*cells)
    Console(width=140).print(table)


def _row(
    db: Database, database: str, question: Asked, about: list[Subject], plan: bool, cli: bool
) -> list[str]:
    """The cells of one question."""
    ask = question.python
    cells = [measured(timed(lambda s: ask(db, s), about)) if ask else ""]
    sql = question.sql

    def rows(subject: Subject) -> object:
        return db.sql(filled(sql, subject)).fetchall()

    cells.append(measured(timed(rows, about)) if sql else "")
    if plan:
        read, scanned = read_by(db, filled(sql, about[0])) if sql else (0.0, 0)
        cells.append(f"{read:.1f}, {scanned:,}" if sql else "")
    if cli:
        command = question.cli
        middle = about[len(about) // 2]
        times = cold(database, filled(command, middle), 3) if command else []
        cells.append(f"{statistics.median(times):.0f}" if times else "")
    return cells


if __name__ == "__main__":
    main()
