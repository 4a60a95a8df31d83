"""Render a chat template so that each character of the text knows the message it comes from.

Templates cut, move, trim and re-order contents, and write other text around some of them than
around others, so where a content went cannot be told from the text. Here contents are strings that
carry their origin through everything Jinja does with strings: `Tracked`, in an environment that
does not lose it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partialmethod, wraps
from typing import Any, SupportsIndex, cast

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_environment

NOWHERE = "\0"
"""The origin of what the template writes. Message i is chr(i + 1)."""


class Tracked(str):
    """Text with the origin of each character, `_origins` [len]. Names in `_` are out of a
    template's reach."""

    _origins: str

    def __new__(cls, text: str, origins: str | None = None) -> Tracked:
        made = super().__new__(cls, text)
        made._origins = origins_of(text) if origins is None else origins
        return made

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> Tracked:
        return Tracked(super().__getitem__(key), self._origins[key])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: str) -> Tracked:
        return joined("", (self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Tracked:
        return joined("", (other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> Tracked:
        return Tracked(super().__mul__(times), self._origins * times)

    __rmul__ = __mul__

    def __rmod__(self, template: str) -> Tracked:
        before, mark, after = template.partition("%s")
        if mark and "%" not in before + after:
            return joined("", (before, self, after))
        return self._changed(str.__mod__(template, self))

    def join(self, parts: Iterable[str]) -> Tracked:
        return joined(self, parts)

    def strip(self, chars: str | None = None) -> Tracked:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> Tracked:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> Tracked:
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> Tracked:
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str, /) -> Tracked:
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Tracked]:  # type: ignore[override]
        return self._pieces(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Tracked]:  # type: ignore[override]
        return self._pieces(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[Tracked]:  # type: ignore[override]
        return self._pieces(super().splitlines(keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return cast("tuple[str, str, str]", tuple(self._pieces(super().partition(sep))))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return cast("tuple[str, str, str]", tuple(self._pieces(super().rpartition(sep))))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Tracked:
        """What is put in place of a message's text is that message's."""
        if not old:
            return self._changed(super().replace(old, new, count))
        parts: list[str] = []
        at = 0
        for piece in self.split(old, count):
            if at:
                whose = self._origins[at - len(old)]
                parts.append(new if isinstance(new, Tracked) else Tracked(new, whose * len(new)))
            parts.append(piece)
            at += len(piece) + len(old)
        return joined("", parts)

    def _pieces(self, pieces: Sequence[str], gap: int = 0) -> list[Tracked]:
        """`pieces` of this text, in order, `gap` or more characters between them."""
        found, at = [], 0
        for piece in pieces:
            at = self.find(piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece) + gap
        return found

    def _changed(self, text: str) -> Tracked:
        """Another text made of this one: character by character, or all of one message."""
        if len(text) == len(self):
            return Tracked(text, self._origins)
        messages = self._origins.replace(NOWHERE, "")
        return Tracked(text, (messages[:1] or NOWHERE) * len(text))

    def _by(self, method: str, *args: Any) -> Tracked:
        return self._changed(getattr(super(), method)(*args))


# Those that change characters, and those that write around them.
_CHANGING = ("lower", "upper", "title", "capitalize", "swapcase", "casefold", "translate")
_WRITING = ("expandtabs", "center", "ljust", "rjust", "zfill", "__mod__")
for _name in (*_CHANGING, *_WRITING):
    setattr(Tracked, _name, partialmethod(Tracked._by, _name))


def origins_of(text: str) -> str:
    """The origin of each character."""
    return text._origins if isinstance(text, Tracked) else NOWHERE * len(text)


def joined(separator: str, parts: Iterable[str]) -> Tracked:
    """``separator.join(parts)``, tracked."""
    listed = list(parts)
    return Tracked(
        # Of plain strings: a tracked separator's own method comes here.
        str.join(separator, listed),
        origins_of(separator).join(map(origins_of, listed)),
    )


def tracked(value: Any, origin: str) -> Any:
    """The same value with every text in it, keys among them, from `origin`."""
    if isinstance(value, str):
        return Tracked(value, origin * len(value))
    if isinstance(value, Mapping):
        return {tracked(key, origin): tracked(item, origin) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tracked(item, origin) for item in value]
    return value


@lru_cache(maxsize=8)
def tracking_template(template: str) -> Any:
    """A chat template, compiled as transformers does, that renders to `Tracked`.

    Raises what transformers and Jinja raise where they cannot compile it.
    """
    from transformers.utils import chat_template_utils

    # What a template may call is defined there and nowhere else.
    known = chat_template_utils._compile_jinja_template(template).environment
    environment = _Environment(
        trim_blocks=known.trim_blocks,
        lstrip_blocks=known.lstrip_blocks,
        extensions=[type(extension) for extension in known.extensions.values()],
    )
    environment.globals.update(known.globals)
    environment.tests.update(known.tests)
    environment.filters.update({name: _keeping(f) for name, f in known.filters.items()})
    environment.filters |= {"join": _join, "tojson": _keeping_all(known.filters["tojson"])}
    return environment.from_string(template)


class _Generator(CodeGenerator):
    """Jinja's own writes ``a ~ b`` as a join of plain strings."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, where text stays tracked."""

    code_generator_class = _Generator

    @staticmethod
    def concat(parts: Iterable[str]) -> Tracked:
        return joined("", parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # A method of a string that the template writes, such as ', '.join(…).
        owner = getattr(__obj, "__self__", None)
        if type(owner) is str:
            __obj = getattr(Tracked(owner), __obj.__name__)
        return super().call(__context, __obj, *args, **kwargs)


def _keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that keeps the origin of the tracked text it is given."""

    @wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        given = next((value for value in args if isinstance(value, Tracked)), None)
        if given is None or not isinstance(result, str) or isinstance(result, Tracked):
            return result
        return given._changed(str(result))

    return kept


def _keeping_all(function: Callable[..., str]) -> Callable[..., str]:
    """A filter that makes one text of a value: the message's whose texts are in it."""

    @wraps(function)
    def kept(value: Any, *args: Any, **kwargs: Any) -> str:
        text = function(value, *args, **kwargs)
        messages = set(_origins_in(value)) - {NOWHERE}
        return Tracked(text, messages.pop() * len(text)) if len(messages) == 1 else text

    return kept


def _origins_in(value: Any) -> str:
    """The origins of all texts in a value."""
    if isinstance(value, Mapping):
        return "".join(_origins_in(each) for item in value.items() for each in item)
    if isinstance(value, list | tuple):
        return "".join(map(_origins_in, value))
    return value._origins if isinstance(value, Tracked) else ""


@pass_environment
def _join(environment: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> Tracked:
    """Jinja's filter."""
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return joined(str(d), map(str, value))
