"""What a question is answered with: a small frozen object over one Arrow table.

`Answer` is a table, read as Arrow, pandas, polars, rows, text or HTML. Each question has its own
kind, in its own file. `Rows` is the answer of any SQL. `Info` holds nested names and values
instead of a table. The kinds differ in columns, in the few attributes that are not per row, and
in what they show (`view`). This module imports neither DuckDB, pandas, polars nor torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, overload

from featuredb.errors import MissingExtraError
from featuredb.render.view import Facts, Records, View

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from rich.console import Console


FOR_DISPLAY = {"for_display": True}
"""Marks a field that only `view` needs: no other format has it."""


@dataclass(frozen=True, slots=True, repr=False)
class Row:
    """One row: `row.rank`, `row["rank"]`, `row[0]`, `a, b = row`, `dict(row)`.

    Iterates over values in column order, as a tuple would. A column whose name is not a Python
    name, or is `keys`, is reached by key.
    """

    _index: Mapping[str, int]
    _values: tuple[Any, ...]

    def __getitem__(self, key: str | int) -> Any:
        return self._values[self._index[key] if isinstance(key, str) else key]

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[self._index[name]]
        except KeyError:
            known = ", ".join(self._index)
            raise AttributeError(f"no column {name!r}; the row has {known}") from None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        """The columns, for completion in a shell or notebook."""
        return [*object.__dir__(self), *filter(str.isidentifier, self._index)]

    def keys(self) -> tuple[str, ...]:
        """The column names, in order."""
        return tuple(self._index)

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{name}={self[name]!r}' for name in self._index)})"


@dataclass(frozen=True, repr=False)
class Answer:
    """An Arrow table and how to read it. An empty answer has no rows and every column.

    `str(answer)` is plain text 100 columns wide. A notebook shows the same with tokens shaded.
    """

    kind: ClassVar[str] = "answer"

    table: pa.Table

    def arrow(self) -> pa.Table:
        """The table itself, not a copy."""
        return self.table

    def pandas(self) -> pd.DataFrame:
        """A pandas DataFrame. Raises `MissingExtraError` where pandas is not installed."""
        return _pandas(self.table)

    def polars(self) -> pl.DataFrame:
        """A polars DataFrame. Raises `MissingExtraError` where polars is not installed."""
        return _polars(self.table)

    @property
    def document(self) -> None:
        """An answer of rows is no document."""
        return None

    def view(self) -> View:
        """What the answer shows: any table, unless its kind says otherwise."""
        return View([[Records(self.table)]])

    def attributes(self) -> dict[str, Any]:
        """What the answer says besides its rows, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "table" and not f.metadata.get("for_display")
        }

    def __len__(self) -> int:
        return cast(int, self.table.num_rows)

    def __iter__(self) -> Iterator[Row]:
        index = {name: i for i, name in enumerate(self.table.column_names)}
        # Batch by batch, so that walking a long answer never holds all of it as Python objects.
        for batch in self.table.to_batches():
            columns = [column.to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield Row(index, values)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> Self: ...
    def __getitem__(self, key: int | slice) -> Row | Self:
        if isinstance(key, slice):
            chosen = range(len(self))[key]
            if chosen.step == 1:
                return replace(self, table=self.table.slice(chosen.start, len(chosen)))
            return replace(self, table=self.table.take(list(chosen)))
        position = range(len(self))[key]
        return next(iter(replace(self, table=self.table.slice(position, 1))))

    def print(self, console: Console | None = None) -> None:
        """Write the answer where `console` writes, else to standard output, in its colors."""
        from featuredb.render.text import write

        write(self, console.file if console else sys.stdout)

    def __str__(self) -> str:
        from featuredb.render.text import to_text

        return to_text(self)

    def __repr__(self) -> str:
        rows = f"{len(self):,} row{'' if len(self) == 1 else 's'}"
        about = (
            f"{k}={v!r}" for k, v in self.attributes().items() if isinstance(v, str | int | float)
        )
        return f"{type(self).__name__}({', '.join(chain(about, [rows]))})"

    def _repr_html_(self) -> str:
        from featuredb.render.html import to_html

        return to_html(self)


@dataclass(frozen=True, repr=False)
class FeatureAnswer(Answer):
    """An answer about one feature, which the first columns of its rows name: `sae`, `feature_id`.

    So rows of several answers can be put under one another.
    """

    sae: str
    feature_id: int
    label: str | None = field(default=None, kw_only=True)

    @property
    def feature(self) -> str:
        """`sae/1234`, as every question takes it."""
        return f"{self.sae}/{self.feature_id}"

    @property
    def titled(self) -> str:
        """The feature, with its label if it has one."""
        return titled(self.feature, self.label)


def titled(feature: str, label: str | None) -> str:
    """A feature in a heading: its name, and its label if it has one."""
    return f"{feature} {label}" if label else feature


def of_feature(sae: str | None, feature_id: int | None, rows: int) -> tuple[pa.Array, pa.Array]:
    """The columns `sae` and `feature_id` of an answer that is about one feature."""
    import pyarrow as pa

    return pa.array([sae] * rows, pa.string()), pa.array([feature_id] * rows, pa.int64())


@dataclass(frozen=True, repr=False)
class Rows(Answer):
    """The answer of a SQL statement, with its own columns in its own order.

    SQL may give two columns one name. The second `a` becomes `a_1`, so that nothing is lost where
    a name is a key.
    """

    kind: ClassVar[str] = "rows"

    def __post_init__(self) -> None:
        names = self.table.column_names
        if len(set(names)) < len(names):
            object.__setattr__(self, "table", self.table.rename_columns(_distinct(names)))


@dataclass(frozen=True, repr=False)
class Info:
    """What a database holds: nested names and values. As a table: one row per value, by path."""

    kind: ClassVar[str] = "info"

    data: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def keys(self) -> tuple[str, ...]:
        """The names at the top."""
        return tuple(self.data)

    @property
    def document(self) -> Mapping[str, Any]:
        """The names and values, nested."""
        return self.data

    def attributes(self) -> dict[str, Any]:
        """Nothing besides its names and values."""
        return {}

    def view(self) -> View:
        """Every name and value."""
        return View([[Facts(self.data)]])

    def arrow(self) -> pa.Table:
        """Columns `name` (as in `saes.0.d_sae`) and `value`, both strings. Null where unknown."""
        import pyarrow as pa

        leaves = list(_leaves(self.data))
        return pa.table(
            {
                "name": pa.array([name for name, _ in leaves], pa.string()),
                "value": pa.array([_spelled(value) for _, value in leaves], pa.string()),
            }
        )

    def pandas(self) -> pd.DataFrame:
        """`arrow` as pandas. Raises `MissingExtraError` where pandas is not installed."""
        return _pandas(self.arrow())

    def polars(self) -> pl.DataFrame:
        """`arrow` as polars. Raises `MissingExtraError` where polars is not installed."""
        return _polars(self.arrow())

    def __str__(self) -> str:
        from featuredb.render.text import to_text

        return to_text(self)

    def __repr__(self) -> str:
        return f"Info({', '.join(self.data)})"

    def _repr_html_(self) -> str:
        from featuredb.render.html import to_html

        return to_html(self)


def _pandas(table: pa.Table) -> pd.DataFrame:
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise _no_frames("pandas") from error
    return table.to_pandas()


def _polars(table: pa.Table) -> pl.DataFrame:
    try:
        import polars
    except ImportError as error:
        raise _no_frames("polars") from error
    return cast("pl.DataFrame", polars.from_arrow(table))


def _no_frames(package: str) -> MissingExtraError:
    return MissingExtraError(f"{package} is not installed: pip install 'featuredb[frames]'")


def _distinct(names: list[str]) -> list[str]:
    """The names, with `_1`, `_2`, … after a repeated one, as DuckDB does in a subquery."""
    taken = set(names)
    seen: set[str] = set()
    result = []
    for name in names:
        unique, number = name, 0
        while unique in seen or (number and unique in taken):
            number += 1
            unique = f"{name}_{number}"
        seen.add(unique)
        result.append(unique)
    return result


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list | tuple):
        items = iter(enumerate(value))
    else:
        yield path, value
        return
    for key, child in items:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def _spelled(value: Any) -> str | None:
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)
