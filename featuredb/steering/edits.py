"""The language of edits: ``F=10x``, ``F+=2``, ``F*=0.5``, ``F=0``, each perhaps ``@ WHERE``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from featuredb.errors import QueryError
from featuredb.steering.where import EditScope
from queries.strength import UNITS, Strength

OPS = {"set": "=", "add": "+=", "scale": "*="}
"""What an edit does to the activation, and the sign it is written with."""

METHODS = ("code", "direction", "project")
"""How the activation is read and written, see `Edit`."""

_OPS = {sign: op for op, sign in OPS.items()} | {"clamp": "set", "ablate": "set"}
_UNITS = {"x": "maximum", "max": "maximum", "q": "quantile", "absolute": "activation"}
_SPELLED = re.compile(
    r"\s*(?P<feature>.*/-?\d+|[^=@]*?)\s*(?P<op>\+=|\*=|=)\s*(?P<value>[^@]*?)\s*(@(?P<where>.*))?",
    re.DOTALL,
)
_EXAMPLES = "F=10x, F+=2.5, F*=0.5 or F=0, with @ and where if wanted"


@dataclass(frozen=True)
class Edit:
    """What to do to one feature's activation, and where.

    Attributes:
        feature: A number, or ``"sae_name/1234"``.
        op: ``"set"`` (clamp), ``"add"`` or ``"scale"``. ``"set"`` with value 0 ablates.
        value: A number in `unit`, or one spelled with its unit: ``"10x"``, ``"q0.99"``.
        unit: ``"activation"``, the SAE's own units; ``"maximum"``, times the feature's stored
            maximum; ``"quantile"``, a quantile of its stored activations.
        where: At which tokens, see `featuredb.steering.where`. Default: everywhere.
        method: ``"code"``: x + decode(edited) - decode(code), where code is encode(x), so that
            what the SAE does not explain is kept. ``"direction"``: x + value · the decoder
            direction, whatever the code is. ``"project"``: as ``"code"``, but the activation is
            taken to be the component of x along the decoder direction, so ``F=0`` projects it out.
    """

    feature: int | str
    op: str = "set"
    value: float | str = 0.0
    unit: str = "activation"
    where: str = "everywhere"
    method: str = "code"

    def __post_init__(self) -> None:
        if self.op in _OPS:
            object.__setattr__(self, "op", _OPS[self.op])
        if self.op not in OPS:
            raise QueryError(f"an edit sets, adds or scales, it cannot {self.op!r}")
        if isinstance(self.value, str):
            strength = Strength.parse(self.value)
            object.__setattr__(self, "value", strength.value)
            object.__setattr__(self, "unit", strength.unit)
        if self.unit in _UNITS:
            object.__setattr__(self, "unit", _UNITS[self.unit])
        if self.unit not in UNITS:
            raise QueryError(f"a strength is in {', '.join(UNITS)}, not {self.unit!r}")
        if self.method not in METHODS:
            raise QueryError(f"a method is one of {', '.join(METHODS)}, not {self.method!r}")
        if not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise QueryError(f"{self.feature}: {self.value!r} is not a finite number")
        if self.unit == "quantile" and not 0 <= self.value <= 1:
            raise QueryError(f"a quantile is from 0 to 1, not {self.value:g}")
        if self.op == "scale" and self.unit != "activation":
            raise QueryError(
                f"{self} multiplies by a plain number: give one, or set the activation with ="
            )
        if self.op == "set" and self.method == "direction":
            raise QueryError(
                f"{self} cannot be set along a direction, which has no activation: add with +=, "
                "or use the method project"
            )
        if self.op == "scale" and self.method == "direction":
            raise QueryError(f"{self} has nothing to scale along a direction: add with +=")
        EditScope.parse(self.where)

    @classmethod
    def parse(cls, text: str, method: str = "code") -> Edit:
        """From ``F=10x``, ``sae/12+=3 @ generated`` and the like. Raises `QueryError`."""
        match = _SPELLED.fullmatch(text)
        if match is None or not match["feature"] or not match["value"]:
            raise QueryError(f"{text!r} is no edit: write {_EXAMPLES}")
        where = (match["where"] or "everywhere").strip()
        strength = Strength.parse(match["value"])
        return cls(
            match["feature"], _OPS[match["op"]], strength.value, strength.unit, where, method
        )

    @property
    def strength(self) -> Strength:
        """The value with its unit."""
        return Strength(float(self.value), self.unit)

    def __str__(self) -> str:
        where = "" if self.where == "everywhere" else f" @ {self.where}"
        return f"{self.feature}{OPS[self.op]}{self.strength}{where}"


Edits: TypeAlias = "Edit | str | Iterable[Edit | str]"
"""One edit or several, as objects or spelled."""


def parse_edits(edits: Edits, method: str = "code") -> tuple[Edit, ...]:
    """All of them as objects. method: of those that are spelled.

    Raises:
        QueryError: One is invalid, or there is none.
    """
    given = [edits] if isinstance(edits, Edit | str) else list(edits)
    parsed = []
    for each in given:
        if isinstance(each, str):
            each = Edit.parse(each, method)
        if not isinstance(each, Edit):
            raise QueryError(f"{each!r} is no edit: write {_EXAMPLES}")
        parsed.append(each)
    if not parsed:
        raise QueryError(f"there is no edit: give at least one, such as {_EXAMPLES}")
    return tuple(parsed)
