"""Monitors on new texts: as a replay of the same texts, from every kind of file, and resumed."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner, Result
from transformers import GenerationConfig

import featuredb
from featuredb.cli import main
from featuredb.database import Database
from featuredb.errors import QueryError, RuleError
from featuredb.monitors.readers import BrokenRecords, read_new_texts
from featuredb.monitors.watching import WatchedFeatures
from queries.rules.stored import listed
from queries.text_files import Columns


def _stored_texts(db: Database) -> list[str]:
    rows = db.sql("SELECT text FROM documents ORDER BY document_id").fetchall()
    return [text for (text,) in rows]


@pytest.mark.parametrize("name", ["often", "calm", "never"])
def test_a_run_over_the_stored_texts_is_a_replay(db: Database, name: str) -> None:
    run = db.watch(name, _stored_texts(db))
    replay = db.replay(name)
    size = db.snapshot.corpora[0].context_size - 1
    index = dict(db.sql("SELECT context_id, context_index FROM contexts").fetchall())
    columns = ("sae", "feature_id", "n_tokens", "strength", "quantile", "score", "text")
    ran = [(r.text_index, r.token_index, *(r[c] for c in columns)) for r in run]
    replayed = [
        (r.document_id, index[r.context_id] * size + r.token_index - 1, *(r[c] for c in columns))
        for r in replay
    ]
    assert (len(replayed) > 5) == (name != "never")
    # A batch of another shape may round a sum another way.
    for one, two in zip(ran, replayed, strict=True):
        assert one[:5] == two[:5]
        assert (one[7] is None) == (two[7] is None)
        assert [x or 0 for x in one[5:8]] == pytest.approx([x or 0 for x in two[5:8]], rel=2e-3)
        assert one[8].startswith(two[8][:5])


def test_only_watched_rows_are_encoded(db: Database) -> None:
    watched = WatchedFeatures(db._store, listed(["often", "calm"], db._store), None)
    assert [sae.sae.d_sae for sae in watched.loaded.saes] == [1, 1]


def test_several_monitors_batches_and_ids(db: Database) -> None:
    texts = _stored_texts(db)[:20]
    whole = db.watch(None, {f"t{i}": text for i, text in enumerate(texts)})
    assert set(whole.table.column("monitor").to_pylist()) == {"often", "calm"}
    assert all(r.text_id == f"t{r.text_index}" for r in whole)
    parts = list(db.watch_batches(None, texts, batch=7))
    assert [part.n_texts for part in parts] == [7, 7, 6]
    several = [(r.monitor, r.text_index, r.token_index) for part in parts for r in part]
    assert several == [(r.monitor, r.text_index, r.token_index) for r in whole]
    assert db.watch("often", []).table.schema == whole.table.schema
    for bad in ("one text", [3], [{"id": 1}]):
        with pytest.raises(QueryError):
            db.watch("often", bad)
    with pytest.raises(QueryError, match="there is no monitor odd"):
        db.watch("odd", texts)


CHAT = [
    {"role": "user", "content": "river bridge stone water tower"},
    {"role": "assistant", "content": "music paint planet orbit comet king queen iron " * 12},
]


def test_roles_of_a_chat(watched: Path, db: Database) -> None:
    (first,) = {f for f in db.monitor("often")[0].features}
    featuredb.add_monitor(watched, "said", f"{first} and role = assistant", replace=True)
    with featuredb.open(watched) as opened:
        said = opened.watch("said", CHAT)
        assert len(said)
        assert set(said.table.column("role").to_pylist()) == {"assistant"}
        assert not len(opened.watch("said", _stored_texts(db)[:5]))
    featuredb.set_monitor(watched, "said", "removed")


def write_log(path: Path, samples: list[Any], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An Inspect log. method 93: its members are compressed with zstd, as inspect_ai does now."""
    files = {"header.json": json.dumps({"version": 2, "status": "success"})}
    for number, sample in enumerate(samples):
        data = sample if isinstance(sample, str) else json.dumps(sample)
        files[f"samples/{number}_epoch_1.json"] = data
    with zipfile.ZipFile(path, "w", min(method, zipfile.ZIP_DEFLATED)) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    if method == 93:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(name, zstandard.compress(content.encode()))
        raw = bytearray(path.read_bytes())
        for signature, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            at = raw.find(signature)
            while at >= 0:
                raw[at + place] = 93
                at = raw.find(signature, at + 4)
        path.write_bytes(raw)
    return path


