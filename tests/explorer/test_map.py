"""The map: its points, and choosing among them by lasso, word and key, drawn either way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest

import featuredb
from featuredb.explorer.pages.map import COLUMNS
from tests.explorer.conftest import Running

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
    assert set(about["columns"]) == set(COLUMNS[:6])
    tokens = data[-about["tokens"] :].decode().split("\n")
    assert len(tokens) == about["n"] == 40
    assert running.get("/map/points?sae=nothing")[0] == 400


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
    page.select_option("[name=color]", "max_activation")
    page.focus("[data-plane]")
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert "at=" in page.url
    assert SAE in page.inner_text("#readout")
    page.keyboard.press("Enter")
    page.wait_for_url("**/feature/a/sae/*")
    assert errors == []
    page.close()
