"""Every question is complete: a method, an answer that can be shown, a verb, its macros."""

from __future__ import annotations

import importlib
import inspect
import typing
from pathlib import Path

import click
import numpy as np
import pytest

import featuredb
import queries
from featuredb.cli.root import main
from featuredb.database import Database
from featuredb.render.view import Shown, View
from queries.answers import Answer, FeatureAnswer
from queries.fires_by_token import FiringByToken
from queries.question import Question
from queries.shaded_text import ShadedText
from tests.cli import answers
from tests.make_store import MadeSae, World, make_store

_EVERY = pytest.mark.parametrize("question", queries.QUESTIONS.values(), ids=queries.QUESTIONS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry") / "s.fdb"
    dense = np.array([[0, 0], [1, 0], [0, 2]], np.float32)
    rows = np.eye(2, 4, dtype=np.float32)
    world = World([[[0, 1, 2]]], {}, ["<s>", " a", " b"], [MadeSae("s", [dense], rows, rows)])
    make_store(path, world)
    return path


_ROOT = Path(queries.__file__).parent


def test_every_answer_class_belongs_to_a_question() -> None:
    asked = {question.answer for question in queries.QUESTIONS.values()}
    asked |= {FiringByToken, ShadedText}  # `Firing.by_token` and `Firing.shaded`
    found = set()
    for path in _ROOT.glob("*.py"):
        module = importlib.import_module(f"queries.{path.stem}")
        found |= {
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, Answer)
            and value not in (Answer, FeatureAnswer)
        }
    assert found <= asked


@_EVERY
def test_a_question_is_a_method_that_gives_its_answer(question: Question) -> None:
    hints = typing.get_type_hints(
        getattr(Database, question.method), {**vars(featuredb.database), **_answer_types()}
    )
    returned = hints["return"]
    assert question.answer in (returned, *typing.get_args(returned)) or question.method == "sql"


@_EVERY
def test_a_question_has_its_verb(question: Question) -> None:
    context = click.Context(main)
    assert question.verb is None or main.get_command(context, question.verb) is not None


@_EVERY
def test_a_question_has_its_macros_in_sql(question: Question, store: Path) -> None:
    with featuredb.open(store) as db:
        listed = db.sql("SELECT function_name FROM duckdb_functions() WHERE NOT internal")
        there = {name for (name,) in listed.fetchall()}
    assert {macro.name for macro in question.macros} <= there


@pytest.mark.parametrize("answer", answers.every_answer(), ids=lambda a: a.kind)
def test_an_answer_says_what_it_shows(answer: Shown) -> None:
    view = answer.view()
    assert isinstance(view, View)
    assert all(parts for parts in view)


def _answer_types() -> dict[str, object]:
    import duckdb

    types = {question.answer.__name__: question.answer for question in queries.QUESTIONS.values()}
    return {**types, "duckdb": duckdb}
