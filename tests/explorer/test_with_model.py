"""What pages ask a model: new texts, and texts that it goes on with. A tiny one, in Chromium."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

import featuredb
from featuredb.database import Database
from tests.explorer.conftest import Running, serving
from tests.steering.conftest import make_steerable

PROMPT, EDIT = "The old bridge", "early/3=5 @ generated"
ASKED = {"prompt": PROMPT, "set": EDIT, "max_new_tokens": "6"}


@pytest.fixture(scope="module")
def steerable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_steerable(tmp_path_factory.mktemp("with-model"))


@pytest.fixture(scope="module")
def modeled(steerable: Path) -> Iterator[Running]:
    with serving(steerable) as running:
        yield running


def _facts(running: Running, **asked: str) -> list[dict[str, Any]]:
    body = running.get("/steer/stream?" + urlencode({**ASKED, **asked}))[1]
    return [json.loads(line) for line in body.splitlines()]


def test_both_texts_are_told_as_they_are_generated(modeled: Running, steerable: Path) -> None:
    facts = _facts(modeled)
    assert facts[-1] == {"state": "done"}
    told = {"unsteered": "", "steered": ""}
    for fact in facts:
        if "variant" in fact:
            told[fact["variant"]] += fact["text"]
    with featuredb.open(steerable) as db:
        answer = db.steer(PROMPT, EDIT, max_new_tokens=6, controls=False)
    for variant, text in told.items():
        assert re.sub(r"\W", "", text) == re.sub(r"\W", "", answer.text(variant=variant))
    # What was generated is kept: the page and its data cost no other generation.
    query = urlencode(ASKED)
    body = modeled.get(f"/steer?{query}")[1].decode()
    assert "data-stream" not in body
    assert "KL per token" in body
    rows = json.loads(modeled.get(f"/steer.json?{query}")[1])
    assert rows["effects"] == json.loads(json.dumps(answer.attributes()["effects"]))
    (python,) = re.findall(r"<code>(db\.steer.+?)</code>", body)
    with featuredb.open(steerable) as db:
        again = eval(python.replace("&#39;", "'"), {"db": db})
    assert again.text() == answer.text()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"set": "early/3 to 5"}, "is no edit"),
        ({"set": "early/999=5"}, "early has features"),
        ({"max_new_tokens": "9000"}, "max_new_tokens must be"),
        ({"temperature": "-1"}, "temperature"),
        ({"method": "magic"}, "method must be"),
    ],
)
def test_what_cannot_be_generated_is_one_line(
    modeled: Running, asked: dict[str, str], reason: str
) -> None:
    (fact,) = [fact for fact in _facts(modeled, **asked) if "state" not in fact]
    assert reason in fact["error"]


def test_one_generation_at_a_time_until_its_reader_leaves(
    modeled: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), threading.Event()

    def endless(self: Database, *_: Any, watch: Any, **__: Any) -> None:
        try:
            while True:
                began.set()
                watch("unsteered", "word ")
                time.sleep(0.01)
        finally:
            ended.set()

    _facts(modeled)  # the model is there
    monkeypatch.setattr(Database, "steer", endless)
    asked = urlencode({**ASKED, "seed": "7"})
    cookie = {"Cookie": f"featuredb-{modeled.port}={modeled.token}"}
    first = http.client.HTTPConnection("127.0.0.1", modeled.port, timeout=30)
    first.request("GET", f"/steer/stream?{asked}", headers=cookie)
    first.getresponse().read1(10)
    assert began.wait(10)
    began.clear()
    second = http.client.HTTPConnection("127.0.0.1", modeled.port, timeout=30)
    second.request("GET", f"/steer/stream?{asked}1", headers=cookie)
    assert json.loads(second.getresponse().readline()) == {"state": "waiting"}
    second.close()
    first.close()
    assert ended.wait(10)
    monkeypatch.undo()
    assert _facts(modeled, seed="8")[-1] == {"state": "done"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_steering_and_new_texts_in_a_browser(
    browser: Any, modeled: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(modeled.url)
    page.goto(modeled.base + "/steer?set=" + quote("early/3=2x @ generated"))
    page.focus("[data-edit] input[type=range]")
    page.keyboard.press("ArrowRight")
    assert page.input_value("[name=set]") == "early/3=2.5x @ generated"
    page.fill("[name=prompt]", PROMPT)
    page.fill("[name=max_new_tokens]", "5")
    page.focus("[name=prompt]")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=KL per token")
    assert "early%2F3%3D2.5x" in page.url

    def endless(self: Database, *_: Any, watch: Any, **__: Any) -> None:
        while True:
            watch("steered", "word ")
            time.sleep(0.01)

    with monkeypatch.context() as patched:
        patched.setattr(Database, "steer", endless)
        page.goto(page.url + "&seed=9")
        page.wait_for_selector("text=word word")
        page.keyboard.press("Escape")
        page.wait_for_selector("text=Stopped.")
    page.goto(modeled.base + "/text")
    page.fill("textarea", "a text that is nowhere stored")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#firing table")
    assert page.locator(".strip a").count() > 3
    assert errors == []
    page.close()
