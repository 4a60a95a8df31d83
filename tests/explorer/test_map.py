"""The map: its points, and choosing among them by lasso, word and key, drawn either way."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import numpy as np
import pyarrow as pa
import pytest

import featuredb
from featuredb.explorer.pages.map import COLUMNS
from featuredb.labels.batch import LabelBatch
from featuredb.labels.write import add_labels
from featuredb.store.store import Store
from featuredb.store.user_data import MEASURED
from ingest.operations.user_data import write_user_data
from tests.explorer.conftest import LABEL, SHOWN_LABEL, Running, hostile_world, serving
from tests.make_store import make_store
from tests.user_rows import measured

SAE = "a/sae"


def test_points_are_the_views_rows(running: Running, database: Path) -> None:
    data = running.get("/map/points?sae=" + quote(SAE))[1]
    length = int.from_bytes(data[:4], "little")
    about = json.loads(data[4 : 4 + length])
    names = ["x", "y", "feature_id", *about["columns"]]
    numbers = np.frombuffer(data, "<f4", about["n"] * len(names), 4 + length).reshape(
        -1, about["n"]
    )
    with featuredb.open(database) as db:
        rows = db.sql(
            "SELECT m.x, m.y, f.* FROM feature_map AS m JOIN features AS f "
            "USING (sae, feature_id) WHERE f.sae = ? ORDER BY f.feature_id",
            [SAE],
        ).to_arrow_table()
    for name, row in zip(names, numbers, strict=True):
        expected = rows.column(name).to_numpy()
        found = row.view("<u4") if name == "feature_id" else row
        assert np.allclose(found, expected.astype(np.float64), equal_nan=True), name
    assert about["columns"] == list(COLUMNS)
    lines = [line.split("\t") for line in data[-about["words"] :].decode().split("\n")]
    assert len(lines) == about["n"] == 40
    assert [line[0] for line in lines] == [SHOWN_LABEL * (i == 5) for i in range(40)]
    assert all(len(line) == 5 for i, line in enumerate(lines) if i != 3)
    assert lines[3] == [""]
    assert running.get("/map/points?sae=nothing")[0] == 400


@pytest.fixture(scope="module")
def told(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database with effects, labels by nine methods, and scores of some of them."""
    path = tmp_path_factory.mktemp("map") / "told.fdb"
    shutil.copytree(database, path)
    sae = Store.open(path).snapshot.sae(SAE)
    write_user_data(path, MEASURED, measured(sae, [0, 2, 39]), "measure")
    features = list(range(1, 40))
    labels = {
        "feature_id": features,
        "text": [f"label {i}" for i in features],
        "method": ["<b>" if i < 20 else f"method {i % 8}" for i in features],
    }
    scores = {"row": [0, 4, 4], "scorer": ["it's", "it's", "fuzz"], "value": [0.5, 0.25, 0.75]}
    with featuredb.open(path) as db:
        db.remove_label(f"{SAE}/5", LABEL)  # a person's, which no import takes over from
    batch = LabelBatch(pa.table(labels), pa.table(scores), sae=SAE)
    add_labels(path, batch)
    return path


