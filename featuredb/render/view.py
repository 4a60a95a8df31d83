"""What an answer shows, as neutral parts that text, HTML and pages draw.

An answer says *what* to show. How it looks is decided by `featuredb.render.text` and
`featuredb.render.html`, which know these parts and no question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Heading:
    """A line that names what follows: `before` and `after` are plain, `subject` is emphasized."""

    before: str = ""
    subject: str = ""
    after: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values, nested: a value may be a mapping or a list of mappings.

    The end of a name says how its number reads: ``bytes``, ``density``, ``version``.
    """

    data: Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A heading and one cell per row.

    right: aligned on the right. style: "", "bold", "dim". tokens: each cell is a token. features:
    each cell names a feature, as `sae/1234`. wrap: each cell is prose, which may take several
    lines: only of a table's last column.
    """

    name: str
    cells: Sequence[str]
    right: bool = False
    style: str = ""
    tokens: bool = False
    features: bool = False
    wrap: bool = False


@dataclass(frozen=True)
class TokenColumn:
    """A list of tokens per row, shown as far as they fit. most: of each row, in a notebook.

    titles: for each row what is shown before its tokens, or None.
    """

    name: str
    cells: Sequence[Sequence[str]]
    most: int = 10
    titles: Sequence[str | None] = ()

    @property
    def heading(self) -> str:
        """The name, and that there are labels."""
        return f"label · {self.name}" if any(self.titles) else self.name


@dataclass(frozen=True)
class PlaceColumn:
    """A token of a text and its index, per row."""

    name: str
    tokens: Sequence[str]
    indexes: Sequence[int]


@dataclass(frozen=True)
class CourseColumn:
    """How each row is active along one text of `tokens`.

    activations: one list per row, a value per token. peaks: index of each row's strongest token.
    scales: the activation that is shaded most, per row.
    """

    name: str
    tokens: Sequence[str]
    activations: Sequence[Sequence[float]]
    peaks: Sequence[int]
    scales: Sequence[float]


@dataclass(frozen=True)
class BarColumn:
    """A short bar per row, beside the number it shows. shares: of the column's width, 0 to 1."""

    name: str
    shares: Sequence[float]


AnyColumn: TypeAlias = Column | TokenColumn | PlaceColumn | CourseColumn | BarColumn


@dataclass(frozen=True)
class Table:
    """Columns side by side. more: rows that were left out."""

    columns: Sequence[AnyColumn]
    more: int = 0


@dataclass(frozen=True)
class Records:
    """Any Arrow table: columns where they fit, one record under another where they do not."""

    table: pa.Table


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens as running text, the active ones shaded.

    peak: index of the strongest token. rank, value and about are shown beside it, if given.
    link: the http or https address that `title`, which about begins with, leads to. inside: the
    passage begins inside its text. context: the stored context that it is from. faint: indexes of
    tokens that are no part of the text proper.
    """

    tokens: Sequence[str]
    activations: Sequence[float]
    peak: int | None = None
    rank: str = ""
    value: float | None = None
    title: str = ""
    link: str = ""
    about: str = ""
    inside: bool = False
    context: int | None = None
    faint: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Passages:
    """Passages one under the other. scale: the activation that is shaded most."""

    items: Sequence[Passage]
    scale: float = 1.0


@dataclass(frozen=True)
class Bars:
    """A histogram of equal bins between two ends, its counts on a logarithmic scale.

    noun: what is counted. mark: a value that is marked on a page, if it is given.
    """

    title: str
    noun: str
    counts: Sequence[int]
    low: float
    high: float
    mark: float | None = None


@dataclass(frozen=True)
class Group:
    """Blocks of parts side by side, or one under the other if they do not fit."""

    blocks: Sequence[Sequence[Part]]


Part: TypeAlias = Heading | Facts | Table | Records | Passages | Bars | Group


@dataclass(frozen=True)
class View:
    """Sections from top to bottom, an empty line between two. Parts of a section follow closely."""

    sections: Sequence[Sequence[Part]] = field(default_factory=tuple)

    def __iter__(self) -> Iterator[Sequence[Part]]:
        return iter(self.sections)


@runtime_checkable
class Shown(Protocol):
    """What can be rendered.

    kind: the answer's name in JSON and Parquet. document: what JSON shows in place of rows.
    """

    kind: ClassVar[str]

    @property
    def document(self) -> Mapping[str, Any] | None: ...

    def arrow(self) -> pa.Table: ...

    def attributes(self) -> Mapping[str, Any]: ...

    def view(self) -> View: ...
