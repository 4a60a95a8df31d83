"""Small answers of every kind, with the columns the queries give them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from queries.answers import Answer, Info, Rows
from queries.association import COUNTS, MEASURES
from queries.coactivation import Coactivation
from queries.coactive import Coactive
from queries.compare import Comparison
from queries.encode import Encoded
from queries.feature import FeatureCard
from queries.find import Matches
from queries.fires import Firing
from queries.labels import Labels
from queries.near import Neighbors
from queries.sample_contexts import SampledContexts
from queries.search import SearchHits
from queries.silent_contexts import SilentContexts
from queries.top_contexts import TopContexts

F32 = pa.float32()
STRINGS = pa.list_(pa.string())
HOSTILE = "\x1b[31mred\x07\r\n\t\x9b2J\u202eevil<script>&"
"""A terminal escape, a bell, line ends, a C1 control, a bidirectional override, and HTML."""

_TOP = pa.schema(
    {
        "sae": pa.string(),
        "feature_id": pa.int64(),
        "rank": pa.int32(),
        "context_id": pa.int64(),
        "document_id": pa.int64(),
        "activation": F32,
        "token_index": pa.int32(),
        "token": pa.string(),
        "window_start": pa.int32(),
        "tokens": STRINGS,
        "activations": pa.list_(F32),
        "source": pa.string(),
        "title": pa.string(),
        "topic": pa.string(),
    }
)
_TOKENS = {"top_tokens": STRINGS, "promoted_tokens": STRINGS, "label": pa.string()}
_NAME = {"rank": pa.int32(), "sae": pa.string(), "feature_id": pa.int64()}
_SIZE = {"density": pa.float64(), "max_activation": F32}
_OF = {"of_sae": pa.string(), "of_feature_id": pa.int64()}
_NEAR = pa.schema({**_OF, **_NAME, "score": F32, **_SIZE, **_TOKENS})
_HITS = pa.schema({**_NAME, "score": F32, **_SIZE, "matched": pa.string(), **_TOKENS})
_FIRING = pa.schema(
    {
        **_NAME,
        "specificity": F32,
        "activation": F32,
        "token_index": pa.int32(),
        "token": pa.string(),
        "n_tokens": pa.int32(),
        "activations": pa.list_(F32),
        **_SIZE,
        **_TOKENS,
    }
)
_LABELS = pa.schema(
    {
        "sae": pa.string(),
        "feature_id": pa.int64(),
        **dict.fromkeys(("text", "method", "model", "author", "created"), pa.string()),
        "votes": pa.int64(),
        "preferred": pa.bool_(),
        "label_id": pa.string(),
        "scores": pa.list_(
            pa.struct(
                {
                    "scorer": pa.string(),
                    "model": pa.string(),
                    "value": pa.float64(),
                    "details": pa.string(),
                }
            )
        ),
    }
)
_COUNTED = {
    **dict.fromkeys(COUNTS, pa.int64()),
    **dict.fromkeys(MEASURES, pa.float64()),
}
_COACTIVE = pa.schema({**_OF, **_NAME, **_COUNTED, "q": pa.float64(), **_SIZE, **_TOKENS})
_PAIR = pa.schema(
    {
        "sae": pa.string(),
        "feature_id": pa.int64(),
        "other_sae": pa.string(),
        "other_id": pa.int64(),
        "unit": pa.string(),
        "n": pa.int64(),
        **_COUNTED,
        "p": pa.float64(),
    }
)
_LOGITS = pa.list_(pa.struct({"token": pa.string(), "logit": F32}))
_CARD = pa.schema(
    {
        "sae": pa.string(),
        "feature_id": pa.int64(),
        "count": pa.int64(),
        "density": pa.float64(),
        "n_contexts": pa.int64(),
        "n_documents": pa.int64(),
        "min_activation": F32,
        "max_activation": F32,
        "mean_activation": pa.float64(),
        "std_activation": pa.float64(),
        "quantiles": pa.list_(pa.struct({"q": pa.float64(), "value": F32})),
        "histogram": pa.list_(pa.int64()),
        "decoder_norm": F32,
        "top_tokens": pa.list_(
            pa.struct({"token": pa.string(), "count": pa.int64(), "mean_activation": F32})
        ),
        "promoted_tokens": _LOGITS,
        "suppressed_tokens": _LOGITS,
        "top_token_occurrences": pa.list_(pa.int64()),
        "promoted_above": pa.float64(),
        "suppressed_below": pa.float64(),
    }
)


def top_contexts() -> TopContexts:
    """Two contexts: plain English, and a hostile one."""
    first = _context(1, 7.5, 3, ["The", " battle", " of", " Hastings"], [0, 2.5, 0, 7.5])
    second = _context(2, 0.1, 10, ["a", HOSTILE, "東京"], [0, 0.1, 0])
    first |= {"window_start": 0, "token_index": 3, "title": "Battle", "topic": "History"}
    second |= {"window_start": 9, "token_index": 10, "title": HOSTILE, "topic": None}
    table = pa.Table.from_pylist([first, second], _TOP)
    return TopContexts(table, sae="sae", feature_id=1234, max_activation=10.0)


def _context(
    rank: int, activation: float, peak: int, tokens: list[str], activations: list[float]
) -> dict[str, Any]:
    return {
        "sae": "sae",
        "feature_id": 1234,
        "rank": rank,
        "context_id": 100 + rank,
        "document_id": 7,
        "activation": activation,
        "token_index": peak,
        "token": tokens[activations.index(max(activations))],
        "tokens": tokens,
        "activations": activations,
        "source": "wiki",
    }


def _features(**more: Any) -> list[dict[str, Any]]:
    common = {
        "sae": "sae",
        "top_tokens": [" war", HOSTILE],
        "promoted_tokens": ["\n", " 東京"],
        "label": None,
    }
    return [
        {"rank": 1, "feature_id": 5, "density": 0.031, "max_activation": 20.5, **common, **more},
        {"rank": 2, "feature_id": 17, "density": 0.0004, "max_activation": 3.25, **common, **more},
    ]


def sampled_contexts() -> SampledContexts:
    """The contexts of `top_contexts`, from two bins."""
    table = top_contexts().table
    for name, values in (("bin", [2, 1]), ("bin_contexts", [3, 5])):
        table = table.append_column(name, pa.array(values, pa.int64()))
    for name, edges in (("bin_low", [5.0, 0.0]), ("bin_high", [10.0, 5.0])):
        table = table.append_column(name, pa.array(edges, F32))
    table = table.append_column("bin_weight", pa.array([3.0, 5.0]))
    return SampledContexts(
        table, sae="sae", feature_id=1234, max_activation=10.0, by="width", seed=0
    )


def silent_contexts() -> SilentContexts:
    """The contexts of `top_contexts`, as if matched by a token."""
    table = top_contexts().table.append_column("matched", pa.array([HOSTILE, " war"]))
    return SilentContexts(
        table, sae="sae", feature_id=1234, max_activation=10.0, like="tokens", seed=0
    )


def matches() -> Matches:
    """The contexts of `top_contexts`, as places where two features fire."""
    table = top_contexts().table.drop_columns(["sae", "feature_id"])
    names = ["strength" if name == "activation" else name for name in table.column_names]
    table = table.rename_columns(names)
    table = table.append_column("features", pa.array([["s/1", HOSTILE]] * 2, STRINGS))
    table = table.append_column("feature_activations", pa.array([[7.5, 1.0]] * 2, pa.list_(F32)))
    return Matches(table, asked=f"s/1 and {HOSTILE}", unit="token", total=5)


def neighbors(by: str = "decoder") -> Neighbors:
    """Two neighbors."""
    rows = _features(score=0.9, of_sae="sae", of_feature_id=1234)
    table = pa.Table.from_pylist(rows, _NEAR)
    return Neighbors(table, of_sae="sae", of_feature_id=1234, by=by)


_ASSOCIATED = {
    "both": 40,
    "a_only": 177,
    "b_only": 256,
    "neither": 2527,
    "p_b_given_a": 0.1843,
    "p_a_given_b": 0.1351,
    "jaccard": 0.0846,
    "npmi": 0.1448,
    "phi": None,
    "g2": 16.07,
}


def coactive() -> Coactive:
    """Two features of the same documents."""
    rows = _features(**_ASSOCIATED, q=6.1e-05, of_sae="sae", of_feature_id=1234)
    table = pa.Table.from_pylist(rows, _COACTIVE)
    return Coactive(
        table,
        of_sae="sae",
        of_feature_id=1234,
        unit="document",
        by="npmi",
        min_both=5,
        n=3000,
    )


def labels() -> Labels:
    """Two labels of a feature, one of them hostile and scored."""
    of = {
        "sae": "sae",
        "feature_id": 1234,
        "author": "someone",
        "created": "2026-11-26",
        "votes": 0,
    }
    score = {"scorer": "detection", "model": None, "value": 0.75, "details": None}
    first = {**of, "text": HOSTILE, "method": "human", "model": None, "preferred": True}
    second = {**of, "text": "dates", "method": "np_max-act", "model": "m", "preferred": False}
    rows = [
        {**first, "label_id": "0123456789ab", "scores": [score]},
        {**second, "label_id": "ba9876543210", "scores": []},
    ]
    return Labels(pa.Table.from_pylist(rows, _LABELS))


def coactivation() -> Coactivation:
    """A pair."""
    name = {"sae": "sae", "feature_id": 1234, "other_sae": HOSTILE, "other_id": 5, "n": 3000}
    rows = [{**name, **_ASSOCIATED, "unit": "token"}]
    rows.append({**name, **_ASSOCIATED, "unit": "document", "p": 6.1e-05})
    table = pa.Table.from_pylist(rows, _PAIR)
    return Coactivation(table, sae="sae", feature_id=1234, other_sae=HOSTILE, other_id=5)


def comparison() -> Comparison:
    """The pair of `coactivation`, whose contexts are those of `matches`."""
    pair = coactivation()
    names: dict[str, Any] = {"sae": "sae", "feature_id": 1234, "other_sae": HOSTILE, "other_id": 5}
    row = {**names, "decoder_cosine": 0.25, "encoder_cosine": None, "correlation": -0.5}
    tokens = [{"token": HOSTILE, "both": 7, "a_only": 2, "b_only": 1}]
    row |= {"both_tokens": tokens, "a_tokens": tokens, "b_tokens": []}
    for letter in "ab":
        row |= {f"{letter}_density": 0.01, f"{letter}_max_activation": 10.0}
        row |= {f"{letter}_{name}_tokens": [" war", HOSTILE] for name in ("top", "promoted")}
        row |= {f"{letter}_label": HOSTILE if letter == "a" else None}
    return Comparison(
        pa.Table.from_pylist([row]),
        **names,
        nearest="a feature's nearest is at 0.24 (median)",
        coactivation=pair,
        in_both=matches(),
        in_a=matches(),
        in_b=matches()[:0],
    )


def search_hits() -> SearchHits:
    """Two hits."""
    rows = _features(score=1.5, matched=HOSTILE, label=HOSTILE)
    return SearchHits(pa.Table.from_pylist(rows, _HITS), query="war")


def encoded() -> Encoded:
    schema = pa.schema(
        {
            "text_index": pa.int64(),
            "text_id": pa.string(),
            "sae": pa.string(),
            "feature_id": pa.int64(),
            "activation": F32,
            "n_tokens": pa.int32(),
        }
    )
    rows = [(0, HOSTILE, "sae", 7, 1.5, 2), (1, None, "sae", 3, 0.5, 1)]
    named = [dict(zip(schema.names, row, strict=True)) for row in rows]
    return Encoded(pa.Table.from_pylist(named, schema), pool="max")


def firing() -> Firing:
    """Two features on a text of three tokens."""
    rows = _features(
        specificity=3.5,
        activation=4.0,
        token_index=1,
        token=" war",
        n_tokens=1,
        activations=[0, 4, 0],
    )
    return Firing(pa.Table.from_pylist(rows, _FIRING), tokens=["No", " war", HOSTILE], active=7)


def feature_card() -> FeatureCard:
    """A feature with every part."""
    row = {
        "sae": "sae",
        "feature_id": 1234,
        "count": 4071,
        "density": 0.00407,
        "n_contexts": 1231,
        "n_documents": 821,
        "min_activation": 0.1,
        "max_activation": 10.0,
        "mean_activation": 2.0,
        "std_activation": 1.5,
        "quantiles": [{"q": 0.5, "value": 1.75}, {"q": 1.0, "value": 10.0}],
        "histogram": [3000, 1000, 70, 1] + [0] * 36,
        "decoder_norm": 1.0,
        "top_tokens": [
            {"token": f" w{i}", "count": 90 - i, "mean_activation": 3} for i in range(20)
        ],
        "promoted_tokens": [{"token": HOSTILE, "logit": 2.5}],
        "suppressed_tokens": [],
    }
    row |= {"top_token_occurrences": [100] * 20, "promoted_above": 2.0, "suppressed_below": -2.0}
    table = pa.Table.from_pylist([row], _CARD)
    return FeatureCard(
        table,
        contexts=top_contexts(),
        sample=sampled_contexts(),
        silent=silent_contexts(),
        neighbors=neighbors(),
        coactive=neighbors("coactivation"),
        chance={
            "decoder": {"nearest": 0.5, "random": 0.18},
            "coactivation": {"nearest": 0.08, "random": 0.00123},
        },
    )


def rows() -> Rows:
    """Values that SQL can return: null, NaN, infinities, nested values, a hostile name."""
    return Rows(
        pa.table(
            {
                "n": pa.array([1, None], pa.int64()),
                "x": pa.array([0.1, float("nan")], F32),
                "y": pa.array([float("inf"), -float("inf")], pa.float64()),
                "tags": pa.array([["a", None], None], STRINGS),
                "flag": pa.array([True, None]),
                HOSTILE: pa.array([HOSTILE, "plain"]),
            }
        )
    )


def info() -> Info:
    """That of a small database."""
    return Info(
        {
            "path": "/data/my.fdb",
            "format_version": 1,
            "bytes": 2_640_000_000,
            "tokens": 25_100_000,
            "l0": float("nan"),
            "saes": [{"name": HOSTILE, "d_sae": 16384, "normalized": True, "dead": None}],
            "model": {"id": "m", "hooks": ["a", "b"], "extra": {}},
        }
    )


def every_answer() -> list[Answer | Info]:
    """One of each kind."""
    return [
        top_contexts(),
        sampled_contexts(),
        silent_contexts(),
        matches(),
        neighbors(),
        coactive(),
        coactivation(),
        comparison(),
        search_hits(),
        labels(),
        firing(),
        encoded(),
        feature_card(),
        rows(),
        info(),
    ]


def every_empty_answer() -> list[Answer]:
    """One of each kind that can have no rows, with none."""
    full = ("feature_card", "coactivation", "comparison", "matches", "firing")
    every = (a for a in every_answer() if isinstance(a, Answer) and a.kind not in full)
    counted = [replace(matches()[:0], total=0), replace(firing()[:0], active=0)]
    return [*counted, *(a[:0] for a in every)]
