"""Explain features and score labels, feature by feature, in parallel and resumable."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from featuredb.autointerp import prompts
from featuredb.autointerp.examples import Evidence, evidence
from featuredb.autointerp.scores import INTRUSIONS, SCORERS, SHOWN, Answers, Score
from featuredb.database import Database
from featuredb.errors import QueryError
from featuredb.labels.batch import LabelBatch
from featuredb.labels.write import add_labels
from featuredb.render.progress import log, progress
from featuredb.store.names import parse_feature
from featuredb.store.outcomes import Explained
from ingest.operations.user_data import refuse_no_writing
from queries.answers import Row

METHOD = "explained"
"""That of labels written here."""

_AT_ONCE = 20
"""Labels per snapshot. A run that is killed loses no more."""

_SAMPLED = 3
"""Features whose prompts the estimate is made from."""

_CHARACTERS = 4.0
"""Per token, as a rule of thumb for English."""

_ANSWERED = {"label": 60, "choices": 20, "number": 10}
"""Tokens of an answer, for the estimate."""


@dataclass(frozen=True)
class Request:
    """What is asked for. existing: score the preferred labels that there are, and write none.

    price: of a million tokens in and out.
    """

    scores: tuple[str, ...] = ("detection",)
    existing: bool = False
    seed: int = 0
    parallel: int = 4
    price: tuple[float, float] | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.scores if name not in SCORERS]
        if unknown:
            raise QueryError(f"there is no score {unknown[0]}: choose of {', '.join(SCORERS)}")
        if self.existing and not self.scores:
            raise QueryError("labels that there are can only be scored: say by which scores")
        if self.parallel < 1:
            raise QueryError(f"parallel must be at least 1, not {self.parallel}")


class _Given(NamedTuple):
    """A label that there is. Its text, and what names it besides."""

    text: str
    method: str
    model: str | None
    author: str | None


class _Done(NamedTuple):
    """What one feature got."""

    name: str
    label: _Given | None
    scores: Sequence[Score]
    skipped: bool = False


@dataclass
class _Run:
    """The features of one call, and what became of them."""

    database: Database
    path: Path
    request: Request
    answers: Answers
    waiting: list[_Done] = field(default_factory=list)
    labels: int = 0
    scores: int = 0
    malformed_labels: int = 0
    too_few: int = 0

    def one(self, name: str, given: _Given | None) -> _Done:
        """Explain a feature and score its label. Called in threads."""
        shown = evidence(self.database, name, self.request.seed, scored=bool(self.request.scores))
        if shown is None:
            return _Done(name, None, (), skipped=True)
        endpoint = self.answers.endpoint
        if given is None:
            text = prompts.read_label(endpoint.ask(prompts.explanation(shown)))
            if text is None:
                return _Done(name, None, ())
            given = _Given(text, METHOD, endpoint.model, None)
        scores = [
            score
            for scorer in self.request.scores
            for score in SCORERS[scorer](given.text, shown, self.answers, self._draws(name, scorer))
        ]
        return _Done(name, given, scores)

    def _draws(self, name: str, scorer: str) -> random.Random:
        """Draws that do not depend on the order in which threads finish."""
        return random.Random(f"{self.request.seed} {name} {scorer}")

    def take(self, done: _Done) -> None:
        """Keep what a feature got, and write when there is enough of it."""
        if done.skipped:
            self.too_few += 1
        elif done.label is None:
            self.malformed_labels += 1
        else:
            self.waiting.append(done)
        if len(self.waiting) >= _AT_ONCE:
            self.write()

    def write(self) -> None:
        """Publish what is kept."""
        if not self.waiting:
            return
        labels = [(done.name, *done.label) for done in self.waiting if done.label is not None]
        names = ("feature_id", "text", "method", "model", "author")
        columns = zip(*labels, strict=True)
        table = {
            name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)
        }
        rows = [(row, score) for row, done in enumerate(self.waiting) for score in done.scores]
        model = self.answers.endpoint.model
        scores = pa.table(
            {
                "row": pa.array([row for row, _ in rows], pa.int64()),
                "scorer": pa.array([score.scorer for _, score in rows], pa.string()),
                "model": pa.array([model] * len(rows), pa.string()),
                "value": pa.array([score.value for _, score in rows], pa.float64()),
                "details": pa.array([score.spelled for _, score in rows], pa.string()),
            }
        )
        batch = LabelBatch(pa.table(table), scores if rows else None, source="the answers")
        written = add_labels(self.path, batch, "explain")
        self.labels += written.labels
        self.scores += written.scores
        self.waiting.clear()


def explain(
    database: Database,
    path: Path,
    features: Sequence[int | str] | None,
    answers: Answers,
    request: Request,
) -> Explained:
    """See `featuredb.explain`."""
    refuse_no_writing(path, "explain")
    todo, already = _todo(database, features, answers.endpoint.model, request)
    if log.isEnabledFor(logging.INFO):  # an estimate asks several questions
        log.info(_estimate(database, todo, answers, request))
    run = _Run(database, path, request, answers)
    try:
        if not request.dry_run:
            _ask_all(run, todo)
    finally:
        # What was paid for is kept, whatever ends the run.
        run.write()
    usage = answers.endpoint.usage
    return Explained(
        labels=run.labels,
        scores=run.scores,
        already=already,
        too_few=run.too_few,
        malformed=run.malformed_labels + answers.malformed,
        requests=usage.requests,
        retried=usage.retried,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
    )


def _ask_all(run: _Run, todo: Sequence[tuple[str, _Given | None]]) -> None:
    left = iter(todo)
    with (
        progress("explaining", "features") as bar,
        ThreadPoolExecutor(run.request.parallel, "explain") as pool,
    ):
        bar.start("explaining", len(todo), 0)
        pending: set[Future[_Done]] = set()
        try:
            while True:
                for name, given in _few(left, run.request.parallel - len(pending)):
                    pending.add(pool.submit(run.one, name, given))
                if not pending:
                    return
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in sorted(ready, key=lambda each: each.exception() is not None):
                    run.take(future.result())
                    bar.advance(1)
        except QueryError:
            # Others may still get their answers, which are paid for.
            pool.shutdown(cancel_futures=True)
            for future in pending:
                if not future.cancelled() and future.exception() is None:
                    run.take(future.result())
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _few(left: Iterator[tuple[str, _Given | None]], n: int) -> list[tuple[str, _Given | None]]:
    return [each for _, each in zip(range(n), left, strict=False)]


def _todo(
    database: Database, features: Sequence[int | str] | None, model: str, request: Request
) -> tuple[list[tuple[str, _Given | None]], int]:
    """The features that are left, by name, with the labels that are scored. How many are done."""
    if features is None:
        rows = database.sql(
            "SELECT concat(sae, '/', feature_id) FROM features JOIN saes USING (sae) "
            "WHERE count > 0 ORDER BY sae_index, feature_id"
        ).fetchall()
        names = [str(name) for (name,) in rows]
    else:
        parsed = [parse_feature(database.snapshot, feature) for feature in features]
        names = list(dict.fromkeys(f"{sae.name}/{number}" for sae, number in parsed))
    labels = list(database.labels())
    if request.existing:
        preferred = {f"{row.sae}/{row.feature_id}": row for row in labels if row.preferred}
        todo: list[tuple[str, _Given | None]] = []
        for name in names:
            row = preferred.get(name)
            if row is not None and not _scored(row, model, request):
                todo.append((name, _Given(row.text, row.method, row.model, row.author)))
        return todo, sum(name in preferred for name in names) - len(todo)
    done = {
        f"{row.sae}/{row.feature_id}"
        for row in labels
        if row.method == METHOD and row.model == model
    }
    left = [(name, None) for name in names if name not in done]
    return list(left), len(names) - len(left)


def _scored(row: Row, model: str, request: Request) -> bool:
    there = {score["scorer"] for score in row.scores if score["model"] == model}
    return there.issuperset(request.scores)


def _estimate(
    database: Database,
    todo: Sequence[tuple[str, _Given | None]],
    answers: Answers,
    request: Request,
) -> str:
    """What it will take, from the prompts of a few features."""
    step = max(1, len(todo) // _SAMPLED)
    shown = [
        found
        for name, _ in list(todo[::step])[:_SAMPLED]
        for found in [evidence(database, name, request.seed, scored=bool(request.scores))]
        if found is not None
    ]
    costs = [_cost(each, request) for each in shown] or [(0.0, 0.0, 0.0)]
    requests, sent, answered = (
        sum(part) / len(costs) * len(todo) for part in zip(*costs, strict=True)
    )
    text = (
        f"{len(todo):,} features, about {requests:,.0f} requests to {answers.endpoint.model}, "
        f"{sent:,.0f} tokens in and {answered:,.0f} out"
    )
    if request.price is not None:
        money = (sent * request.price[0] + answered * request.price[1]) / 1e6
        text += f", {money:,.2f} at {request.price[0]:g} and {request.price[1]:g} per million"
    return text


def _cost(shown: Evidence, request: Request) -> tuple[float, float, float]:
    """Requests, tokens in and tokens out of one feature."""
    requests = sent = answered = 0.0
    if not request.existing:
        message = "".join(part["content"] for part in prompts.explanation(shown))
        requests, sent, answered = 1, len(message) / _CHARACTERS, _ANSWERED["label"]
    tested = [*shown.test, *shown.negatives]
    head = "".join(part["content"] for part in prompts.detection("x" * 80, []))
    passage = sum(len(example.text) + 14 for example in tested) / max(1, len(tested))
    for scorer in request.scores:
        if scorer == "embedding":
            requests, sent = requests + 1, sent + len(tested) * passage / _CHARACTERS
            continue
        batches = -(-len(tested) // SHOWN)
        asks = min(INTRUSIONS, len(shown.negatives)) if scorer == "intruder" else batches
        requests += asks
        sent += asks * (len(head) + SHOWN * passage) / _CHARACTERS
        answered += asks * _ANSWERED["number" if scorer == "intruder" else "choices"]
    return requests, sent, answered
