"""A site of files: in a real browser from a plain server, the same as the server's own pages."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import featuredb
from featuredb.cli import main
from featuredb.errors import OptionError, StorageError
from featuredb.explorer import server
from featuredb.explorer.static.words import write_words
from tests.explorer.conftest import SHOWN_LABEL, Running, served
from tests.explorer.range_server import Plain, plainly_served

_ROOT = Path(featuredb.__file__).parent
_ASSETS = _ROOT / "explorer" / "assets"


@pytest.fixture(scope="module")
def site(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "out"
    return featuredb.site(database, out).folder


@pytest.fixture(scope="module")
def plain(site: Path) -> Iterator[Plain]:
    with plainly_served(site) as served:
        yield served


@pytest.fixture(scope="module")
def page(browser: Any, plain: Plain) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    opened.errors = errors = []
    opened.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()


needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs Debian's chromium"
)


def _texts(page: Any, title: str) -> str:
    """What is read in a panel, without what only the server has."""
    text = page.evaluate(
        """(title) => {
            const all = [...document.querySelectorAll("section.panel")];
            const found = all.find((each) => each.querySelector("h2").textContent === title);
            const copy = found.cloneNode(true);
            for (const each of copy.querySelectorAll("details, h2")) each.remove();
            return copy.textContent;
        }""",
        title,
    )
    return re.sub(r"\s+", "", str(text).replace("all that fires here", ""))


@needs_chromium
def test_a_feature_is_what_the_server_shows(
    page: Any, plain: Plain, running: Running, browser: Any
) -> None:
    ours = browser.new_page()
    ours.goto(running.url)
    for name in ("a/sae/5", "it's/4", "a/sae/3", "a/sae/39"):
        page.errors.clear()
        page.goto(f"{plain.base}/feature.html?f={quote(name)}")
        page.wait_for_selector("h2 >> text=Statistics")
        ours.goto(f"{running.base}/feature/{name}?k=10&window=16")
        assert _texts(page, "Statistics") == _texts(ours, "Statistics"), name
        if name != "a/sae/3":  # which never fires
            shown = _texts(ours, "Top contexts").partition("inthestore")[2]
            assert _texts(page, "Top contexts") == shown, name
        labels = [each.locator(".title .meaning").all_inner_texts() for each in (page, ours)]
        assert labels == [[SHOWN_LABEL] * (name == "a/sae/5")] * 2
        assert page.errors == []
        assert page.evaluate("window.hacked === undefined")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ours.close()


@needs_chromium
def test_a_feature_costs_few_requests_and_bytes(browser: Any, plain: Plain) -> None:
    context = browser.new_context()
    fresh = context.new_page()
    plain.asked.clear()
    fresh.goto(f"{plain.base}/feature.html?f=a/sae/7")
    fresh.wait_for_selector("h2 >> text=Statistics")
    assert len(plain.asked) <= 6, plain.asked
    assert sum(size for _, size in plain.asked) <= 250_000, plain.asked
    context.close()


@needs_chromium
def test_search_near_and_keys(page: Any, plain: Plain, database: Path) -> None:
    page.errors.clear()
    page.goto(f"{plain.base}/")
    page.keyboard.press("/")
    page.keyboard.type("Bridge")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2 >> text=Features")
    with featuredb.open(database) as db:
        fires = db.sql(
            "SELECT sae || '/' || feature_id FROM features "
            "WHERE list_contains([t.token FOR t IN top_tokens], ' bridge') "
            "ORDER BY sae, feature_id"
        ).fetchall()
        near = [f"{row.sae}/{row.feature_id}" for row in db.near("a/sae/5", 50)]
    found = page.locator("td a").all_inner_texts()
    assert sorted(found) == sorted(name for (name,) in fires)[:40]
    page.goto(f"{plain.base}/near.html?f=a/sae/5")
    page.wait_for_selector("h2 >> text=By coactivation")
    assert page.locator("section.panel").first.locator("td a").all_inner_texts() == near
    assert SHOWN_LABEL in page.inner_text("h1")
    # Its label stands beside it in lists: of a neighbor's card and page, and of what is found.
    neighbor = quote(near[0])
    for where in (f"near.html?f={neighbor}", f"feature.html?f={neighbor}", "search.html?q=viaduct"):
        page.goto(f"{plain.base}/{where}" + "s" * where.startswith("search"))
        row = page.locator("tr", has=page.get_by_text("a/sae/5", exact=True)).first
        assert SHOWN_LABEL in row.inner_text(), where
        assert "label · fires on" in page.text_content("main"), where
    page.goto(f"{plain.base}/search.html?q={quote('a/sae/5')}")
    page.wait_for_url("**/feature.html?f=a%2Fsae%2F5")
    page.wait_for_selector("a[rel=next]")
    page.keyboard.press("j")
    page.wait_for_url("**/feature.html?f=a%2Fsae%2F6")
    page.goto(f"{plain.base}/map.html?sae=it%27s")
    page.wait_for_selector("[data-ready]")
    page.fill("[name=find]", "script")
    assert page.locator("[data-chosen] tbody tr").count() > 0
    assert page.inner_text("[data-last]") == "fires on"
    assert page.evaluate("window.hacked === undefined")
    assert page.errors == []
    page.goto(f"{plain.base}/feature.html?f=a/sae/999")
    assert "a/sae has features 0 to 39" in page.inner_text("[role=alert]")
    page.goto(f"{plain.base}/search.html?q={quote('<script>hacked=1</script>')}")
    page.wait_for_selector("h2")
    assert page.evaluate("window.hacked === undefined")


@needs_chromium
def test_our_own_server_of_a_site(browser: Any, site: Path) -> None:
    with served(server.prepare_site(site, "127.0.0.1", 0), ()) as running:
        opened = browser.new_page()
        opened.goto(running.url)
        opened.goto(f"{running.base}/feature.html?f=a/sae/5")
        opened.wait_for_selector("h2 >> text=Statistics")
        opened.goto(f"{running.base}/feature.html")
        assert "No feature is named" in opened.inner_text("[role=alert]")
        opened.close()


def test_assets_are_small_and_the_parquet_reader_is_the_pinned_one() -> None:
    assert sum(path.stat().st_size for path in _ASSETS.iterdir()) <= 2_000_000
    own = [path for path in _ASSETS.glob("*.js") if path.name != "hyparquet.js"]
    assert sum(len(gzip.compress(path.read_bytes())) for path in own) <= 40_000
    vendored = _ROOT.parent / "vendor"
    said = (vendored / "hyparquet.sha256").read_text().split()[0]
    bundle = (_ASSETS / "hyparquet.js").read_bytes()
    assert hashlib.sha256(bundle).hexdigest() == said
    wanted = json.loads((vendored / "package.json").read_text())["dependencies"]
    license_ = (_ASSETS / "hyparquet.LICENSE.txt").read_text()
    for name, version in wanted.items():
        assert f"{name} {version}".encode() in bundle[:200]
        assert f"{name} {version}" in license_


def test_a_site_replaces_a_site_and_nothing_else(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    featuredb.site(database, out)
    (out / "data" / "left").write_text("over")
    featuredb.site(database, out)
    assert not (out / "data" / "left").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match="is no site of featuredb"):
        featuredb.site(database, other)
    with pytest.raises(StorageError, match="cannot write /proc/mine/site: "):
        featuredb.site(database, "/proc/mine/site")
    with pytest.raises(OptionError, match="is no site: make one"):
        server.prepare_site(other, "127.0.0.1", 0)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("out", "error", "reason"),
    [
        ("", OptionError, "out is empty"),
        ("{db}/site", OptionError, "is in the database"),
        ("{db}", OptionError, "is in the database"),
        ("{tmp}/file/site", StorageError, "cannot write"),
        ("{tmp}/file/deeper/site", StorageError, "cannot write"),
        ("{tmp}/" + "long" * 100, StorageError, "cannot write"),
        ("/proc/site", StorageError, "cannot write"),
    ],
)
def test_a_site_that_cannot_be_there_is_refused(
    database: Path, tmp_path: Path, out: str, error: type[Exception], reason: str
) -> None:
    (tmp_path / "file").write_text("mine")
    before = sorted(database.rglob("*"))
    with pytest.raises(error, match=reason):
        featuredb.site(database, out.format(db=database, tmp=tmp_path))
    assert sorted(database.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_card_is_not_written_to_a_file_without_a_name(database: Path) -> None:
    result = CliRunner().invoke(main, ["card", str(database), "a/sae/1", "-o", ""])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "-o is empty" in result.stderr


def test_a_site_that_is_terminated_leaves_nothing(database: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "featuredb.cli", "site", str(database), str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "cards of" in process.stderr.readline()
        process.terminate()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_site_answers_what_it_does_not_have(site: Path) -> None:
    with served(server.prepare_site(site, "127.0.0.1", 0), ()) as running:
        for path in ("/nothing", "/data/nothing.parquet", "/%00", "/" + "long" * 100):
            status, body, _ = running.get(path)
            assert (status, body) == (404, b"featuredb: there is no such file\n"), path
        assert running.get("/index.html", "POST", b"")[0] == 405


def test_a_site_of_a_database_behind_a_url(database: Path, site: Path, tmp_path: Path) -> None:
    with plainly_served(database) as served:
        out = featuredb.site(served.base, tmp_path / "out").folder
    for path in (site / "data").iterdir():
        assert (out / "data" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_labeled_feature_that_never_fires_is_found_by_its_words(
    database: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(database, tmp_path / "own.fdb"))
    with featuredb.open(own) as db:
        ((density,),) = db.sql(
            "SELECT density FROM features WHERE sae = 'a/sae' AND feature_id = 3"
        ).fetchall()
        assert density == 0
        db.label("a/sae/3", "Silence, always silence")
        write_words(db, tmp_path / "words.parquet")
    words = pq.read_table(tmp_path / "words.parquet").to_pylist()
    found = [row for row in words if row["word"] in ("silence", "always")]
    assert [(row["word"], row["feature_id"], row["label"]) for row in found] == [
        ("always", 3, "Silence, always silence"),
        ("silence", 3, "Silence, always silence"),
    ]
