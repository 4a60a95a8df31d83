"""The wheel, built and installed: its content, and that it works."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from featuredb import __version__

_ROOT = Path(__file__).parents[1]
_ASK = """
import featuredb
assert all(getattr(featuredb, name) is not None for name in featuredb.__all__)
print(featuredb.__version__, featuredb.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    offline = ["--no-deps", "--no-index"]
    built = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*built, str(_ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run(
        [*pip, "install", *offline, "--target", str(target), str(wheel)],
        check=True,
        capture_output=True,
    )
    return target


def test_each_dependency_has_a_version_that_was_tested() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *itertools.chain(*extras)]
    names = {canonicalize_name(Requirement(each).name) for each in wanted}
    lines = (_ROOT / "constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}
    # The Makefile names torch; the SAELens of an environment is its owner's.
    assert names - tested == {"featuredb", "torch", "sae-lens"}


def test_top_level_names(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()}
    metadata = f"featuredb-{__version__}.dist-info"
    assert names == {"featuredb", "ingest", "queries", "bin", metadata}


def test_it_has_what_its_code_reads(installed: Path) -> None:
    """Every file that is in the three folders of the repository."""
    for room in ("featuredb", "ingest", "queries"):
        for path in (_ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (installed / path.relative_to(_ROOT)).is_file(), path
    assert (
        installed / "ingest" / "demo" / "sae" / "sae_weights.safetensors"
    ).stat().st_size > 10**7


def test_it_imports_from_there(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    ran = subprocess.run(
        [sys.executable, "-c", _ASK],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    version, file = ran.stdout.split()
    assert version == __version__
    assert Path(file).is_relative_to(installed)
