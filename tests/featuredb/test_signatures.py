"""The functions, `IngestOptions` and the command line have the same options and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import click
import pytest

import featuredb
from featuredb.cli import main
from featuredb.cli.root import commands
from ingest.options import ENGINES, IngestOptions

_REQUIRED = inspect.Parameter.empty


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments and defaults, without the database's path or handle."""
    parameters = inspect.signature(function).parameters
    return {n: p.default for n, p in parameters.items() if n not in ("self", "path")}


_INGEST = {f.name: _REQUIRED if f.default is MISSING else f.default for f in fields(IngestOptions)}


@pytest.mark.parametrize("function", [featuredb.ingest, featuredb.plan])
def test_all_options_of_an_ingest(function: Callable[..., Any]) -> None:
    assert list(_defaults(function).items()) == list(_INGEST.items())


@pytest.mark.parametrize(
    ("function", "other"),
    [
        (
            featuredb.append,
            {"corpus": _REQUIRED, "model": None, "saes": None, "skip_stored": False},
        ),
        (featuredb.add_saes, {"saes": _REQUIRED, "names": None, "model": None}),
    ],
)
def test_some_options_of_an_ingest(function: Callable[..., Any], other: dict[str, Any]) -> None:
    defaults = _defaults(function)
    assert {name: defaults.pop(name) for name in other} == other
    assert defaults.items() <= _INGEST.items()


