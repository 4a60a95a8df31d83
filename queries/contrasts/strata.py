"""Strata of units: those alike in length, or in columns of their documents."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from featuredb.errors import QueryError
from queries.connection import Reader
from queries.contrasts.chosen import Compared
from queries.pooled import Int32
from queries.sql import duckdb_errors

LENGTH = "length"
MOST = 100
"""Most bins of one numeric covariate."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SMALLEST = 4
"""Units of the smaller set that a bin has on average, at least."""


def strata(reader: Reader, compared: Compared, covariates: Sequence[str], smaller: int) -> Int32:
    """The stratum of each unit, int32 [n].

    A numeric covariate of many values is cut into bins of equally many units, as many as leave
    `SMALLEST` units of the smaller set in each. Any other has a stratum per value. Missing values
    are one. Several covariates are crossed. Raises `QueryError` where there is no such column.
    """
    inside = np.concatenate([compared.in_a, compared.in_b])
    code = np.zeros(compared.n, np.int64)
    bins = max(2, min(MOST, int((smaller / SMALLEST) ** (1 / max(1, len(covariates))))))
    for name in covariates:
        own = _codes(values_of(reader, compared, name), inside, bins)
        code = np.unique(code * (int(own.max(initial=0)) + 1) + own, return_inverse=True)[1]
    return code.astype(np.int32)


def values_of(reader: Reader, compared: Compared, name: str) -> npt.NDArray[Any]:
    """A column of each unit's document [n]: ``length`` as float64, any other as object.

    None where a document has none, or NaN. Raises as `strata`, and where there are new texts, of
    which only the length is known.
    """
    if name.casefold() == LENGTH:
        return compared.length
    if compared.texts:
        raise QueryError(f"new texts have no column {name}: of them only length is known")
    known = [n for n in reader.store.texts.metadata_names if n.casefold() == name.casefold()]
    units = compared.units
    if units.kind == "turn" and name.casefold() == "role":
        roles: npt.NDArray[Any] = np.array(units.columns["role"].to_pylist(), object)
        return roles
    if units.kind == "turn" and name.casefold() == "document_id":
        return units.documents().astype(object)
    if not known and name.casefold() not in ("n_tokens", "corpus", "source"):
        names = ", ".join([LENGTH, "corpus", *reader.store.texts.metadata_names])
        raise QueryError(f"documents have no column {name}: they have {names}")
    column = '"' + (known[0] if known else name).replace('"', '""') + '"'
    with duckdb_errors(reader.location):
        statement = f"SELECT document_id, {column} AS value FROM documents ORDER BY document_id"
        table = reader.cursor().sql(statement).to_arrow_table()
    ids = table.column("document_id").to_numpy()
    own = table.column("value").to_pylist()
    values = np.array([None if value != value else value for value in own], object)
    found: npt.NDArray[Any] = values[np.searchsorted(ids, units.documents())]
    return found


def numeric(values: npt.NDArray[Any]) -> npt.NDArray[np.float64] | None:
    """The values as numbers, NaN where missing. None where one is something else."""
    if values.dtype != object:
        return values.astype(np.float64)
    try:
        return np.array([np.nan if v is None else _number(v) for v in values], np.float64)
    except (TypeError, ValueError):
        return None


def _number(value: Any) -> float:
    """A number of a column. A text is none, though it may be spelled as one."""
    if isinstance(value, str | bytes | list | dict):
        raise TypeError
    if isinstance(value, datetime):  # `timestamp` takes no time of before 1970 without a zone
        value = value if value.tzinfo else value.replace(tzinfo=UTC)
        return float((value - _EPOCH).total_seconds())
    if hasattr(value, "toordinal"):
        return float(value.toordinal())
    return float(value)


def _codes(values: npt.NDArray[Any], inside: npt.NDArray[np.int64], bins: int) -> Any:
    known = numeric(values)
    if known is None:
        return np.unique([repr(v) for v in values.tolist()], return_inverse=True)[1]
    own = known[inside]
    own = own[~np.isnan(own)]
    distinct = np.unique(own)
    if len(distinct) <= bins:
        edges = distinct
    else:
        edges = np.unique(np.quantile(own, np.arange(1, bins) / bins))
    codes = np.searchsorted(edges, known, side="right")
    return np.where(np.isnan(known), len(edges) + 1, codes)
