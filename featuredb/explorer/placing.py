"""Places on the map, made when they are first wanted, in a process of its own: pages go on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from featuredb.database import Database
from featuredb.errors import QueryError
from featuredb.store.store import Store


class Placing:
    """`featuredb measure DB --map`, once at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._began = 0.0
        self._state: dict[str, Any] = {"state": "absent"}

    @property
    def possible(self) -> bool:
        """Whether the database is a folder here, of which the newest snapshot is shown."""
        location = self._database.location
        if not isinstance(location, Path):
            return False
        return Store.open(location).snapshot.number == self._database.snapshot.number

    def begin(self) -> None:
        """Begin, unless it has begun. Raises `QueryError` where it is not `possible`."""
        with self._lock:
            if self._state["state"] == "loading":
                return
            if not self.possible:
                raise QueryError("only the newest snapshot of a folder on this machine is written")
            command = [sys.executable, "-m", "featuredb.cli", "measure"]
            self._process = subprocess.Popen(
                [*command, str(self._database.location), "--map"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._began, self._state = time.monotonic(), {"state": "loading"}
            threading.Thread(target=self._wait, args=(self._process,), daemon=True).start()

    def status(self) -> dict[str, Any]:
        """For a page that waits: its state, for how many seconds it has run, why it failed."""
        return {**self._state, "seconds": round(time.monotonic() - self._began, 1)}

    def _wait(self, process: subprocess.Popen[str]) -> None:
        _, said = process.communicate()
        if process.returncode == 0:
            self._state = {"state": "ready"}
        else:
            lines = [line for line in said.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"it ended with {process.returncode}"
            self._state = {"state": "failed", "reason": reason.strip()}
