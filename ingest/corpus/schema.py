"""Column types of a corpus: inferred from Python values, widened where files disagree.

Inference looks at every value, so the type never depends on row order:

- null < bool, int64, float64, string, and lists of these; int64 and float64 widen to float64.
- an integer beyond int64, an object, or any other disagreement makes the column a string, with
  other values as JSON.
- a column of only nulls is a string.

Typed columns (Parquet, Arrow) keep their types where Parquet can represent them and
DuckDB can read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

NULL, STRING = pa.null(), pa.string()
_BOOL, _INT, _FLOAT = pa.bool_(), pa.int64(), pa.float64()
_SCALARS = {type(None): NULL, bool: _BOOL, float: _FLOAT, str: STRING}
TOKENS = pa.list_(pa.int32())
MESSAGES = pa.list_(STRING)
"""Messages as JSON: whatever else they have, a template may want."""


def type_of(value: Any) -> Any:
    """Return the Arrow type of one JSON value."""
    scalar = _SCALARS.get(type(value))
    if scalar is not None:
        return scalar
    if isinstance(value, int):
        return _INT if -(2**63) <= value < 2**63 else STRING
    if isinstance(value, list):
        inner = NULL
        for item in value:
            inner = widen(inner, STRING if isinstance(item, dict) else type_of(item))
        return pa.list_(inner)
    return STRING


def widen(one: Any, other: Any) -> Any:
    """Return the narrowest type that holds the values of both types."""
    if one is other or one.equals(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_null(other):
        return one
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(widen(one.value_type, other.value_type))
    if _is_number(one) and _is_number(other):
        try:
            fields = [pa.schema([("", one)]), pa.schema([("", other)])]
            return pa.unify_schemas(fields, promote_options="permissive").field(0).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return STRING
    return STRING


def settled(data_type: Any) -> Any:
    """Return `data_type` as it is stored: null becomes string, also inside lists."""
    if pa.types.is_null(data_type):
        return STRING
    if pa.types.is_list(data_type):
        return pa.list_(settled(data_type.value_type))
    return data_type


def storable(data_type: Any) -> Any:
    """Return the nearest type that Parquet represents. String (JSON) if there is none."""
    is_ = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        return storable(data_type.storage_type)
    if is_.is_dictionary(data_type) or is_.is_run_end_encoded(data_type):
        return storable(data_type.value_type)
    if is_.is_string(data_type) or is_.is_large_string(data_type) or is_.is_string_view(data_type):
        return STRING
    if is_.is_large_binary(data_type) or is_.is_binary_view(data_type):
        return pa.binary()
    if (
        is_.is_list(data_type)
        or is_.is_large_list(data_type)
        or is_.is_fixed_size_list(data_type)
        or is_.is_list_view(data_type)
        or is_.is_large_list_view(data_type)
    ):
        return pa.list_(storable(data_type.value_type))
    if is_.is_struct(data_type) and data_type.num_fields:
        return pa.struct([(field.name, storable(field.type)) for field in data_type])
    if is_.is_map(data_type):
        return pa.map_(storable(data_type.key_type), storable(data_type.item_type))
    if is_.is_nested(data_type) or is_.is_interval(data_type):
        return STRING
    return data_type


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


def cast_array(array: Any, data_type: Any) -> Any:
    """Cast an Arrow array to `data_type`: `storable` of its type, or wider.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit.
    """
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if array.type.equals(data_type):
        return array
    is_text = pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type)
    if pa.types.is_string(data_type) and not (is_text or pa.types.is_dictionary(array.type)):
        return pa.array([as_text(value) for value in array.to_pylist()], STRING)
    try:
        # int64 to float64 may round; everything else has to be exact.
        return array.cast(data_type, safe=not pa.types.is_floating(data_type))
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        convert = _converter(data_type)
        return pa.array([convert(value) for value in array.to_pylist()], data_type)


def as_text(value: Any) -> str | None:
    """Convert a value for a string column: strings as they are, others as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


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
        pa.types.is_integer(data_type)
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
        return lambda value: None if value is None else float(value)
    return lambda value: value
