"""A run of monitors over a file, from the command line: streamed, counted, and resumed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featuredb.errors import QueryError, StorageError
from featuredb.monitors.new_alarms import SCHEMA, NewAlarms, alarm_line
from featuredb.render import numbers
from featuredb.render.characters import neutralize
from featuredb.render.formats import to_bytes
from featuredb.render.progress import log
from featuredb.store.files.atomic import write_atomically
from queries.rules.stored import listed
from queries.text_files import Columns

if TYPE_CHECKING:
    from featuredb.database import Database
    from featuredb.monitors.readers import BrokenRecords
    from featuredb.monitors.watching import NewText


class Destination(Protocol):
    """Where alarms are written: `featuredb.cli.output.Output`."""

    @property
    def form(self) -> str: ...

    @property
    def path(self) -> str | None: ...

    def write_each(self, answers: Iterator[Any]) -> None: ...


class MonitorRun:
    """Monitors over the texts of a file.

    broken: why records were skipped. alarms, texts, tokens: counted so far, those of the run that
    was interrupted too.
    """

    def __init__(
        self,
        database: Database,
        names: Sequence[str] | None,
        path: str,
        *,
        text_column: str,
        id_column: str | None,
        jsonl: bool,
        skip_broken: bool,
        batch: int,
        window: int,
    ) -> None:
        database._steering("monitoring")
        from featuredb.monitors.readers import BrokenRecords

        self._database, self._names, self._path = database, names, path
        self._columns, self._jsonl = Columns(text_column, id_column), jsonl
        self._batch, self._window = batch, window
        self._broken: BrokenRecords = BrokenRecords(skip_broken)
        self.alarms = self.texts = self.tokens = 0

    @property
    def broken(self) -> list[str]:
        return self._broken.reasons

    @property
    def summary(self) -> str:
        """How much was read and found, in one line."""
        skipped = f", {numbers.plural(len(self.broken), 'record')} skipped" if self.broken else ""
        many = numbers.plural(self.alarms, "alarm") if self.alarms else "no alarm"
        read = f"{numbers.plural(self.texts, 'text')}, {numbers.plural(self.tokens, 'token')}"
        return f"{many} in {read}{skipped}"

    def write(self, output: Destination) -> None:
        """Write the alarms as they come. Raises as `Database.watch`, `StorageError`."""
        path = None if output.path is None else Path(output.path)
        if path is not None and self._path != "-" and _same_file(path, Path(self._path)):
            raise QueryError(f"{path} is the file that is read: write the alarms to another one")
        whole = path is not None and (path.is_file() or not path.exists())
        if output.form == "jsonl" and path is not None and whole and self._path != "-":
            self._resumed(path)
        elif output.form == "table" and output.path is None:
            for answer in self._answers():
                for row in answer:
                    print(neutralize(alarm_line(row)))
                sys.stdout.flush()
        else:
            output.write_each(self._answers())

    def _answers(self, first: int = 0) -> Iterator[NewAlarms]:
        """The alarms of each batch. first: texts that are passed over."""
        from featuredb.monitors.watching import watch

        store = self._database._reader.store
        monitors = listed(self._names, store)
        texts = islice(self._texts(), first, None)
        found = watch(
            store, monitors, texts, self._database._model, self._batch, self._window, first
        )
        empty = True
        for answer in found:
            self.alarms += len(answer)
            self.texts += answer.n_texts
            self.tokens += answer.n_tokens
            empty = False
            yield answer
        if empty:
            yield NewAlarms(SCHEMA.empty_table(), n_texts=0, n_tokens=0)

    def _texts(self) -> Iterator[NewText]:
        from featuredb.monitors.readers import read_new_texts

        return read_new_texts(self._path, self._broken, self._columns, json_lines=self._jsonl)

    def _resumed(self, path: Path) -> None:
        """Write JSON lines, and beside them how far the run is, until it is done.

        The lines that an interrupted run wrote after it last said so are written again.
        """
        progress = path.with_name(f"{path.name}.progress")
        same = self._identity()
        state = _progress(progress, same)
        if state and not (path.is_file() and path.stat().st_size >= state["bytes"]):
            log.info(f"{path} is not what the interrupted run wrote: starting over")
            state = None
        first = state["texts"] if state else 0
        if state:
            self.alarms, self.texts = state["alarms"], first
            self.tokens = state["tokens"]
            log.info(f"going on after {numbers.plural(first, 'text')}")
        answers = self._answers(first)
        read = next(answers)  # what is there stays where nothing can be read
        try:
            with open(path, "r+b" if state else "wb") as file:
                file.truncate(state["bytes"] if state else 0)
                file.seek(0, 2)
                for answer in chain([read], answers):
                    if len(answer):
                        file.write(to_bytes(answer, "jsonl"))
                    file.flush()
                    done = {"texts": self.texts, "alarms": self.alarms, "tokens": self.tokens}
                    written = json.dumps({"run": same, "bytes": file.tell(), **done})
                    write_atomically(progress, written.encode())
            progress.unlink(missing_ok=True)
        except KeyboardInterrupt:
            read_so_far = numbers.plural(self.texts, "text")
            raise KeyboardInterrupt(
                f"interrupted after {read_so_far}; run the same command again to continue"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _identity(self) -> str:
        """What makes two runs one: the file, the monitors' rules, and how it is read."""
        file = Path(self._path).expanduser()
        try:
            about = file.stat()
        except OSError as error:
            raise QueryError(f"{self._path} cannot be read: {error.strerror}") from None
        store = self._database._reader.store
        rules = [(m.name, m.rule.text) for m in listed(self._names, store)]
        parts = [str(file.absolute()), about.st_size, about.st_mtime_ns, rules]
        parts += [self._columns, self._jsonl, self._window]
        parts.append(store.snapshot.model.sha256)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _progress(path: Path, same: str) -> dict[str, int] | None:
    """How far an interrupted run came. Raises `QueryError` for another run's, or for no run's."""
    try:
        state = json.loads(path.read_bytes())
        run = str(state["run"])
        counts = {n: int(state[n]) for n in ("texts", "alarms", "tokens", "bytes")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise QueryError(f"{path} is no progress of a run: remove it") from None
    if run != same:
        raise QueryError(
            f"{path} is of a run over another file, or the file has changed, or of other monitors "
            "or options: run that again to its end, or remove it"
        )
    return counts


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other.expanduser())
    except OSError:
        return False
