"""`featuredb explain` against a server on loopback with scripted answers, failures and delays."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import featuredb
from featuredb import endpoint
from featuredb.autointerp.examples import NEGATIVES, TENTHS, Example, evidence, parted
from featuredb.autointerp.prompts import read_choices, read_label, read_number, strength
from featuredb.cli import main
from featuredb.cli.exit_codes import ExitCode
from featuredb.errors import DatabaseLockedError, QueryError
from featuredb.labels.write import add_labels
from featuredb.store.files.lock import write_lock
from featuredb.store.layout import Layout
from featuredb.store.outcomes import Labeled
from tests.docs.conftest import made_world
from tests.interrupts import INTERRUPTIBLE
from tests.make_store import make_store

KEY = "sk-very-secret"
NOTHING = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
LATER = datetime.now(UTC) + timedelta(days=1)
MUSIC = "fires on the word music"

Answer = str | bytes | tuple[int, dict[str, Any]]


@dataclass
class Server:
    """A server. answer: what it says to the messages of a request, or a status and a body, or a
    whole reply in bytes."""

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
            if isinstance(said, bytes):
                self.wfile.write(said)
                return None
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
    assert done.tokens_in == 100 * (done.requests - 1)  # that of embeddings has no count
    assert done.requests == len(server.times)
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


@pytest.mark.parametrize("contexts", [10, 11, 30, 47, 89, 90])
def test_few_contexts_explain_and_test_in_the_same_shares(contexts: int) -> None:
    examples = [
        Example((str(place),), (1.0,), "active", 1 + place * TENTHS // contexts, 1.0)
        for place in range(contexts)
    ]
    explain, test = parted(examples)
    assert len(explain) == math.ceil(contexts * 40 / 90)
    assert sorted(explain + test) == sorted(examples)
    assert len({example.tenth for example in explain}) >= 5


def test_an_intruder_is_one_of_five(database: Path, server: Server) -> None:
    server.answer = perfect
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "j", "scores": ["intruder"]}
    with featuredb.open(database) as db:
        assert len(db.activations(3)) >= 30
    featuredb.explain(database, [3], **options)
    questions = [text for head, text in server.asked if "does not belong" in head]
    assert questions
    assert {len(_passages(text)) for text in questions} == {5}


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


def test_a_label_without_the_scores_that_are_asked_for_is_scored(
    database: Path, server: Server
) -> None:
    server.answer = perfect
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "judge"}
    featuredb.explain(database, [0], **options, scores=())
    ((_, shown),) = server.asked
    server.asked.clear()
    done = featuredb.explain(database, [0], **options)
    assert (done.labels, done.scores, done.already) == (0, 2, 0)
    tested = {passage for _, text in server.asked for passage in _passages(text)}
    assert tested
    texts = {passage.partition("\nActive on:")[0] for passage in _passages(shown)}
    assert not tested & {re.sub("<<|>>", "", text) for text in texts}
    assert featuredb.explain(database, [0], **options).already == 1


@pytest.mark.parametrize("feature", ["11", 11, np.int64(11), "sae/11", np.array([11])], ids=repr)
def test_a_single_feature_is_one(database: Path, server: Server, feature: Any) -> None:
    server.answer = perfect
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "judge"}
    assert featuredb.explain(database, feature, **options, scores=()).labels == 1
    with featuredb.open(database) as db:
        assert [row.feature_id for row in db.labels()] == [11]


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


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"\x00\x01 no HTTP\r\n\r\n",
        b"",
        b"HTTP/1.0 429 Busy\r\nRetry-After: \xb2\r\n\r\n",
    ],
    ids=["half", "garbage", "nothing", "retry-after"],
)
def test_a_connection_that_breaks_is_tried_again(server: Server, broken: bytes) -> None:
    server.answer = lambda head, text: broken if len(server.asked) < 2 else "good"
    asked = endpoint.Endpoint(server.url, "m")
    assert asked.ask(NOTHING) == "good"
    assert (asked.usage.requests, asked.usage.retried) == (2, 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>Welcome</html>", "no OpenAI-compatible server"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 200_000, "no OpenAI-compatible server"),
        ((200, {"error": {"message": "no\n quota"}}), "gives no answer: no quota"),
        ((302, {"headers": {"Location": "http://127.0.0.1:9/v1"}}), "redirects to http://127"),
        ((307, {"headers": {"Location": "/v1/chat/completions"}}), "307: it redirects to /v1"),
        ((429, {"error": "slow", "headers": {"Retry-After": "3600"}}), "come back in 60 minutes"),
        (
            (503, {"headers": {"Retry-After": format_datetime(LATER)}}),
            r"come back in \d+ minutes",
        ),
        ((401, {"error": {"message": "x" * 190 + KEY}}), r"x\*\*\*$"),
        ((401, {"error": {"message": "x" * 394 + KEY}}), r"x\*\*…$"),
    ],
)
def test_what_will_not_change_is_said_at_once(server: Server, answer: Answer, said: str) -> None:
    server.answer = lambda head, text: answer
    with pytest.raises(QueryError, match=said) as caught:
        endpoint.Endpoint(server.url, "m").ask(NOTHING)
    assert "\n" not in str(caught.value)
    assert KEY[:4] not in str(caught.value)
    assert len(server.asked) == 1


def test_a_server_says_by_a_date_when_it_answers(server: Server) -> None:
    busy = {"headers": {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=2))}}
    server.answer = lambda head, text: (503, busy) if len(server.asked) < 2 else "good"
    assert endpoint.Endpoint(server.url, "m").ask(NOTHING) == "good"
    assert server.times[1] - server.times[0] > 0.5


def test_the_key_is_trimmed_and_what_cannot_be_sent_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = lambda head, text: f"Label: the key is {KEY}"
    monkeypatch.setenv(endpoint.KEY, f" {KEY}\r\n")
    assert endpoint.Endpoint(server.url, "m").ask(NOTHING) == "Label: the key is ***"
    assert server.keys == {f"Bearer {KEY}"}
    for wrong in (f"{KEY}\r\nX: y", f"{KEY}é", f"{KEY} {KEY}"):
        monkeypatch.setenv(endpoint.KEY, wrong)
        with pytest.raises(QueryError, match="set it again") as caught:
            endpoint.Endpoint(server.url, "m")
        assert KEY not in str(caught.value)


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
    asked = endpoint.Endpoint(server.url, "j", rate=600)
    monkeypatch.setattr(asked.stopped, "wait", slept.append)
    for _ in range(2):
        asked.ask(NOTHING)
    asked.embed(["music"], "minilm")
    assert slept == pytest.approx([0, 0.1, 0.2])


def test_the_estimate_comes_before_any_request(
    database: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "big"}
    with caplog.at_level(logging.INFO, "featuredb"):
        done = featuredb.explain(database, [0], **options, price=(1e6, 0), dry_run=True)
    assert (done.requests, server.asked) == (0, [])
    match = re.search(r"1 feature, about (\d+) requests to big, ([\d,]+) tokens in", caplog.text)
    assert match is not None
    server.answer = perfect
    assert featuredb.explain(database, [0], **options).requests == int(match[1])
    characters = sum(len(head) + len(text) for head, text in server.asked)
    assert int(match[2].replace(",", "")) == pytest.approx(characters / 4, rel=0.2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", ""], "give the name of a model"),
        (["--model", "m", "--price", "nan", "inf"], "price must be two numbers"),
        (["--model", "m", "--score", "fuzz", "--no-scores"], "cannot be combined"),
    ],
)
def test_bad_options_are_refused(
    database: Path, server: Server, options: list[str], said: str
) -> None:
    result = CliRunner().invoke(
        main, ["explain", str(database), "--endpoint", server.url, *options]
    )
    assert result.exit_code in (ExitCode.USAGE, ExitCode.QUERY)
    assert said in result.stderr.splitlines()[-1]
    assert server.asked == []


def test_the_counts_are_in_words(database: Path, server: Server) -> None:
    server.answer = perfect
    asked = ["--endpoint", server.url, "--model", "judge", "--no-scores"]
    result = CliRunner().invoke(main, ["explain", str(database), "0", *asked])
    assert result.stderr.splitlines()[-1].endswith(": 1 label and 0 scores from 1 request")


def test_a_label_is_kept_when_its_scores_fail(database: Path, server: Server) -> None:
    server.answer = lambda head, text: (
        (400, {"error": "too long"}) if "JSON list" in head else perfect(head, text)
    )
    options: dict[str, Any] = {"endpoint": server.url, "model_name": "judge"}
    with pytest.raises(QueryError, match="too long"):
        featuredb.explain(database, [0], **options)
    server.answer = perfect
    done = featuredb.explain(database, [0], **options)
    assert (done.labels, done.scores) == (0, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_it_within_seconds_and_what_was_answered_is_kept(
    database: Path, server: Server, number: signal.Signals
) -> None:
    held, ended = threading.Event(), threading.Event()

    def hangs(head: str, text: str) -> Answer:
        if "JSON list" in head:
            held.set()
            ended.wait(100)
        return perfect(head, text)

    server.answer = hangs
    options = ["--endpoint", server.url, "--model", "judge", "--parallel", "2"]
    program = f"{INTERRUPTIBLE}from featuredb.cli import main\nmain()"
    running = subprocess.Popen(
        [sys.executable, "-c", program, "explain", str(database), *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert held.wait(60)
        time.sleep(1)  # both are at a score
        running.send_signal(number)
        _, said = running.communicate(timeout=60)  # the server is silent for longer
    finally:
        running.kill()
        ended.set()
    assert running.returncode == 130
    assert said.splitlines()[-1] == (
        "featuredb: interrupted: 2 labels and 0 scores are stored, repeat the command to continue"
    )
    assert len(server.asked) == 4
    with featuredb.open(database) as db:
        assert len(db.labels()) == 2


def test_a_write_is_not_interrupted(
    database: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Labeled:
        time.sleep(0.2)  # the caller waits
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return add_labels(*args)

    server.answer = perfect
    monkeypatch.setattr("featuredb.autointerp.explain.add_labels", interrupted)
    # A worker of tests may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="1 label and 0 scores are stored"):
            featuredb.explain(database, [0], endpoint=server.url, model_name="judge", scores=())
    finally:
        signal.signal(signal.SIGINT, before)
    with featuredb.open(database) as db:
        assert len(db.labels(0)) == 1


def test_another_writer_is_noticed_before_the_first_request(
    database: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featuredb.autointerp.explain._BEFORE", 0.1)
    with write_lock(Layout(database), "ingest"), pytest.raises(DatabaseLockedError, match="ingest"):
        featuredb.explain(database, [0], endpoint=server.url, model_name="judge")
    assert server.asked == []


def test_answers_wait_for_another_writer(
    database: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def busy(path: Path, *args: Any) -> Labeled:
        tries.append(path)
        if len(tries) < 3:
            raise DatabaseLockedError("another process writes")
        return add_labels(path, *args)

    server.answer = perfect
    monkeypatch.setattr("featuredb.autointerp.explain.add_labels", busy)
    done = featuredb.explain(database, [0], endpoint=server.url, model_name="judge", scores=())
    assert (done.labels, len(tries)) == (1, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoint": "localhost:1"}, "no address of an endpoint"),
        ({"endpoint": None}, "no address of an endpoint"),
        ({"endpoint": "http://"}, "no address of an endpoint"),
        ({"endpoint": "http://local host/v1"}, "no address of an endpoint"),
        ({"endpoint": "http://127.0.0.1:abc/v1"}, "no address of an endpoint"),
        ({"endpoint": "http://[::1/v1"}, "no address of an endpoint"),
        ({"endpoint": f"http://me:{KEY}@localhost/v1"}, "has no user and no password"),
        ({"endpoint": f"http://localhost/v1?key={KEY}"}, "no address of an endpoint"),
        ({"endpoint": "http://127.0.0.1:9/v1"}, "gives no answer"),
        ({"scores": ["x"]}, "there is no score x"),
        ({"scores": ["embedding"]}, "needs the name of an embedding model"),
        ({"scores": (), "existing": True}, "say by which scores"),
        ({"features": [99]}, "there is no feature 99"),
        ({"rate": 0}, "rate must be"),
        ({"rate": 1e-12}, "rate must be"),
        ({"rate": float("nan")}, "rate must be"),
        ({"parallel": 0}, "parallel must be"),
        ({"parallel": 1.5}, "parallel must be"),
        ({"price": 5}, "price must be two numbers"),
        ({"price": (-5, 5)}, "price must be two numbers"),
        ({"price": (float("nan"), float("inf"))}, "price must be two numbers"),
        ({"model_name": None}, "give the name of a model"),
        ({"model_name": ""}, "give the name of a model"),
        ({"embedding_model": ""}, "give the name of a model"),
        ({"features": b"0"}, "is not a feature"),
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
    assert KEY not in str(caught.value)
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
        ("**Label:**\n\n  months\nor so", "months"),
        ("Label: half of \ud800 a character", None),
        ("\n" * 60_000, None),
        ("Label: a" + "_ " * 8_000 + "x\n" + " " * 60_000, None),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace"),
)
def test_reading_a_label(answer: str, label: str | None) -> None:
    start = time.monotonic()
    assert read_label(answer) == label
    assert time.monotonic() - start < 2  # not the square of its length


def test_reading_choices_and_numbers() -> None:
    assert read_choices("[1] is, so [1, 0, true]", 3) == [True, False, True]
    assert read_choices("[1, 0]", 3) is None
    assert read_choices("[1, 0, 5]", 3) is None
    assert read_choices("[a]", 1) is None
    assert read_number("not [1] but [ 4 ]", 5) == 4
    assert read_choices("[" + '{"a":' * 100_000 + "]", 1) is None
    assert read_number("[6]", 5) is None
    assert read_number("[\u00b2]", 5) is None
    assert read_number(f"[{'1' * 5000}]", 5) is None
    assert [strength(v, 10.0) for v in (0, 0.1, 5, 10, 11)] == [0, 1, 5, 10, 10]
    assert strength(1, 0) == 0