def test_the_same_alarms_from_every_kind_of_file(db: Database, tmp_path: Path) -> None:
    text = CHAT[1]["content"]
    parts = [{"type": "text", "text": m["content"]} for m in CHAT]
    sample = {
        "id": "s",
        "epoch": 1,
        "messages": [
            {"id": "a", "role": "user", "source": "input", "content": CHAT[0]["content"]},
            {"id": "b", "role": "assistant", "content": [parts[1]], "model": "m"},
        ],
    }
    chats = {
        "a.jsonl": json.dumps({"messages": CHAT}) + "\n\n",
        "b.ndjson": json.dumps(CHAT),
        "c.json": json.dumps(CHAT),
        "d.json": json.dumps([{"id": 1, "messages": CHAT}]),
        "k.json": json.dumps({"version": 2, "samples": [sample]}),
    }
    texts = {
        "e.txt": text + "\n",
        "f.jsonl": json.dumps(text) + "\n",
        "g.csv": f"id,text\nx,{text}\n",
        "h.json": json.dumps([{"text": text}]),
    }
    for name, content in (chats | texts).items():
        (tmp_path / name).write_text(content)
    write_log(tmp_path / "i.eval", [sample])
    write_log(tmp_path / "j.eval", [sample], 93)

    def alarms(name: str) -> list[Any]:
        read = read_new_texts(str(tmp_path / name), BrokenRecords())
        rows = db.watch(["often", "calm"], [(t.id, t.content) for t in read])
        return [(r.monitor, r.token_index, r.strength) for r in rows]

    expected = alarms("a.jsonl")
    assert expected
    assert all(alarms(name) == expected for name in [*chats, "i.eval", "j.eval"])
    expected = alarms("e.txt")
    assert expected
    assert all(alarms(name) == expected for name in texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '"one"\n{"text": 3}\n', r"a.jsonl, line 2 has no text in 'text'"),
        ("a.jsonl", '"one"\n{"text"\n', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", '[{"content": "x"}]', "message 0 of .*a.jsonl, line 1 has no role"),
        ("a.jsonl", '[{"role": "user", "content": [{"type": "image"}]}]', "not text but 'image'"),
        ("a.jsonl", '"a \\ud800"', "a.jsonl, line 1 is not UTF-8 text, at character 2"),
        ("a.jsonl", '{"text": "a", "id": "\\udfff"}', "the id of .*line 1 is not UTF-8 text"),
        ("a.jsonl", '[{"role": "user", "content": "\\ud800"}]', "line 1 is not UTF-8 text"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1 is not JSON"),
        ("a.jsonl", b'"a"\n"\xff"', "a.jsonl, line 2 is not JSON .*can't decode byte 0xff"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.json", "{", "a.json is not JSON"),
        ("a.txt", b"a\n\xff", "a.txt cannot be read as texts"),
        ("a.eval", "no zip", "cannot be read as a log of Inspect"),
        ("gone.txt", None, "cannot be read as texts: No such file"),
    ],
)
def test_what_cannot_be_read(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(QueryError, match=message) as error:
        list(read_new_texts(str(tmp_path / name), BrokenRecords()))
    assert "\n" not in str(error.value)


def test_broken_records_are_counted_and_named(tmp_path: Path) -> None:
    broken = BrokenRecords(skip=True)
    write_log(tmp_path / "x.eval", ["{", {"id": 1}, {"id": 2, "messages": CHAT}])
    assert [t.id for t in read_new_texts(str(tmp_path / "x.eval"), broken)] == ["2/1"]
    assert [reason.partition("samples/")[2] for reason in broken.reasons] == [
        "0_epoch_1.json is not JSON (Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1))",
        "1_epoch_1.json has no messages",
    ]


def test_a_damaged_sample_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "x.eval"
    write_log(log, [{"id": i, "messages": CHAT * 20} for i in range(3)])
    data = bytearray(log.read_bytes())
    start = data.index(b"samples/1_epoch_1.json") + 40
    data[start : start + 30] = bytes(30)
    log.write_bytes(data)
    with pytest.raises(QueryError, match=r"samples/1_epoch_1.json is damaged"):
        list(read_new_texts(str(log), BrokenRecords()))
    broken = BrokenRecords(skip=True)
    assert [t.id for t in read_new_texts(str(log), broken)] == ["0/1", "2/1"]
    assert len(broken.reasons) == 1


def test_a_column_of_ids_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "id": 1}')
    with pytest.raises(QueryError, match="line 1 has no 'nope': name another column"):
        list(read_new_texts(str(tmp_path / "a.jsonl"), BrokenRecords(), Columns("text", "nope")))


def _run(*call: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["monitor", "run", *map(str, call)], input=stdin)


def test_the_command(watched: Path, db: Database, tmp_path: Path) -> None:
    texts = _stored_texts(db)[:30]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts) + "{\n")
    expected = db.watch("often", texts)
    out = tmp_path / "out.jsonl"
    refused = _run(watched, "often", tmp_path / "t.jsonl", "-o", out)
    assert refused.exit_code == 4
    assert "line 31 is not JSON" in refused.stderr
    ran = _run(watched, "often", tmp_path / "t.jsonl", "-o", out, "--skip-broken", "--fail")
    assert ran.exit_code == 10
    assert f"{len(expected):,} alarms in 30 texts" in ran.stderr
    assert "1 record skipped" in ran.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["token_index"] for row in rows] == [r.token_index for r in expected]
    assert not list(tmp_path.glob("*.progress"))
    table = _run(watched, "often", "-", stdin="\n".join(texts))
    assert table.exit_code == 0
    assert len(table.stdout.splitlines()) == len(expected)
    assert table.stdout.startswith("often · text ")
    quiet = _run(watched, "never", "-", "--fail", stdin="river\n")
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    parquet = _run(
        watched, "often", tmp_path / "t.jsonl", "--skip-broken", "-o", tmp_path / "o.parquet"
    )
    assert parquet.exit_code == 0
    assert pq.read_table(tmp_path / "o.parquet").num_rows == len(expected)


