"""Explain features and score labels, feature by feature, in parallel and resumable."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import pyarrow as pa

from featuredb.autointerp import prompts
from featuredb.autointerp.examples import Evidence, evidence
from featuredb.autointerp.scores import INTRUSIONS, SCORERS, SHOWN, Answers, Score
from featuredb.database import Database
from featuredb.errors import DatabaseLockedError, QueryError
from featuredb.labels.batch import LabelBatch
from featuredb.labels.write import add_labels
from featuredb.render.numbers import plural
from featuredb.render.progress import log, progress
from featuredb.store.names import parse_feature
from featuredb.store.outcomes import Explained
from ingest.operations.user_data import refuse_no_writing
from queries.answers import Row
from queries.arguments import check_seed, is_whole, one_or_several

METHOD = "explained"
"""That of labels written here."""

_AT_ONCE = 20
"""Labels per snapshot. A run that is killed loses no more."""

_BEFORE = 3.0
"""Seconds that another writer may go on for before the first request."""

_PATIENCE = 600.0
"""The same before answers, which are paid for, are given up."""

_GRACE = 3.0
"""Seconds that answers may still come in after Ctrl-C."""

_LONG_ANSWER = 120.0
"""The same after an error."""

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
        if not is_whole(self.parallel) or self.parallel < 1:
            raise QueryError(f"parallel must be a whole number, at least 1: not {self.parallel!r}")
        check_seed(self.seed)
        if self.price is not None and not _two_prices(self.price):
            raise QueryError(f"price must be two numbers, of tokens in and out: not {self.price!r}")


def _two_prices(price: object) -> bool:
    if not isinstance(price, tuple | list) or len(price) != 2:
        return False
    return all(isinstance(each, int | float) and 0 <= each < float("inf") for each in price)


class _Given(NamedTuple):
    """A label that there is. Its text, and what names it besides."""

    text: str
    method: str
    model: str | None
    author: str | None


class _Task(NamedTuple):
    """A feature that is left. label: one that there is. scorers: those that are wanted of it."""

    name: str
    label: _Given | None
    scorers: Sequence[str]


class _Done(NamedTuple):
    """What one feature got. error: what ended its scores."""

    name: str
    label: _Given | None
    scores: Sequence[Score]
    skipped: bool = False
    error: QueryError | None = None


@dataclass
class _Run:
    """The features of one call, and what became of them. begun: labels whose scores are asked."""

    database: Database
    path: Path
    request: Request
    answers: Answers
    waiting: list[_Done] = field(default_factory=list)
    begun: dict[str, _Done] = field(default_factory=dict)
    labels: int = 0
    scores: int = 0
    malformed_labels: int = 0
    too_few: int = 0

    def one(self, task: _Task) -> _Done:
        """Explain a feature and score its label. Called in threads."""
        name, label, scorers = task
        shown = evidence(self.database, name, self.request.seed, scored=bool(self.request.scores))
        if shown is None:
            return _Done(name, None, (), skipped=True)
        endpoint = self.answers.endpoint
        if label is None:
            text = prompts.read_label(endpoint.ask(prompts.explanation(shown)))
            if text is None:
                return _Done(name, None, ())
            label = _Given(text, METHOD, endpoint.model, None)
        scores: list[Score] = []
        done = self.begun[name] = _Done(name, label, scores)
        try:
            for scorer in scorers if shown.test and shown.negatives else ():
                draws = self._draws(name, scorer)
                scores += SCORERS[scorer](label.text, shown, self.answers, draws)
        except QueryError as error:  # the label is paid for
            return done._replace(error=error)
        return done

    def _draws(self, name: str, scorer: str) -> random.Random:
        """Draws that do not depend on the order in which threads finish."""
        return random.Random(f"{self.request.seed} {name} {scorer}")

    def take(self, done: _Done | Exception) -> None:
        """Keep what a feature got. Raises what ended it."""
        if isinstance(done, Exception):
            raise done
        if done.skipped:
            self.too_few += 1
        elif done.label is None:
            self.malformed_labels += 1
        else:
            self.waiting.append(done)
        if done.error is not None:
            raise done.error

    def write(self) -> None:
        """Publish what is kept. Raises `DatabaseLockedError` if another writer does not end."""
        end = time.monotonic() + _PATIENCE
        while self.waiting:
            try:
                # Ctrl-C ends the wait for a thread, not the thread, which is waited for then.
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(self._publish).result()
            except DatabaseLockedError:
                if time.monotonic() >= end:
                    raise
                waiting = plural(len(self.waiting), "label")
                log.warning(f"{self.path} is being written by another: {waiting} wait for it")

    def _publish(self) -> None:
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
    features: int | str | Iterable[int | str] | None,
    answers: Answers,
    request: Request,
) -> Explained:
    """See `featuredb.explain`."""
    refuse_no_writing(path, "explain", None if request.dry_run else _BEFORE)
    todo, already = _todo(database, features, answers.endpoint.model, request)
    if log.isEnabledFor(logging.INFO):  # an estimate asks several questions
        log.info(_estimate(database, todo, answers, request))
    run = _Run(database, path, request, answers)
    try:
        try:
            if not request.dry_run:
                _ask_all(run, todo)
        finally:
            # What was paid for is kept, whatever ends the run.
            run.write()
    except KeyboardInterrupt:
        kept = f"{plural(run.labels, 'label')} and {plural(run.scores, 'score')}"
        raise KeyboardInterrupt(
            f"interrupted: {kept} are stored, repeat the command to continue"
        ) from None
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


def _ask_all(run: _Run, todo: Sequence[_Task]) -> None:
    left: SimpleQueue[_Task] = SimpleQueue()
    done: SimpleQueue[_Done | Exception] = SimpleQueue()
    for task in todo:
        left.put(task)
    stopped = run.answers.endpoint.stopped

    def work() -> None:
        while not stopped.is_set():
            try:
                task = left.get_nowait()
            except Empty:
                return
            try:
                done.put(run.one(task))
            except Exception as error:
                done.put(error)
            run.begun.pop(task.name, None)

    # Daemons: a process does not wait for a server that does not answer.
    workers = [
        Thread(target=work, name="explain", daemon=True) for _ in range(run.request.parallel)
    ]
    patience = _LONG_ANSWER
    with progress("explaining", "features") as bar:
        bar.start("explaining", len(todo), 0)
        try:
            for worker in workers:
                worker.start()
            for _ in todo:
                run.take(done.get())
                bar.advance(1)
                if len(run.waiting) >= _AT_ONCE:
                    run.write()
        except KeyboardInterrupt:
            patience = _GRACE
            raise
        finally:
            stopped.set()
            try:
                _join(workers, patience)
            finally:
                # First these: one that ends now is among the others by then.
                run.waiting += list(run.begun.values())
                while not done.empty():
                    with suppress(Exception):  # the first one is told
                        run.take(done.get())


def _join(workers: Sequence[Thread], seconds: float) -> None:
    """Wait for those that run, so long in all."""
    end = time.monotonic() + seconds
    for worker in workers:
        if worker.ident is not None:
            worker.join(max(0.0, end - time.monotonic()))


def _todo(
    database: Database,
    features: int | str | Iterable[int | str] | None,
    model: str,
    request: Request,
) -> tuple[list[_Task], int]:
    """The features that are left, and how many are done."""
    names = _names(database, features)
    labels: dict[str, Row] = {}
    for row in database.labels():
        own = row.method == METHOD and row.model == model
        if row.preferred if request.existing else own:
            labels.setdefault(f"{row.sae}/{row.feature_id}", row)
    if request.existing:
        names = [name for name in names if name in labels]
    todo = []
    for name in names:
        there = labels.get(name)
        if there is None:
            todo.append(_Task(name, None, request.scores))
        elif lacking := _lacking(there, model, request):
            label = _Given(there.text, there.method, there.model, there.author)
            todo.append(_Task(name, label, lacking))
    return todo, len(names) - len(todo)


def _names(database: Database, features: Any) -> list[str]:
    """Each feature once, by name. None: all that fire."""
    if features is None:
        rows = database.sql(
            "SELECT concat(sae, '/', feature_id) FROM features JOIN saes USING (sae) "
            "WHERE count > 0 ORDER BY sae_index, feature_id"
        ).fetchall()
        return [str(name) for (name,) in rows]
    parsed = [parse_feature(database.snapshot, feature) for feature in one_or_several(features)]
    return list(dict.fromkeys(f"{sae.name}/{number}" for sae, number in parsed))


def _lacking(row: Row, model: str, request: Request) -> list[str]:
    there = {score["scorer"] for score in row.scores if score["model"] == model}
    return [scorer for scorer in request.scores if scorer not in there]


def _estimate(
    database: Database,
    todo: Sequence[_Task],
    answers: Answers,
    request: Request,
) -> str:
    """What it will take, from the prompts of a few features."""
    step = max(1, len(todo) // _SAMPLED)
    costs = [
        _cost(found, task)
        for task in todo[::step][:_SAMPLED]
        for found in [evidence(database, task.name, request.seed, scored=bool(request.scores))]
        if found is not None
    ] or [(0.0, 0.0, 0.0)]
    requests, sent, answered = (
        sum(part) / len(costs) * len(todo) for part in zip(*costs, strict=True)
    )
    text = (
        f"{plural(len(todo), 'feature')}, about {plural(round(requests), 'request')} to "
        f"{answers.endpoint.model}, {sent:,.0f} tokens in and {answered:,.0f} out"
    )
    if request.price is not None:
        money = (sent * request.price[0] + answered * request.price[1]) / 1e6
        text += f", {money:,.2f} at {request.price[0]:g} and {request.price[1]:g} per million"
    return text


def _cost(shown: Evidence, task: _Task) -> tuple[float, float, float]:
    """Requests, tokens in and tokens out of one feature."""
    requests = sent = answered = 0.0
    if task.label is None:
        message = "".join(part["content"] for part in prompts.explanation(shown))
        requests, sent, answered = 1, len(message) / _CHARACTERS, _ANSWERED["label"]
    tested = [*shown.test, *shown.negatives]
    head = "".join(part["content"] for part in prompts.detection("x" * 80, []))
    passage = sum(len(example.text) + 14 for example in tested) / max(1, len(tested))
    for scorer in task.scorers:
        if scorer == "embedding":
            requests, sent = requests + 1, sent + len(tested) * passage / _CHARACTERS
            continue
        batches = -(-len(tested) // SHOWN)
        asks = min(INTRUSIONS, len(shown.negatives)) if scorer == "intruder" else batches
        requests += asks
        sent += asks * (len(head) + SHOWN * passage) / _CHARACTERS
        answered += asks * _ANSWERED["number" if scorer == "intruder" else "choices"]
    return requests, sent, answered
