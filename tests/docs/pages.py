"""Reading the documentation as data: sections, tables, fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORMAT = ROOT / "docs" / "format.md"
COOKBOOK = ROOT / "docs" / "cookbook.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- (\w+)(?:: [^\n]*)? -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block. heading: the nearest above it. note: the word of a comment right above it,
    as `model` in ``<!-- model: needs the demo's model -->``. after: the text up to the next block
    or heading."""

    page: Path
    line: int
    language: str
    text: str
    heading: str
    note: str | None
    after: str

    @property
    def id(self) -> str:
        """The id of its test."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page with examples to run."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        if match[1] not in languages:
            continue
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", before), re.MULTILINE)
        note = _NOTE.search(before)
        after = re.split(r"^(?:```|#)", text[match.end() :], maxsplit=1, flags=re.MULTILINE)[0]
        found.append(
            Block(
                page,
                before.count("\n") + 2,
                match[1],
                match[2],
                headings[-1] if headings else "",
                note[1] if note else None,
                after,
            )
        )
    return found


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next of the same depth or higher."""
    match = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert match is not None, f"no section {heading!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str) -> list[list[str]]:
    """Cells of the first table in `text`, without its head. Code marks and links taken off."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            rows.append([_plain(cell) for cell in line.split("|")[1:-1]])
        elif rows:
            break
    return rows[2:]


def _plain(cell: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).replace("`", "").strip()


def named_features() -> list[str]:
    """The demo's features in the pages, in the order of the cookbook's table."""
    head = section(COOKBOOK.read_text(encoding="utf-8"), "SQL cookbook")
    return [row[0] for row in table(head)]


def on_made_store(text: str) -> str:
    """An example with the demo's features replaced by those of `made_store`."""
    for stand_in, feature in enumerate(named_features()):
        text = re.sub(rf"\b{feature}\b", str(stand_in), text)
    return text
