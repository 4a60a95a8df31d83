"""Two features side by side, against sets of tokens and numpy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featuredb
from featuredb.errors import QueryError, UnknownFeatureError
from queries.directions import chance
from tests.make_store import World, make_store, stored
from tests.queries.test_against_oracle import few, name_of, opened
from tests.queries.test_questions import small_world
from tests.queries.together import Together, close, uneven_worlds


def _tokens(world: World, sets: list[set[Any]], kind: int) -> list[dict[str, Any]]:
    """The tokens of one of the three sets of places, with their counts in each."""
    counts = [Counter(world.contexts[c][t] for c, t in places) for places in sets]
    best = sorted(counts[kind], key=lambda token: (-counts[kind][token], token))[:20]
    names = ("both", "a_only", "b_only")
    return [
        {"token": world.vocabulary[t], **{n: c[t] for n, c in zip(names, counts, strict=True)}}
        for t in best
    ]


def _cosine(x: Any, y: Any) -> float:
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.dot(x, y) / lengths) if lengths else 0.0


@given(uneven_worlds(), st.data())
@few
def test_compare(world: World, data: st.DataObject) -> None:
    with opened(world) as (db, client, _oracle):
        one, two = (data.draw(st.sampled_from(world.saes)) for _ in range(2))
        a, b = (data.draw(st.integers(0, len(sae.decoder) - 1)) for sae in (one, two))
        names = (name_of(world, one.name, a), name_of(world, two.name, b))
        answer = db.compare(*names)
        row = answer[0]
        pair = db.coactivation(*names)
        assert answer.coactivation.table == pair.table
        for i, unit in enumerate(("token", "document")):
            for name in ("n", "both", "a_only", "b_only", "neither", "npmi", "g2"):
                assert row[f"{unit}_{name}"] == pair[i][name]
        assert row.decoder_cosine == pytest.approx(
            _cosine(one.decoder[a], two.decoder[b]), abs=1e-6
        )
        assert row.encoder_cosine == pytest.approx(
            _cosine(one.encoder[a], two.encoder[b]), abs=1e-6
        )
        together = Together(world, one.name, two.name)
        places = together.active(one.name, a, "token"), together.active(two.name, b, "token")
        both = places[0] & places[1]
        x = [together.dense[one.name][c][t, a] for c, t in sorted(both)]
        y = [together.dense[two.name][c][t, b] for c, t in sorted(both)]
        if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
            assert row.correlation is None
        else:
            # A value of 70,000 among those of 1 leaves seven digits.
            expected = np.corrcoef(np.array(x, np.float64), np.array(y, np.float64))[0, 1]
            assert row.correlation == pytest.approx(expected, abs=1e-6)
        sets = [both, places[0] - both, places[1] - both]
        for kind, column in enumerate(("both_tokens", "a_tokens", "b_tokens")):
            assert row[column] == _tokens(world, sets, kind), column
        for letter, (sae, feature) in zip("ab", ((one, a), (two, b)), strict=True):
            card = db.feature(name_of(world, sae.name, feature)).statistics
            assert row[f"{letter}_density"] == card.density
            assert row[f"{letter}_max_activation"] == card.max_activation
        fires = [
            {c for c, dense in enumerate(stored(world, sae)) if (dense[:, feature] != 0).any()}
            for sae, feature in ((one, a), (two, b))
        ]
        assert answer.in_a.total == len(fires[0] - fires[1])
        assert answer.in_b.total == len(fires[1] - fires[0])
        assert answer.in_both.total == len({c for c, _ in both})
        assert str(answer)
        assert answer._repr_html_()
        asked = "SELECT cosine($1, $2), cosine($1, $2, \"by\" := 'encoder')"
        assert db.sql(asked, [*names]).fetchall() == [(row.decoder_cosine, row.encoder_cosine)]
        python = answer.table.drop_columns(["decoder_cosine", "encoder_cosine"])
        for source in (db, client):
            sql = source.sql("FROM compare(?, ?)", params=[*names]).to_arrow_table()
            assert sql.column_names == python.column_names
            assert sql.to_pylist() == [close(r) for r in python.to_pylist()]


def test_a_direction_is_as_the_sae_has_it(tmp_path: Path) -> None:
    world = small_world(("a", "b/c"))
    make_store(tmp_path / "s.fdb", world)
    with featuredb.open(tmp_path / "s.fdb") as db:
        for sae in world.saes:
            for feature in range(5):
                for by in ("decoder", "encoder"):
                    row = db.direction(f"{sae.name}/{feature}", by)
                    assert row.dtype == np.float32
                    assert row.tolist() == getattr(sae, by)[feature].tolist()
        with pytest.raises(QueryError, match="by must be one of decoder, encoder, not 'gate'"):
            db.direction("a/1", "gate")
        with pytest.raises(UnknownFeatureError):
            db.direction("a/9")
        assert db.near_vector(db.direction("a/1"), sae="a")[0].feature_id == 1


def test_chance_is_the_median_of_the_nearest(tmp_path: Path) -> None:
    world = small_world(("a", "b/c"))
    make_store(tmp_path / "s.fdb", world)
    with featuredb.open(tmp_path / "s.fdb") as db:
        store = db._store
        for by in ("decoder", "encoder", "coactivation"):
            nearest = [r.score for f in range(5) for r in db.near(f"a/{f}", 1, by)]
            found = chance(store, db.saes[0], by)
            assert found.nearest == pytest.approx(float(np.median(nearest)))
            if by == "coactivation":
                assert found.random is None
            else:  # both SAEs read one hook: ten directions of three numbers
                assert found.random == pytest.approx(np.sqrt(2 * np.log(10) / 3))
        assert "(median)" in str(chance(store, db.saes[0], "decoder"))
