"""The rooms keep apart: by the import linter's contracts, and by what a process has loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import featuredb
from featuredb import errors
from featuredb.errors import DatabaseNotFoundError

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


def test_public_names_are_the_namespace() -> None:
    assert sorted(featuredb.__all__) == dir(featuredb)
    for name in featuredb.__all__:
        assert getattr(featuredb, name) is not None


def test_public_names_stay_what_they_are_once_used(tmp_path: Path) -> None:
    """A submodule of the same name would take a function's place on the package."""
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