def _column(running: Running, name: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    answer = running.get("/map/points?" + urlencode({"sae": SAE, "column": name}))
    assert answer[0] == 200, answer[1]
    length = int.from_bytes(answer[1][:4], "little")
    return json.loads(answer[1][4 : 4 + length]), np.frombuffer(answer[1], "<f4", -1, 4 + length)


def test_every_other_column_is_there_when_it_is_asked_for(told: Path) -> None:
    nothing = [np.nan] * 40
    with serving(told) as running:
        data = running.get("/map/points?sae=" + quote(SAE))[1]
        others = dict(json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])["others"])
        assert {"min_activation", "effect kl", "label method", "score fuzz"} <= set(others)
        assert not {"sae", "effect loss_change", "label model", *COLUMNS} & set(others)
        for name, address in others.items():
            assert (
                running.get(address)[1]
                == running.get("/map/points?" + urlencode({"sae": SAE, "column": name}))[1]
            )
        about, values = _column(running, "effect kl")
        kl = [float(i) / 2 if i in (0, 2, 39) else np.nan for i in range(40)]
        assert np.array_equal(values, kl, equal_nan=True)
        assert "values" not in about
        _, values = _column(running, "score it's")
        wanted = [*nothing]
        wanted[1], wanted[5] = 0.5, 0.25
        assert np.array_equal(values, wanted, equal_nan=True)
        about, values = _column(running, "label method")
        # Eight methods of 20 to 39 have two or three features each: six are named besides <b>.
        names = ["<b>", *(f"method {n}" for n in (4, 5, 6, 7, 0, 1)), "others"]
        assert about["values"] == names
        wanted = [np.nan, *[0.0] * 19]
        wanted += [
            names.index(f"method {i % 8}") if i % 8 in (0, 1, 4, 5, 6, 7) else 7.0
            for i in range(20, 40)
        ]
        assert np.array_equal(values, wanted, equal_nan=True)
        asked = {"sae": SAE, "color": "label method", "panel": "color"}
        rows = running.get("/map.csv?" + urlencode(asked))[1].decode().splitlines()
        assert rows[:3] == ["sae,feature_id,value", "a/sae,0,", "a/sae,1,<b>"]
        for path in ("/map/points", "/map"):
            name = "column" if path.endswith("points") else "color"
            status, body, _ = running.get(f"{path}?" + urlencode({"sae": SAE, name: "magic"}))
            assert status == 400
            assert b"has no column" in body


def test_places_are_made_on_first_use(tmp_path: Path) -> None:
    path = tmp_path / "new.fdb"
    make_store(path, hostile_world())
    with serving(path) as running:
        asked = "/map?sae=" + quote(SAE)
        assert b"Place them" in running.get(asked)[1]
        assert b"featuredb measure" in running.get(asked)[1]
        origin = {"Origin": running.base}
        assert running.get("/map/places", "POST", b"", {"Origin": "http://evil.example"})[0] == 403
        assert running.get("/map/places")[0] == 405
        status, _, headers = running.get("/map/places", "POST", b"", origin)
        assert (status, headers["location"]) == (303, "/map")
        assert b'data-status="/map/status"' in running.get(asked)[1]
        state = {"state": "loading"}
        while state["state"] == "loading":
            time.sleep(0.1)
            state = json.loads(running.get("/map/status")[1])
        assert state["state"] == "ready", state
        assert b"data-plane" in running.get(asked)[1]
        assert running.get("/map/points?sae=" + quote(SAE))[0] == 200


def test_places_that_cannot_be_made_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "new.fdb"
    make_store(path, hostile_world())
    with serving(path) as running:
        featuredb.map_features(path)  # by someone else, after it was opened
        status, body, _ = running.get("/map/places", "POST", b"")
        assert status == 400
        assert b"only the newest snapshot" in body


