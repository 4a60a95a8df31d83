"""`Database.steer` and `featuredb steer`: the texts, the counts, and every figure by hand."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from featuredb import Database
from featuredb.cli import main
from featuredb.cli.exit_codes import ExitCode
from featuredb.errors import FeatureDBError
from ingest.extract.recorded import recorded

PROMPT = " river bridge stone water"
PROMPTS = [PROMPT, " music", " the king and the queen of stone"]
CHAT = [{"role": "user", "content": " river stone"}]


def _ids(db: Database, prompt: str) -> torch.Tensor:
    return torch.tensor([[0, *db.tokenizer(prompt, add_special_tokens=False).input_ids]])


def test_the_texts_are_those_of_the_model_itself(db: Database) -> None:
    answer = db.steer(PROMPT, "early/3=30x", max_new_tokens=6, effect=False)
    assert [row.variant for row in answer] == ["unsteered", "steered"]
    ids = _ids(db, PROMPT)
    plain: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with db.intervene("early/3=30x") as model:
        steered = model.generate(ids.to(model.device), **plain)
    unsteered = model.generate(ids.to(model.device), **plain)
    for variant, made in (("unsteered", unsteered), ("steered", steered)):
        assert answer.text(0, variant) == db.tokenizer.decode(made[0, ids.shape[1] :])
    assert answer.text() != answer.text(0, "unsteered")


def test_n_new_tokens_are_n_edits(db: Database) -> None:
    n = _ids(db, PROMPT).shape[1]
    for effect in (False, True):
        answer = db.steer(
            PROMPT, ["early/3=9", "late/4=2 @ generated"], max_new_tokens=7, effect=effect
        )
        new = next(row.n_tokens for row in answer if row.variant == "steered")
        counts = [tuple(row.values())[1:] for row in answer.edited.to_pylist()]
        assert counts == [(n - 1, new, new), (0, new, new)]


def test_a_batch_is_each_prompt_alone(db: Database) -> None:
    edits = ["early/3=20x @ not bos"]
    together = db.steer(PROMPTS, edits, max_new_tokens=5, controls=False)
    for number, prompt in enumerate(PROMPTS):
        alone = db.steer(prompt, edits, max_new_tokens=5, controls=False)
        for variant in ("unsteered", "steered"):
            assert together.text(number, variant) == alone.text(0, variant)
        rows = [r for r in together if r.prompt_index == number]
        for one, two in zip(rows, alone, strict=True):
            for measure in ("kl", "perplexity", "repetition", "target", "hits"):
                np.testing.assert_allclose(one[measure], two[measure], rtol=1e-3, atol=1e-5)


def test_every_measure_by_hand(db: Database) -> None:
    answer = db.steer(PROMPT, "early/3=30x", max_new_tokens=8)
    row = next(row for row in answer if row.variant == "steered")
    ids = _ids(db, PROMPT)
    start = ids.shape[1]
    words = db._store.texts.token_texts
    with db.intervene("early/3=30x") as model:
        made = model.generate(
            ids.to(model.device), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        steered = model(input_ids=made, output_hidden_states=True)
    plain = model(input_ids=made, output_hidden_states=True)
    new = made[0, start:].tolist()
    assert row.tokens == [words[token] for token in new]
    at = slice(start - 1, -1)
    p, q = (torch.log_softmax(o.logits[0, at].cpu().double(), 1).numpy() for o in (steered, plain))
    np.testing.assert_allclose(row.kl, (np.exp(p) * (p - q)).sum(1).mean(), rtol=1e-4)
    nll = -q[np.arange(len(new)), new].mean()
    np.testing.assert_allclose(row.perplexity, np.exp(nll), rtol=1e-4)
    grams = [tuple(new[i : i + 3]) for i in range(len(new) - 2)]
    assert row.repetition == pytest.approx(1 - len(set(grams)) / len(grams))
    early = recorded(db._store).saes[0].sae
    maximum = db.feature("early/3").statistics["max_activation"]
    codes = [
        early.encode(o.hidden_states[2][0, start - 1 : -1]).cpu().double() for o in (plain, steered)
    ]
    np.testing.assert_allclose(row.target, codes[0][1:, 3].max() / maximum, rtol=1e-4, atol=1e-6)
    moved = {(m.sae, m.feature_id): m for m in answer.moved}
    edited = moved["early", 3]
    assert edited.edited
    np.testing.assert_allclose(edited.before, codes[0][:, 3].mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(edited.after, codes[1][:, 3].mean(), rtol=1e-4)
    assert {sae for sae, _ in moved} == {"early", "late"}
    likely = answer.next_tokens[0]
    token = list(words).index(likely.token)
    right = [np.exp(q[0, token]), np.exp(p[0, token])]
    np.testing.assert_allclose([likely.before, likely.after], right, rtol=1e-4)


def test_controls_and_intervals(db: Database) -> None:
    answer = db.steer(PROMPTS, "early/3=30x", max_new_tokens=4)
    variants = ["unsteered", "steered", "flipped", "random feature", "noise"]
    assert [row.variant for row in answer] == variants * 3
    assert answer.random_feature.startswith("early/")
    effects = {(e.variant, e.measure): e for e in answer.effects}
    kl = np.array([row.kl for row in answer if row.variant == "noise"])
    half = 4.303 * kl.std(ddof=1) / np.sqrt(3)
    found = effects["noise", "kl"]
    np.testing.assert_allclose((found.mean, found.high), (kl.mean(), kl.mean() + half), rtol=1e-9)
    assert effects["unsteered", "kl"].mean == 0
    one = db.steer(PROMPT, "early/3=30x", max_new_tokens=4)
    assert next(iter(one.effects)).low is None
    assert "controls" in str(answer)
    assert "<" in answer._repr_html_()


def test_seeds_draw_the_same(db: Database) -> None:
    draws = [
        db.steer(PROMPT, "early/3=2x", temperature=1.5, seed=seed, max_new_tokens=9, effect=False)
        for seed in (1, 1, 2)
    ]
    assert draws[0].table.equals(draws[1].table)
    assert not draws[0].table.equals(draws[2].table)


def test_chats_and_their_roles(db: Database) -> None:
    pieces: list[str] = []
    answer = db.steer(
        CHAT, "early/3=9 @ role user", max_new_tokens=5, effect=False, stream=pieces.append
    )
    (row,) = answer.edited.to_pylist()
    assert row["prompt_tokens"] == len(db.tokenizer(" river stone").input_ids)
    assert row["generated_places"] == 0
    assert "".join(pieces).rstrip("\n") == answer.text()
    own = db.steer(CHAT, "early/3=9 @ role assistant", max_new_tokens=5)
    (row,) = own.edited.to_pylist()
    # The place before the first new token is the template's.
    assert row["generated_places"] == row["n_generated"] - 1


@pytest.mark.parametrize(
    ("prompt", "edit", "options", "words"),
    [
        (PROMPT, "early/3=1 @ 500", {}, "outside of the text"),
        (PROMPT, "early/3=1 @ role user", {}, "who says what"),
        (CHAT, "early/3=1 @ role judge", {}, "nobody in the chat"),
        ([], "early/3=1", {}, "there is no prompt"),
        ([{"content": "x"}, {"content": "y"}], "early/3=1", {}, "is no message"),
        (PROMPT * 99, "early/3=1", {}, "give a shorter one"),
        (PROMPT, "early/3=1", {"max_new_tokens": 0}, "at least one token"),
        (PROMPT, "early/3=1", {"temperature": -1}, "temperature"),
        (PROMPT, "early/3=1", {"push_out": True}, "has no k"),
        (PROMPT, "early/3=1", {"method": "direction"}, "along a direction"),
    ],
)  # fmt: skip
def test_bad_input(
    db: Database, prompt: Any, edit: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(FeatureDBError, match=words):
        db.steer(prompt, edit, **options)


def test_the_command(db: Database, steerable: Path, tmp_path: Path) -> None:
    call = ["steer", str(steerable), PROMPT, "--set", "early/3=30x", "--max-new-tokens", "4"]
    ran = CliRunner().invoke(main, [*call, "--format", "json"])
    assert ran.exit_code == 0, ran.output
    answer = json.loads(ran.stdout)
    texts = [row["text"] for row in answer["rows"][:2]]
    own = db.steer(PROMPT, "early/3=30x", max_new_tokens=4)
    assert texts == [own.text(0, "unsteered"), own.text()]
    file = tmp_path / "prompts.txt"
    file.write_text(" music\n river\n")
    many = CliRunner().invoke(
        main, ["steer", str(steerable), "--file", str(file), "--chat", "--set", "early/3=1"]
    )
    assert many.exit_code == 0, many.output
    assert "mean of 2 prompts" in many.output
    for wrong, words, code in (
        (["steer", str(steerable), "--set", "early/3=1"], "give a PROMPT", 2),
        (["steer", str(steerable), "x", "--set", "early/3"], "is no edit", 4),
        (["steer", str(steerable), "x", "--set", "early/999=1"], "no feature 999", 4),
    ):
        refused = CliRunner().invoke(main, wrong)
        assert (refused.exit_code, words in refused.output) == (code, True), refused.output


_STREAMED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has not
from featuredb.cli import main
main(["steer", *sys.argv[1:]])
"""


def test_ctrl_c_ends_a_streamed_text(steerable: Path) -> None:
    ours, theirs = pty.openpty()
    call = [str(steerable), PROMPT, "--set", "early/3=1x", "--max-new-tokens", "400"]
    with subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", "-c", _STREAMED, *call],
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        said = b""
        while len(said) < 10:
            said += os.read(ours, 1024)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.read() == b""
        with suppress(OSError):  # as a terminal says that nobody writes to it any more
            while more := os.read(ours, 1024):
                said += more
    os.close(ours)
    assert process.returncode == ExitCode.INTERRUPTED
    assert said.endswith(b"\r\nfeaturedb: interrupted\r\n")
    assert b"Traceback" not in said
