"""The questions that a database answers: one file each, with its answer, its Python and its SQL.

`QUESTIONS` holds every `Question` by name. A module of this package that defines ``QUESTION`` is
one. The catalog, the tests of the docs and of the CLI, and the explorer iterate over it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from queries.question import Question

    QUESTIONS: Mapping[str, Question]


def __getattr__(name: str) -> Any:
    """Import the questions on first use: a lookup needs one of them, and starts fast."""
    if name == "QUESTIONS":
        return _questions()
    raise AttributeError(f"module 'queries' has no attribute {name!r}")


@cache
def _questions() -> dict[str, Question]:
    questions = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg):
        question = getattr(importlib.import_module(f"queries.{module}"), "QUESTION", None)
        if question is not None:
            questions[module] = question
    return questions
