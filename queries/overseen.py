"""Questions whose statements are stopped when they take too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

from featuredb.errors import SQLError

if TYPE_CHECKING:
    import duckdb

_PAUSE = 0.1
"""Seconds between two looks. A statement may begin after one, and is stopped by the next."""


class _Question:
    """The connections that one question was given, and since when."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stopped = False
        self._connections: list[tuple[duckdb.DuckDBPyConnection, float]] = []

    def add(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connections.append((connection, time.monotonic()))

    def stop(self, *, late: bool) -> None:
        """Interrupt what runs, or only what is late."""
        import duckdb

        for connection, since in tuple(self._connections):
            if not late or time.monotonic() - since > self.seconds:
                self.stopped = True
                with suppress(duckdb.Error):  # it was closed
                    connection.interrupt()


_ASKED: ContextVar[_Question | None] = ContextVar("question", default=None)


def oversee(connection: duckdb.DuckDBPyConnection) -> None:
    """Stop what this connection runs once the question that is being asked takes too long."""
    question = _ASKED.get()
    if question is not None:
        question.add(connection)


class Overseer:
    """Stops statements of questions that take too long, and all of them when it is told to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._questions: set[_Question] = set()
        self._looking = self._ending = False

    @contextmanager
    def limit(self, seconds: float, advice: str) -> Iterator[None]:
        """Give each statement of the question that is asked here, in this thread, so long.

        Time that no statement takes, such as a model's, is not counted. advice: what to do about
        it. Raises `SQLError` where one was stopped.
        """
        question = _Question(seconds)
        self._begin(question)
        before = _ASKED.set(question)
        try:
            yield
        except Exception as error:
            if not (question.stopped and "interrupt" in str(error).lower()):
                raise
            if self._ending:
                raise SQLError("stopped: the server ends") from None
            raise SQLError(f"stopped after {seconds:g} seconds: {advice}") from None
        finally:
            _ASKED.reset(before)
            with self._lock:
                self._questions.discard(question)

    def stop(self) -> None:
        """Stop every statement that runs, and those that begin from now on."""
        self._ending = True

    def _begin(self, question: _Question) -> None:
        with self._lock:
            self._questions.add(question)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="overseer", daemon=True).start()

    def _look(self) -> None:
        while True:
            with self._lock:
                questions = tuple(self._questions)
                if not questions:
                    self._looking = False
                    return
            for question in questions:
                question.stop(late=not self._ending)
            time.sleep(_PAUSE)
