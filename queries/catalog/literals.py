"""Python values as DuckDB SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROOT = "featuredb_root()"
"""The database's folder, a macro of the catalog. Wildcards in its name are escaped."""

HERE = "{id}"
"""Where the texts that a macro chooses from have the feature's number."""


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("'", "''") + "'"


def quoted(value: str) -> str:
    """A text expression as one that gives the literal of its text."""
    return f"concat('''', replace({value}, '''', ''''''), '''')"


FEATURE = quoted("CAST(feature AS VARCHAR)")
"""A table macro's parameter `feature`, as the literal that a macro it calls is given."""


def name(value: str) -> str:
    """A quoted identifier."""
    return '"' + value.replace('"', '""') + '"'


def file(relative: str) -> str:
    """The rows of a file of the store, wherever the folder is now."""
    return below_root(text("/" + relative))


def below_root(path: str) -> str:
    """The rows of the file whose path from the folder on, ``/`` first, is the SQL `path`."""
    return rows(f"{ROOT} || {path}")


def files(relative: Sequence[str]) -> str:
    """The rows of several files. One literal cast to a list: it parses ten times faster."""
    quoted = ", ".join(_element("/" + p) for p in relative)
    listed = f"{text(f'[{quoted}]')}::VARCHAR[]"
    return rows(f"list_transform({listed}, lambda p: {ROOT} || p)")


def rows(path: str) -> str:
    """The rows of the Parquet file, or files, at the SQL expression `path`.

    A folder above the database that is called ``key=value`` is no column: DuckDB would add it, or
    put it in place of the file's own.
    """
    return f"read_parquet({path}, hive_partitioning = false)"


def records(fields: Mapping[str, str], rows: Sequence[Sequence[int | str]]) -> str:
    """A list of structs. fields: name to SQL type. rows: values in the order of the fields.

    Written as one text literal that DuckDB casts: for 2,048 rows it binds in 4 ms, where a
    literal of literals takes 30.
    """
    shape = ", ".join(f"{name(k)} {v}" for k, v in fields.items())
    spelled = ", ".join(
        "{" + ", ".join(f"{k}: {_element(v)}" for k, v in zip(fields, row, strict=True)) + "}"
        for row in rows
    )
    return f"{text(f'[{spelled}]')}::STRUCT({shape})[]"


def texts(row: str, ranges: Sequence[tuple[int, int, str]]) -> str:
    """The texts of those of `ranges` (first, last, text) that hold `row`, a list. None for null."""
    listed = records({"first": "BIGINT", "last": "BIGINT", "text": "VARCHAR"}, ranges)
    return f"list_transform({holding(row, listed)}, lambda r: r['text'])"


def holding(row: str, listed: str) -> str:
    """Those of the structs `listed` whose range, first to last, holds `row`. None for null."""
    return f"list_filter({listed}, lambda r: {row} BETWEEN r['first'] AND r['last'])"


def position(stride: str, feature: str = "feature_id") -> str:
    """The position of a row of a by-feature file, BIGINT. stride: the file's, as SQL.

    feature: the row's, where it is known while planning: that halves what a row costs.
    """
    return f"((CAST(position AS BIGINT) - CAST({feature} AS BIGINT) * {stride}) & {0xFFFFFFFF})"


def message(template: str, **parts: str) -> str:
    """A Python message template as a SQL expression. parts: placeholder to SQL expression."""
    for position, placeholder in enumerate(parts):
        template = template.replace("{" + placeholder + "}", "{" + str(position) + "}")
    # A format of NULL is NULL, and no error.
    shown = [f"coalesce(CAST({part} AS VARCHAR), 'NULL')" for part in parts.values()]
    return f"format({text(template)}, {', '.join(shown)})"


def _element(value: int | str) -> str:
    """A value inside a list or struct that DuckDB casts from text."""
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
