"""The other examples of README.md and docs/: Python runs, commands run or at least parse.

A block under a comment ``<!-- model: … -->`` or ``<!-- illustration: … -->`` needs something
that a test lacks (a model, another database). It is only compiled, or its options parsed.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb
import pytest
from click.testing import CliRunner

from featuredb.cli import main
from featuredb.cli.reference import renew
from featuredb.cli.root import VERBS
from featuredb.store.files.remote import is_url
from ingest.model.hooks.families import FAMILIES
from tests.docs.pages import COOKBOOK, FORMAT, ROOT, Block, blocks, on_made_store, pages
from tests.docs.pages import table as table_of

INGEST = ROOT / "docs" / "guide" / "ingest.md"
NEEDS_MORE = {"model", "illustration", "file"}
STORED = {"sample", "silent", "find", "coactive", "compare", "contrast"}
ASKS = {"info", "top", "feature", "near", "search", "sql", "verify", *STORED}


@pytest.fixture
def beside_demo(made_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which `demo.fdb` is the made store."""
    (tmp_path / "demo.fdb").symlink_to(made_store)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block: Block) -> Iterator[list[str]]:
    """The `featuredb` commands of a shell block, in words."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["featuredb"]:
            yield words[1:]


def every_command() -> list[tuple[str, list[str]]]:
    return [(b.id, words) for p in pages() for b in blocks(p, "sh") for words in commands(b)]


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_python(page: Path, beside_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page's blocks run in order, in one namespace."""
    namespace: dict[str, object] = {}
    for block in blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + on_made_store(block.text), str(page), "exec")
        if block.note not in NEEDS_MORE:
            exec(code, namespace)  # the page's own example
    capsys.readouterr()


@pytest.mark.parametrize(("where", "words"), every_command(), ids=str)
def test_commands(where: str, words: list[str], beside_demo: Path) -> None:
    del where
    stdin = None
    if "<" in words:
        words, stdin = words[: words.index("<")], blocks(COOKBOOK, "sql")[0].text
    words = [on_made_store(word) for word in words]
    new_texts = any(word.startswith("@") for word in words)
    if words[0] in ASKS and not new_texts and not any(map(is_url, words)):
        result = CliRunner().invoke(main, words, input=stdin, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert result.stdout or "-o" in words
    else:
        context = click.Context(main, info_name="featuredb")
        command = main.get_command(context, words[0])
        assert command is not None
        if words[1:] != ["--help"]:
            command.make_context(words[0], words[1:], parent=context)


def test_statements_outside_the_cookbook(beside_demo: Path) -> None:
    """They are valid by the catalog's names, with any results. format.md's has its own test."""
    with duckdb.connect("demo.fdb/catalog.duckdb", read_only=True) as client:
        for page in pages():
            for block in blocks(page, "sql") if page not in (COOKBOOK, FORMAT) else []:
                client.execute(on_made_store(block.text).replace("1234", "1"))


def test_a_moved_folder(made_store: Path, tmp_path: Path) -> None:
    """The statement of the page makes the catalog read the files where they are now."""
    (statement,) = (b.text for b in blocks(FORMAT, "sql"))
    moved = tmp_path / "moved.fdb"
    shutil.copytree(made_store, moved)
    (moved / "derived" / "000001" / "features.parquet").unlink()
    with duckdb.connect(str(moved / "catalog.duckdb"), read_only=True) as client:
        before = client.execute("SELECT count(*) FROM activations").fetchall()
        client.execute("SELECT count(*) FROM features")
        client.execute(re.sub(r"'.*'", f"'{moved}'", statement))
        assert client.execute("SELECT count(*) FROM activations").fetchall() == before
        with pytest.raises(duckdb.IOException, match=re.escape(str(moved))):
            client.execute("SELECT count(*) FROM features")


def test_an_attached_catalog(made_store: Path) -> None:
    with duckdb.connect() as client:
        client.execute(f"ATTACH '{made_store}/catalog.duckdb' AS f (READ_ONLY)")
        assert client.execute("SELECT count(*) FROM f.features").fetchall()
        client.execute("USE f")
        assert client.execute("FROM top_contexts(0)").fetchall()


def test_a_page_shows_the_commands_there_are() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert renew(text) == text
    assert set(re.findall(r"^\| `([\w-]+)[ `]", text, re.MULTILINE)) >= set(VERBS)
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 200


def test_the_makefile_has_every_target_that_is_named() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in pages():
        found = set(re.findall(r"`make (\w+)", page.read_text(encoding="utf-8")))
        for block in blocks(page, "sh"):
            found.update(re.findall(r"^make (\w+)", block.text, re.MULTILINE))
        assert found <= targets, page


def test_the_table_of_architectures() -> None:
    text = INGEST.read_text(encoding="utf-8")
    rows = table_of(text[text.index("| `model_type` |") :])
    assert rows == [
        [name, f.layers, f.resid_mid or "none", f.attn_out, f.mlp_out, f.hook_z]
        for name, f in FAMILIES.items()
    ]


def test_options_that_the_pages_name_exist() -> None:
    context = click.Context(main, info_name="featuredb")
    known = {"--help", "--write", "--check"}  # the last two are featuredb.cli.reference's
    for verb in VERBS:
        command = main.get_command(context, verb)
        assert command is not None
        group = command.commands.values() if isinstance(command, click.Group) else ()
        for parameter in (p for each in (command, *group) for p in each.params):
            known |= {*parameter.opts, *parameter.secondary_opts}
    for page in pages():
        named = set(re.findall(r"`(--[\w-]+)", page.read_text(encoding="utf-8")))
        assert named <= known, page


def test_links_lead_somewhere() -> None:
    for page in [*pages(), ROOT / "CHANGELOG.md"]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), (page, target)
            if anchor:
                titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
                assert anchor in slugs, (page, target)