def test_no_function_takes_arbitrary_options() -> None:
    for name in featuredb.__all__:
        value = getattr(featuredb, name)
        if inspect.isfunction(value):
            kinds = {p.kind for p in inspect.signature(value).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name
            assert inspect.getdoc(value), name


# What each command calls, a call of it, and its options that are no argument of that function.
_Database = featuredb.Database
_CALLS: dict[str, tuple[Any, str, set[str]]] = {
    "demo": (featuredb.demo, "", {"path"}),
    "ingest": (featuredb.ingest, "db --corpus c --model m --sae s", {"db"}),
    "plan": (featuredb.plan, "db --corpus c --model m --sae s", {"db", "form"}),
    "append": (featuredb.append, "db --corpus c", {"db"}),
    "add-sae": (featuredb.add_saes, "db --sae s", {"db"}),
    "drop": (featuredb.drop, "db", {"db"}),
    "info": (_Database.info, "db", {"db"}),
    "top": (_Database.top_contexts, "db 1", {"db"}),
    "sample": (_Database.sample_contexts, "db 1", {"db"}),
    "silent": (_Database.silent_contexts, "db 1", {"db"}),
    "find": (_Database.find, "db", {"db"}),
    "feature": (_Database.feature, "db 1", {"db"}),
    "near": (_Database.near, "db 1", {"db", "vector", "token", "matrix", "model"}),
    "document": (_Database.document, "db", {"db"}),
    "families": (_Database.families, "db", {"db"}),
    "coactive": (_Database.coactive, "db 1", {"db", "other", "everything", "memory"}),
    "fires": (
        _Database.fires_on,
        "db text",
        {
            "db",
            "context",
            "file",
            "text_column",
            "id_column",
            "pool",
            "per_token",
            "token",
            "feature",
            "model",
        },
    ),
    "about": (_Database.about, "db phrase", {"db"}),
    "steer": (
        _Database.steer,
        "db prompt --set 1=2",
        {"db", "file", "chat", "model", "export", "sweep", "plot"}
        | {"encoder", "judge", "judge_model"},
    ),
    "contrast": (_Database.contrast, "db", {"db", "model", "monitor"}),
    "compare": (_Database.compare, "db 1 2", {"db"}),
    "search": (_Database.search, "db query", {"db"}),
    "sql": (_Database.sql, "db query", {"db", "k", "memory", "model"}),
    "label": (_Database.label, "db 1 text", {"db", "form", "path", "prefer", "remove", "votes"}),
    "labels list": (_Database.labels, "db", {"db", "form", "path", "snapshot"}),
    "labels import": (featuredb.import_labels, "db file", {"db"}),
    "labels make": (featuredb.make_labels, "db", {"db"}),
    "labels export": (featuredb.export_labels, "db file", {"db"}),
    "measure": (featuredb.measure, "db", {"db", "form", "path", "place"}),
    "effect": (_Database.effect, "db 1", {"db", "form", "path", "model"}),
    "attribute": (
        _Database.attribute,
        "db text --token t",
        {"db", "snapshot", "form", "path", "model"},
    ),
    "ablate": (
        _Database.ablate,
        "db 1 --target f",
        {"db", "snapshot", "form", "path", "model", "query", "about"},
    ),
    "monitor add": (featuredb.add_monitor, "db n f1", {"db", "form", "path"}),
    "monitor list": (vars(_Database)["monitors"].fget, "db", {"db", "snapshot", "form", "path"}),
    "monitor show": (_Database.monitor, "db n", {"db", "snapshot", "form", "path"}),
    "monitor enable": (featuredb.set_monitor, "db n", {"db", "form", "path"}),
    "monitor disable": (featuredb.set_monitor, "db n", {"db", "form", "path"}),
    "monitor remove": (featuredb.set_monitor, "db n", {"db", "form", "path"}),
    "monitor replay": (_Database.replay, "db f1", {"db", "snapshot", "form", "path"}),
    "monitor calibrate": (_Database.calibrate, "db f1", {"db", "snapshot", "form", "path"}),
    "monitor run": (
        _Database.watch_batches,
        "db file",
        {"db", "snapshot", "form", "path", "model", "text_column", "id_column", "jsonl"}
        | {"skip_broken", "fail"},
    ),
    "snapshots": (featuredb.snapshots, "db", {"db"}),
    "compact": (featuredb.compact, "db", {"db"}),
    "vacuum": (featuredb.vacuum, "db", {"db"}),
    "verify": (featuredb.verify, "db", {"db"}),
    "serve": (featuredb.serve, "db", {"db"}),
    "import": (
        featuredb.import_activations,
        "db s --from csv",
        {"db"},
    ),
    "export": (featuredb.export_activations, "db out --to csv", {"db"}),
    "explain": (featuredb.explain, "db --endpoint http://x --model-name m", {"db", "no_scores"}),
    "mcp": (featuredb.mcp, "db", {"db"}),
    "site": (featuredb.site, "db out", {"db"}),
    "card": (featuredb.card, "db 1", {"db", "output"}),
    "push": (featuredb.push, "db url", {"db"}),
    "pull": (featuredb.pull, "url db", {"db"}),
}
_QUERIES = {
    "about",
    "info",
    "top",
    "sample",
    "silent",
    "find",
    "feature",
    "near",
    "document",
    "families",
    "coactive",
    "compare",
    "contrast",
    "fires",
    "search",
    "sql",
    "steer",
}
_ONLY_PYTHON = {"progress", "stream", "watch", "report", "storage_options", "params", "tables"}
_ONLY_PYTHON |= {"state", "texts", "first"}


# `completion` is of the command line alone.
@pytest.mark.parametrize("verb", [verb for verb, _ in commands() if verb != "completion"])
def test_commands_have_the_arguments_of_their_function(verb: str) -> None:
    function, call, other = _CALLS[verb]
    if verb in _QUERIES:
        other = other | {"snapshot", "form", "path"}
    if verb == "snapshots":
        other = other | {"form", "path"}
    command = dict(commands())[verb]
    given = command.make_context(verb, call.split()).params
    defaults = _defaults(function)
    given |= {"name": None} if verb == "monitor run" else {}  # several names, before the file
    other = other | ({"names"} if verb == "monitor run" else set())
    assert {name for name in given if name not in other} == defaults.keys() - _ONLY_PYTHON
    for name, default in defaults.items():
        other_default = (verb, name) in {("verify", "source"), ("fires", "k")}
        if default is not _REQUIRED and name in given and not other_default:
            assert given[name] == default, name


def test_the_demo_is_made_where_its_function_says() -> None:
    command = main.get_command(click.Context(main), "demo")
    assert command is not None
    path = inspect.signature(featuredb.demo).parameters["path"].default
    assert command.make_context("demo", []).params["path"] == path


def test_choices_of_the_engine() -> None:
    command = main.get_command(click.Context(main), "ingest")
    assert command is not None
    (engine,) = (p for p in command.params if p.name == "engine")
    assert isinstance(engine.type, click.Choice)
    assert tuple(engine.type.choices) == ENGINES


def test_choices_of_near() -> None:
    command = main.get_command(click.Context(main), "near")
    assert command is not None
    (by,) = (p for p in command.params if p.name == "by")
    assert isinstance(by.type, click.Choice)
    assert tuple(by.type.choices) == ("decoder", "encoder", "coactivation")
