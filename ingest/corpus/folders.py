"""The files of a folder that are the corpus, as data sets come: saved, cloned or exported."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from featuredb.errors import CorpusError
from featuredb.render.progress import log

_COMPANION = re.compile(
    r"(readme|licen[cs]e)(_.*)?|authors|changelog|citation|code_of_conduct|contributing|copying"
    r"|credits|data_?card|dataset_card|disclaimer|history|install|notice|requirements|security"
    r"|terms|todo|version"
)
"""Names, without endings, of texts that come with files of rows and are not documents."""

_STATE = "state.json"
"""Where `datasets.save_to_disk` lists its files."""

_DESCRIPTIONS = frozenset(
    {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "sae_lens.json"}
)
"""What describes a data set and is no part of it."""


def files_of(
    folder: Path, is_corpus_file: Callable[[Path], bool], is_row_file: Callable[[Path], bool]
) -> list[Path]:
    """List the corpus files of a folder at any depth, in order of their paths.

    Left out are hidden files and those that begin with ``_``, files of other endings, what
    describes a data set, and a README or a license beside files of rows. In a folder that
    `datasets` saved, only the files that it lists are read.

    Raises:
        CorpusError: there are none, or one is a link to nothing.
    """
    files: list[Path] = []
    others = Counter[str]()
    for place, names in _walked(folder):
        saved = _saved_files(place)
        for name in names:
            path = place / name
            if not is_corpus_file(path):
                others[path.suffix or name] += 1
            elif name[0] in "._" or name in _DESCRIPTIONS or name not in (saved or {name}):
                others[name] += 1
            elif path.is_file():
                files.append(path)
            elif path.is_symlink():
                raise CorpusError(f"{path} is a link to nothing; fetch its target or remove it")
    if any(is_row_file(path) for path in files):
        others.update(path.name for path in files if _is_companion(path) and not is_row_file(path))
        files = [path for path in files if is_row_file(path) or not _is_companion(path)]
    seen = ", ".join(f"{count} {name}" for name, count in others.most_common(3))
    if not files:
        raise CorpusError(
            f"the folder {folder} has no corpus files"
            + (f" (only {seen})" if seen else "")
            + "; it should hold Parquet, Arrow, JSON, CSV or text files"
        )
    if others:
        log.info(f"left out of {folder}: {seen}" + (", …" if len(others) > 3 else ""))
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _walked(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below a folder with the names of their files, through links.

    Hidden folders are left out, and those that begin with ``_``, unless they are partitions
    (``_key=value``). Raises `OSError` for a folder that cannot be read.
    """
    for place, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        above = Path(os.path.realpath(os.path.dirname(place)))
        if place != str(folder) and Path(os.path.realpath(place)) in (above, *above.parents):
            folders.clear()  # a link to a folder that it is in
            continue
        folders[:] = [n for n in folders if n[0] != "." and (n[0] != "_" or "=" in n)]
        yield Path(place), names


def _fail(error: OSError) -> None:
    raise error


def _saved_files(folder: Path) -> frozenset[str] | None:
    """The names of the files of a data set saved by `datasets`. None for another folder.

    Raises:
        CorpusError: it was saved with a selection of its rows apart, as old versions did.
    """
    try:
        described = json.loads((folder / _STATE).read_bytes())
        names = frozenset(entry["filename"] for entry in described["_data_files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if described.get("_indices_data_files"):
        raise CorpusError(
            f"{folder} was saved with a selection of its rows apart; load it with `datasets` and "
            f"save it again"
        )
    return names


def _is_companion(path: Path) -> bool:
    name = path.name.split(".")[0].lower().replace("-", "_")
    return _COMPANION.fullmatch(name) is not None
