"""A name means one class, and words are spelled the American way."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BRITISH = re.compile(
    r"""(?:
    (?:normal|token|serial|summar|recogn|initial|material|organ|optim|minim|maxim|parametr|quant
        |vector|regular|general|special|final|local|visual|random|standard|priorit|synchron|memor
        |categor|capital|emphas|custom|penal|util|central|parallel|character|modern|linear)
        is(?:e|es|ed|er|ers|ing|ation|ations|able)(?![a-z])
    |(?:neighb|col|behavi|hon|fav|lab|flav|arm|harb|rum|vap)our
    |(?<![a-z])(?:grey|centre|metre|litre|fibre)(?:s|d)?(?![a-z])
    |(?:model|label|cancel|travel|signal|channel|level|total|fuel)l(?:ed|ing|er)(?![a-z])
    |catalogue|analys(?:e|ed|er|ing)(?![a-z])|artefact|licence|defence|offence|judgement
    |(?<![a-z])(?:whilst|amongst|learnt|spelt|programme)(?![a-z])
    )""",
    re.IGNORECASE | re.VERBOSE,
)
ALLOWED = {
    "docs/guide/labels.md": {"centre"},
    "examples/notebooks/what_does_this_feature_do.ipynb": {"grey"},  # in a picture's bytes
    "examples/notebooks/what_does_this_feature_mean.ipynb": {"metres"},
    "featuredb/autointerp/explain.py": {"cancelled"},
    "featuredb/labels/word_classes.py": {"metres", "grey"},
    "tests/archives/format-3/chats.json": {"harbour"},
    "tests/tiny.py": {"harbour"},
}
"""By file: the tokens and keys of others that are spelled so."""


def test_no_two_public_classes_have_one_name() -> None:
    modules = defaultdict(list)
    for package in ("featuredb", "ingest", "queries"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    modules[node.name].append(str(path.relative_to(ROOT)))
    assert len(modules) > 100
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]


def test_spelling_is_american() -> None:
    found = []
    for name in _tracked():
        content = (ROOT / name).read_bytes()
        if b"\0" in content or name == "tests/test_names.py":
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            words = {match[0].lower() for match in BRITISH.finditer(line)}
            if words - ALLOWED.get(name, set()):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.mark.parametrize(
    "word",
    ["Normalised", "tokenising_seconds", "neighbours", "colour", "behaviour", "honoured", "grey",
     "centre", "labelled", "cancelling", "serialisation", "initialise", "catalogue", "analysed"],
)  # fmt: skip
def test_british_spellings_are_found(word: str) -> None:
    assert BRITISH.search(word)


@pytest.mark.parametrize(
    "word",
    ["normalized", "neighbor", "four hours", "contour", "your", "tokens", "analyses", "analysis",
     "labeled", "filling", "generalist", "optimistic", "finalist", "precise", "otherwise"],
)  # fmt: skip
def test_american_spellings_are_not(word: str) -> None:
    assert not BRITISH.search(word)
