"""`featuredb mcp`, asked by the client of the package `mcp` over standard input and output."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, StdioServerParameters, stdio_client
from pydantic import create_model

import featuredb
import queries
from featuredb.agents.server import DATA, server
from featuredb.agents.tools import QuestionTool
from queries.answers import Rows
from tests.explorer.conftest import hostile_world
from tests.make_store import make_store

Ask = Callable[..., mcp_types.CallToolResult]

_WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "safetensors", "numba"):
    sys.modules[name] = None
import featuredb
featuredb.mcp(sys.argv[1], rows=7)
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agents") / "it's <b>.fdb"
    make_store(path, hostile_world())
    return path


@pytest.fixture(scope="module")
def client(database: Path) -> Iterator[tuple[BlockingPortal, Client]]:
    """A client of a server without torch, whose answers have seven rows."""
    command = StdioServerParameters(
        command=sys.executable, args=["-W", "error", "-c", _WITHOUT_TORCH, str(database)]
    )

    @asynccontextmanager
    async def connected() -> Any:
        async with Client(stdio_client(command)) as connected:
            yield connected

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(connected()) as connection,
    ):
        yield portal, connection


@pytest.fixture(scope="module")
def ask(client: tuple[BlockingPortal, Client]) -> Ask:
    portal, connection = client

    def call(tool: str, **arguments: Any) -> mcp_types.CallToolResult:
        result: mcp_types.CallToolResult = portal.call(connection.call_tool, tool, arguments)
        return result

    return call


def _texts(result: mcp_types.CallToolResult) -> list[str]:
    return [part.text for part in result.content if isinstance(part, mcp_types.TextContent)]


def test_every_question_is_a_tool_that_only_reads(client: tuple[BlockingPortal, Client]) -> None:
    portal, connection = client
    tools = portal.call(connection.list_tools).tools
    questions = {question.method for question in queries.QUESTIONS.values()}
    assert {tool.name for tool in tools} == {*questions, "fires_in", "near_token"}
    for tool in tools:
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert tool.description
        assert tool.input_schema["additionalProperties"] is False
        described = tool.input_schema["properties"].values()
        assert all("description" in argument for argument in described), tool.name
    top = next(tool.input_schema for tool in tools if tool.name == "top_contexts")
    assert top["required"] == ["feature"]
    assert top["properties"]["k"] == {
        "default": 20,
        "description": "Number of contexts, of each feature.",
        "title": "K",
        "type": "integer",
    }


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("info", {}),
        ("top_contexts", {"feature": "a/sae/1", "k": 3}),
        ("near", {"feature": "a/sae/1", "k": 3}),
        ("feature", {"feature": "it's/2"}),
        ("fires_in", {"context_id": 1, "k": 3}),
        ("find", {"all": ["a/sae/1"], "k": 2}),
        ("contrast", {"a": "topic = '<b>'", "k": 3}),
        ("silent_contexts", {"feature": "a/sae/3", "like": "random", "k": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_is_that_of_python(
    ask: Ask, database: Path, tool: str, arguments: dict[str, Any]
) -> None:
    notice, data, *_ = _texts(ask(tool, **arguments))
    assert notice == DATA
    with featuredb.open(database) as db:
        expected = getattr(db, tool)(**arguments)
    rows = expected.arrow().num_rows if tool != "info" else None
    answer = json.loads(data)
    assert rows is None or len(answer["rows"]) == rows
    assert tool == "info" or answer["kind"] == expected.kind


def test_hostile_texts_are_data(ask: Ask) -> None:
    result = ask("sql", query="SELECT text FROM documents")
    notice, data, *more = _texts(result)
    assert notice == DATA
    assert more == ["These are the first 7 of 8 rows."]
    assert data.replace("\n", "").isprintable()
    texts = "".join(row["text"] for row in json.loads(data)["rows"])
    assert "<script>hacked=1</script>" in texts
    assert "\u202e" in texts


def test_answers_are_capped_in_rows(ask: Ask, database: Path) -> None:
    _, data, more = _texts(ask("activations", feature="a/sae/1"))
    with featuredb.open(database) as db:
        total = len(db.activations("a/sae/1"))
    assert len(json.loads(data)["rows"]) == 7
    assert more == f"These are the first 7 of {total:,} rows."
    _, data, more = _texts(ask("sql", query="SELECT * FROM range(100000)"))
    assert len(json.loads(data)["rows"]) == 7
    assert more == "These are the first 7 of more than 1,000 rows."


def test_answers_are_capped_in_characters(ask: Ask) -> None:
    _, data, more = _texts(ask("sql", query="SELECT repeat('x', 40000) FROM range(5)"))
    assert len(data) <= 100_000
    assert more == "These are the first 2 of 5 rows."
    _, data, cut = _texts(ask("sql", query="SELECT repeat('x', 400000) AS long"))
    assert json.loads(data)["rows"] == [{"long": "x" * 100 + "…"}]
    assert cut == "Texts are cut at 100 characters."
    result = ask("sql", query="SELECT range(100000)")
    assert result.is_error
    assert "ask for less" in _texts(result)[0]


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("nothing", {}, "there is no tool 'nothing': there are about, "),
        ("near", {}, "near needs the argument feature"),
        ("near", {"feature": 1, "kk": 3}, "near has no argument 'kk': it has feature, k, by"),
        ("near", {"feature": 1.5}, "feature: Input should be a valid integer or "),
        ("near", {"feature": "a/sae/1", "k": "3"}, "k: Input should be a valid integer"),
        ("near", {"feature": "a/sae/1", "k": 0}, "k must be"),
        ("near", {"feature": "a/sae/1", "by": "x"}, "by must be one of"),
        ("near", {"feature": "a/sae/99"}, "there is no feature 99: a/sae has features 0 to 39"),
        ("near", {"feature": 3}, "feature 3 does not say of which SAE"),
        ("top_contexts", {"feature": "a/sae/1", "where": "topic ="}, "Parser Error"),
        ("top_contexts", {"feature": "a/sae/1", "where": "(FROM '/etc/passwd')"}, ""),
        ("search", {"query": "x", "encoder": "/tmp"}, "search has no argument 'encoder'"),
        ("near_token", {"token": " music"}, "reading a token's direction needs"),
        ("contrast", {"a": "@/etc/passwd"}, "a: no files are read here"),
        ("sql", {"query": "DROP VIEW features"}, "DROP is not answered here"),
        ("sql", {"query": "FROM read_text('/etc/passwd')"}, "Permission Error"),
        ("sql", {"query": "SELECT 1; SELECT 2"}, "give one statement, not 2"),
        ("fires_on", {"text": "new text"}, "reading new text needs torch"),
        ("near", {"feature": "x\u202e\x1b[31m"}, ""),
    ],
    ids=str,
)
def test_a_bad_argument_is_one_clear_line(
    ask: Ask, tool: str, arguments: dict[str, Any], said: str
) -> None:
    result = ask(tool, **arguments)
    assert result.is_error
    (line,) = _texts(result)
    assert said in line
    assert line.isprintable()
    assert "root:" not in line


def test_an_answer_takes_no_longer_than_asked() -> None:
    release = threading.Event()

    def slow(**_: Any) -> Rows:
        release.wait(20)
        raise AssertionError

    tools = {"slow": QuestionTool("slow", "", create_model("slow"), slow)}

    async def asked() -> mcp_types.CallToolResult:
        async with Client(server(tools, 5, 0.05)) as connected:
            answers = [await connected.call_tool("slow", {}) for _ in range(5)]
            release.set()
            assert _texts(answers[3]) == ["no answer after 0.05 seconds: ask for less"]
            return answers[4]

    last = anyio.run(asked)
    assert _texts(last) == ["4 questions are still being answered: ask again later"]
