"""The feature card: how reliably each token fires, its samples, and which logits stand out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.feature import FIFTHS, PER_FIFTH, SILENT
from queries.lens import standing_out
from tests.make_store import World
from tests.queries.test_against_oracle import few, name_of, opened, some_features
from tests.queries.together import uneven_worlds


@given(uneven_worlds(), st.data())
@few
def test_a_card_counts_occurrences_and_draws_as_the_questions_do(
    world: World, data: st.DataObject
) -> None:
    # Two tokens of one text: each has its own count.
    world = replace(world, vocabulary=[*world.vocabulary[:-1], world.vocabulary[-2]])
    with opened(world) as (db, _, oracle):
        for sae, feature in some_features(world, data):
            name = name_of(world, sae, feature)
            card = db.feature(name)
            made = oracle.sae(sae)
            recorded = Counter(
                tokens[i]
                for c, tokens in enumerate(world.contexts)
                for i in world.recorded(made, c)
            )
            totals: Counter[int] = Counter()
            for context_id, token, value in oracle.activations(sae, feature):
                totals[world.contexts[context_id][token]] += value  # type: ignore[assignment]
            best = sorted(totals, key=lambda token: (-totals[token], token))[:20]
            assert card.statistics.top_token_occurrences == [recorded[token] for token in best]
            fired = [entry["count"] for entry in card.statistics.top_tokens]
            assert fired == [
                entry["count"] for entry in oracle.statistics(sae, feature)["top_tokens"]
            ]
            sample = db.sample_contexts(name, FIFTHS * PER_FIFTH, FIFTHS)
            assert card.sample.table.equals(sample.table)
            assert card.silent.table.equals(db.silent_contexts(name, SILENT).table)
            counts = [oracle.statistics(sae, i)["count"] for i in range(len(made.decoder))]
            n = max(1, sum(recorded.values()))
            p, others = counts[feature] / n, [c / n for i, c in enumerate(counts) if i != feature]
            most = max((p * q / (p + q - p * q) for q in others if p and q), default=0.0)
            assert card.chance["coactivation"]["random"] == pytest.approx(most)
            assert str(card)
            assert card._repr_html_()


def test_noise_does_not_stand_out_and_a_promoted_token_does() -> None:
    rng = np.random.default_rng(0)
    vocabulary, features = 50_000, 8_192
    passed = 0
    for _ in range(60):
        logits = np.sort(rng.normal(0.3, 0.2, vocabulary))[::-1].tolist()
        ends = standing_out(logits[:20], logits[:-21:-1], vocabulary, features)
        assert ends is not None
        passed += logits[0] > ends[0] or logits[-1] < ends[1]
        # Near what the truth would say.
        truth = 0.2 * NormalDist().inv_cdf(1 - 0.01 / vocabulary / features)
        assert ends[0] == pytest.approx(0.3 + truth, rel=0.1)
        assert ends[1] == pytest.approx(0.3 - truth, rel=0.15)
    assert passed == 0
    ends = standing_out([2.5, *logits[:19]], logits[:-21:-1], vocabulary, features)
    assert ends is not None
    assert ends[0] < 2.5


def test_where_there_are_few_tokens_nothing_is_said() -> None:
    assert standing_out([1.0] * 20, [-1.0] * 20, 40, 10) is None
    assert standing_out([], [], 50_000, 10) is None
