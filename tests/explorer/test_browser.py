"""The pages in a real browser: no errors, no foreign requests, by keyboard, narrow and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.explorer.conftest import Running
from tests.explorer.pages import PAGES, REFUSED, F

if shutil.which("chromium") is None:
    pytest.skip("needs Debian's chromium", allow_module_level=True)

_WIDE, _NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@dataclass
class Tab:
    """A page, and what went wrong in it."""

    page: Any
    running: Running
    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self, path: str) -> None:
        self.page.goto(self.running.base + path)


def _tab(browser: Any, running: Running, **options: Any) -> Iterator[Tab]:
    context = browser.new_context(reduced_motion="reduce", **options)
    tab = Tab(context.new_page(), running)
    tab.page.on("console", lambda m: tab.errors.append(m.text) if m.type == "error" else None)
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.page.on("dialog", lambda dialog: tab.errors.append(f"dialog {dialog.message}"))
    tab.page.on("request", lambda request: tab.hosts.add(urlsplit(request.url).hostname or ""))
    tab.page.goto(running.url)
    yield tab
    context.close()


@pytest.fixture(scope="module")
def wide(browser: Any, running: Running) -> Iterator[Tab]:
    yield from _tab(browser, running, viewport=_WIDE)


@pytest.fixture(scope="module")
def narrow(browser: Any, running: Running) -> Iterator[Tab]:
    yield from _tab(browser, running, viewport=_NARROW, color_scheme="dark")


def test_every_page_is_clean_in_both_widths_and_schemes(wide: Tab, narrow: Tab) -> None:
    """No error, no request but to loopback, no script of a text, nothing past the page's edge."""
    for tab, width in ((wide, _WIDE["width"]), (narrow, _NARROW["width"])):
        for name, path in PAGES.items():
            tab.errors.clear()
            tab.open(path)
            tolerated = [e for e in tab.errors if f"{REFUSED.get(name)} (" in e]
            assert tab.errors == tolerated, name
            assert tab.page.evaluate("window.hacked === undefined"), name
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert tab.page.title().endswith("featuredb"), name
        assert tab.hosts == {"127.0.0.1"}


_SHORT = {
    "home": "/?k=2",
    "search": "/search?q=river",
    "feature": f"/feature/{F}?k=2",
    "feature-silent": f"/feature/{F}?show=silent&k=2",
    "feature-embedded": f"/feature/{F}?embed=1&k=2",
    "feature-groups": PAGES["feature-groups"],
    "text": "/text?context=2&k=2&at=1",
    "compare": PAGES["compare"],
    "contrast": PAGES["contrast"],
    "find": f"/find?any={F}&k=2",
    "sql-refused": PAGES["sql-refused"],
    "steer": PAGES["steer"],
    "map": PAGES["map"],
    "monitors-rule": PAGES["monitors-rule"],
    "not-found": PAGES["not-found"],
}
"""Each kind of page once, with little on it: what looks at every element takes seconds a page."""


def test_axe_has_no_serious_finding(wide: Tab, narrow: Tab) -> None:
    """Every kind of page, wide and light or narrow and dark by turns, a feature's both."""
    from axe_playwright_python.sync_playwright import Axe

    looked = [((wide, narrow)[i % 2], path) for i, path in enumerate(_SHORT.values())]
    looked.append((narrow, _SHORT["feature"]))
    for tab, path in looked:
        tab.open(path)
        found = Axe().run(tab.page).response["violations"]
        serious = [
            (path, each["id"], [node["html"][:200] for node in each["nodes"][:3]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []


_TABBED = """() => {
  const which = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  return [...document.querySelectorAll(which)].filter((e) => e.checkVisibility()
    && e.type !== "hidden" && !e.disabled && e.tabIndex === 0);
}"""
_FOLLOWED = """() => document.addEventListener("focusin", ({ target }) => {
  target.dataset.visited = getComputedStyle(target).outlineStyle;
})"""


@pytest.mark.parametrize("name", _SHORT)
def test_tab_comes_to_everything_and_shows_where_it_is(wide: Tab, name: str) -> None:
    wide.open(_SHORT[name])
    page = wide.page
    page.evaluate("document.activeElement.blur()")
    page.evaluate(_FOLLOWED)
    told = "e.outerHTML.slice(0, 120)"
    missed = f"({_TABBED})().filter((e) => !e.dataset.visited).map((e) => {told})"
    for _ in range(4):  # panels of a feature come while it goes round
        if page.evaluate(missed):
            for _ in range(page.evaluate(f"({_TABBED})().length") + 3):
                page.keyboard.press("Tab")
    assert page.evaluate(missed) == []
    unseen = f"({_TABBED})().filter((e) => e.dataset.visited === 'none').map((e) => {told})"
    assert page.evaluate(unseen) == []


def test_the_keyboard_alone(wide: Tab) -> None:
    page = wide.page
    wide.open(f"/feature/{F}")
    page.keyboard.press("j")
    page.wait_for_url("**/feature/a/sae/6")
    page.keyboard.press("k")
    page.wait_for_url("**/feature/a/sae/5")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "quick"
    page.keyboard.type("a/sae/7")
    page.keyboard.press("Enter")
    page.wait_for_url("**/feature/a/sae/7")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    # A text is one stop. Arrows go from token to token, and each says its activation.
    page.evaluate("document.querySelector('[data-text] mark[tabindex]').focus()")
    seen = set()
    for key in ("ArrowLeft", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
        seen.add(page.evaluate("document.activeElement.dataset.value"))
    shown = "getComputedStyle(document.activeElement, '::after').content"
    assert page.evaluate(shown).strip('"') in seen
    assert (
        page.evaluate(
            "document.activeElement.closest('[data-text]').querySelectorAll('[tabindex=\"0\"]').length"
        )
        == 1
    )


def test_panels_come_as_they_are_needed(wide: Tab) -> None:
    wide.open(f"/feature/{F}")
    for _ in range(20):
        if not wide.page.locator(".lazy").count():
            break
        wide.page.evaluate("document.querySelector('.lazy')?.scrollIntoView()")
        wide.page.wait_for_timeout(150)
    assert wide.page.locator(".lazy").count() == 0
    assert wide.page.locator("#coactive-token table, #coactive-token h3").count()


def test_forms_leave_an_address_with_what_is_set(wide: Tab) -> None:
    wide.open("/find")
    wide.page.fill("[name=any]", "a/sae/5")
    wide.page.select_option("[name=unit]", "context")
    wide.page.keyboard.press("Enter")
    wide.page.wait_for_selector("#find .passages")
    query = urlsplit(wide.page.url).query
    assert "any=a%2Fsae%2F5" in query
    assert "where" not in query


def test_a_form_is_sent_as_it_is_filled_in_and_in_the_address_where_it_is_short(wide: Tab) -> None:
    page = wide.page
    for text in ("\nSELECT\t1,\n\n  2", f"SELECT 1 -- {'a long remark ' * 2_000}"):
        wide.open("/sql")
        page.fill("#sql", text)
        for _ in range(2):  # what comes back is sent again
            with page.expect_navigation():
                page.press("#sql", "Control+Enter")
            page.wait_for_selector("#rows table")
            assert page.input_value("#sql") == text
        assert ("q=" in page.url) == (len(text) < 1_000)
