"""Arrow columns as they are stored: types and values that Python and SQL show alike.

`storable` gives the type of a column from its own type, `fitting` corrects it where the values do
not fit, and `stored` converts. A value is never changed. Where no type shows it alike in Python,
pandas, Arrow and DuckDB, the column is text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featuredb.store.names import folded
from ingest.corpus.json_values import EXACT_DOUBLE, as_text

STRING, BINARY = pa.string(), pa.binary()
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_FIRST_SECOND, _END_SECOND = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999, which Python's dates hold, in seconds since 1970."""


class Exact(pa.ExtensionType):  # type: ignore[misc]
    """Marks a type of integers of which some lie beyond 2^53, so that no float column takes them.

    Only while types are inferred: `schema.settled` gives the type itself.
    """

    def __init__(self, integers: Any) -> None:
        super().__init__(integers, "featuredb.exact")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Exact:
        return cls(storage_type)


LIST_LEVELS = 8
"""Lists within lists beyond which a column is stored as JSON: each level doubles the time in which
DuckDB reads one, 24 take seconds, and of 50 no reader of Parquet opens the file."""


def storable(data_type: Any, of_bytes: Any = STRING) -> Any:
    """The type in which a column of `data_type` is stored, if its values fit (`fitting`).

    `of_bytes` is that of bytes: text, unless nothing will look at the values.

    Raises:
        ValueError: a struct has fields that SQL does not tell apart.
    """
    is_ = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        by_name = {"arrow.uuid": STRING, "arrow.bool8": pa.bool_()}
        return by_name.get(data_type.extension_name) or storable(data_type.storage_type, of_bytes)
    if is_.is_dictionary(data_type) or is_.is_run_end_encoded(data_type):
        return storable(data_type.value_type, of_bytes)
    if _is_text(data_type):
        return STRING
    if _is_bytes(data_type):
        return of_bytes
    if is_list(data_type):
        if _list_levels(data_type) > LIST_LEVELS:
            return STRING
        return pa.list_(storable(data_type.value_type, of_bytes))
    if is_.is_struct(data_type) and data_type.num_fields:
        _check_names([field.name for field in data_type])
        return pa.struct([(field.name, storable(field.type, of_bytes)) for field in data_type])
    if is_.is_map(data_type):
        key, item = data_type.key_type, data_type.item_type
        return pa.map_(storable(key, of_bytes), storable(item, of_bytes))
    if is_.is_timestamp(data_type):
        # DuckDB gives instants to Python in no environment without pytz, and in its own zone.
        nanoseconds = pa.timestamp("us") if data_type.unit == "ns" else data_type
        return STRING if data_type.tz else nanoseconds
    if is_.is_time64(data_type):
        return pa.time64("us")
    if is_.is_date64(data_type):
        return pa.date32()
    if is_.is_float16(data_type):
        return pa.float32()
    if is_.is_decimal(data_type):
        return _decimal(data_type)
    if is_.is_nested(data_type) or is_.is_interval(data_type) or is_.is_duration(data_type):
        return STRING
    return data_type


def depends_on_values(data_type: Any) -> bool:
    """Whether `fitting` may correct the storable type of a column of `data_type`."""
    is_ = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        return depends_on_values(data_type.storage_type)
    if is_.is_dictionary(data_type) or is_.is_run_end_encoded(data_type):
        return depends_on_values(data_type.value_type)
    if is_list(data_type):
        return depends_on_values(data_type.value_type)
    if is_.is_struct(data_type):
        return any(depends_on_values(field.type) for field in data_type)
    if is_.is_map(data_type) or _is_bytes(data_type) or _is_wide_integer(data_type):
        return True
    return bool(is_.is_temporal(data_type) and storable(data_type) != STRING)


def fitting(array: Any, target: Any) -> Any:
    """`target`, the storable type of an array, corrected where the values do not fit.

    Bytes that are no UTF-8 stay bytes; dates and times that Python does not hold exactly become
    text; maps that repeat a key become lists of their entries; integers beyond 2^53 are marked
    (`Exact`). Applied to all batches in turn, it gives a type that fits them all.
    """
    array = _plain(array)
    is_ = pa.types
    if target.equals(STRING) and not _is_bytes(array.type):
        return target
    if _is_bytes(array.type):
        return target if target.equals(BINARY) or _is_utf8(array) else BINARY
    if _is_wide_integer(array.type):
        return Exact(array.type) if _exceeds(array, EXACT_DOUBLE) else target
    if is_.is_temporal(array.type):
        return target if _python_holds(array, target) else STRING
    if is_.is_map(array.type) and is_.is_map(target):
        keys, items = _elements(array)[0].flatten()
        key = fitting(keys, target.key_type)
        item = fitting(items, target.item_type)
        if not _repeats_keys(array):
            return pa.map_(settled(key), item)
        target = entries_of(pa.map_(settled(key), item))
    if is_list(target):
        values, _ = _elements(array)
        return pa.list_(fitting(values, target.value_type))
    if is_.is_struct(target):
        fields = zip(target, array.flatten(), strict=True)
        return pa.struct([(field.name, fitting(child, field.type)) for field, child in fields])
    return target


