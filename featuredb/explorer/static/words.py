"""Which features fire on a word, sorted by word, so that a search reads a few row groups."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from featuredb.database import Database
from featuredb.explorer.static.data import plain_table

_MOST_OF_A_WORD = 200
_MOST_GROUPS = 256
_SMALLEST_GROUP = 2_048

_WORDS = f"""WITH listed AS (
    SELECT sae, feature_id, density, max_activation, top_tokens,
        list_sum([t.count * t.mean_activation FOR t IN top_tokens]) AS total,
        unnest(top_tokens) AS token
    FROM features WHERE count > 0
),
scored AS (
    SELECT regexp_replace(lower(token.token), '[^\\w]', '', 'g') AS word, sae, feature_id,
        sum(token.count * token.mean_activation) / any_value(total) AS share,
        any_value(density) AS density, any_value(max_activation) AS max_activation,
        any_value([t.token FOR t IN top_tokens[:6]]) AS top_tokens
    FROM listed GROUP BY word, sae, feature_id HAVING word <> ''
)
SELECT word, sae, feature_id, CAST(share AS FLOAT) AS share, density, max_activation, top_tokens
FROM scored
QUALIFY row_number() OVER (PARTITION BY word ORDER BY share DESC, sae, feature_id)
    <= {_MOST_OF_A_WORD}
ORDER BY word, share DESC, sae, feature_id"""


def write_words(database: Database, path: Path) -> None:
    """Columns word, sae, feature_id, share (of what the feature's listed tokens sum to), and what a
    list of features shows. By word, then share descending.
    """
    table = plain_table(database.sql(_WORDS).to_arrow_table())
    size = max(_SMALLEST_GROUP, -(-len(table) // _MOST_GROUPS))
    pq.write_table(table, path, compression="zstd", row_group_size=size, write_statistics=["word"])
