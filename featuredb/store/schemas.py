"""Every table's columns, dtypes and sort order, defined once.

*Active*: the SAE's own ``encode(x)`` is non-zero, after its own activation function, threshold
and normalization, in float32 (or the dtype the user chose). There is no other epsilon.

*Stored activation*: that value rounded by `featuredb.store.values.stored_values`. Every query,
statistic and ranking is computed from stored values, so all answers agree.

*Position*: see `featuredb.store.positions`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FORMAT_VERSION = 3
"""Version of the on-disk format, separate from the package's version."""

OLDEST_FORMAT = 3
"""Oldest format that is read. Formats 1 and 2 were never released."""

FloatArray = npt.NDArray[np.floating[Any]]
"""Activations as they are stored: float16 or float32."""

FEATURE_ROW_GROUP = 32_768
"""Rows per row group of the by-feature copy: one group is what a median lookup reads."""

TOKEN_ROW_GROUP = 2_048
"""Tokens per row group of the by-token copy: one group is what a look at one context reads."""

MAX_BUCKETS = 256
"""Most feature-bucket files in a compacted segment."""

EXAMPLES_TOP = 50
"""Contexts kept ready per feature, strongest first."""

EXAMPLES_QUINTILES = 5
EXAMPLES_PER_QUINTILE = 4
"""Contexts sampled from each fifth of a feature's contexts, ordered by their maximum."""

WINDOW = 16
"""Tokens either side of a peak that are kept ready as text."""

NEIGHBORS_KEPT = 50
"""Stored neighbors per feature and kind."""

HISTOGRAM_BINS = 40
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
TOP_TOKENS = 20
"""Tokens kept per feature: those it most fires on (by total activation, ties by token id), most
promotes, most suppresses."""


def feature_id_type(d_sae: int) -> pa.DataType:
    """Element type of the by-token feature lists."""
    return pa.uint16() if d_sae <= 1 << 16 else pa.uint32()


def token_id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Element type of ``tokens.bin``."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def value_type(values: str) -> pa.DataType:
    """Arrow type of a segment's activations: `values` is ``"float16"`` or ``"float32"``."""
    return pa.float16() if values == "float16" else pa.float32()


def by_feature(values: str) -> pa.Schema:
    """Primary copy, sorted by (feature_id, position)."""
    return pa.schema(
        [
            pa.field("feature_id", pa.uint32(), nullable=False),
            pa.field("position", pa.uint32(), nullable=False),
            pa.field("activation", value_type(values), nullable=False),
        ]
    )


FEATURE_ORDER = pa.schema(
    [
        pa.field("rank", pa.uint32(), nullable=False),
        pa.field("feature_id", pa.uint32(), nullable=False),
    ]
)
"""Every feature of one SAE, the most frequent first. Ranks from 0."""


def by_token(values: str, d_sae: int) -> pa.Schema:
    """Second copy: one row per recorded token with at least one active feature.

    Sorted by position. Each list of gaps has the token's ranks in the SAE's FEATURE_ORDER,
    ascending: the first, then the differences. Activations are aligned with them.
    """
    return pa.schema(
        [
            pa.field("position", pa.uint32(), nullable=False),
            pa.field("gaps", pa.list_(pa.field("element", feature_id_type(d_sae)))),
            pa.field("activations", pa.list_(pa.field("element", value_type(values)))),
        ]
    )


DOCUMENT_FIELDS = (
    pa.field("document_id", pa.int64(), nullable=False),
    pa.field("source", pa.string()),
    pa.field("source_offset", pa.int64()),
    pa.field("n_tokens", pa.int64(), nullable=False),
    pa.field("n_contexts", pa.int32(), nullable=False),
    pa.field("text", pa.string()),
)
"""First columns of ``documents``, sorted by document_id. The corpus's own columns follow."""


def contexts(vocab_size: int, *, roles: bool = False) -> pa.Schema:
    """``contexts``, sorted by context_id. n_tokens counts BOS. token_start indexes tokens.bin.

    With `roles`, as for chats, a last column has the role of each token.
    """
    element = pa.from_numpy_dtype(token_id_dtype(vocab_size))
    of_each_token = [pa.field("roles", pa.list_(pa.string()), nullable=False)]
    return pa.schema(
        [
            pa.field("context_id", pa.int64(), nullable=False),
            pa.field("document_id", pa.int64(), nullable=False),
            pa.field("context_index", pa.int32(), nullable=False),
            pa.field("token_start", pa.int64(), nullable=False),
            pa.field("n_tokens", pa.int32(), nullable=False),
            pa.field("char_start", pa.int64(), nullable=False),
            pa.field("char_end", pa.int64(), nullable=False),
            pa.field("token_ids", pa.list_(pa.field("element", element)), nullable=False),
            *(of_each_token if roles else []),
        ]
    )


