"""`featuredb explain` against a server on loopback with scripted answers, failures and delays."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import featuredb
from featuredb import endpoint
from featuredb.autointerp.examples import NEGATIVES, evidence
from featuredb.autointerp.prompts import read_choices, read_label, read_number, strength
from featuredb.errors import QueryError
from tests.docs.conftest import made_world
from tests.make_store import make_store

KEY = "sk-very-secret"
MUSIC = "fires on the word music"

Answer = str | tuple[int, dict[str, Any]]


@dataclass
class Server:
    """A server. answer: what it says to the messages of a request, or a status and a body."""

    url: str = ""
    answer: Callable[[str, str], Answer] = lambda head, text: ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    times: list[float] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.keys.add(self.headers.get("Authorization"))
            state.times.append(time.monotonic())
            if self.path.endswith("/embeddings"):
                data = [
                    {"index": i, "embedding": [float(text.count("music")), 1.0]}
                    for i, text in enumerate(body["input"])
                ]
                return self.reply(200, {"data": data[::-1]})
            head, text = (message["content"] for message in body["messages"])
            state.asked.append((head, text))
            said = state.answer(head, text)
            if isinstance(said, tuple):
                return self.reply(*said)
            self.reply(
                200,
                {
                    "choices": [{"message": {"content": said}}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                },
            )

        def reply(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, header in value.get("headers", {}).items():
                self.send_header(name, header)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{listening.server_port}/v1"
    monkeypatch.setenv(endpoint.KEY, KEY)
    monkeypatch.setattr(endpoint.Endpoint.__init__, "__defaults__", _quick())
    yield state
    listening.shutdown()
    thread.join()
    listening.server_close()


def _quick() -> tuple[object, ...]:
    """The defaults of an `Endpoint` with short waits."""
    rate, tries, wait, *rest = endpoint.Endpoint.__init__.__defaults__ or ()
    del wait
    return (rate, tries, 0.001, *rest)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "made.fdb"
    make_store(path, made_world())
    return path


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "made.fdb"))


def _passages(text: str) -> list[str]:
    return re.split(r"\n*Passage \d+: ", text)[1:]


def perfect(head: str, text: str) -> str:
    """What one who knows feature 0, which fires on `` music``, answers."""
    passages = _passages(text)
    if "End with one line" in head:
        return f"They are all one word.\n**Label:** {MUSIC}"
    if "does not belong" in head:
        strange = [
            i for i, p in enumerate(passages, 1) if "<< music" not in p and "music>>" not in p
        ]
        return f"It is [{(strange or [1])[0]}]"
    if "between <<" in head:
        return json.dumps([int(bool(re.search(r"<<[^>]* music", p))) for p in passages])
    return f"I think {json.dumps([int(' music' in p) for p in passages])}"


def _scores(path: Path, feature: int = 0) -> dict[str, tuple[float, dict[str, Any]]]:
    with featuredb.open(path) as db:
        (row,) = db.labels(feature)
        return {s["scorer"]: (s["value"], json.loads(s["details"])) for s in row.scores}


def test_a_feature_is_explained_and_scored(database: Path, server: Server) -> None:
    server.answer = perfect
    done = featuredb.explain(
        database,
        [0],
        endpoint=server.url,
        model_name="judge",
        scores=["detection", "fuzz", "intruder", "embedding"],
        embedding_model="minilm",
    )
    with featuredb.open(database) as db:
        (label,) = db.labels(0)
        assert (label.text, label.method, label.model) == (MUSIC, "explained", "judge")
        share = db.sql(
            "SELECT n_contexts / (SELECT count(*) FROM contexts) FROM features WHERE feature_id = 0"
        ).fetchall()[0][0]
    scores = _scores(database)
    assert scores.keys() == {
        *("detection", "detection_at_density", "fuzz", "fuzz_at_density", "intruder", "embedding")
    }
    assert all(value == 1 for value, _ in scores.values())
    assert scores["detection_at_density"][1]["density"] == pytest.approx(share)
    assert (done.labels, done.scores, done.malformed, done.retried) == (1, 6, 0, 0)
    assert done.tokens_in == 100 * done.requests
    assert server.keys == {f"Bearer {KEY}"}
    first = server.asked[0][1]
    assert first.count("Passage") == 40
    assert "<< music>>" in first
    assert '" music" 10' in first
    assert featuredb.verify(database).ok


def test_examples_are_certain_and_of_delphis_scheme(database: Path) -> None:
    with featuredb.open(database) as db:
        shown = evidence(db, "sae/1", 0, scored=True)
        assert shown is not None
        assert (len(shown.explain), len(shown.test)) == (40, 50)
        assert [sum(e.tenth == t for e in shown.explain) for t in range(1, 11)] == [4] * 10
        assert [sum(e.tenth == t for e in shown.test) for t in range(1, 11)] == [5] * 10
        assert all(max(e.activations) > 0 for e in (*shown.explain, *shown.test))
        assert not {e.text for e in shown.explain} & {e.text for e in shown.test}
        shown = evidence(db, "sae/0", 0, scored=True)
        assert shown is not None
        assert {e.kind for e in shown.negatives} <= set(NEGATIVES)
        assert all(max(e.activations) == 0 and " music" not in e.tokens for e in shown.negatives)
        assert evidence(db, "sae/39", 0, scored=True) is None
        example = shown.explain[0]
        assert example.spelled(example.marked).replace("<<", "").replace(">>", "") == example.text


def test_scores_are_by_hand(database: Path, server: Server) -> None:
    """One who always says yes: half right on Delphi's examples, far less at the true density."""
    server.answer = lambda head, text: (
        f"Label: {MUSIC}" if "End with" in head else json.dumps([1] * len(_passages(text)))
    )
    featuredb.explain(database, [0], endpoint=server.url, model_name="yes")
    scores = _scores(database)
    value, details = scores["detection"]
    assert value == 0.5
    assert details["recall"] == 1
    n_active, n_silent = details["n_active"], details["n_silent"]
    assert details["precision"] == pytest.approx(n_active / (n_active + n_silent))
    assert {details[f"false_alarms_{kind}"] for kind in NEGATIVES} <= {1, None}
    value, details = scores["detection_at_density"]
    assert details["precision"] == pytest.approx(details["density"])
    assert value == pytest.approx(2 * details["density"] / (1 + details["density"]))
    assert details["precision_low"] <= details["precision"] <= details["precision_high"]


