"""Calls of each verb on the handle, and where its output is written."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import featuredb
from featuredb.cli.output import Output
from featuredb.render.formats import to_bytes
from tests.cli import answers
from tests.cli.conftest import Invoke
from tests.cli.fake import FakeDatabase

QUERIES = [
    ("info", "db"),
    ("top", "db", "12"),
    ("feature", "db", "12"),
    ("near", "db", "12"),
    ("coactive", "db", "12"),
    ("compare", "db", "12", "13"),
    ("fires", "db", "some text"),
    ("search", "db", "war"),
    ("sql", "db", "SELECT 1 AS one"),
]
_EACH = pytest.mark.parametrize("call", QUERIES, ids=lambda call: call[0])


_PLAIN_NEAR = {"exact": False, "sae": None, "opposite": False, "unit": "token"}


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (("info", "db"), ("info",)),
        (("near", "db", "7"), ("near", "7", {"k": 20, "by": "decoder", **_PLAIN_NEAR})),
        (
            ("near", "db", "a/7", "--by", "coactivation", "-k", "3", "--unit", "document"),
            ("near", "a/7", {"k": 3, "by": "coactivation", **_PLAIN_NEAR, "unit": "document"}),
        ),
        (
            ("coactive", "db", "7", "--unit", "document", "--by", "count", "--sae", "b"),
            ("coactive", "7", 20, "document", "count", {"sae": "b", "min_both": 5}),
        ),
        (("compare", "db", "7", "b/8", "-k", "2"), ("compare", "7", "b/8", 2)),
        (("coactive", "db", "7", "--with", "b/8"), ("coactivation", "7", "b/8")),
        (("feature", "db", "a/7"), ("feature", "a/7", None)),
        (("feature", "db", "7", "-k", "9"), ("feature", "7", 9)),
        (("fires", "db", "hello"), ("fires_on", "hello", 20)),
        (("fires", "db", "--context", "12", "-k", "5"), ("fires_in", 12, 5)),
        (("search", "db", "war", "-k", "2"), ("search", "war", 2)),
        (("sql", "db", "SELECT 1"), ("sql", "SELECT 1")),
        (
            ("top", "db", "7", "--where", "topic = 'x'", "--min-activation", "1.5", "--distinct"),
            (
                "top",
                "7",
                {
                    "k": 20,
                    "window": 16,
                    "where": "topic = 'x'",
                    "min_activation": 1.5,
                    "max_activation": None,
                    "offset": 0,
                    "per_document": False,
                    "distinct": True,
                },
            ),
        ),
    ],
    ids=lambda value: " ".join(map(str, value))[:40],
)
def test_verbs_ask_the_handle(
    invoke: Invoke, database: FakeDatabase, call: tuple[str, ...], asked: tuple[Any, ...]
) -> None:
    assert invoke(*call).exit_code == 0
    assert database.asked == [asked]


def test_top_takes_several_features(invoke: Invoke, database: FakeDatabase) -> None:
    assert invoke("top", "db", "7", "8", "-k", "2").exit_code == 0
    question, features, options = database.asked[0]
    assert (question, features, options["k"]) == ("top", ("7", "8"), 2)


_PAIR = ("7", "--with", "8")
_ALL = ("--all", "-o", "a.parquet")


@pytest.mark.parametrize(
    "options",
    [
        *((*_PAIR, *option) for option in (("-k", "20"), ("--by", "npmi"), ("--memory", "1GB"))),
        *((*_ALL, *option) for option in (("-k", "20"), ("--by", "npmi"))),
        ("7", "--memory", "1GB"),
    ],
    ids=" ".join,
)
def test_coactive_refuses_the_options_of_another_question(
    invoke: Invoke, options: tuple[str, ...]
) -> None:
    result = invoke("coactive", "db", *options)
    assert result.exit_code == 2
    assert f"leave out {options[-2]}" in result.stderr


def test_every_pair_goes_to_a_parquet_file(invoke: Invoke, database: FakeDatabase) -> None:
    for options in (("--all",), ("--all", "-o", "a.csv"), ("--all", "--format", "parquet")):
        result = invoke("coactive", "db", *options)
        assert (result.exit_code, "give -o FILE.parquet" in result.stderr) == (2, True)
    for wrong in ([], ["7", "--all"], ["--with", "7"]):
        assert "give a FEATURE, or --all" in invoke("coactive", "db", *wrong).stderr
    result = invoke("coactive", "db", "--all", "-o", "a.parquet", "--unit", "document")
    assert (result.exit_code, result.output) == (0, "")
    assert pq.read_table("a.parquet") == answers.coactivation().table
    given = {"sae": None, "min_both": 5, "memory": "1GB"}
    assert database.asked == [("coactive_pairs", "document", given)]
    missing = invoke("coactive", "db", "--all", "-o", "no/such/a.parquet")
    assert missing.exit_code == 6
    assert not list(Path.cwd().glob("**/*tmp*"))


@pytest.mark.parametrize("verb", ["fires", "sql"])
def test_a_dash_reads_standard_input(invoke: Invoke, database: FakeDatabase, verb: str) -> None:
    assert invoke(verb, "db", "-", stdin="SELECT 42").exit_code == 0
    assert database.asked[0][1] == "SELECT 42"


@pytest.mark.parametrize(
    ("typed", "asked"),
    [("a\n", "a"), ("a\n\n", "a\n"), ("\na ", "\na "), ("stored\n", "stored\n")],
)
def test_the_line_feed_that_ends_standard_input_is_no_part_of_the_text(
    invoke: Invoke, database: FakeDatabase, typed: str, asked: str
) -> None:
    assert invoke("fires", "db", "-", stdin=typed).exit_code == 0
    assert database.asked[0][1] == asked


@_EACH
def test_answers_are_on_stdout_alone(invoke: Invoke, call: tuple[str, ...]) -> None:
    result = invoke(*call)
    assert result.stdout
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


@_EACH
@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_every_query_writes_every_text_format(
    invoke: Invoke, call: tuple[str, ...], form: str
) -> None:
    result = invoke(*call, "--format", form)
    assert result.exit_code == 0
    if form == "json":
        json.loads(result.stdout)


@_EACH
def test_every_query_writes_parquet_to_a_pipe(invoke: Invoke, call: tuple[str, ...]) -> None:
    assert pq.read_table(io.BytesIO(invoke(*call, "--format", "parquet").stdout_bytes)).num_rows


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
def test_a_file_has_the_format_its_name_says(invoke: Invoke, ending: str) -> None:
    result = invoke("near", "db", "1", "-o", f"out.{ending}")
    assert (result.exit_code, result.output) == (0, "")
    assert Path(f"out.{ending}").read_bytes() == to_bytes(answers.neighbors(), ending)  # type: ignore[arg-type]


def test_format_overrules_the_name_and_a_strange_name_is_a_table(invoke: Invoke) -> None:
    invoke("near", "db", "1", "-o", "a.csv", "--format", "jsonl")
    assert Path("a.csv").read_text(encoding="utf-8").startswith('{"of_sae": "sae"')
    invoke("near", "db", "1", "-o", "a.txt")
    assert Path("a.txt").read_text(encoding="utf-8") == f"{answers.neighbors()}\n"


def test_sql_k_limits_the_rows(invoke: Invoke) -> None:
    result = invoke("sql", "db", "FROM range(1000)", "-k", "150", "--format", "csv")
    assert len(result.stdout.splitlines()) == 151
    table = invoke("sql", "db", "FROM range(1000)", "-k", "150").stdout.splitlines()
    assert (len(table), table[-1]) == (151, "  149")
    assert invoke("sql", "db", "FROM range(1000)").stdout.endswith("\n… 900 more rows\n")


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _on_a_terminal(output: Output, monkeypatch: pytest.MonkeyPatch) -> str:
    written = io.BytesIO()
    stream = _Terminal(written, encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setenv("TERM", "xterm-256color")
        for name in ("NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        output.write(answers.top_contexts())
    return written.getvalue().decode()


def test_csv_on_a_terminal_is_neutralized(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _on_a_terminal(Output("csv"), monkeypatch)
    assert "\x1b" not in shown
    assert "␛" in shown


def test_a_terminal_gets_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1;4;" in _on_a_terminal(Output(), monkeypatch)


def test_a_narrow_encoding_gets_escapes_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        Output().write(answers.top_contexts())
    assert b"\\u6771" in written.getvalue()


def test_ingest_passes_the_defaults_and_what_was_said(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest.options import IngestOptions

    told: dict[str, Any] = {}

    def ingest(path: str, **options: Any) -> SimpleNamespace:
        told.clear()
        told.update(options)
        nothing = SimpleNamespace(corpora=(), saes=())
        return SimpleNamespace(snapshot=nothing, fresh=True)

    monkeypatch.setattr(featuredb, "ingest", ingest, raising=False)
    required = ("ingest", "db", "--corpus", "c", "--model", "m", "--sae", "s")
    assert invoke(*required).exit_code == 0
    assert IngestOptions(**told) == IngestOptions(corpus="c", model="m", saes=["s"], progress=True)
    call = (*required, "--sae", "t", "--name", "a", "--name", "b", "--no-check", "--exact")
    more = ("--max-tokens", "500", "--sink-threshold", "5", "--values", "float32")
    assert invoke(*call, *more).exit_code == 0
    assert IngestOptions(**told) == IngestOptions(
        corpus="c",
        model="m",
        saes=["s", "t"],
        names=["a", "b"],
        check=False,
        exact=True,
        values="float32",
        max_tokens=500,
        sink_threshold=5.0,
        progress=True,
    )


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 3)])
def test_verify_prints_its_report(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, ok: bool, code: int
) -> None:
    class Report:
        def __init__(self) -> None:
            self.ok = ok

        def __str__(self) -> str:
            return "bad\x1b file; restore it\nsound: 3 files"

    asked: list[dict[str, object]] = []

    def verify(path: str, **told: object) -> Report:
        asked.append(told)
        return Report()

    monkeypatch.setattr(featuredb, "verify", verify, raising=False)
    result = invoke("verify", "db")
    assert (result.exit_code, result.stdout) == (code, "bad␛ file; restore it\nsound: 3 files\n")
    invoke("verify", "db", "--source", "--all-snapshots", "--memory", "2GB")
    invoke("verify", "db", "--source", "5")
    plain: dict[str, object] = {"memory": "1GB", "all_snapshots": False, "source": 0}
    plain |= {"model": None, "progress": True}
    assert asked == [
        plain,
        plain | {"memory": "2GB", "all_snapshots": True, "source": 64},
        plain | {"source": 5},
    ]


def test_near_takes_a_vector_in_place_of_a_feature(
    invoke: Invoke, database: FakeDatabase, tmp_path: Path
) -> None:
    np.save(tmp_path / "v.npy", np.arange(3.0))
    file = str(tmp_path / "v.npy")
    assert invoke("near", "db", "--vector", file, "--sae", "a", "--exact").exit_code == 0
    asked, vector, options = database.asked[0]
    assert (asked, vector.tolist()) == ("near_vector", [0.0, 1.0, 2.0])
    assert options == {"k": 20, "by": "decoder", "sae": "a", "exact": True, "opposite": False}
    for wrong in (("near", "db"), ("near", "db", "7", "--vector", file)):
        assert "give a FEATURE, --vector FILE or --token TOKEN" in invoke(*wrong).stderr
    for useless in (("7", "--matrix", "embedding"), ("--vector", file, "--unit", "document")):
        assert "leave out" in invoke("near", "db", *useless).stderr
    (tmp_path / "v.npy").write_text("no numbers")
    refused = invoke("near", "db", "--vector", file)
    assert refused.exit_code == 4
    assert "is not a .npy file of numbers" in refused.stderr
