"""The language of edits: what it reads, what it refuses, what it resolves to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import featuredb
from featuredb import Edit
from featuredb.errors import FeatureDBError, QueryError, UnknownFeatureError
from featuredb.steering.edits import parse_edits
from featuredb.steering.resolve import resolve_edits
from featuredb.steering.where import EditScope
from featuredb.store.store import Store
from tests.make_store import MadeSae, World, make_store


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("12=10x", Edit("12", "set", 10, "maximum")),
        ("s/12 += -2.5", Edit("s/12", "add", -2.5)),
        ("12*=0.5", Edit("12", "scale", 0.5)),
        ("12=0", Edit("12", "set", 0)),
        ("12 = q0.99 @ generated", Edit("12", "set", 0.99, "quantile", "generated")),
        ("a=b/7=1e3@-2:", Edit("a=b/7", "set", 1000, where="-2:")),
        (
            "3=5 @ other/7 >= 2, not token ' ='",
            Edit("3", "set", 5, where="other/7 >= 2, not token ' ='"),
        ),
    ],
)
def test_reading(text: str, edit: Edit) -> None:
    assert Edit.parse(text) == edit
    assert Edit.parse(str(edit)) == edit


def test_other_spellings_of_an_object() -> None:
    assert Edit(1, "=", "10x") == Edit(1, "clamp", 10, "x") == Edit(1, "set", 10, "maximum")
    assert Edit(1, "ablate") == Edit(1, "=", 0)
    assert parse_edits("1=2") == parse_edits(["1=2"]) == (Edit("1", "set", 2),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no edit"),
        ("12", "is no edit"),
        ("12=", "is no edit"),
        ("=3", "is no edit"),
        ("12=ten", "'ten' is no activation"),
        ("12=1e999", "too large"),
        ("12=q1.5", "from q0 to q1"),
        ("12*=10x", "plain number"),
        ("12=1 @ somewhere", "no place of a text"),
        ("12=1 @ prompt and generated", "can never apply"),
        ("12=1 @ 5:3", "can never apply"),
        ("12=1 @ prompt, not prompt", "can never apply"),
        ("12=1 @ bos, not everywhere", "can never apply"),
        ('12=1 @ token " the', "a quote or a comma is missing"),
    ],
)
def test_what_is_no_edit(text: str, words: str) -> None:
    with pytest.raises(QueryError, match=words):
        Edit.parse(text)


def test_a_direction_is_only_added() -> None:
    assert Edit.parse("1+=2", "direction").method == "direction"
    for text in ("1=2", "1*=2"):
        with pytest.raises(QueryError, match="along a direction"):
            Edit.parse(text, "direction")


@pytest.mark.parametrize(
    ("one", "two", "apart"),
    [
        ("prompt", "generated", True),
        ("everywhere", "generated", False),
        ("0:5", "5:9", True),
        ("0:5", "4:9", False),
        ("0:5", "-3:", False),
        ("-3:-1", "-1:", True),
        ('token " a"', 'token " b"', True),
        ("role user", "role assistant", True),
        ("generated and 1 > 2", "prompt, bos", False),
        ("everywhere, not bos", "bos", True),
        ("12 > 1", "13 > 1", False),
    ],
)
def test_places_that_never_meet(one: str, two: str, apart: bool) -> None:
    assert EditScope.parse(one).apart(EditScope.parse(two)) is apart
    assert EditScope.parse(two).apart(EditScope.parse(one)) is apart


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edits") / "s.fdb"
    dense = np.array([[0, 0, 0], [1, 0, 0], [4, 2, 0], [2, 0, 0]], np.float32)
    rows = np.eye(3, 4, dtype=np.float32)
    saes = [MadeSae("a", [dense], rows, rows), MadeSae("b", [dense], rows, rows)]
    make_store(path, World([[[0, 1, 2, 1]]], {}, ["<s>", " a", " b"], saes))
    return path


def test_units_are_those_of_the_store(path: Path) -> None:
    store = Store.open(path)
    edits = resolve_edits(store, ["a/0=10x", "b/0+=q0.5", "a/1*=3", Edit("b/1", "set", 7)])
    assert [edit.value for edit in edits] == [40, 2, 3, 7]
    spelled = ["a/0 = 40 (10x)", "b/0 += 2 (q0.5)", "a/1 *= 3", "b/1 = 7"]
    assert [str(edit) for edit in edits] == spelled
    (condition,) = resolve_edits(store, "a/0=1 @ b/0 > 0.5x")[0].conditions.values()
    assert condition.bounds == ((">", 2.0),)


@pytest.mark.parametrize(
    ("edits", "error", "words"),
    [
        (["7=1"], UnknownFeatureError, "does not say of which SAE"),
        (["a/7=1"], UnknownFeatureError, "no feature 7"),
        (["a/2=10x"], QueryError, "never fires"),
        (["a/0=1e38x"], QueryError, "overflows"),
        (["a/0=1e37"], QueryError, "overflows"),
        (["a/0*=1e36"], QueryError, "overflows"),
        (["a/0=1 @ b/9 > 1"], UnknownFeatureError, "no feature 9"),
        (["a/0=1", "a/0+=1"], QueryError, "same feature at the same tokens"),
        (["a/0=1", "a/0=1"], QueryError, "same feature at the same tokens"),
        ([], QueryError, "there is no edit"),
        ([3], QueryError, "is no edit"),
    ],
)
def test_what_a_database_refuses(
    path: Path, edits: list[str], error: type[FeatureDBError], words: str
) -> None:
    with pytest.raises(error, match=words):
        resolve_edits(Store.open(path), edits)


def test_one_feature_at_places_that_never_meet(path: Path) -> None:
    assert len(resolve_edits(Store.open(path), ["a/0=1 @ prompt", "a/0=0 @ generated"])) == 2


def test_the_public_name() -> None:
    assert featuredb.Edit is Edit
