"""No macro about a feature, a pair, a context or a document scans the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import queries
from featuredb.store import schemas
from featuredb.store.store import Store
from queries.connection import Reader
from tests.make_store import MadeSae, World, make_store

FEATURES, DOCUMENTS, SIZE = 64, 60, 17
RARE, OTHER = 60, 61
"""Each fires in one document, both in document 7, on three tokens."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Four segments of many small row groups, in which two features are rare."""
    rng = np.random.default_rng(0)
    documents = [[[0, *rng.integers(1, 5, SIZE - 1).tolist()]] for _ in range(DOCUMENTS)]
    dense = []
    for number in range(DOCUMENTS):
        values = np.where(rng.random((SIZE, FEATURES)) < 0.3, rng.random((SIZE, FEATURES)), 0)
        values[:, RARE:] = 0
        values[0] = 0
        if number == 7:
            values[3:6, RARE : OTHER + 1] = 1.5
        dense.append(values.astype(np.float32))
    rows = rng.normal(size=(FEATURES, 8)).astype(np.float32)
    path = tmp_path_factory.mktemp("plans") / "s.fdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schemas, "TOKEN_ROW_GROUP", 16)
        patch.setattr(schemas, "FEATURE_ROW_GROUP", 64)
        saes = [MadeSae("s", dense, rows, rows)]
        words = ["<s>", " a", " b", " c", " d"]
        make_store(path, World(documents, {}, words, saes, 0, SIZE, partitions=4))
    return Reader(Store.open(path))


class Read(NamedTuple):
    """Row groups of the segments that a statement read, and rows of them."""

    groups: int
    rows: int


def read(reader: Reader, statement: str) -> Read:
    """What a statement reads of the activations, by DuckDB's own count."""
    ((_, plan),) = reader.cursor().execute(f"EXPLAIN (ANALYZE, FORMAT json) {statement}").fetchall()
    top = json.loads(plan)
    scans = [scan for scan in _scans(top) if "/segments/" in str(scan["extra_info"])]
    return Read(
        sum(scan["row_groups_scanned"] for scan in scans),
        sum(scan["rows_scanned"] for scan in scans),
    )


def _scans(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for each in node:
            yield from _scans(each)
    elif isinstance(node, dict):
        if "row_groups_scanned" in node:
            yield node
        for value in node.values():
            yield from _scans(value)


CALLS = {
    "top_contexts": f"top_contexts({RARE})",
    "top_contexts, filtered": f"top_contexts({RARE}, k := 60, \"where\" := 'document_id > 2')",
    "sample_contexts": f"sample_contexts({RARE})",
    "feature_activations": f"feature_activations({RARE})",
    "feature_contexts": f"feature_contexts({RARE})",
    "silent_contexts": f"silent_contexts({RARE}, matched_by := 'random')",
    "near": f"near({RARE})",
    "near_encoder": f"near_encoder({RARE})",
    "near_coactivation": f"near_coactivation({RARE})",
    "coactive": f"coactive({RARE}, min_both := 1)",
    "coactive, documents": f"coactive({RARE}, unit := 'document', min_both := 1)",
    "coactivation": f"coactivation({RARE}, {OTHER})",
    "compare": f"compare({RARE}, {OTHER})",
    "both": f'"both"({RARE}, {OTHER})',
    "without": f"without({RARE}, {OTHER})",
    "within": f'"within"({RARE}, {OTHER}, 2)',
    "at_least": f"at_least([{RARE}, {OTHER}], 2)",
    "fires_in": "fires_in(7)",
    "fires_on": "fires_on((SELECT text FROM documents WHERE document_id = 7))",
    "document": "document(7)",
}
ABOUT_WORDS = {"search", "evidence"}
IN_PYTHON = {"families"}
"""DuckDB reads nothing for them."""


def test_every_macro_about_a_feature_is_asked() -> None:
    macros = [m for q in queries.QUESTIONS.values() for m in q.public_macros if m.table]
    about = {m.name for m in macros if m.signature.partition("(")[2].startswith("feature")}
    assert about - IN_PYTHON <= {name.partition(",")[0] for name in CALLS}


@pytest.mark.parametrize("name", CALLS)
def test_a_question_reads_a_few_row_groups(reader: Reader, name: str) -> None:
    everything = read(reader, "SELECT sum(activation) FROM activations")
    assert everything.groups >= 40
    found = read(reader, f"FROM {CALLS[name]}")
    # Where a feature's rows lie is known. A document's tokens may begin in one group and end in
    # the next, and two features are two look-ups, of which each may be read twice.
    assert found.groups <= 6, (found, everything)
    assert found.rows <= everything.rows / 8, (found, everything)


@pytest.mark.parametrize("name", sorted(ABOUT_WORDS))
def test_a_question_about_words_reads_no_activation(reader: Reader, name: str) -> None:
    assert read(reader, f"FROM {name}('a')") == (0, 0)
