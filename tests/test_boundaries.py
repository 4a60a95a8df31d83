"""Layers: the import linter's contracts, and the modules a process has loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import featuredb
from featuredb import errors
from featuredb.errors import DatabaseNotFoundError

_ROOT = Path(featuredb.__file__).parent
_HEAVY = {"torch", "transformers", "lancedb", "faiss", "safetensors", "datasets"}


def _loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in ran.stdout.split()}


def test_importing_featuredb_loads_nothing_heavy() -> None:
    loaded = _loaded_after("import featuredb")
    assert not loaded & (_HEAVY | {"pyarrow", "duckdb", "numpy", "rich", "click"})


def test_the_handle_and_the_queries_load_nothing_heavy() -> None:
    loaded = _loaded_after("import featuredb\nfeaturedb.open\nimport queries.top_contexts")
    assert not loaded & _HEAVY


def test_edits_need_no_torch() -> None:
    loaded = _loaded_after("import featuredb\nfeaturedb.Edit(1, 'set', 10, 'maximum')")
    assert not loaded & _HEAVY


def test_public_names_are_the_namespace() -> None:
    assert sorted(featuredb.__all__) == dir(featuredb)
    for name in featuredb.__all__:
        assert getattr(featuredb, name) is not None


def test_public_names_stay_what_they_are_once_used(tmp_path: Path) -> None:
    """A submodule of the same name would replace a function of the package."""
    for _ in range(2):
        with pytest.raises(DatabaseNotFoundError):
            featuredb.verify(tmp_path / "absent")
        with pytest.raises(DatabaseNotFoundError):
            featuredb.compact(tmp_path / "absent")


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(featuredb, "no_such_name")


def test_the_error_tree_of_the_docstring_is_the_real_one() -> None:
    real = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.FeatureDBError)
    }
    assert _drawn() == real


def _drawn() -> set[str]:
    words = (errors.__doc__ or "").split("::")[1].split("A message is")[0].split()
    return {word for word in words if word.endswith("Error")}


def test_contracts_of_the_import_linter() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run([linter], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def _imports(node: ast.AST) -> Iterator[tuple[str, bool]]:
    """The modules imported under a node, and whether they are imported by a string."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from ((alias.name, False) for alias in each.names)
        elif isinstance(each, ast.ImportFrom) and each.module:
            yield each.module, False
        elif isinstance(each, ast.Call) and ast.unparse(each.func).endswith("import_module"):
            yield ast.unparse(each.args[0]), True


def _typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_only_the_front_door_imports_ingest() -> None:
    """`api` and `database`, inside functions, and five rooms, which only they import."""
    importers: dict[str, set[bool]] = {}
    for path in _ROOT.rglob("*.py"):
        rooms = ("steering", "labels", "monitors", "interchange", "autointerp")
        if path.relative_to(_ROOT).parts[0] in rooms:
            continue
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [] if _typing_only(statement) else [name for name, _ in _imports(statement)]
            if any(name.split(".")[0] == "ingest" for name in modules):
                inside = isinstance(statement, ast.FunctionDef | ast.ClassDef)
                importers.setdefault(path.relative_to(_ROOT).as_posix(), set()).add(inside)
    assert importers == {"api.py": {True}, "database.py": {True}}


def test_no_import_by_a_string_but_of_a_verb() -> None:
    """They would hide an arrow from the import linter."""
    by_string = {
        path.relative_to(_ROOT).as_posix(): name
        for path in _ROOT.rglob("*.py")
        for name, string in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if string
    }
    assert by_string.keys() == {"cli/root.py"}
