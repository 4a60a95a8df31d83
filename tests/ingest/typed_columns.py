"""Arrow columns of every kind: an array, and the type and values that it is stored as."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

NS = 1_700_000_000_000_000_001
FAR = 2**40
"""Seconds, in the year 36812."""


def entries(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in pairs]


def extension(storage: pa.Array, its: Any) -> pa.Array:
    return pa.ExtensionArray.from_storage(its, storage)


def lists(levels: int) -> tuple[pa.DataType, list[Any]]:
    """The type, and a value, of so many lists within each other."""
    its = pa.list_(pa.int64())
    value: list[Any] = [1, None]
    for _ in range(levels - 1):
        its, value = pa.list_(its), [value]
    return its, value


KEPT: dict[str, tuple[pa.Array, pa.DataType, list[Any]]] = {
    "nanoseconds that are microseconds": (
        pa.array([NS - 1, None], pa.timestamp("ns")),
        pa.timestamp("us"),
        [datetime(2023, 11, 14, 22, 13, 20), None],
    ),
    "nanoseconds": (
        pa.array([NS, None], pa.timestamp("ns")),
        pa.string(),
        ["2023-11-14T22:13:20.000000001", None],
    ),
    "a far year": (
        pa.array([FAR * 1000, 1, None], pa.timestamp("ms")),
        pa.string(),
        ["36812-02-20T00:36:16.000", "1970-01-01T00:00:00.001", None],
    ),
    "a year before 1": (
        pa.array([-1_000_000, 0], pa.date32()),
        pa.string(),
        ["-768-02-04", "1970-01-01"],
    ),
    "dates": (
        pa.array([date.min, date.max, None]),
        pa.date32(),
        [date.min, date.max, None],
    ),
    "dates in milliseconds": (
        pa.array([86_400_000, None], pa.date64()),
        pa.date32(),
        [date(1970, 1, 2), None],
    ),
    "far dates in milliseconds": (
        pa.array([FAR * 1000 // 86_400_000 * 86_400_000], pa.date64()),
        pa.string(),
        ["36812-02-20"],
    ),
    "the ends of Python's time": (
        pa.array([datetime.min, datetime.max], pa.timestamp("us")),
        pa.timestamp("us"),
        [datetime.min, datetime.max],
    ),
    "instants": (
        pa.array([datetime(2024, 5, 1, 12, tzinfo=UTC), None], pa.timestamp("us", "Asia/Tokyo")),
        pa.string(),
        ["2024-05-01T12:00:00.000000Z", None],
    ),
    "instants of an unknown zone": (
        pa.array([0], pa.timestamp("ms", "Mars/Olympus")),
        pa.string(),
        ["1970-01-01T00:00:00.000Z"],
    ),
    "times": (
        pa.array([1_000_000_000, None], pa.time64("ns")),
        pa.time64("us"),
        [time(0, 0, 1), None],
    ),
    "times in nanoseconds": (
        pa.array([1_000_000_001], pa.time64("ns")),
        pa.string(),
        ["00:00:01.000000001"],
    ),
    "durations": (
        pa.array([-93_600_500, 1, None], pa.duration("ms")),
        pa.string(),
        ["-26:00:00.500", "00:00:00.001", None],
    ),
    "intervals": (
        pa.array([(1, 2, 3_000_000_004)], pa.month_day_nano_interval()),
        pa.string(),
        ["1 months 2 days 00:00:03.000000004"],
    ),
    "decimals": (
        pa.array([Decimal("1.50"), None], pa.decimal128(38, 2)),
        pa.decimal128(38, 2),
        [Decimal("1.50"), None],
    ),
    "wide decimals": (
        pa.array([Decimal("1234567890123456789.75"), Decimal("1.5")], pa.decimal256(39, 2)),
        pa.string(),
        ["1234567890123456789.75", "1.50"],
    ),
    "decimals of 256 bits and few digits": (
        pa.array([Decimal("1.50")], pa.decimal256(20, 2)),
        pa.decimal128(20, 2),
        [Decimal("1.50")],
    ),
    "decimals of 32 bits": (
        pa.array([Decimal("1.50")], pa.decimal32(5, 2)),
        pa.decimal128(5, 2),
        [Decimal("1.50")],
    ),
    "decimals that end in zeros": (
        pa.array([Decimal("12300"), None], pa.decimal128(5, -2)),
        pa.decimal128(7, 0),
        [Decimal("12300"), None],
    ),
    "decimals that begin with zeros": (
        pa.array([Decimal("0.0000000015")], pa.decimal128(3, 10)),
        pa.decimal128(10, 10),
        [Decimal("0.0000000015")],
    ),
    "decimals of a huge scale": (
        pa.array([Decimal("1E-60"), Decimal(0)], pa.decimal256(70, 65)),
        pa.string(),
        ["0." + "0" * 59 + "100000", "0." + "0" * 65],
    ),
    "text in bytes": (
        pa.array([b"doc-001", "ünï".encode(), None], pa.large_binary()),
        pa.string(),
        ["doc-001", "ünï", None],
    ),
    "bytes": (
        pa.array([b"doc", b"\xff\x00"], pa.binary_view()),
        pa.binary(),
        [b"doc", b"\xff\x00"],
    ),
    "bytes of one length": (
        pa.array([b"\xff\x00", None], pa.binary(2)),
        pa.binary(),
        [b"\xff\x00", None],
    ),
    "uuids": (
        extension(pa.array([b"0123456789abcdef", None], pa.binary(16)), pa.uuid()),
        pa.string(),
        ["30313233-3435-3637-3839-616263646566", None],
    ),
    "JSON": (
        extension(pa.array(['{"a": 1}', None]), pa.json_()),
        pa.string(),
        ['{"a": 1}', None],
    ),
    "booleans of 8 bits": (
        extension(pa.array([1, 0, None], pa.int8()), pa.bool8()),
        pa.bool_(),
        [True, False, None],
    ),
    "half floats": (pa.array([1.5, None], pa.float16()), pa.float32(), [1.5, None]),
    "the largest integers": (
        pa.array([2**64 - 1, 0, None], pa.uint64()),
        pa.uint64(),
        [2**64 - 1, 0, None],
    ),
    "large ids": (pa.array([2**53 + 1, None]), pa.int64(), [2**53 + 1, None]),
    "categories": (
        pa.array(["a", None, "b", "a"]).dictionary_encode(),
        pa.string(),
        ["a", None, "b", "a"],
    ),
    "categories of dates": (
        pa.array([-1_000_000, None], pa.date32()).dictionary_encode(),
        pa.string(),
        ["-768-02-04", None],
    ),
    "runs": (
        pc.run_end_encode(pa.array([NS, NS, None], pa.timestamp("ns"))),
        pa.string(),
        ["2023-11-14T22:13:20.000000001"] * 2 + [None],
    ),
    "views": (pa.array(["a", None], pa.string_view()), pa.string(), ["a", None]),
    "list views": (
        pa.array([[1], None, [2, 3], []], pa.list_view(pa.int8())),
        pa.list_(pa.int8()),
        [[1], None, [2, 3], []],
    ),
    "large list views": (
        pa.array([[1], None, [2, 3], []], pa.large_list_view(pa.int8())),
        pa.list_(pa.int8()),
        [[1], None, [2, 3], []],
    ),
    "lists of one length": (
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
        pa.list_(pa.int8()),
        [[1, 2], None, [3, 4]],
    ),
    "lists of nanoseconds": (
        pa.array([[NS, None], None, [], [0]], pa.large_list(pa.timestamp("ns"))),
        pa.list_(pa.string()),
        [
            ["2023-11-14T22:13:20.000000001", None],
            None,
            [],
            ["1970-01-01T00:00:00.000000000"],
        ],
    ),
    "structs of far dates": (
        pa.array(
            [{"d": -1_000_000, "n": 1}, None, {"d": None, "n": 2}],
            pa.struct([("d", pa.date32()), ("n", pa.int8())]),
        ),
        pa.struct([("d", pa.string()), ("n", pa.int8())]),
        [{"d": "-768-02-04", "n": 1}, None, {"d": None, "n": 2}],
    ),
    "structs of nulls": (
        pa.array([{"a": None, "b": 1}]),
        pa.struct([("a", pa.string()), ("b", pa.int64())]),
        [{"a": None, "b": 1}],
    ),
    "lists of structs of lists of nulls": (
        pa.array([[{"a": [None], "b": []}]]),
        pa.list_(pa.struct([("a", pa.list_(pa.string())), ("b", pa.list_(pa.string()))])),
        [[{"a": [None], "b": []}]],
    ),
    "lists of decimals of 256 bits": (
        pa.array([[Decimal("1.5")]], pa.list_(pa.decimal256(70, 1))),
        pa.list_(pa.string()),
        [["1.5"]],
    ),
    "lists of texts in bytes": (
        pa.array([[b"a"], [b"b", None]], pa.list_(pa.binary())),
        pa.list_(pa.string()),
        [["a"], ["b", None]],
    ),
    "structs of bytes": (
        pa.array([{"bytes": b"\xff", "path": "a.png"}]),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        [{"bytes": b"\xff", "path": "a.png"}],
    ),
    "maps": (
        pa.array([[("k", 1), ("b", 2)], None], pa.map_(pa.string(), pa.int64())),
        pa.map_(pa.string(), pa.int64()),
        [[("k", 1), ("b", 2)], None],
    ),
    "maps that repeat a key": (
        pa.array([[("k", 1)], [("a", 1), ("a", 2)], None, []], pa.map_(pa.string(), pa.int64())),
        pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())])),
        [entries(("k", 1)), entries(("a", 1), ("a", 2)), None, []],
    ),
    "lists of maps that repeat a key": (
        pa.array([[[("a", 1), ("a", 2)]]], pa.list_(pa.map_(pa.string(), pa.int64()))),
        pa.list_(pa.list_(pa.struct([("key", pa.string()), ("value", pa.int64())]))),
        [[entries(("a", 1), ("a", 2))]],
    ),
    "maps of nanoseconds": (
        pa.array([[("k", NS)]], pa.map_(pa.string(), pa.timestamp("ns"))),
        pa.map_(pa.string(), pa.string()),
        [[("k", "2023-11-14T22:13:20.000000001")]],
    ),
    "text with a zero byte": (pa.array(["a\0b"]), pa.string(), ["a\0b"]),
    "lists within lists": (pa.array([lists(8)[1]], lists(8)[0]), lists(8)[0], [lists(8)[1]]),
    "more lists than DuckDB reads in time": (
        pa.array([lists(30)[1], None], lists(30)[0]),
        pa.string(),
        ["[" * 30 + "1, null" + "]" * 30, None],
    ),
}
