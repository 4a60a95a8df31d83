"""Single precision spelled as people and programs expect: 0.1, not 0.10000000149011612."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def shortest(table: pa.Table) -> pa.Table:
    """The table with float32 and float16 as the float64 their shortest decimal spelling reads as.

    Also inside lists and structs. By way of text, which is how Arrow finds the shortest.
    """
    import pyarrow as pa

    columns = []
    for column in table.columns:
        single = _with_floats(column.type, pa.float32())
        if single != column.type or _with_floats(single, pa.float64()) != single:
            column = column.cast(single)
            column = column.cast(_with_floats(single, pa.string()))
            column = column.cast(_with_floats(single, pa.float64()))
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _with_floats(kind: pa.DataType, target: pa.DataType) -> pa.DataType:
    """A type with every float16 and float32 inside it replaced."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_float16(kind) or types.is_float32(kind):
        return target
    if types.is_list(kind) or types.is_large_list(kind):
        inner = kind.value_field.with_type(_with_floats(kind.value_type, target))
        return pa.list_(inner) if types.is_list(kind) else pa.large_list(inner)
    if types.is_struct(kind):
        return pa.struct([f.with_type(_with_floats(f.type, target)) for f in kind])
    return kind
