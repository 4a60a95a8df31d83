"""`featuredb site`: a folder with pages, their script, and the files that it reads by ranges."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from markupsafe import Markup

from featuredb.database import Database
from featuredb.errors import OptionError, StorageError, first_line
from featuredb.explorer.address import address
from featuredb.explorer.drawing import render, section_of
from featuredb.explorer.pages import map as map_page
from featuredb.explorer.pages.home import features_to_begin, held, listed_features
from featuredb.explorer.static.cards import FEATURES_A_GROUP, write_cards
from featuredb.explorer.static.data import plain_table
from featuredb.explorer.static.words import write_words
from featuredb.store.files.atomic import storage_errors
from featuredb.store.files.location import location_of
from featuredb.store.store import Store
from featuredb.version import __version__
from queries.answers import Rows
from queries.catalog.summaries import LABELS

ASSETS = ("explorer.css", "static.js", "hyparquet.js", "hyparquet.LICENSE.txt", "map.js")
PAGES = {"index": "", "search": "Search", "feature": "Feature", "near": "Near", "map": "Map"}
MARK = "featuredb-site.json"
"""The file that says that a folder is a site, and what it has."""

_BEGIN_WITH = 40


class WrittenSite(NamedTuple):
    """A site: its folder, how many files it has, and their bytes."""

    folder: Path
    files: int
    bytes: int


def write_site(
    database: Database, store: Store, out: Path, say: Callable[[str], None]
) -> WrittenSite:
    """Write the site beside `out`, then put it in its place. A site that is there is replaced.

    Raises:
        OptionError: `out` has something else, or is in the database.
        StorageError: It cannot be written.
    """
    try:
        with storage_errors(out):
            return _put(database, store, out.absolute(), say)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise StorageError(f"cannot write {out}: {reason}") from error


def _put(database: Database, store: Store, out: Path, say: Callable[[str], None]) -> WrittenSite:
    if isinstance(store.root, Path) and out.resolve().is_relative_to(store.root.resolve()):
        raise OptionError(f"{out} is in the database: give a folder outside of it")
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} is no site of featuredb: give a new or an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        made = Path(scratch) / "site"
        _write(database, store, made, say)
        if out.exists():
            out.rename(Path(scratch) / "before")
        made.rename(out)
    written = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return WrittenSite(out, len(written), sum(written))


def _write(database: Database, store: Store, folder: Path, say: Callable[[str], None]) -> None:
    data, assets = folder / "data", folder / "assets"
    for each in (data, assets):
        each.mkdir(parents=True)
    ours = files("featuredb.explorer").joinpath("assets")
    for name in ASSETS:
        (assets / name).write_bytes(ours.joinpath(name).read_bytes())
    saes = []
    for sae in store.snapshot.saes:
        say(f"cards of {sae.d_sae:,} features of {sae.name}")
        cards = write_cards(database, store, sae, data)
        saes.append({"name": sae.name, "d_sae": sae.d_sae, "cards": list(map(asdict, cards))})
    say("words")
    write_words(database, data / "words.parquet")
    manifest: dict[str, Any] = {
        "model": store.snapshot.model.id,
        "features_a_group": FEATURES_A_GROUP,
        "saes": saes,
        "files": {"words": _file(data / "words.parquet")},
    }
    derived = store.snapshot.derived
    near = {
        "decoder": derived.neighbors_decoder,
        "encoder": derived.neighbors_encoder,
        "coactivation": derived.coactivation,
    }
    with location_of(store.root).copied("derived", list(near.values())) as root:
        for by, file in near.items():
            path = data / f"near.{by}.parquet"
            shutil.copyfile(root / file.path, path)
            manifest["files"][by] = _file(path)
    # The database's own has lists of tokens as they are, not as they are shown.
    summary = (
        "SELECT [t.token FOR t IN f.top_tokens[:6]] AS top_tokens, p.label FROM features AS f "
        f"JOIN (SELECT sae, sae_index FROM saes) USING (sae) {LABELS} "
        "ORDER BY sae_index, f.feature_id"
    )
    shown = plain_table(database.sql(summary).to_arrow_table())
    pq.write_table(shown, data / "tokens.parquet", compression="zstd", row_group_size=512)
    manifest["files"]["tokens"] = _file(data / "tokens.parquet")
    maps = {}
    for i, sae in enumerate(store.snapshot.saes):
        begin = f"map.{i}"
        packed = map_page.packed(database, sae.name, partial("data/{0}.{1}.bin".format, begin))
        if packed is not None:
            (data / f"{begin}.bin").write_bytes(packed)
            maps[sae.name] = f"data/{begin}.bin"
            for j, column in enumerate(map_page.other_columns(database, sae.name)):
                packed = map_page.packed_column(database, column)
                (data / f"{begin}.{j}.bin").write_bytes(packed)
    text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"))
    (folder / MARK).write_text(text, encoding="utf-8")
    _write_pages(database, folder, text, maps)


def _file(path: Path) -> dict[str, Any]:
    """What a page must know to read a file by ranges, without asking for its size."""
    footer = pq.read_metadata(path).serialized_size + 8
    return {"path": path.name, "bytes": path.stat().st_size, "footer": footer}


def _write_pages(database: Database, folder: Path, manifest: str, maps: Mapping[str, str]) -> None:
    links = (("address", lambda *_: ""), ("feature_url", feature_address))
    begin = Rows(database.sql(features_to_begin(k=_BEGIN_WITH)).to_arrow_table())
    home = [
        ("This database", section_of(held(database.info()), links=links)),
        ("Features", section_of(listed_features(begin), links=links)),
    ]
    linked = ("search", "map") if maps else ("search",)
    for name, title in PAGES.items():
        if name == "map" and not maps:
            continue
        text = render(
            "static.html",
            name=name,
            title=title or database.snapshot.model.id,
            pages=[(page, PAGES[page]) for page in linked],
            sections=home if name == "index" else [],
            # No text of it can end the element that it is in.
            manifest=Markup(manifest.replace("<", "\\u003c")),
            saes=list(maps),
            sae=next(iter(maps), ""),
            source=next(iter(maps.values()), ""),
            map_files=json.dumps(maps),
            feature_page="feature.html?f=",
            sql_page="",
            about=f"{database.snapshot.model.id} · snapshot {database.snapshot.number}",
            version=__version__,
        )
        (folder / f"{name}.html").write_text(text, encoding="utf-8")


def feature_address(name: str) -> str:
    """The page of a feature `sae/1234`."""
    return address("feature.html", {"f": name})
