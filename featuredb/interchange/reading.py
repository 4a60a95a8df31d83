"""What a source does not say itself."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from featuredb.errors import OptionError
from featuredb.store.files.scratch import spill_folder
from ingest.operations.import_activations import MOST_FEATURES
from queries.connection import NO_EXTENSIONS


@dataclass(frozen=True)
class Reading:
    """How a source is read: what it does not say itself. Raises `OptionError`.

    name: of the SAE. hook, model: where and on what it ran, empty if unknown. features: how many
    the SAE has, None for as many as the source shows. tokenizer: a folder or a hub name, for
    sources with token ids only. memory: limit in bytes of what a source holds, None for DuckDB's.
    """

    name: str | None = None
    hook: str = ""
    model: str = ""
    features: int | None = None
    tokenizer: str | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.features is not None and not 1 <= self.features <= MOST_FEATURES:
            raise OptionError(
                f"features must be from 1 to {MOST_FEATURES:,}, not {self.features:,}"
            )

    def scratch(self) -> duckdb.DuckDBPyConnection:
        """A database in memory, which spills to disk beyond the limit and fetches no extension."""
        connection = duckdb.connect(config=NO_EXTENSIONS)
        connection.execute("SET temp_directory = ?", [str(spill_folder() or "")])
        if self.memory is not None:
            connection.execute(f"SET memory_limit = '{self.memory} bytes'")
        return connection
