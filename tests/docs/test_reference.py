"""docs/reference.md has every public name of `featuredb`, and every class that one returns."""

from __future__ import annotations

import importlib
import inspect
import re
from types import ModuleType

import featuredb
from featuredb import api
from featuredb.database import Database
from tests.docs.pages import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "AbstractContextManager",
    "Any",
    "DuckDBPyRelation",
    "Iterator",
    "NDArray",
    "None",
    "Path",
    "RecordBatchReader",
    "RemoteFiles",
}
"""Classes of other libraries, and that of a remote database's location."""


def _documented() -> dict[str, object]:
    """The objects that the page describes, by name: modules give their listed members."""
    objects: dict[str, object] = {}
    for path, options in re.findall(r"^::: (\S+)\n((?: .*\n)*)", REFERENCE + "\n", re.MULTILINE):
        described = _resolve(path)
        members = re.search(r"members: \[(.*)\]", options)
        if not isinstance(described, ModuleType):
            objects[path.rpartition(".")[2]] = described
        elif members is not None:
            objects |= {name: getattr(described, name) for name in members[1].split(", ")}
        else:
            classes = inspect.getmembers(described, inspect.isclass)
            objects |= {name: c for name, c in classes if c.__module__ == path}
    return objects


def _resolve(path: str) -> object:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_every_public_name_is_on_the_page() -> None:
    documented = _documented()
    public = {name: getattr(featuredb, name) for name in featuredb.__all__ if name[0] != "_"}
    assert {name: documented.get(name) for name in public} == public


def test_every_class_that_a_public_function_returns_is_on_the_page() -> None:
    functions = [
        getattr(api, name) for name in featuredb.__all__ if name.islower() and name[0] != "_"
    ]
    for name, member in vars(Database).items():
        if not name.startswith("_"):
            functions.append(member.fget if isinstance(member, property) else member)
    returned = {
        name
        for function in functions
        for name in re.findall(r"\b[A-Z]\w+", str(inspect.signature(function).return_annotation))
    }
    assert "LoadedSae" in returned
    assert returned - ELSEWHERE <= set(_documented())
