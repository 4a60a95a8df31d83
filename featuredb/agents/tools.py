"""Each question as a tool: its name, what it answers, and its arguments with their types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

import queries
from featuredb.database import Database
from featuredb.errors import QueryError
from featuredb.explorer.console import Console
from featuredb.render.view import Shown

_TYPES = {
    "Any": str | list[int] | list[str] | None,
    "Feature": int | str,
    "Iterable": list,
    "Literal": Literal,
    "Sequence": list,
    "_Pool": Literal["max", "sum", "mean"],
    "_Texts": list[str] | dict[str, str],
}
"""What annotations of `Database` mean in JSON."""

_MORE = ("fires_in", "near_token")
"""Methods that ask a question in another way."""

_NOT_FOR_AGENTS = {"encoder"}
"""Arguments that name files, or what is fetched."""

_ARGUMENT = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


@dataclass(frozen=True)
class QuestionTool:
    """A question that an agent may ask. ask: called with the arguments by name."""

    name: str
    about: str
    arguments: type[BaseModel]
    ask: Callable[..., Shown]

    def answer(self, given: Mapping[str, Any]) -> Shown:
        """The answer. Raises `QueryError` for an argument that is wrong, `FeatureDBError`."""
        try:
            checked = self.arguments.model_validate(dict(given), strict=True)
        except ValidationError as error:
            raise QueryError(self._wrong(error)) from None
        arguments = {name: getattr(checked, name) for name in checked.model_fields_set}
        for name, value in arguments.items():
            if isinstance(value, str) and name in ("a", "b") and value.startswith("@"):
                raise QueryError(f"{name}: no files are read here, give the texts as a list")
        return self.ask(**arguments)

    def _wrong(self, error: ValidationError) -> str:
        """The first thing that is wrong, and what may be given instead."""
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        known = ", ".join(self.arguments.model_fields) or "none"
        match first["type"]:
            case "missing":
                return f"{self.name} needs the argument {name}"
            case "extra_forbidden":
                return f"{self.name} has no argument {name!r}: it has {known}"
        reasons = {e["msg"] for e in error.errors(include_url=False) if e["loc"][0] == name}
        return f"{name}: {' or '.join(sorted(reasons))}"


def question_tools(database: Database, console: Console) -> dict[str, QuestionTool]:
    """A tool for each method that answers a question, by name. SQL goes to the console."""
    methods = sorted({question.method for question in queries.QUESTIONS.values()}.union(_MORE))
    tools = {name: _tool(name, getattr(database, name)) for name in methods if name != "sql"}
    query = create_model(
        "sql",
        __config__=ConfigDict(extra="forbid"),
        query=(str, Field(description="One statement that only reads. `schema` lists the views.")),
    )
    about = "Any SQL (of DuckDB) over the database's views and macros."
    tools["sql"] = QuestionTool("sql", about, query, console.ask)
    return tools


def _tool(name: str, method: Callable[..., Shown]) -> QuestionTool:
    about, described = _parts(inspect.getdoc(method) or name)
    fields: dict[str, Any] = {
        parameter.name: (
            eval(parameter.annotation, {}, _TYPES),
            Field(
                ... if parameter.default is parameter.empty else parameter.default,
                description=described.get(parameter.name),
            ),
        )
        for parameter in inspect.signature(method).parameters.values()
        if parameter.name not in _NOT_FOR_AGENTS
    }
    arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    return QuestionTool(name, about, arguments, method)


def _parts(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring without its arguments and errors, and what it says of each argument."""
    sections = re.split(r"^(Args|Returns|Raises):\n", doc, flags=re.MULTILINE)
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    about = " ".join((sections[0] + named.get("Returns", "")).split())
    return about, dict(_arguments(named.get("Args", "")))


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    pieces = _ARGUMENT.split(text)
    for name, said in zip(pieces[1::2], pieces[2::2], strict=True):
        yield name, " ".join(said.split())
