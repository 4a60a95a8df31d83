"""What rules call a feature, from facts that are plain."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import featuredb
from featuredb.labels.rules import FeatureFacts, label_of
from tests.make_store import make_store
from tests.queries.test_questions import small_world


def _tokens(*tokens: tuple[str, float]) -> FeatureFacts:
    return FeatureFacts(tokens)


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        (_tokens((" May", 0.5), (" June", 0.3), (" the", 0.1)), "months"),
        (
            FeatureFacts([(" May", 0.5), ("July", 0.4)], ["in"] * 9, [" 2"] * 9, 0, 9),
            "months in dates",
        ),
        (FeatureFacts([("1", 0.9)], ["2"] * 9, ["3"] * 9, 0, 9), "digits inside numbers"),
        (_tokens((" of", 0.7), (" in", 0.3)), '"of"'),
        (_tokens((" a", 0.35), (" an", 0.25), (" of", 0.4)), 'articles and "of"'),
        (_tokens((" music", 0.3), (" musical", 0.2), ("Mus", 0.1)), 'forms of "music"'),
        (_tokens((" realism", 0.3), (" Marxism", 0.3), ("tourism", 0.3)), "words ending in -ism"),
        (_tokens((" king", 0.3), (" castle", 0.29), (" x", 0.05)), '"king" and "castle"'),
        (_tokens((" a", 0.03), ("b", 0.02)), 'various tokens, such as "a"'),
        (_tokens(('"', 0.9)), "quotation marks"),
        (_tokens(("\n", 0.9)), "line breaks"),
        (
            FeatureFacts([(" of", 0.9)], [" one"] * 9, [" the"] * 9, 0, 9),
            '"of" after "one"',
        ),
        (FeatureFacts([("The", 0.9)], starts=9, contexts=9), '"The" at the beginning of texts'),
        (
            FeatureFacts([("x", 0.9)], values={"topic": {"Art": (8, 0.1), "Law": (1, 0.5)}}),
            '"x", where topic is Art',
        ),
        (
            FeatureFacts([("x", 0.9)], values={"topic": {"Art": (8, 0.5), "Law": (1, 0.5)}}),
            '"x"',
        ),
        (FeatureFacts([("x", 0.9)], promoted=[" y", "z"]), '"x", promotes "y" and "z"'),
    ],
    ids=range(16),
)
def test_what_a_feature_is_called(facts: FeatureFacts, label: str) -> None:
    assert label_of(facts) == label


def test_every_feature_that_fires_gets_one_and_people_come_first(tmp_path: Path) -> None:
    path = tmp_path / "my.fdb"
    make_store(path, small_world(("demo",)))
    with featuredb.open(path) as db:
        db.label(1, "mine")
        fired = db.sql("SELECT feature_id FROM features WHERE count > 0").fetchall()
        firing = {feature for (feature,) in fired}
    done = featuredb.make_labels(path)
    assert done.labels == len(firing)
    with featuredb.open(path) as db:
        made = db.labels()
    assert {r.feature_id for r in made if r.method == "automatic"} == firing
    assert [r.text for r in made if r.preferred and r.feature_id == 1] == ["mine"]
    assert {r.author for r in made if r.method == "automatic"} == {"featuredb"}
    copy = Path(shutil.copytree(path, tmp_path / "copy.fdb"))
    assert featuredb.make_labels(copy).labels == 0
    with featuredb.open(copy) as db:
        assert db.labels().table == made.table
    assert featuredb.verify(path).ok
