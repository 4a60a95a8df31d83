"""Column types of a corpus: inferred from Python values, widened where files disagree.

Inference looks at every value, so the type never depends on row order:

- null < bool, int64, float64, string, and lists of these; int64 and float64 widen to float64, but
  to a string where one of the integers lies beyond 2^53 and would be rounded.
- an integer beyond int64, an object, or any other disagreement makes the column a string, with
  other values as JSON.
- a column of only nulls is a string.

`arrays` has the types of typed columns (Parquet, Arrow).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from ingest.corpus.arrays import LIST_LEVELS, STRING, Exact, entries_of, settled
from ingest.corpus.json_values import EXACT_DOUBLE, EXACT_SINGLE, Numeral, as_text

NULL = pa.null()
_BOOL, _INT, _FLOAT = pa.bool_(), pa.int64(), pa.float64()
_EXACT_INT = Exact(_INT)
_SCALARS = {type(None): NULL, bool: _BOOL, float: _FLOAT, str: STRING, Numeral: STRING}
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
"""Decimal digits of the integers of so many bits."""
_FINER = ("s", "ms", "us", "ns")
TOKENS = pa.list_(pa.int32())
MESSAGES = pa.list_(STRING)
"""Messages as JSON: whatever else they have, a template may want."""


def type_of(value: Any) -> Any:
    """Return the Arrow type of one JSON value."""
    scalar = _SCALARS.get(type(value))
    if scalar is not None:
        return scalar
    if isinstance(value, int):
        if -EXACT_DOUBLE <= value <= EXACT_DOUBLE:
            return _INT
        return _EXACT_INT if -(2**63) <= value < 2**63 else STRING
    if isinstance(value, list) and not _nests_beyond(value, LIST_LEVELS):
        inner = NULL
        for item in value:
            inner = widen(inner, STRING if isinstance(item, dict) else type_of(item))
        return pa.list_(inner)
    return STRING


def _nests_beyond(value: list[Any], levels: int) -> bool:
    """Whether a list has more lists within each other than that."""
    if levels == 0:
        return True
    return any(isinstance(item, list) and _nests_beyond(item, levels - 1) for item in value)


def widen(one: Any, other: Any) -> Any:
    """Return the narrowest type that holds the values of both types."""
    if one is other or one.equals(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_null(other):
        return one
    if {pa.types.is_map(one), pa.types.is_map(other)} == {True, False}:
        # In one of the files a map repeats a key.
        one, other = (entries_of(its) if pa.types.is_map(its) else its for its in (one, other))
        return widen(one, other)
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(widen(one.value_type, other.value_type))
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other):
        return max(one, other, key=lambda its: _FINER.index(its.unit))
    if _is_number(one) and _is_number(other):
        return _widen_numbers(one, other)
    return STRING


def _widen_numbers(one: Any, other: Any) -> Any:
    """A type of numbers that holds both without rounding. String if there is none."""
    is_ = pa.types
    exact = [number for number in (one, other) if isinstance(number, Exact)]
    one, other = settled(one), settled(other)
    if is_.is_floating(one) or is_.is_floating(other):
        for number in (one, other):
            if exact or (is_.is_decimal(number) and number.precision > 15):
                return STRING
    elif is_.is_decimal(one) or is_.is_decimal(other):
        sizes = [_decimal_size(number) for number in (one, other)]
        whole, scale = max(w for w, _ in sizes), max(s for _, s in sizes)
        return pa.decimal128(whole + scale, scale) if whole + scale <= 38 else STRING
    fields = [pa.schema([("", one)]), pa.schema([("", other)])]
    wider = pa.unify_schemas(fields, promote_options="permissive").field(0).type
    if any(is_.is_uint64(settled(number)) for number in exact) and is_.is_int64(wider):
        return pa.decimal128(_DIGITS[64], 0)
    return Exact(wider) if exact else wider


def _decimal_size(number: Any) -> tuple[int, int]:
    """Digits before and after the point."""
    if pa.types.is_decimal(number):
        return number.precision - number.scale, number.scale
    return _DIGITS[number.bit_width], 0


def widen_schemas(schemas: Iterable[Any]) -> Any:
    """Merge schemas: columns in order of first appearance, types widened."""
    types: dict[str, Any] = {}
    for schema in schemas:
        for field in schema:
            types[field.name] = widen(types.get(field.name, NULL), field.type)
    return pa.schema(types.items())


def array_of(values: Sequence[Any], data_type: Any) -> Any:
    """Convert Python values to an Arrow array of `data_type`, their widened type.

    Raises:
        UnicodeEncodeError: a string holds half of a surrogate pair.
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError: a value does not fit `data_type`.
    """
    convert = _converter(data_type)
    return pa.array([convert(value) for value in values], data_type)


def free_names(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Append ``_`` to each name until it differs from `taken` and the names before it.

    Case-insensitive, as SQL is. An empty name (a CSV file's unnamed column) becomes ``_``.
    """
    used = {"", *(name.casefold() for name in taken)}
    free = []
    for name in names:
        while name.casefold() in used:
            name += "_"
        used.add(name.casefold())
        free.append(name)
    return free


def _is_number(data_type: Any) -> bool:
    return bool(
        isinstance(data_type, Exact)
        or pa.types.is_integer(data_type)
        or pa.types.is_floating(data_type)
        or pa.types.is_decimal(data_type)
    )


def _converter(data_type: Any) -> Callable[[Any], Any]:
    if pa.types.is_string(data_type):
        return as_text
    if pa.types.is_list(data_type):
        inner = _converter(data_type.value_type)
        return lambda value: None if value is None else [inner(item) for item in value]
    if pa.types.is_floating(data_type):
        bound = EXACT_DOUBLE if pa.types.is_float64(data_type) else EXACT_SINGLE
        return lambda value: _float(value, bound)
    return lambda value: value


def _float(value: Any, bound: int) -> float | None:
    if isinstance(value, int) and abs(value) > bound:
        raise ValueError(f"{value} would be rounded")
    return None if value is None else float(value)