def test_a_map_is_the_same_each_time_and_is_user_data(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.fdb"
    shutil.copytree(database, path)
    read = "SELECT sae, feature_id, x, y FROM feature_map ORDER BY sae, feature_id"
    with featuredb.open(path) as db:
        before = db.sql(read).fetchall()
    assert featuredb.map_features(path) == len(before) == 52
    with featuredb.open(path) as db:
        assert db.sql(read).fetchall() == before
        assert np.isfinite(np.array(before)[:, 2:].astype(float)).all()
    assert featuredb.verify(path).ok


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("drawn", ["webgl2", "canvas"])
def test_choosing_on_the_map(browser: Any, running: Running, database: Path, drawn: str) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(running.url)
    page.goto(f"{running.base}/map?sae={quote(SAE)}" + ("&draw=canvas" * (drawn == "canvas")))
    page.wait_for_selector("[data-ready]")
    assert page.get_attribute(".map", "data-drawn") == drawn
    box = page.locator("[data-plane]").bounding_box()
    page.keyboard.down("Shift")
    corners = ((0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99))
    for i, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    page.keyboard.up("Shift")
    with featuredb.open(database) as db:
        fire = "SELECT feature_id FROM features WHERE sae = 'a/sae' AND count > 0 ORDER BY 1"
        firing = db.sql(fire).fetchall()
        predicate = page.inner_text("[data-predicate]")
        chosen = db.sql(f"SELECT feature_id FROM features WHERE {predicate} ORDER BY 1").fetchall()
        place = "SELECT x, y FROM feature_map WHERE sae = 'a/sae' AND feature_id = 5"
        ((x, y),) = db.sql(place).fetchall()
    assert page.inner_text("[data-count]") == f"{len(firing)} features chosen"
    assert chosen == firing
    # The address has the lasso: another person sees the same.
    assert "lasso" in parse_qs(urlsplit(page.url).query)
    page.reload()
    page.wait_for_selector("[data-ready]")
    assert page.inner_text("[data-count]") == f"{len(firing)} features chosen"
    page.fill("[name=find]", "hacked")
    named = page.locator("[data-chosen] tbody tr").all_inner_texts()
    assert named
    assert all("hacked" in text for text in named)
    page.fill("[name=find]", "Viaduct")
    assert page.inner_text("[data-last]") == "label · fires on"
    (named,) = page.locator("[data-chosen] tbody tr").all_inner_texts()
    assert f"{SAE}/5" in named
    assert SHOWN_LABEL in named
    page.select_option("[name=color]", "max_activation")
    page.focus("[data-plane]")
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert "at=" in page.url
    assert SAE in page.inner_text("#readout")
    page.goto(f"{running.base}/map?sae={quote(SAE)}&at={x},{y},100")
    page.wait_for_selector("[data-ready]")
    page.focus("[data-plane]")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert f"{SAE}/5 · {SHOWN_LABEL} · " in page.inner_text("#readout")
    page.keyboard.press("Enter")
    page.wait_for_url("**/feature/a/sae/*")
    assert errors == []
    page.close()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("drawn", ["webgl2", "canvas"])
def test_a_text_has_a_color_for_each_value(browser: Any, told: Path, drawn: str) -> None:
    with serving(told) as running:
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(running.url)
        page.goto(f"{running.base}/map?sae={quote(SAE)}" + ("&draw=canvas" * (drawn == "canvas")))
        page.wait_for_selector("[data-ready]")
        page.select_option("[name=color]", "label method")
        page.wait_for_selector("[data-values] >> text=others")
        shown = page.locator("[data-values] > span").all_inner_texts()
        assert shown == ["<b>", *(f"method {n}" for n in (4, 5, 6, 7, 0, 1)), "others"]
        page.fill("[name=find]", "script")
        assert "<b>" in page.locator("[data-chosen] tbody td.number").all_inner_texts()
        page.reload()
        page.wait_for_selector("[data-values] >> text=others")
        page.select_option("[name=color]", "density")
        page.wait_for_selector(".ramp", state="visible")
        assert page.is_hidden("[data-values]")
        assert errors == []
        page.close()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("drawn", ["webgl2", "canvas"])
def test_a_sample_is_drawn_while_the_map_moves(browser: Any, running: Running, drawn: str) -> None:
    def few(route: Any) -> None:
        answer = route.fetch()
        script = answer.text()
        assert script.count("const FAST = 16384;") == 1
        route.fulfill(response=answer, body=script.replace("FAST = 16384", "FAST = 10"))

    page = browser.new_page(viewport={"width": 800, "height": 700})
    page.route("**/assets/map.js*", few)
    page.goto(running.url)
    page.goto(f"{running.base}/map?sae={quote(SAE)}" + ("&draw=canvas" * (drawn == "canvas")))
    page.wait_for_selector("[data-shown='40']")
    box = page.locator("[data-plane]").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 320, box["y"] + 220, steps=2)
    page.wait_for_selector("[data-shown='10']")
    page.mouse.up()
    page.wait_for_selector("[data-shown='40']")
    wheel, key = partial(page.mouse.wheel, 0, 40), partial(page.keyboard.press, "ArrowLeft")
    for act in (wheel, key):
        page.focus("[data-plane]")
        # What is drawn in between lasts a moment: it is written down.
        page.evaluate(
            "window.seen = []; new MutationObserver(() => "
            "seen.push(document.querySelector('.map').dataset.shown))"
            ".observe(document.querySelector('.map'), {attributeFilter: ['data-shown']})"
        )
        act()
        page.wait_for_timeout(400)
        assert page.evaluate("seen")[-1] == "40"
        assert "10" in page.evaluate("seen")
    page.close()
