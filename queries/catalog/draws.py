"""Random draws in SQL that depend on the seed alone: not on threads, versions or segments."""

from __future__ import annotations

_PRIME = 2**31 - 1
"""x to x**5 modulo this prime is a permutation, since 5 does not divide the prime less 1."""

_STEP = 48271
"""A primitive root of the prime (Park, Miller and Stockmeyer, 1993)."""


def keyed(rows: str, seed: str) -> str:
    """The rows of a SELECT with a column ``key``: drawing the least keys draws at random.

    The key is (48271 context_id + s)^5 modulo 2^31 - 1, with s the seed and its companions hashed.
    No two contexts have one key, so no draw has ties.

    rows: a SELECT with a column context_id. seed: SQL of a text, constant in a statement.
    """
    start = f"CAST(md5_number_lower({seed}) % {_PRIME} AS BIGINT)"
    return f"""SELECT * EXCLUDE (x, x4), x4 * x % {_PRIME} AS key FROM (
        SELECT *, (x * x % {_PRIME}) * (x * x % {_PRIME}) % {_PRIME} AS x4 FROM (
            SELECT *, (context_id * {_STEP} + {start}) % {_PRIME} AS x FROM ({rows})))"""