VOCABULARY = pa.schema(
    [
        pa.field("token_id", pa.uint32(), nullable=False),
        pa.field("bytes", pa.binary(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("special", pa.bool_(), nullable=False),
    ]
)
"""``vocabulary``, sorted by token_id, one row for every id of the embedding matrix."""

SINKS = pa.schema(
    [
        pa.field("context_id", pa.int64(), nullable=False),
        pa.field("token_index", pa.int32(), nullable=False),
        pa.field("norm", pa.float32(), nullable=False),
    ]
)
"""Positions of enormous norm at one SAE's hook, sorted by (context_id, token_index)."""

TOKEN_COUNT = pa.struct(
    [("token", pa.string()), ("count", pa.int64()), ("mean_activation", pa.float32())]
)
TOKEN_LOGIT = pa.struct([("token", pa.string()), ("logit", pa.float32())])
QUANTILE = pa.struct([("q", pa.float64()), ("value", pa.float32())])

LOGITS = pa.schema(
    [
        pa.field("feature_id", pa.int64(), nullable=False),
        pa.field("promoted_tokens", pa.list_(TOKEN_LOGIT), nullable=False),
        pa.field("suppressed_tokens", pa.list_(TOKEN_LOGIT), nullable=False),
    ]
)
"""Logit lens of one SAE, sorted by feature_id. Strongest effect first, ties by token id."""

FEATURES = pa.schema(
    [
        pa.field("sae", pa.string(), nullable=False),
        pa.field("feature_id", pa.int64(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("density", pa.float64(), nullable=False),
        pa.field("n_contexts", pa.int64(), nullable=False),
        pa.field("n_documents", pa.int64(), nullable=False),
        pa.field("min_activation", pa.float32()),
        pa.field("max_activation", pa.float32()),
        pa.field("mean_activation", pa.float64()),
        pa.field("std_activation", pa.float64()),
        pa.field("quantiles", pa.list_(QUANTILE), nullable=False),
        pa.field("histogram", pa.list_(pa.int64()), nullable=False),
        pa.field("decoder_norm", pa.float32(), nullable=False),
        pa.field("top_tokens", pa.list_(TOKEN_COUNT), nullable=False),
        pa.field("promoted_tokens", pa.list_(TOKEN_LOGIT), nullable=False),
        pa.field("suppressed_tokens", pa.list_(TOKEN_LOGIT), nullable=False),
    ]
)
"""``features``, sorted by (SAE in the snapshot's order, feature_id), one row per feature.

A feature that never fires has count 0, null min/max/mean/std and empty lists. std is the
population's. quantile q is the smallest stored value v with at least q of the values <= v.
The histogram has equal-width bins from min(0, min) to max(0, max). A bin holds its upper edge.
"""

SUMMARIES = pa.schema(
    [
        pa.field("sae", pa.string(), nullable=False),
        pa.field("feature_id", pa.int64(), nullable=False),
        pa.field("density", pa.float64(), nullable=False),
        pa.field("max_activation", pa.float32()),
        pa.field("top_tokens", pa.list_(pa.field("element", pa.string())), nullable=False),
        pa.field("promoted_tokens", pa.list_(pa.field("element", pa.string())), nullable=False),
    ]
)
"""The columns that answers show of other features: rows of `FEATURES` in the same order, with only
the tokens of its lists."""


def examples(values: str) -> pa.Schema:
    """Contexts stored per feature, one file per SAE, sorted by (feature_id, kind, rank).

    kind 0: the top contexts, rank from 1 by (activation descending, context_id ascending). kind
    1 to 5: contexts sampled from that fifth of the feature's contexts, weakest fifth first. The two
    lists hold every active token of the feature in that context. values: ``"float16"`` where all
    segments of the SAE are.
    """
    return pa.schema(
        [
            pa.field("feature_id", pa.uint32(), nullable=False),
            pa.field("kind", pa.uint8(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("context_id", pa.int64(), nullable=False),
            pa.field("token_index", pa.uint16(), nullable=False),
            pa.field("activation", value_type(values), nullable=False),
            pa.field("token_indexes", pa.list_(pa.uint16()), nullable=False),
            pa.field("activations", pa.list_(value_type(values)), nullable=False),
        ]
    )


def windows(values: str) -> pa.Schema:
    """The top contexts of `examples` (kind 0) as an answer shows them, by (feature_id, rank).

    The tokens are those up to `WINDOW` either side of token_index that the context has, as text:
    the first has index max(0, token_index - WINDOW). Their activations are 0 where the feature is
    not active. That of token_index is the context's maximum.
    """
    return pa.schema(
        [
            pa.field("feature_id", pa.uint32(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("context_id", pa.int64(), nullable=False),
            pa.field("document_id", pa.int64(), nullable=False),
            pa.field("token_index", pa.int32(), nullable=False),
            pa.field("tokens", pa.list_(pa.field("element", pa.string())), nullable=False),
            pa.field(
                "activations", pa.list_(pa.field("element", value_type(values))), nullable=False
            ),
        ]
    )


NEIGHBORS = pa.schema(
    [
        pa.field("sae", pa.string(), nullable=False),
        pa.field("feature_id", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("neighbor_sae", pa.string(), nullable=False),
        pa.field("neighbor_id", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
"""Nearest features, sorted by (sae, feature_id, rank). Score descending, ties by (SAE, feature id).

``neighbors_decoder`` and ``neighbors_encoder``: cosine of the directions. ``coactivation``:
Jaccard of the two sets of active tokens (same SAE), only pairs that ever fire together.
"""

TOKEN_CHANGE = pa.struct([("token", pa.string()), ("change", pa.float32())])
SAE_CHANGE = pa.struct(
    [("sae", pa.string()), ("moved", pa.float32()), ("collateral", pa.float32())]
)


def of_features(*fields: pa.Field) -> pa.Schema:
    """A table of user data about features, sorted by its key, which begins with the first three.

    sae_sha256 and hook name the SAE, so that rows outlive its name and its place in the database.
    author and created (UTC, ISO 8601) are those of the row.
    """
    return pa.schema(
        [
            pa.field("sae_sha256", pa.string(), nullable=False),
            pa.field("hook", pa.string(), nullable=False),
            pa.field("feature_id", pa.int64(), nullable=False),
            pa.field("author", pa.string(), nullable=False),
            pa.field("created", pa.string(), nullable=False),
            *fields,
        ]
    )


MEASURED = of_features(
    pa.field("strength", pa.float32(), nullable=False),
    pa.field("n_prompts", pa.int32(), nullable=False),
    pa.field("output_score", pa.float32()),
    pa.field("kl", pa.float32(), nullable=False),
    pa.field("kl_per_unit", pa.float32(), nullable=False),
    pa.field("moved", pa.float32(), nullable=False),
    pa.field("collateral", pa.float32(), nullable=False),
    pa.field("collateral_forecast", pa.float32(), nullable=False),
    pa.field("collateral_others", pa.list_(SAE_CHANGE), nullable=False),
    pa.field("raised_tokens", pa.list_(TOKEN_CHANGE), nullable=False),
    pa.field("lowered_tokens", pa.list_(TOKEN_CHANGE), nullable=False),
)
"""What steering with a feature does, see `featuredb.measure`."""

ABLATED = of_features(
    pa.field("n_documents", pa.int32(), nullable=False),
    pa.field("n_contexts", pa.int32(), nullable=False),
    pa.field("n_tokens", pa.int64(), nullable=False),
    pa.field("loss_change", pa.float64(), nullable=False),
    pa.field("loss_change_low", pa.float64()),
    pa.field("loss_change_high", pa.float64()),
    pa.field("share_raised", pa.float64(), nullable=False),
    pa.field("control_change", pa.float64()),
    pa.field("control_change_low", pa.float64()),
    pa.field("control_change_high", pa.float64()),
    pa.field("p", pa.float64(), nullable=False),
    pa.field("q", pa.float64(), nullable=False),
    pa.field("n_tested", pa.int32(), nullable=False),
    pa.field("carried_tokens", pa.list_(TOKEN_CHANGE), nullable=False),
)
"""What taking a feature away does where it fires, see `featuredb.Database.effect`."""

MAP = of_features(
    pa.field("x", pa.float32(), nullable=False),
    pa.field("y", pa.float32(), nullable=False),
)
"""Where a feature is on the map, near those of similar decoder directions."""

LABELS = of_features(
    pa.field("label_id", pa.string(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("method", pa.string(), nullable=False),
    pa.field("model", pa.string()),
    pa.field("votes", pa.int64(), nullable=False),
    pa.field("preferred", pa.bool_(), nullable=False),
)
"""What people and programs say that features mean. One label of a feature is preferred."""

SCORES = of_features(
    pa.field("label_id", pa.string(), nullable=False),
    pa.field("scorer", pa.string(), nullable=False),
    pa.field("model", pa.string()),
    pa.field("value", pa.float64(), nullable=False),
    pa.field("details", pa.string()),
)
"""How well labels say it. details: JSON."""

RULE_FEATURE = pa.struct(
    [
        ("sae", pa.string()),
        ("sae_sha256", pa.string()),
        ("hook", pa.string()),
        ("feature_id", pa.int64()),
    ]
)

MONITORS = pa.schema(
    [
        pa.field("monitor", pa.string(), nullable=False),
        pa.field("version", pa.int32(), nullable=False),
        pa.field("author", pa.string(), nullable=False),
        pa.field("created", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("given", pa.string(), nullable=False),
        pa.field("rate", pa.string()),
        pa.field("owner", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("features", pa.list_(RULE_FEATURE), nullable=False),
        pa.field("tree", pa.string(), nullable=False),
    ]
)
"""Rules over features, one row per monitor and version, see `featuredb.add_monitor`."""