def stored(array: Any, target: Any, *, omit_nulls: bool = False) -> Any:
    """Convert an array to `target`: what `fitting` gave for it, or a type that holds more.

    `omit_nulls` leaves the fields that are null out of structs that become JSON: a typed column
    cannot say that a row has no such field.

    Raises:
        ValueError: a value does not fit. pyarrow.ArrowInvalid is one.
    """
    array = _plain(array)
    is_ = pa.types
    if is_.is_null(array.type):
        return pa.nulls(len(array), target)
    if target.equals(STRING):
        return _texts(array, omit_nulls)
    if is_list(target):
        values, offsets = _elements(array)
        values = stored(values, target.value_type, omit_nulls=omit_nulls)
        mask = array.is_null() if array.null_count else None
        return pa.ListArray.from_arrays(offsets, values, type=target, mask=mask)
    if is_.is_struct(target):
        children = dict(zip((f.name for f in array.type), array.flatten(), strict=True))
        columns = [stored(children[field.name], field.type) for field in target]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(columns, fields=list(target), mask=mask)
    if is_.is_map(target):
        if _repeats_keys(array):
            raise ValueError("a map repeats a key")
        pairs, offsets = _elements(array)
        keys, items = pairs.flatten()
        mask = array.is_null() if array.null_count else None
        return pa.MapArray.from_arrays(
            offsets,
            stored(keys, target.key_type),
            stored(items, target.item_type),
            type=target,
            mask=mask,
        )
    if is_.is_temporal(target) and not _python_holds(array, target):
        raise ValueError("it holds dates or times that Python cannot hold")
    return array.cast(target)


def entries_of(its: Any) -> Any:
    """The type of a map as a list of its keys and values."""
    return pa.list_(pa.struct([("key", its.key_type), ("value", its.item_type)]))


def settled(data_type: Any) -> Any:
    """Return `data_type` as it is stored: without marks, and null, also inside, as string."""
    if isinstance(data_type, Exact):
        return data_type.storage_type
    if pa.types.is_null(data_type):
        return STRING
    if pa.types.is_list(data_type):
        return pa.list_(settled(data_type.value_type))
    if pa.types.is_struct(data_type):
        return pa.struct([(field.name, settled(field.type)) for field in data_type])
    if pa.types.is_map(data_type):
        return pa.map_(data_type.key_type, settled(data_type.item_type))
    return data_type


def _list_levels(data_type: Any) -> int:
    """How many lists are within each other, from this one on."""
    levels = 0
    while is_list(data_type):
        data_type = data_type.value_type
        levels += 1
    return levels


def is_list(data_type: Any) -> bool:
    """Whether a type is one of Arrow's lists of any number of values."""
    is_ = pa.types
    return bool(
        is_.is_list(data_type)
        or is_.is_large_list(data_type)
        or is_.is_fixed_size_list(data_type)
        or is_.is_list_view(data_type)
        or is_.is_large_list_view(data_type)
    )


def _is_text(data_type: Any) -> bool:
    is_ = pa.types
    return bool(
        is_.is_string(data_type) or is_.is_large_string(data_type) or is_.is_string_view(data_type)
    )


def _is_bytes(data_type: Any) -> bool:
    is_ = pa.types
    return bool(
        is_.is_binary(data_type)
        or is_.is_large_binary(data_type)
        or is_.is_binary_view(data_type)
        or is_.is_fixed_size_binary(data_type)
    )


def _is_wide_integer(data_type: Any) -> bool:
    return bool(pa.types.is_int64(data_type) or pa.types.is_uint64(data_type))


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not name:
            raise ValueError("a struct has a field without a name; name it")
        same = [other for other in names if folded(other) == folded(name)]
        if len(same) > 1:
            raise ValueError(
                f"a struct has the fields {same[0]!r} and {same[1]!r}, which SQL does not tell "
                f"apart; rename one"
            )


def _decimal(data_type: Any) -> Any:
    """A decimal that Parquet and DuckDB hold: at most 38 digits, none of them left of the scale."""
    scale = max(data_type.scale, 0)
    digits = max(data_type.precision - min(data_type.scale, 0), scale)
    return pa.decimal128(digits, scale) if digits <= 38 else STRING


def _plain(array: Any) -> Any:
    """An array without extensions and encodings. UUIDs become text."""
    while True:
        if isinstance(array.type, pa.BaseExtensionType):
            if array.type.extension_name == "arrow.uuid":
                values = array.storage.to_pylist()
                return pa.array([v if v is None else str(UUID(bytes=v)) for v in values], STRING)
            array = array.storage
        elif pa.types.is_dictionary(array.type):
            values = _plain(array.dictionary)
            if _is_text(values.type) or _is_bytes(values.type):  # views cannot be taken from
                values = values.cast(STRING if _is_text(values.type) else BINARY)
            indices = array.indices
            array = pa.DictionaryArray.from_arrays(indices, values).dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        else:
            return array