def test_an_interrupted_run_goes_on(
    watched: Path, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featuredb.monitors.watching import Watch

    texts, out = _stored_texts(db)[:30], tmp_path / "out.jsonl"
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(t) + "\n" for t in texts))
    written = file.stat().st_mtime_ns
    _run(watched, "often", file, "-o", tmp_path / "whole.jsonl", "--batch", 8)
    read = Watch.read
    seen: list[int] = []

    def failing(self: Watch, chunk: Any, first: int = 0, window: int = 8) -> Any:
        if first == 16 and len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(first)
        return read(self, chunk, first, window)

    monkeypatch.setattr(Watch, "read", failing)
    stopped = _run(watched, "often", file, "-o", out, "--batch", 8)
    assert stopped.exit_code == 130
    assert "interrupted after 16 texts; run the same command again" in stopped.stderr
    assert (tmp_path / "out.jsonl.progress").exists()
    with out.open("a") as half:
        half.write('{"half')
    seen.append(-1)
    kept = out.read_bytes()
    file.write_text(file.read_text().replace("r", "s", 1))
    changed = _run(watched, "often", file, "-o", out)
    assert (changed.exit_code, out.read_bytes()) == (4, kept)
    assert "or the file has changed" in changed.stderr
    file.write_text("".join(json.dumps(t) + "\n" for t in texts))
    os.utime(file, ns=(written, written))
    other = _run(watched, "calm", file, "-o", out)
    assert other.exit_code == 4
    assert "is of a run over another file" in other.stderr
    done = _run(watched, "often", file, "-o", out, "--batch", 8)
    assert done.exit_code == 0, done.output
    assert "going on after 16 texts" in done.stderr
    assert seen == [0, 8, -1, 16, 24]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "out.jsonl.progress").exists()