def test_it_resumes_and_scores_what_there_is(database: Path, server: Server) -> None:
    server.answer = perfect
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "judge"}
    assert featuredb.explain(database, [0, 0, 1], **options, scores=()).labels == 2
    asked = len(server.asked)
    again = featuredb.explain(database, [0, 1], **options, scores=())
    assert (again.labels, again.already, again.requests) == (0, 2, 0)
    assert len(server.asked) == asked
    with featuredb.open(database) as db:
        db.label(0, "of people")
        db.prefer_label(0, "of people")
    done = featuredb.explain(database, [0, 5], **options, existing=True)
    assert (done.labels, done.scores) == (0, 2)
    assert featuredb.explain(database, [0], **options, existing=True).already == 1
    with featuredb.open(database) as db:
        scored = {row.text: len(row.scores) for row in db.labels(0)}
    assert scored == {"of people": 2, MUSIC: 0}


def test_answers_that_cannot_be_read_are_counted(database: Path, server: Server) -> None:
    server.answer = lambda head, text: (
        "I would rather not" if "Label" in head else perfect(head, text)
    )
    done = featuredb.explain(database, [0], endpoint=server.url, model_name="mute")
    assert (done.labels, done.malformed) == (0, 1)
    count = iter(range(1000))

    def sometimes(head: str, text: str) -> Answer:
        return "[1, 2]" if "JSON list" in head and next(count) % 4 == 0 else perfect(head, text)

    server.answer = sometimes
    done = featuredb.explain(database, [0], endpoint=server.url, model_name="some")
    assert done.malformed > 0
    value, details = _scores(database)["detection"]
    assert value == 1
    assert 5 * (done.malformed - 1) < details["unanswered"] <= 5 * done.malformed


