"""A database handle that answers from `tests.cli.answers` and records its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from tests.cli import answers


@dataclass
class FakeDatabase:
    """Replaces `featuredb.Database` in tests of the command line."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    error: BaseException | None = None
    location: Path = Path("fake.fdb")

    def __enter__(self) -> FakeDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _ask(self, answer: Callable[[], Any], *question: Any) -> Any:
        self.asked.append(question)
        if self.error is not None:
            raise self.error
        return answer()

    def info(self) -> Any:
        return self._ask(answers.info, "info")

    def top_contexts(self, feature: Any, **options: Any) -> Any:
        return self._ask(answers.top_contexts, "top", feature, options)

    def near(self, feature: Any, **options: Any) -> Any:
        return self._ask(answers.neighbors, "near", feature, options)

    def near_vector(self, vector: Any, **options: Any) -> Any:
        return self._ask(answers.neighbors, "near_vector", vector, options)

    def coactive(self, feature: Any, *given: Any, **options: Any) -> Any:
        return self._ask(answers.coactive, "coactive", feature, *given, options)

    def compare(self, *question: Any) -> Any:
        return self._ask(answers.comparison, "compare", *question)

    def coactive_pairs(self, unit: str, **options: Any) -> Any:
        return self._ask(answers.coactivation, "coactive_pairs", unit, options).table.to_reader()

    def coactivation(self, feature: Any, other: Any) -> Any:
        return self._ask(answers.coactivation, "coactivation", feature, other)

    def feature(self, feature: Any, k: int | None) -> Any:
        return self._ask(answers.feature_card, "feature", feature, k)

    def fires_on(self, text: str, k: int, *_: Any) -> Any:
        return self._ask(answers.firing, "fires_on", text, k)

    def encode_batches(self, texts: Any, pool: Any, k: Any) -> Any:
        yield self._ask(answers.encoded, "encode", list(texts), pool, k)

    def has_text(self, text: str) -> bool:
        return text == "stored\n"

    def fires_in(self, context_id: int, k: int, *_: Any) -> Any:
        return self._ask(answers.firing, "fires_in", context_id, k)

    def search(self, query: str, k: int, by: str | None = None, **_: Any) -> Any:
        return self._ask(answers.search_hits, "search", query, k)

    def sql(self, query: str) -> Any:
        return self._ask(lambda: duckdb.sql(query), "sql", query)
