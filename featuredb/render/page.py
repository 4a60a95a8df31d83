"""The surface answers are drawn on: how wide it is, and whether it has colors."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Literal

from rich.console import Console
from rich.text import Text

from featuredb.render.characters import label, neutralize, spelled
from featuredb.render.layout import wrap
from featuredb.render.shading import Ramp, background

PLAIN_WIDTH = 100
_ACTIVE_MARKS = "‹›"
_TRAILING = re.compile(r"[ ]+$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """A width in columns, the colors to shade with (none: plain text), the SQL rows to show."""

    width: int = PLAIN_WIDTH
    ramp: Ramp | None = None
    rows: int = 100

    def text(self, lines: Iterable[Text]) -> str:
        """The lines one under the other, too long ones broken.

        A plain page yields not one escape character.
        """
        buffer = io.StringIO()
        console = Console(
            file=buffer,
            width=self.width,
            force_jupyter=False,  # where it would write to the notebook, not to the buffer
            force_terminal=self.ramp is not None,
            color_system=self.ramp.colors if self.ramp else None,
            no_color=self.ramp is None,
            markup=False,
            emoji=False,
            highlight=False,
            legacy_windows=False,
        )
        for line in lines:
            for part in wrap(line, self.width):
                console.print(part, soft_wrap=True)
        return _TRAILING.sub("", buffer.getvalue())

    def bars(self, blocks: str) -> Text:
        """Block characters in the color of bars."""
        return Text(blocks, self.ramp.bars if self.ramp else "")

    def tokens(self, tokens: Iterable[str], room: int | None = None) -> Text:
        """Single tokens, side by side, as many as fit in `room`, then `+N` for the rest."""
        text = Text()
        labels = [label(token) for token in tokens]
        for i, shown in enumerate(labels):
            rest = f" +{len(labels) - i - 1}" if i + 1 < len(labels) else ""
            piece = Text(" " if i else "").append(shown)
            if i and room is not None and text.cell_len + piece.cell_len + len(rest) > room:
                return text.append(f" +{len(labels) - i}", "dim")
            text.append_text(piece)
        return text

    def window(
        self,
        tokens: Iterable[str],
        activations: Iterable[float],
        scale: float,
        peak: int | None = None,
        faint: Collection[int] = (),
    ) -> Text:
        """Consecutive tokens as running text, the active ones shaded, `peak` underlined.

        Without colors active tokens are in single angle quotes, the peak in «double» ones. A space
        before a word is not shaded, so neighboring tokens are separated.
        """
        text = Text()
        for i, (token, value) in enumerate(zip(spelled(tokens), activations, strict=True)):
            word = neutralize(token)
            bare = word.lstrip(" ") or word
            text.append(word[: len(word) - len(bare)])
            if i in faint:
                text.append(bare, "dim")
            elif self.ramp is not None:
                text.append(bare, self.ramp.style(value, scale, peak=i == peak))
            elif value != 0 or i == peak:
                text.append(bare.join("«»" if i == peak else _ACTIVE_MARKS))
            else:
                text.append(bare)
        return text


def page_for(stream: IO[str], environment: Mapping[str, str] | None = None) -> Page:
    """The page that `stream` is: NO_COLOR, FORCE_COLOR, TERM, COLORTERM, COLUMNS are honored."""
    environment = os.environ if environment is None else environment
    width = PLAIN_WIDTH
    if environment.get("COLUMNS", "").isdigit():
        width = max(40, int(environment["COLUMNS"]))
    elif stream.isatty():
        width = max(40, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)
    if not _wants_color(stream, environment):
        return Page(width)
    return Page(width, Ramp(background(environment), _colors(environment)))


def _wants_color(stream: IO[str], environment: Mapping[str, str]) -> bool:
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return environment["FORCE_COLOR"] != "0"
    return stream.isatty() and environment.get("TERM") != "dumb"


def _colors(environment: Mapping[str, str]) -> Literal["truecolor", "256", "standard"]:
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "truecolor"
    term = environment.get("TERM", "")
    # Without TERM, FORCE_COLOR was set for a pipe: a log viewer, which supports 256 colors.
    return "256" if "256" in term or term in ("", "dumb", "unknown") else "standard"
