"""Every page over hostile texts: drawn, inert, and the same data in every format."""

from __future__ import annotations

import ast
import http.client
import io
import json
import re
import shlex
import threading
import time
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from queue import Queue
from threading import Thread
from urllib.parse import quote, urlencode

import click
import pyarrow.parquet as pq
import pytest
from starlette.responses import Response

import featuredb
from featuredb.cli import main
from featuredb.errors import QueryError
from featuredb.explorer import site
from featuredb.explorer.address import Address
from featuredb.explorer.drawing import style
from featuredb.explorer.early import Early
from featuredb.explorer.pages import feature, home
from featuredb.explorer.site import Site, WebPage
from featuredb.render.numbers import number
from featuredb.render.view import Shown
from queries.answers import Answer
from tests.explorer.conftest import Running, serving
from tests.explorer.pages import PAGES, REFUSED, F
from tests.object_store import ObjectStore

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_TAGS = (
    "a b body button canvas code datalist dd details div dl dt fieldset figcaption figure "
    "footer form g h1 h2 h3 head header html input kbd label legend li line link main mark "
    "meta nav noscript ol option output p progress rect script section select span summary "
    "svg table tbody td textarea th thead title tr ul"
)


class _Tags(HTMLParser):
    """Every tag and attribute, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", [name for name in PAGES if name not in REFUSED])
def test_what_a_page_offers_to_copy_is_accepted(running: Running, name: str) -> None:
    """Commands by the command line's own parser, Python by Python's."""
    _, body, _ = running.get(PAGES[name])
    found = re.findall(
        r'<span class="dim">(\w+)</span><code>(.*?)</code>', body.decode(), re.DOTALL
    )
    for language, text in ((language, unescape(text)) for language, text in found):
        if language == "Python":
            ast.parse(text)
        elif text.startswith("featuredb "):
            context, words = click.Context(main), shlex.split(text)[1:]
            command: click.Command = main
            while isinstance(command, click.Group):
                verb, inner, words = command.resolve_command(context, words)
                assert inner is not None
                command = inner
            command.make_context(verb, words)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_drawn_and_hostile_text_is_inert(running: Running, name: str) -> None:
    status, body, headers = running.get(PAGES[name])
    html = body.decode()
    assert status == REFUSED.get(name, 200), html[-500:]
    assert "default-src 'none'" in headers["content-security-policy"]
    # Our own sheet, which the policy allows by its hash, and no other.
    sheet = f"<style>{style()}</style>"
    assert html.count(sheet) == 1
    html = html.replace(sheet, "")
    page = _Tags()
    page.feed(html)
    assert set(page.tags) <= set(_TAGS.split())
    assert page.tags.count("script") == (2 if name in ("map", "map-canvas") else 1)
    for tag, attribute, value in page.attributes:
        assert attribute != "style"
        assert not attribute.startswith("on")
        if attribute in ("href", "src", "action", "data-src"):
            assert value.startswith(("/", "#", "https://example.org/")), (tag, value)
            assert not value.startswith("//")
    assert not _UNSAFE.search(page.text)
    assert not _UNSAFE.search(html)


_GIVEN = '\n\ttwo\u202e \x0b </textarea><script>hacked=1</script>\n "lines" & \'\n'
_FIELDS = (("/text", "text"), (f"/feature/{F}", "text"), ("/steer", "prompt"), ("/sql", "q"))


@pytest.mark.parametrize(("path", "name"), _FIELDS)
def test_a_text_that_was_sent_is_in_its_field_as_it_was(
    running: Running, path: str, name: str
) -> None:
    """Browsers send CRLF, and drop one line feed at the beginning of a field."""
    sent = urlencode({name: _GIVEN.replace("\n", "\r\n")}).encode()
    html = running.get(path, "POST", sent)[1].decode()
    page = _Tags()
    page.feed(html)
    assert page.tags.count("script") == 1
    (field,) = re.findall(rf'<textarea[^>]* name="{name}".*?>(.*?)</textarea>', html, re.DOTALL)
    assert field[0] == "\n"
    assert unescape(field[1:]) == _GIVEN
    assert not _UNSAFE.search(html.replace(field, ""))


def test_a_field_of_one_line_keeps_what_is_not_shown(running: Running) -> None:
    path = f"/find?any={F}&where=" + quote("topic <> 'a\u200b\t\"'")
    (value,) = re.findall(r'name="where" value="(.*?)"', running.get(path)[1].decode(), re.DOTALL)
    assert unescape(value) == "topic <> 'a\u200b\t\"'"


def test_no_address_has_a_text_that_is_too_long_for_one(running: Running, database: Path) -> None:
    with featuredb.open(database) as db:
        longest = max(
            (text for (text,) in db.sql("SELECT text FROM documents").fetchall()), key=len
        )
    assert len(longest) > 16_000
    for path in ("/text", f"/feature/{F}"):
        status, body, _ = running.get(path, "POST", urlencode({"text": longest}).encode())
        html = body.decode()
        assert (status, 'role="alert"' in html) == (200, False)
        assert max(map(len, re.findall('(?:href|data-src|action)="(.*?)"', html))) < 500
    # Tokens are chosen by the form.
    form = urlencode({"text": longest, "at": "1"}).encode()
    html = running.get("/text", "POST", form)[1].decode()
    assert '<button form="ask" name="at" value="1" aria-current="true">' in html
    assert 'id="token"' in html


@pytest.mark.parametrize("path", [f"/feature/{F}", "/index", "/find", "/compare"])
def test_every_page_is_data_too(running: Running, database: Path, path: str) -> None:
    query = {"/find": f"?any={F}", "/compare": f"?a={F}&b=a/sae/7"}.get(path, "")
    with featuredb.open(database) as db:
        answers: dict[str, Callable[[], Shown]] = {
            f"/feature/{F}": lambda: db.feature(F),
            "/index": db.info,
            "/find": lambda: db.find(any=[F], window=24),
            "/compare": lambda: db.compare(F, "a/sae/7"),
        }
        expected = answers[path]().arrow()
    status, body, headers = running.get(f"{path}.parquet{query}")
    assert (status, headers["content-type"]) == (200, "application/vnd.apache.parquet")
    assert pq.read_table(io.BytesIO(body)).equals(expected)
    assert len(running.get(f"{path}.csv{query}")[1].splitlines()) > 1
    assert json.loads(running.get(f"{path}.json{query}")[1])


def test_a_panel_of_a_page_is_data_too(running: Running) -> None:
    status, body, _ = running.get(f"/feature/{F}.json?panel=near-encoder")
    assert (status, json.loads(body)["by"]) == (200, "encoder")
    status, body, _ = running.get(f"/feature/{F}.json?panel=nothing")
    assert (status, "near-encoder" in json.loads(body)["error"]) == (400, True)


_TOP = f"/feature/{F}?panel=contexts&k=3"
_COPIED = {
    "top": (_TOP, "Python SQL"),
    "top-chosen": (f"{_TOP}&offset=1&distinct=1&per_document=1&window=2", "Python SQL"),
    "top-where": (f"{_TOP}&where=topic+%3D+%27%3Cb%3E%27", "Python SQL"),
    "top-bounds": (f"{_TOP}&min=0&max=5", "Python"),
    "sample": (f"{_TOP}&show=sample&bins=3&by=quantile&seed=2&window=3", "Python SQL"),
    "silent": (f"{_TOP}&show=silent&like=random&seed=3&window=3", "Python SQL"),
    "encoder": (f"/feature/{F}?panel=near-encoder", "Python"),
    "test": (f"/feature/{F}?panel=test&text={{text}}", "Python"),
    "search": ("/search?q=river&k=3", "Python SQL"),
    "search-evidence": ("/search?q=river&by=evidence&k=3", "Python SQL"),
    "text": ("/text?text={text}&k=3", "Python SQL"),
    "context": ("/text?context=2&k=5&by=mass&min_density=0.3&max_density=0.9", "Python SQL"),
    "token": ("/text?context=2&at=3&k=2&panel=token", "Python"),
    "compare": (f"/compare?a={F}&b=a/sae/7", "Python"),
}
"""Addresses, and in which languages what they show can be asked for."""


@pytest.mark.parametrize("name", _COPIED)
def test_copied_calls_give_what_the_page_shows(running: Running, database: Path, name: str) -> None:
    path, languages = _COPIED[name]
    with featuredb.open(database) as db:
        ((text,),) = db.sql("SELECT text FROM documents WHERE document_id = 0").fetchall()
        path = path.format(text=quote(text))
        body = running.get(path)[1].decode()
        found = re.findall(
            r'<span class="dim">(Python|SQL)</span><code>(.*?)</code>', body, re.DOTALL
        )
        assert [language for language, _ in found] == languages.split()
        calls = {language: unescape(call) for language, call in found}
        file = running.get(path.replace("?", ".parquet?", 1))[1]
        rows = pq.read_table(io.BytesIO(file))
        answer = eval(calls["Python"], {"db": db}).arrow()
        assert answer.equals(rows)
        if "SQL" in calls:
            asked = db.sql(calls["SQL"]).to_arrow_table()
            keys = [
                c for c in ("sae", "feature_id", "context_id", "rank") if c in rows.column_names
            ]
            assert asked.select(keys).to_pylist() == rows.select(keys).to_pylist()


@pytest.mark.parametrize("panel", ["nearest", "range"])
def test_data_of_a_part_of_a_card_are_what_it_shows(
    running: Running, database: Path, panel: str
) -> None:
    rows = json.loads(running.get(f"/feature/{F}.json?panel={panel}")[1])["rows"]
    with featuredb.open(database) as db:
        card = db.feature(F)
    parts: dict[str, Answer] = {"decoder": card.neighbors, "coactivation": card.coactive}
    if panel == "range":
        parts = {"sample": card.sample, "silent": card.silent}
    key = "context_id" if panel == "range" else "feature_id"
    assert [(row["part"], row[key]) for row in rows] == [
        (name, row[key]) for name, answer in parts.items() for row in answer
    ]


@pytest.mark.parametrize("text", ["-k", "--context", "3722", "²", "①", "9" * 5_000, "-" * 3])
@pytest.mark.parametrize("path", ["/text?text=", "/search?by=tokens&q="])
def test_calls_of_any_text_are_taken_as_that_text(running: Running, path: str, text: str) -> None:
    status, body, _ = running.get(path + quote(text))
    assert status == 200
    found = re.findall(r'<span class="dim">(CLI|Python)</span><code>(.*?)</code>', body.decode())
    calls = {language: unescape(call) for language, call in found}
    words = shlex.split(calls["CLI"])[1:]
    command = main.get_command(click.Context(main), words[0])
    assert command is not None
    asked = command.make_context(words[0], words[1:]).params
    assert asked["query" if "search" in path else "text"] == text
    python = ast.parse(calls["Python"], mode="eval").body
    assert isinstance(python, ast.Call)
    assert ast.literal_eval(python.args[0]) == text


def test_names_of_features_lead_to_their_pages(running: Running) -> None:
    assert running.get("/search?q=a/sae/7")[2]["location"] == "/feature/a/sae/7"
    assert running.get("/random?sae=a/sae")[2]["location"].startswith("/feature/a/sae/")
    status, _, headers = running.get("/feature/a/sae/05?k=3")
    assert (status, headers["location"]) == (303, f"/feature/{F}?k=3")
    assert (
        running.get("/feature/a/sae/05.json?k=3")[:2] == running.get(f"/feature/{F}.json?k=3")[:2]
    )
    body = running.get(f"/feature/{F}")[1].decode()
    assert 'rel="prev" href="/feature/a/sae/4"' in body
    assert 'rel="next" href="/feature/a/sae/6"' in body


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (f"/feature/{F}?k=many", "k must be a whole number"),
        (f"/feature/{F}?k=100000", "k must be from 1 to 200"),
        (f"/feature/{F}?k=1_0", "k must be a whole number, not '1_0'"),
        (f"/feature/{F}?offset=%D9%A3", "offset must be a whole number, not '٣'"),
        (f"/feature/{F}?offset={'9' * 5_000}", "offset must be from 0 to 1,000,000,000, not 999"),
        (f"/feature/{F}?min=1_0", "min must be a number, not '1_0'"),
        (f"/feature/{F}?show=nothing", "show must be"),
        ("/feature/nothing/1", "there is no SAE"),
        ("/feature/a/sae/40", "a/sae has features 0 to 39"),
        ("/compare?a=a/sae&b=1", "two features, or two SAEs, not one of each"),
        ("/feature/", "no feature is named: open /feature/a/sae/12"),
        ("/feature/5", "feature 5 does not say of which SAE: write NAME/NUMBER"),
        ("/random?sae=nope", "there is no SAE nope"),
        ("/steer?prompt=a&set=a/sae/40%3D2x", "a/sae has features 0 to 39"),
        (
            "/steer?prompt=a&set=a/sae/1%3D1&temperature=-1",
            "a temperature is from 0 to 100, not -1",
        ),
        ("/steer?prompt=a&set=a/sae/1%3D1&temperature=nan", "from 0 to 100, not nan"),
        ("/steer?prompt=a&set=a/sae/1%3D1&set=a/sae/1%3D2", "edit the same feature"),
        ("/text?context=999", "context"),
        ("/contrast?a=@/etc/passwd", "reads no files"),
        (f"/feature/{F}?panel=nothing", "there is no panel"),
    ],
)
def test_a_bad_address_gets_one_line(running: Running, path: str, reason: str) -> None:
    status, body, _ = running.get(path)
    assert status in (400, 404)
    (line,) = re.findall(r'role="alert">(.*?)</p>', body.decode(), re.DOTALL)
    assert reason in line.replace("&#39;", "'")


def test_what_is_wrong_with_an_edit_is_said_without_a_model(running: Running) -> None:
    query = urlencode({"prompt": "a", "set": "a/sae/40=2x"})
    (fact,) = running.get(f"/steer/stream?{query}")[1].splitlines()
    assert "a/sae has features 0 to 39" in json.loads(fact)["error"]


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        (f"/compare?a={F}", "Give another feature, or another SAE"),
        ("/compare?b=it%27s", "Give another feature, or another SAE"),
        ("/contrast?b=true", "Give A too"),
        (f"/find?none={F}", "Give a feature that fires there"),
        ("/find?where=true", "Give a feature that fires there"),
        ("/steer?prompt=a", "Give an edit too"),
        (f"/steer?set={F}=2x", "Give a text that the model goes on from"),
        ("/text?text=+%0A", "The text has only spaces"),
        (f"/feature/{F}?text=++", "The text has only spaces"),
        ("/monitors?by=topic", "Give a monitor, or a rule"),
        (
            f"/feature/{F}?show=sample&where=true&distinct=1",
            "The filter (where, distinct) chooses among top contexts: it is not applied here",
        ),
    ],
)
def test_a_form_that_is_half_filled_says_what_is_missing(
    running: Running, path: str, missing: str
) -> None:
    status, body, _ = running.get(path)
    (line,) = re.findall(r'class="missing" role="status">(.*?)</p>', body.decode())
    assert status == 200
    assert line.startswith(missing)
    plain = running.get(path.partition("?")[0])[1]
    assert b'class="missing"' not in plain


def test_a_page_after_the_last_row_is_not_offered(running: Running, database: Path) -> None:
    with featuredb.open(database) as db:
        n = db.feature(F).statistics.n_contexts
        (features,) = db.sql("SELECT count(*) FROM features WHERE count >= 20").fetchall()[0]
    for path, offered in (
        (f"/feature/{F}?k=2", True),
        (f"/feature/{F}?k={n}", False),
        (f"/feature/{F}?k=1&offset={n - 2}", True),
        (f"/feature/{F}?k=1&offset={n - 1}", False),
        (f"/feature/{F}?k=1&offset={n + 5}", False),
        (f"/feature/{F}?k=1&where=false", False),
        ("/feature/a/sae/3", False),
        ("/?k=2", True),
        (f"/?offset={features}", False),
    ):
        assert (b">Next " in running.get(path)[1]) == offered, path


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "title"),
    [
        ("GET", "/nothing", {}, 404, "No such page"),
        ("POST", "/map/points", {}, 405, "No answer"),
        ("POST", "/text", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "No answer"),
        ("POST", "/text", {"Content-Type": "Multipart/Form-Data"}, 415, "No answer"),
    ],
)
def test_what_is_refused_has_its_own_title(
    running: Running, method: str, path: str, headers: dict[str, str], status: int, title: str
) -> None:
    got, body, _ = running.get(path, method, b"text=a" if method == "POST" else None, headers)
    assert (got, f"<h1>{title}</h1>" in body.decode()) == (status, True)


def test_an_error_of_a_rule_is_said_once(running: Running) -> None:
    body = running.get("/monitors?rule=" + quote("not " * 2_000 + "f1"))[1].decode()
    assert body.count('role="alert"') == 1
    assert "nested more than 100 deep" in body


def test_a_new_text_waits_for_the_model_and_says_why_there_is_none(running: Running) -> None:
    path = "/text?text=a+new+text"
    seen = set()
    for _ in range(200):
        status, body, _ = running.get(path)
        assert status == 200
        seen |= {mark for mark in (b"data-wait", b'role="alert"') if mark in body}
        if b'role="alert"' in body:
            break
        time.sleep(0.1)
    assert b'role="alert"' in seen
    assert json.loads(running.get("/model")[1])["state"] == "failed"
    assert running.get("/text.json?text=a+new+text")[0] >= 500


def test_a_card_is_one_inert_file(database: Path) -> None:
    html = featuredb.card(database, [F, "it's/3", "a/sae/3"])
    page = _Tags()
    page.feed(html)
    assert set(page.tags) - set(_TAGS.split()) == {"article", "style"}
    assert not {"script", "form", "input"} & set(page.tags)
    for _, attribute, value in page.attributes:
        assert attribute not in ("src", "style")
        assert not attribute.startswith("on")
        assert attribute != "href" or value.startswith("https://example.org/")
    assert not _UNSAFE.search(html)
    assert "a/sae /" in page.text


def test_where_a_feature_fires_is_what_its_activations_say(
    running: Running, database: Path
) -> None:
    with featuredb.open(database) as db:
        rows = db.sql(
            "SELECT token_index, document_id, topic FROM activations JOIN contexts "
            "USING (context_id) JOIN documents USING (document_id) "
            "WHERE sae = 'a/sae' AND feature_id = 5"
        ).fetchall()
        documents = dict(db.sql("SELECT topic, count(*) FROM documents GROUP BY 1").fetchall())
    places = json.loads(running.get(f"/feature/{F}.json?panel=places")[1])
    assert sum(row["activations"] for row in places["rows"]) == len(rows)
    groups = json.loads(running.get(f"/feature/{F}.json?panel=groups&group=topic")[1])
    found = {row["value"]: (row["fires_in"], row["documents"]) for row in groups["rows"]}
    fires = {topic: len({d for _, d, t in rows if t == topic}) for topic in documents}
    assert found == {topic: (fires[topic], n) for topic, n in documents.items()}


def test_a_stored_text_is_marked_in_the_histogram_and_without_bos(
    running: Running, database: Path
) -> None:
    with featuredb.open(database) as db:
        (text,) = db.sql("SELECT text FROM documents WHERE document_id = 2").fetchall()[0]
    form = urlencode({"text": text}).encode()
    body = running.get(f"/feature/{F}", "POST", form)[1].decode()
    with featuredb.open(database) as db:
        most = max(row.activation for row in db.fires_on(text).shaded(F))
    assert f"your text {number(most)}<" in body
    whole, hidden = (
        running.get(f"/text?context=2{flag}")[1].decode() for flag in ("", "&hide_bos=1")
    )
    assert whole.count(">&lt;bos&gt;</a>") == 1
    assert ">&lt;bos&gt;</a>" not in hidden
    assert hidden.count('class="strip"') == 1


def test_an_error_of_ours_is_logged_and_says_so(
    database: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug, with <b>")

    monkeypatch.setattr(featuredb.Database, "info", broken)
    with serving(database) as served:
        status, body, headers = served.get("/")
        assert served.get("/feature/a/sae/5")[0] == 200
        assert served.get("/index.json?panel=info")[0] == 500
        monkeypatch.undo()
        # It was not kept.
        again = served.get("/", headers={"If-None-Match": headers["etag"]})
    # One panel says so, and the page's others are there.
    assert status == 200
    assert "an error of featuredb itself (RuntimeError)" in body.decode()
    assert b'id="provenance"' in body
    assert again[0] == 200
    assert b"an error of featuredb" not in again[1]
    assert b"with <b>" not in body
    assert b"Traceback" not in body
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "a bug, with <b>" in caplog.text


def test_a_page_begins_before_its_panels_are_drawn(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def slow(self: featuredb.Database, *_: object, **__: object) -> None:
        assert go.wait(30)
        raise QueryError("late")

    monkeypatch.setattr(featuredb.Database, "top_contexts", slow)
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    cookie = f"featuredb-{running.port}={running.token}"
    connection.request("GET", f"/feature/{F}?k=7", headers={"Cookie": cookie})
    answer = connection.getresponse()
    begun = b""
    while b"Test a text" not in begun:
        begun += answer.read1(65_536)
    assert b'id="contexts"' not in begun
    go.set()
    rest = answer.read()
    connection.close()
    assert b"late" in rest
    assert rest.rstrip().endswith(b"</html>")
    assert b"\0" not in begun + rest


_ENDLESS = "(SELECT count(*) FROM range(100000000000) a, range(1000) b) > 0"


@pytest.mark.parametrize(
    "path",
    [
        f"/feature/{F}?where=",
        "/contrast?a=",
        f"/find?any={F}&where=",
        "/index.csv?panel=features&order=",
    ],
)
def test_a_question_that_takes_too_long_is_stopped(
    running: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(site, "SECONDS", 0.2)
    monkeypatch.setitem(home._ORDERS, _ENDLESS, _ENDLESS)
    status, body, _ = running.get(path + quote(_ENDLESS))
    assert status == (400 if ".csv" in path else 200)
    assert b"stopped after 0.2 seconds: ask for less" in body
    monkeypatch.undo()
    if path.startswith("/feature"):  # and is not kept as if that were the answer
        monkeypatch.setattr(site, "SECONDS", 0.1)
        assert b"stopped after 0.1 seconds" in running.get(path + quote(_ENDLESS))[1]


def test_a_server_that_ends_stops_what_is_asked(
    database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answers: Queue[bytes] = Queue()
    statement = f"SELECT {_ENDLESS}"
    with serving(database) as served:
        paths = (f"/feature/{F}?where={quote(_ENDLESS)}", f"/sql?q={quote(statement)}")
        asking = [Thread(target=lambda p=p: answers.put(served.get(p)[1])) for p in paths]
        for each in asking:
            each.start()
        time.sleep(1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    for each in asking:
        each.join()
    assert all(b"stopped: the server ends" in answers.get() for _ in asking)
    assert capfd.readouterr().err == ""


def test_a_page_that_is_the_same_is_not_sent_again(running: Running) -> None:
    path = f"/feature/{F}?k=6"
    status, body, headers = running.get(path)
    assert (status, headers["cache-control"]) == (200, "no-cache")
    asked = {"If-None-Match": headers["etag"]}
    assert running.get(path, headers=asked)[:2] == (304, b"")
    assert running.get(path)[:2] == (200, body)
    assert running.get(f"/feature/{F}?k=5", headers=asked)[0] == 200
    # What depends on the model, on chance or on what was sent is asked for anew.
    for other in ("/random", "/sql?q=FROM+features"):
        assert "etag" not in running.get(other)[2], other


def test_a_page_of_a_feature_is_drawn_before_one_is_asked_for(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: Queue[str] = Queue()
    page, whole = feature.page, Early.drawn

    def asked(site: Site, address: Address) -> WebPage:
        drawn.put(address.path)
        return page(site, address)

    def to_its_end(early: Early) -> Response:
        made = whole(early)
        drawn.put("its panels" if b'id="contexts"' in made.body else "an error")
        return made

    monkeypatch.setattr(feature, "page", asked)
    monkeypatch.setattr(Early, "drawn", to_its_end)
    with serving(database):
        first, then = drawn.get(timeout=60), drawn.get(timeout=60)
    assert re.fullmatch(r"/feature/(a/sae|it's)/\d+", first)
    assert then == "its panels"


def test_a_database_behind_a_url_is_served(database: Path, object_store: ObjectStore) -> None:
    url = object_store.url("shown.fdb")
    featuredb.push(database, url)
    paths = ("/", f"/feature/{F}", f"/feature/{F}?panel=nearest", "/map", "/search?q=river")
    with serving(url) as served:
        for path in paths:
            assert served.get(path)[0] == 200, path
        body = served.get(f"/feature/{F}")[1].decode()
    shown = re.search("<h2>Statistics</h2>.*?</section>", body, re.DOTALL)
    assert shown is not None
    assert "active on" in shown[0]