def test_a_busy_server_is_asked_again(database: Path, server: Server) -> None:
    count = iter(range(1000))

    def busy(head: str, text: str) -> Answer:
        number = next(count)
        if number in (0, 3):
            return 429, {"error": {"message": "slow down"}, "headers": {"Retry-After": "0.05"}}
        return (503, {}) if number == 1 else perfect(head, text)

    server.answer = busy
    done = featuredb.explain(database, [0], endpoint=server.url, model_name="busy", parallel=1)
    assert (done.labels, done.retried) == (1, 3)
    assert server.times[1] - server.times[0] >= 0.05


def test_what_was_answered_is_kept_when_the_server_fails(
    database: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses_later(head: str, text: str) -> Answer:
        if len(server.asked) > 2:
            return 401, {"error": {"message": f"no such key: {KEY}"}}
        return perfect(head, text)

    server.answer = refuses_later
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "judge", "scores": ()}
    with caplog.at_level(logging.DEBUG), pytest.raises(QueryError) as caught:
        featuredb.explain(database, [0, 1, 2, 3], **options, parallel=1)
    assert "401 no such key: ***" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in caplog.text
    server.answer = perfect
    done = featuredb.explain(database, [0, 1, 2, 3], **options)
    assert (done.already, done.labels) == (2, 2)
    stored = [file for file in database.rglob("*") if file.is_file()]
    assert not any(KEY.encode() in file.read_bytes() for file in stored)


def test_the_rate_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = perfect
    slept: list[float] = []
    monkeypatch.setattr("featuredb.endpoint.time.monotonic", lambda: 100.0)
    monkeypatch.setattr("featuredb.endpoint.time.sleep", slept.append)
    asked = endpoint.Endpoint(server.url, "j", rate=600)
    for _ in range(3):
        asked.ask([{"role": "system", "content": ""}, {"role": "user", "content": ""}])
    assert slept == pytest.approx([0, 0.1, 0.2])


def test_the_estimate_comes_before_any_request(
    database: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "big"}
    with caplog.at_level(logging.INFO, "featuredb"):
        done = featuredb.explain(database, [0], **options, price=(1e6, 0), dry_run=True)
    assert (done.requests, server.asked) == (0, [])
    match = re.search(r"1 features, about (\d+) requests to big, ([\d,]+) tokens in", caplog.text)
    assert match is not None
    server.answer = perfect
    assert featuredb.explain(database, [0], **options).requests == int(match[1])
    characters = sum(len(head) + len(text) for head, text in server.asked)
    assert int(match[2].replace(",", "")) == pytest.approx(characters / 4, rel=0.2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoint": "localhost:1"}, "no address of an endpoint"),
        ({"endpoint": "http://127.0.0.1:9/v1"}, "gives no answer"),
        ({"scores": ["x"]}, "there is no score x"),
        ({"scores": ["embedding"]}, "needs the name of an embedding model"),
        ({"scores": (), "existing": True}, "say by which scores"),
        ({"features": [99]}, "there is no feature 99"),
        ({"rate": 0}, "rate must be"),
        ({"parallel": 0}, "parallel must be"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    database: Path, server: Server, options: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"features": [0], "endpoint": server.url, "model_name": "m", **options}
    with pytest.raises(QueryError, match=said) as caught:
        featuredb.explain(database, **given)
    assert "\n" not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Label: dates", "dates"),
        ("label : “a”\nLabel: b", "b"),
        ('**Label:** "months, in dates"', "months, in dates"),
        ("The label is dates", None),
        ("Label:   ", None),
        ("Label: " + "x" * 20_000, None),
        ("", None),
    ],
)
def test_reading_a_label(answer: str, label: str | None) -> None:
    assert read_label(answer) == label


def test_reading_choices_and_numbers() -> None:
    assert read_choices("[1] is, so [1, 0, true]", 3) == [True, False, True]
    assert read_choices("[1, 0]", 3) is None
    assert read_choices("[1, 0, 5]", 3) is None
    assert read_choices("[a]", 1) is None
    assert read_number("not [1] but [ 4 ]", 5) == 4
    assert read_number("[6]", 5) is None
    assert [strength(v, 10.0) for v in (0, 0.1, 5, 10, 11)] == [0, 1, 5, 10, 10]
    assert strength(1, 0) == 0
