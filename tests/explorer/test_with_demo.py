"""The text page with the real model: set FEATUREDB_DEMO to a database that `make demo` made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

import featuredb
from featuredb.database import Database
from tests.explorer.conftest import Running, serving

DEMO = os.environ.get("FEATUREDB_DEMO", "")
TEXT = "The suspension bridge over the river was opened in 1932."

if not DEMO:
    pytest.skip("set FEATUREDB_DEMO to a demo database", allow_module_level=True)
if shutil.which("chromium") is None:
    pytest.skip("needs Debian's chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def demo() -> Iterator[Database]:
    with featuredb.open(DEMO) as db:
        model = Path(db.snapshot.model.path or "")
        if not (model / "config.json").is_file():
            pytest.skip(f"the demo's model is not in {model}: run `make demo`")
        yield db


@pytest.fixture(scope="module")
def served(demo: Database) -> Iterator[Running]:
    with serving(DEMO) as running:
        yield running


def _names(page: Any, panel: str) -> list[str]:
    names: list[str] = page.locator(f"#{panel} td a.nowrap").all_inner_texts()
    return names


def test_a_new_text_on_the_real_model(browser: Any, served: Running, demo: Database) -> None:
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served.url)

    # A stored text needs no model.
    page.goto(served.base + "/text?context=5")
    stored = [f"{row.sae}/{row.feature_id}" for row in demo.fires_in(5, 20)]
    assert _names(page, "firing") == stored
    assert b'"absent"' in served.get("/model")[1].replace(b" ", b"")

    # A new one loads it, once, in the background, and the page goes on by itself.
    page.goto(served.base + "/text")
    page.fill("textarea", TEXT)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=The model is being loaded, once")
    page.wait_for_selector("#firing table", timeout=240_000)
    page.reload()
    answer = demo.fires_on(TEXT, 20)
    assert _names(page, "firing") == [f"{row.sae}/{row.feature_id}" for row in answer]
    strip = page.locator(".strip a")
    assert strip.count() == len(answer.tokens)

    # A token ranks the features on it.
    at = next(i for i, token in enumerate(answer.tokens) if "bridge" in token)
    strip.nth(at).click()
    page.wait_for_selector("#token table")
    ranked = [f"{row.sae}/{row.feature_id}" for row in answer.by_token(20, at)]
    assert _names(page, "token") == ranked

    # The slider leaves out what is dense, and the box what fires on BOS.
    page.focus("#density")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    page.wait_for_url("**max_density=*")
    most = float(parse_qs(urlsplit(page.url).query)["max_density"][0])
    page.wait_for_selector("#firing table")
    sparse = demo.fires_on(TEXT, 20, max_density=most)
    assert _names(page, "firing") == [f"{row.sae}/{row.feature_id}" for row in sparse]
    page.check("[name=hide_bos]")
    page.click("form#ask button")
    page.wait_for_url("**hide_bos=1*")
    assert page.locator(".strip a").count() == len(answer.tokens) - (
        answer.tokens[0] in served_special(demo)
    )

    # A feature's own page tests the same text.
    name = f"{answer[0].sae}/{answer[0].feature_id}"
    page.goto(f"{served.base}/feature/{quote(name)}")
    page.fill("#text", TEXT)
    page.click("form.test button")
    page.wait_for_selector("#test mark")
    page.wait_for_selector(".marked")
    assert errors == []
    page.close()


def served_special(demo: Database) -> frozenset[str]:
    return demo._store.texts.special