@pytest.mark.parametrize("lost", ["emptied", "removed"])
def test_an_output_that_was_lost_is_written_anew(
    watched: Path, db: Database, tmp_path: Path, lost: str
) -> None:
    file, out = tmp_path / "t.jsonl", tmp_path / "out.jsonl"
    good = "".join(json.dumps(t) + "\n" for t in _stored_texts(db)[:16])
    file.write_text(good + "{\n")
    assert _run(watched, "often", file, "-o", out, "--batch", 8).exit_code == 4
    assert out.stat().st_size
    assert (tmp_path / "out.jsonl.progress").exists()
    out.write_bytes(b"") if lost == "emptied" else out.unlink()
    ran = _run(watched, "often", file, "-o", out, "--batch", 8, "--skip-broken")
    assert ran.exit_code == 0, ran.output
    assert "is not what the interrupted run wrote: starting over" in ran.stderr
    whole = _run(watched, "often", file, "-o", tmp_path / "whole.jsonl", "--skip-broken")
    assert whole.exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "out.jsonl.progress").write_text("[]")
    damaged = _run(watched, "often", file, "-o", out)
    assert damaged.exit_code == 4
    assert "is no progress of a run: remove it" in damaged.stderr


def test_what_is_there_is_not_lost(watched: Path, tmp_path: Path) -> None:
    file, old = tmp_path / "t.jsonl", tmp_path / "old.jsonl"
    file.write_text('"river bridge"\n')
    same = _run(watched, "often", file, "-o", file)
    assert (same.exit_code, file.read_text()) == (4, '"river bridge"\n')
    assert "is the file that is read" in same.stderr
    old.write_text("old")
    (tmp_path / "x.eval").write_text("no zip")
    assert _run(watched, "often", tmp_path / "x.eval", "-o", old).exit_code == 4
    assert old.read_text() == "old"


def test_names_of_a_run(watched: Path, db: Database) -> None:
    once = _run(watched, "often", "-", stdin="river bridge stone\n")
    twice = _run(watched, "often", "often", "-", stdin="river bridge stone\n")
    assert once.stdout == twice.stdout != ""
    rule = _run(watched, "f1 > 3", "-", stdin="river\n")
    assert "is no name of a monitor: store a rule" in rule.stderr
    with pytest.raises(QueryError, match="text 0 is not UTF-8 text"):
        db.watch("often", ["a \ud800"])
    with pytest.raises(QueryError, match="window"):
        db.watch("often", ["a"], window=-1)
    with pytest.raises(QueryError, match="by must be text"):
        db.calibrate("often", by=3)  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="a rule is text such as"):
        featuredb.add_monitor(watched, "odd", 5)  # type: ignore[arg-type]


def test_generation_is_stopped_or_steered(watched: Path, db: Database) -> None:
    ids = db.tokenizer("river bridge stone", return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with db.guard("never", abort=True) as guard:
        ids = ids.to(guard.model.device)
        free = guard.model.generate(**ids, **options)
        assert (guard.fired, len(guard.alarms)) == ([], 0)
        every = guard.grid()
    assert every.shape[1] == free.shape[1] - 1
    feature = db.monitor("never")[0].features[0]
    # A threshold that a new token is the first to pass.
    prompt = ids["input_ids"].shape[1]
    new = every[0, prompt:]
    assert new.max() > 0
    limit = max(float(every[0, :prompt].max()), float(new[0]))
    if not (new > limit).any():
        limit = -1.0
    rule = f"{feature} > {limit}" if limit >= 0 else f"{feature} > 0"
    featuredb.add_monitor(watched, "loud", rule, replace=True)
    with featuredb.open(watched) as opened:
        with opened.guard("loud", abort=True) as guard:
            stopped = guard.model.generate(**ids, **options)
            assert guard.fired == ["loud"]
            assert stopped.shape[1] < free.shape[1]
            assert free[0, : stopped.shape[1]].tolist() == stopped[0].tolist()
            assert guard.alarms[-1].monitor == "loud"
        with opened.guard("loud", then=f"{feature}=40") as guard:
            guard.model.generate(**ids, **options)
            assert guard.steered
        with opened.guard("loud") as guard:
            assert guard.model.generate(**ids, **options).tolist() == free.tolist()
            with pytest.raises(QueryError, match="one text at a time"):
                guard.model.generate(ids["input_ids"].repeat(2, 1), **options)
            config = GenerationConfig(num_beams=2, pad_token_id=0)
            for more in (
                {"num_beams": 2},
                {"num_return_sequences": 2, "do_sample": True},
                {"generation_config": config},
            ):
                with pytest.raises(QueryError, match="a guard follows one text"):
                    guard.model.generate(**ids, **more)
    featuredb.set_monitor(watched, "loud", "removed")
