"""`Database.sweep`: the axes by hand, the choice on every other prompt, the judge, the picture."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from featuredb import Database
from featuredb.cli import main
from featuredb.errors import FeatureDBError, QueryError
from featuredb.steering.sentences import SentenceEncoder
from featuredb.steering.sweep import harmonic, parse_strengths
from tests.steering.test_steer import PROMPTS

pytest.importorskip("matplotlib")


def test_strengths_take_the_last_unit() -> None:
    assert [str(s) for s in parse_strengths("0,1, 2.5,10x")] == ["0x", "1x", "2.5x", "10x"]
    assert [str(s) for s in parse_strengths([0, "q0.5", 7])] == ["0", "q0.5", "7"]
    for wrong in ("1", "1,1", "1,x", "2,q0.5", ""):
        with pytest.raises(QueryError):
            parse_strengths(wrong)


def test_the_harmonic_mean() -> None:
    found = harmonic([np.array([0.5, 0.0, 1.0]), np.array([0.25, 1.0, 1.0])])
    np.testing.assert_allclose(found, [1 / 3, 0, 1])


def test_every_axis_by_hand(db: Database) -> None:
    swept = db.sweep(PROMPTS, "early/3=1x", "0,5,40x", max_new_tokens=6)
    texts = swept.texts.to_pylist()
    assert len(texts) == 9
    for strength in ("0x", "5x", "40x"):
        own = db.steer(PROMPTS, f"early/3={strength}", max_new_tokens=6, controls=False)
        by = {(row.prompt_index, row.variant): row for row in own}
        for row in (t for t in texts if t["strength"] == strength):
            plain, steered = (by[row["prompt_index"], v] for v in ("unsteered", "steered"))
            concept = (min(1, steered.target) + (steered.hits > 0)) / 2
            rise = np.log(steered.perplexity) - np.log(plain.perplexity)
            fluency = np.clip(1 - max(rise, 0) / np.log(100), 0, 1)
            fluency *= 1 - max(steered.repetition - plain.repetition, 0)
            np.testing.assert_allclose(row["concept"], concept, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(row["fluency"], fluency, rtol=1e-3, atol=1e-6)
            right = 2 / (1 / concept + 1 / fluency) if concept and fluency else 0
            np.testing.assert_allclose(row["score"], right, rtol=1e-3, atol=1e-6)
            assert row["held_out"] == (row["prompt_index"] == 1)
    scores = {s: [t["score"] for t in texts if t["strength"] == s] for s in ("0x", "5x", "40x")}
    for row in swept:
        zero, one, two = scores[row.strength]
        np.testing.assert_allclose(row.choosing_score, (zero + two) / 2)
        np.testing.assert_allclose(row.held_out_score, one)
    best = max(swept, key=lambda row: row.choosing_score)
    assert swept.best == (best.strength if best.choosing_score > 0 else None)
    assert "sweep of early/3" in str(swept)


def test_closeness_is_of_sentences() -> None:
    class Tokenizer:
        def __call__(self, texts: list[str], **_: object) -> dict[str, torch.Tensor]:
            rows = [[ord(c) for c in text] + [0] * (4 - len(text)) for text in texts]
            ids = torch.tensor(rows)
            return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    class Model:
        def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            hidden = torch.nn.functional.one_hot(input_ids, 128).float()
            return type("Output", (), {"last_hidden_state": hidden})

    close = SentenceEncoder(Model(), Tokenizer()).closeness(["ab", "aa", "ab"], ["ab", "bb", "bc"])
    np.testing.assert_allclose(close, [1, 0, 0.5], atol=1e-6)


@pytest.fixture
def judge() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["messages"][0]["content"]
            said = "Rating: 1" if "fluent" in asked else "It is. Rating: 2"
            if body["model"] == "mute":
                said = "I would rather not"
            answer = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_rates_instead(db: Database, judge: str) -> None:
    swept = db.sweep(
        PROMPTS[:2], "early/3=1x", "1,5x", max_new_tokens=3, judge=judge, judge_model="j"
    )
    assert {(r.concept, r.fluency, r.closeness, r.score) for r in swept} == {(1, 0.5, 1, 0.75)}
    with pytest.raises(QueryError, match="gives no rating"):
        db.sweep(
            PROMPTS[:2], "early/3=1x", "1,5x", max_new_tokens=3, judge=judge, judge_model="mute"
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"judge": "http://127.0.0.1:9/v1"}, "both its address and"),
        ({"judge": "x", "judge_model": "y"}, "no address of an endpoint"),
        ({"judge": "http://127.0.0.1:9/v1", "judge_model": "y"}, "gives no answer"),
        ({"encoder": "/nowhere"}, "no sentence encoder"),
    ],
)
def test_bad_input(db: Database, options: dict[str, str], words: str) -> None:
    with pytest.raises(FeatureDBError, match=words):
        db.sweep(PROMPTS[:1], "early/3=1x", "1,5x", max_new_tokens=2, **options)  # type: ignore[arg-type]


def test_the_command_and_its_picture(steerable: Path, tmp_path: Path) -> None:
    picture = tmp_path / "sweep.png"
    call = ["steer", str(steerable), *PROMPTS[:2], "--set", "early/3=1x", "--max-new-tokens", "3"]
    ran = CliRunner().invoke(main, [*call, "--sweep", "0,2,20x", "--plot", str(picture)])
    assert ran.exit_code == 0, ran.output
    assert "sweep of early/3" in ran.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(main, [*call, "--plot", str(picture)])
    assert refused.exit_code == 2
    wrong = CliRunner().invoke(main, [*call, "--sweep", "0,2x", "--plot", str(tmp_path / "a.bcd")])
    assert wrong.exit_code == 6
    assert "cannot write" in wrong.output
