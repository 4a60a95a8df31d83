"""Random draws in SQL that depend on the seed alone: not on threads, versions or segments."""

from __future__ import annotations

PRIME = 2**31 - 1
"""x to x**5 modulo this prime is a permutation, since 5 does not divide the prime less 1."""

STEP = 48271
"""A primitive root of the prime (Park, Miller and Stockmeyer, 1993)."""


_SEED = "concat_ws('/', featuredb_seed(seed), featuredb_sae(feature), featuredb_number(feature))"


def keyed(rows: str) -> str:
    """The rows of a SELECT with a column ``key``: drawing the least keys draws at random.

    The key is (48271 context_id + s)^5 modulo 2^31 - 1, with s a hash of the macro's seed and
    feature. No two contexts have one key, so no draw has ties. rows: with a column context_id.
    """
    start = f"CAST(md5_number_lower({_SEED}) % {PRIME} AS BIGINT)"
    return f"""SELECT * EXCLUDE (x, x4), x4 * x % {PRIME} AS key FROM (
        SELECT *, (x * x % {PRIME}) * (x * x % {PRIME}) % {PRIME} AS x4 FROM (
            SELECT *, (context_id * {STEP} + {start}) % {PRIME} AS x FROM ({rows})))"""
