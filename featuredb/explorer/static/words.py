"""Which features fire on a word or are labeled so, by word: a search reads a few row groups."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from featuredb.database import Database
from featuredb.explorer.static.data import plain_table
from queries.catalog.summaries import LABELS
from queries.search import LETTER, OF_LABEL

_MOST_OF_A_WORD = 200
_MOST_GROUPS = 256
_SMALLEST_GROUP = 2_048

_WORDS = f"""WITH fired AS (
    SELECT regexp_replace(lower(token.token), '[^{LETTER}]', '', 'g') AS word, sae, feature_id,
        sum(token.count * token.mean_activation) / any_value(total) AS share
    FROM (
        SELECT sae, feature_id, unnest(top_tokens) AS token,
            list_sum([t.count * t.mean_activation FOR t IN top_tokens]) AS total
        FROM features WHERE count > 0
    ) GROUP BY word, sae, feature_id
),
labeled AS (
    SELECT word, sae, feature_id, max(share) AS share FROM (
        SELECT sae, feature_id, unnest(list_distinct(of)) AS word, {OF_LABEL} AS share
        FROM (SELECT *, regexp_extract_all(lower(text), '[{LETTER}]+') AS of FROM labels)
    ) GROUP BY word, sae, feature_id
),
met AS (
    SELECT word, sae, feature_id, sum(share) AS share FROM (FROM fired UNION ALL FROM labeled)
    WHERE word <> '' GROUP BY word, sae, feature_id
)
SELECT m.word, m.sae, m.feature_id, CAST(m.share AS FLOAT) AS share, f.density, f.max_activation,
    [t.token FOR t IN f.top_tokens[:6]] AS top_tokens, p.label
FROM met AS m JOIN features AS f USING (sae, feature_id) {LABELS}
QUALIFY row_number() OVER (PARTITION BY m.word ORDER BY m.share DESC, m.sae, m.feature_id)
    <= {_MOST_OF_A_WORD}
ORDER BY m.word, m.share DESC, m.sae, m.feature_id"""


def write_words(database: Database, path: Path) -> None:
    """Columns word, sae, feature_id, share, and what a list of features shows. By word, then share
    descending: the word's part of what the feature's listed tokens sum to, and what
    `queries.search` gives a word of its label.
    """
    table = plain_table(database.sql(_WORDS).to_arrow_table())
    size = max(_SMALLEST_GROUP, -(-len(table) // _MOST_GROUPS))
    pq.write_table(table, path, compression="zstd", row_group_size=size, write_statistics=["word"])
