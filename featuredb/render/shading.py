"""Activation as color: a ramp from the background to orange, linear in perceived lightness.

Negative activations, which some SAEs have, run to blue instead. Colors are interpolated in OKLCh
(B. Ottosson, "A perceptual color space for image processing", 2020), where equal steps of L look
equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

LEVELS = 8
_ORANGE, _BLUE = 55.0, 255.0  # hues, in degrees
# Three strengths on 16-color terminals, where the user chooses the colors.
_SIXTEEN = {1: "black on {0}", 4: "black on bright_{0}", 7: "bold black on bright_{0}"}


@dataclass(frozen=True)
class Ramp:
    """Colors for one kind of screen: its background, and how many colors it has."""

    background: Literal["dark", "light"] = "dark"
    colors: Literal["truecolor", "256", "standard"] = "truecolor"

    def style(self, value: float, scale: float, *, peak: bool = False) -> str:
        """A rich style for a token, empty if it is not active."""
        step = level(value, scale)
        if step == 0:
            return ""
        emphasis = "bold underline " if peak else ""
        if self.colors == "standard":
            strength = max(key for key in _SIXTEEN if key <= step)
            return emphasis + _SIXTEEN[strength].format("yellow" if value > 0 else "blue")
        return emphasis + _colors(self.background, step, value > 0)

    @property
    def bars(self) -> str:
        """A rich style for bars drawn in the color of the strongest shade."""
        if self.colors == "standard":
            return "yellow"
        return BARS


FAINT = "opacity:.5"
"""A token in HTML that is no part of the text proper."""


def level(value: float, scale: float) -> int:
    """0 where `value` is 0 (not active), else 1 to `LEVELS` by |value| / scale."""
    if value == 0 or not math.isfinite(value):
        return 0
    share = min(1.0, abs(value) / scale) if scale > 0 else 1.0
    return max(1, math.ceil(share * LEVELS))


def shade(value: float, scale: float) -> int:
    """`level`, negative where the value is."""
    step = level(value, scale)
    return -step if value < 0 else step


def css(shade: int) -> str:
    """A background for a token in HTML. Translucent, so it suits light pages and dark ones."""
    if shade == 0:
        return ""
    red, green, blue = _rgb(0.72, 0.17, _ORANGE if shade > 0 else _BLUE)
    return f"background:rgba({red},{green},{blue},{0.08 + 0.62 * abs(shade) / LEVELS:.2f})"


def background(environment: Mapping[str, str]) -> Literal["dark", "light"]:
    """What COLORFGBG says (`15;0`, `0;default;15`: the last is the background), else dark."""
    last = environment.get("COLORFGBG", "").rpartition(";")[2]
    return "light" if last in ("7", "15") else "dark"


@lru_cache(maxsize=64)
def _colors(background: str, step: int, positive: bool) -> str:
    share = (step - 1) / (LEVELS - 1)
    hue = _ORANGE if positive else _BLUE
    if background == "light":
        lightness, chroma = 0.95 - 0.22 * share, 0.04 + 0.13 * share
    else:
        lightness, chroma = 0.33 + 0.40 * share, 0.05 + 0.11 * share
    ink = "#000000" if lightness > 0.57 else "#ffffff"
    red, green, blue = _rgb(lightness, chroma, hue)
    return f"{ink} on #{red:02x}{green:02x}{blue:02x}"


def _rgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """OKLCh to 8-bit sRGB, clipped to the gamut."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _gamma(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _gamma(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _gamma(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _gamma(linear: float) -> int:
    value = min(1.0, max(0.0, linear))
    encoded = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    return round(255 * encoded)


BARS = "#{:02x}{:02x}{:02x}".format(*_rgb(0.68, 0.15, _ORANGE))
"""The color of bars, that of the strongest shade: on light pages and dark ones."""
