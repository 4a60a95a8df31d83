"""Near in another SAE, the most opposite, from a token, and by firing together anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featuredb
from featuredb.errors import QueryError, UnknownFeatureError
from featuredb.store.vectors.directions import Directions
from queries.near import near_token
from tests.directions import a_world, clustered, cosines_of_all, made_directions, with_ties
from tests.make_store import World, make_store
from tests.queries.test_against_oracle import few, name_of, opened
from tests.queries.together import Together, uneven_worlds

SAES = {
    "one": Directions(with_ties(clustered(300, 16)), clustered(300, 16, 5)),
    "two": made_directions(150, 16, seed=1),
    "apart": made_directions(250, 16, seed=2),
    "wide": made_directions(20, 24, seed=3),
}
HOOKS = {"apart": "blocks.1.hook_resid_post"}
TOGETHER = ["one", "two"]
Row = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[featuredb.Database]:
    path = tmp_path_factory.mktemp("near") / "s.fdb"
    make_store(path, a_world(SAES, HOOKS))
    with featuredb.open(path) as opened:
        yield opened


def expected(
    query: Row, saes: list[str], by: str, k: int, *, opposite: bool, but: object = None
) -> list[tuple[str, int, float]]:
    rows = np.concatenate([getattr(SAES[name], by) for name in saes])
    names = [(name, i) for name in saes for i in range(len(getattr(SAES[name], by)))]
    scores = cosines_of_all(np.concatenate([query[None], rows]), [0])[0, 1:]
    order = np.lexsort((np.arange(len(rows)), scores if opposite else -scores))
    found = [(*names[i], float(scores[i])) for i in order if names[i] != but]
    return found[:k]


def rows(answer: featuredb.Neighbors) -> list[tuple[str, int, float]]:
    return [(row.sae, row.feature_id, row.score) for row in answer]


@pytest.mark.parametrize("by", ["decoder", "encoder"])
@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("sae", [None, "one", "two", "apart"])
def test_directions(db: featuredb.Database, by: str, opposite: bool, sae: str | None) -> None:
    for feature, k in ((0, 1), (3, 20), (11, 60), (149, 500)):
        for own in TOGETHER:
            query = getattr(SAES[own], by)[feature]
            answer = db.near(f"{own}/{feature}", k, by, sae=sae, opposite=opposite)
            saes = TOGETHER if sae is None else [sae]
            wanted = expected(query, saes, by, k, opposite=opposite, but=(own, feature))
            assert rows(answer) == wanted
            assert not any(np.signbit(r.score) for r in answer if r.score == 0)
            assert answer.opposite == opposite


def test_a_vector_s_opposite_and_a_token(db: featuredb.Database) -> None:
    vector: Row = clustered(1, 16, seed=9)[0]
    answer = db.near_vector(vector, 30, sae="two", opposite=True)
    assert rows(answer) == expected(vector, TOGETHER, "decoder", 30, opposite=True)
    asked = []

    def direction(token_id: int, matrix: str) -> Row:
        asked.append((token_id, matrix))
        return vector

    for token in (" a", 1):
        answer = near_token(
            db._store, token, 30, "encoder", "embedding", "two", direction=direction
        )
        assert rows(answer) == expected(vector, ["two"], "encoder", 30, opposite=False)
    assert asked == [(1, "embedding")] * 2
    assert str(answer).startswith("near ·a (embedding) by encoder · 30 neighbors")
    assert (
        answer.chance == f"a random direction's nearest is at {np.sqrt(2 * np.log(150) / 16):.2f}"
    )
    for wrong, message in (
        ("a", "there is no token 'a': did you mean ' a'?"),
        ("xyz", "there is no token 'xyz': the model spells it with several"),
        (2, "there is no token 2: their ids are 0 to 1"),
    ):
        with pytest.raises(QueryError) as refused:
            near_token(db._store, wrong, direction=direction)
        assert str(refused.value) == message
    with pytest.raises(QueryError, match="belong to several hooks: say which with sae"):
        near_token(db._store, " a", direction=direction)


def test_the_heading_says_what_chance_gives(db: featuredb.Database) -> None:
    random = np.sqrt(2 * np.log(450) / 16)
    chance = db.near("one/0", 3).chance
    assert chance.endswith(f" (median), a random direction's at {random:.2f}")
    assert str(db.near("one/0", 3)).splitlines()[1] == chance
    far = db.near("one/0", 3, sae="apart", opposite=True)
    limit = np.sqrt(2 * np.log(250) / 16)
    assert far.chance == f"a random direction's opposite is at -{limit:.2f}"
    assert str(far).startswith("opposite of one/0 by decoder · 3 features")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sae": "wide"},
            "decoder directions of one have 16 values, those of wide have 24: ask by coactivation",
        ),
        (
            {"by": "coactivation", "opposite": True},
            "features that fire together have no opposite: ask by decoder or encoder",
        ),
        (
            {"unit": "document"},
            "directions belong to no document: ask by coactivation, or leave out unit",
        ),
        ({"unit": "page"}, "unit must be one of token, document, not 'page'"),
    ],
)
def test_what_cannot_be_asked(
    db: featuredb.Database, options: dict[str, object], message: str
) -> None:
    with pytest.raises(QueryError) as refused:
        db.near("one/0", **options)  # type: ignore[arg-type]
    assert str(refused.value) == message
    with pytest.raises(UnknownFeatureError, match="there is no SAE three"):
        db.near("one/0", sae="three")


@given(uneven_worlds(), st.data())
@few
def test_firing_together_in_any_sae_and_by_document(world: World, data: st.DataObject) -> None:
    own, other = (data.draw(st.sampled_from(world.saes)).name for _ in range(2))
    unit = data.draw(st.sampled_from(["token", "document"]))
    with opened(world) as (db, _, _oracle):
        together = Together(world, own, other)
        sizes = {sae.name: len(sae.decoder) for sae in world.saes}
        for feature in range(min(4, sizes[own])):
            a = together.active(own, feature, unit)
            wanted = []
            for partner in range(sizes[other]):
                b = together.active(other, partner, unit)
                if a & b and (other, partner) != (own, feature):
                    wanted.append((-len(a & b) / len(a | b), partner))
            answer = db.near(
                name_of(world, own, feature), 500, "coactivation", sae=other, unit=unit
            )
            assert [(r.sae, r.feature_id) for r in answer] == [
                (other, p) for _, p in sorted(wanted)
            ]
            scores = [float(np.float32(-score)) for score, _ in sorted(wanted)]
            assert [r.score for r in answer] == scores
            assert (answer.method, answer.unit, answer.chance) == ("exact", unit, "")


def test_a_search_within_one_sae_is_made_once(db: featuredb.Database) -> None:
    db.near("one/0", sae="apart")
    made = len(db._store.directions._exact)
    db.near("two/5", sae="apart", opposite=True)
    assert len(db._store.directions._exact) == made