def _elements(array: Any) -> tuple[Any, Any]:
    """The values of a list or map array, and int32 offsets into them. Null lists have none.

    Not by casting: pyarrow 26 loses values when it casts list views that have nulls.
    """
    if pa.types.is_map(array.type):
        array = array.cast(entries_of(array.type))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return array.flatten(), pa.array(offsets, pa.int64()).cast(pa.int32())


def leaves(array: Any) -> Iterator[Any]:
    """Yield the flat arrays that an array is made of, in order."""
    array = _plain(array)
    if is_list(array.type) or pa.types.is_map(array.type):
        yield from leaves(_elements(array)[0])
    elif pa.types.is_struct(array.type):
        for child in array.flatten():
            yield from leaves(child)
    else:
        yield array


def _is_utf8(array: Any) -> bool:
    try:
        array.cast(STRING)
    except pa.ArrowInvalid:
        return False
    return True


def _exceeds(array: Any, bound: int) -> bool:
    low, high = pc.min_max(array).values()
    return bool(low.is_valid and (low.as_py() < -bound or high.as_py() > bound))


def _python_holds(array: Any, target: Any) -> bool:
    """Whether `target` holds dates or times exactly and within what Python's own types hold."""
    try:
        ticks = array.cast(target).cast(_ticks(target))
    except pa.ArrowInvalid:
        return False
    low, high = (bound.as_py() for bound in pc.min_max(ticks).values())
    if low is None:
        return True
    if pa.types.is_date32(target):
        first, end = _FIRST_SECOND // 86_400, _END_SECOND // 86_400
    elif pa.types.is_timestamp(target):
        first, end = (second * _UNITS[target.unit] for second in (_FIRST_SECOND, _END_SECOND))
    else:
        first, end = 0, 86_400 * _UNITS[target.unit]
    return bool(first <= low and high < end)


def _ticks(data_type: Any) -> Any:
    """The integers that a temporal type is made of."""
    return pa.int32() if data_type.bit_width == 32 else pa.int64()


def _repeats_keys(array: Any) -> bool:
    pairs, offsets = _elements(array)
    owner = np.repeat(np.arange(len(array)), np.diff(offsets))
    key = _plain(pairs.field("key"))
    if pa.types.is_nested(key.type):
        return True
    if pa.types.is_floating(key.type):
        key = pc.add(key, 0.0)  # 0.0 and -0.0 are one key
    keys = pa.table({"owner": owner, "key": key})
    return bool(keys.group_by(["owner", "key"]).aggregate([]).num_rows < len(keys))


def _texts(array: Any, omit_nulls: bool) -> Any:
    """Any array as text: dates and times in ISO 8601, decimals in full, nested values as JSON."""
    is_ = pa.types
    if _is_text(array.type):
        return array.cast(STRING)
    if _is_bytes(array.type):
        return _each(array, decoded)
    if is_.is_timestamp(array.type) or is_.is_date(array.type):
        return _iso(array)
    if is_.is_time(array.type) or is_.is_duration(array.type):
        unit = array.type.unit
        return _each(array.cast(_ticks(array.type)), lambda ticks: clock(ticks, unit))
    if is_.is_interval(array.type):
        return _each(array, lambda v: f"{v[0]} months {v[1]} days {clock(v[2], 'ns')}")
    if is_.is_decimal(array.type):
        return _each(array, lambda value: f"{value:f}")
    if is_.is_nested(array.type) and not is_.is_union(array.type):
        target = storable(array.type)
        if not target.equals(STRING):
            array = stored(array, settled(fitting(array, target)))
    return _each(array, lambda value: as_text(_present(value) if omit_nulls else value))


def _present(value: Any) -> Any:
    """A value without what is null in its structs."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _each(array: Any, text: Any) -> Any:
    values = array.to_pylist()
    return pa.array([None if value is None else text(value) for value in values], STRING)


def decoded(value: bytes) -> str:
    """Bytes as text: UTF-8 where they are, else two hexadecimal digits each."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def _iso(array: Any) -> Any:
    """Dates and instants in ISO 8601, instants in UTC. numpy knows years of any length."""
    is_date = pa.types.is_date(array.type)
    unit = array.type.unit if not is_date else "D" if array.type.bit_width == 32 else "ms"
    ticks = array.cast(_ticks(array.type)).cast(pa.int64())
    if ticks.null_count < len(ticks) and pc.min(ticks).as_py() == np.iinfo(np.int64).min:
        raise ValueError("it holds a date that is no date")
    moments = ticks.fill_null(0).to_numpy().view(f"datetime64[{unit}]")
    if is_date:
        moments = moments.astype("datetime64[D]")
    texts = pa.array(np.datetime_as_string(moments).tolist(), STRING)
    if not is_date and array.type.tz:
        texts = pc.binary_join_element_wise(texts, "Z", "")
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, STRING))


def clock(ticks: int, unit: str) -> str:
    """A duration as DuckDB reads intervals: hours, minutes and seconds, with all its digits."""
    whole, part = divmod(abs(ticks), _UNITS[unit])
    minutes, seconds = divmod(whole, 60)
    digits = len(str(_UNITS[unit])) - 1
    fraction = f".{part:0{digits}}" if digits else ""
    sign = "-" if ticks < 0 else ""
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{fraction}"
