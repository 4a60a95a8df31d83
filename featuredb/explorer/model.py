"""The database's model, loaded once, in the background."""

from __future__ import annotations

import threading
import time
from typing import Any

from featuredb.database import Database
from featuredb.errors import FeatureDBError

_AGAIN = 5.0
"""Seconds after a failure before another try."""


class ModelLoader:
    """Loads the model when it is first needed. New texts wait for it, pages do not."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._began: float | None = None
        self._ready = False
        self._failure: FeatureDBError | None = None
        self._failed = 0.0

    def ready(self) -> bool:
        """Whether new texts are answered at once. Begins to load where they are not.

        Raises why the model could not be loaded, and tries again some seconds later.
        """
        with self._lock:
            if self._failure is not None and time.monotonic() - self._failed < _AGAIN:
                raise self._failure
            if self._began is None or self._failure is not None:
                self._began, self._failure = time.monotonic(), None
                threading.Thread(target=self._load, name="model", daemon=True).start()
            return self._ready

    def status(self) -> dict[str, Any]:
        """For a page that waits: its state, and for how many seconds it has been loading."""
        waited = 0.0 if self._began is None else time.monotonic() - self._began
        if self._failure is not None:
            return {"state": "failed", "reason": str(self._failure)}
        state = "ready" if self._ready else "loading" if self._began is not None else "absent"
        return {"state": state, "seconds": round(waited, 1)}

    def _load(self) -> None:
        try:
            # Whatever a text is, it loads the model and the SAEs.
            self._database.encode(["\u2060"])
        except FeatureDBError as error:
            self._failure, self._failed = error, time.monotonic()
        else:
            self._ready = True
