"""Edits matched to a database: which SAE, which feature, which number, which conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from featuredb.errors import QueryError
from featuredb.steering.edits import OPS, Edit, Edits, parse_edits
from featuredb.steering.where import EditScope, TokenSet
from featuredb.store.names import parse_feature
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries.conditions import Condition

_LARGEST = {"float32": 3.4e38, "bfloat16": 3.3e38, "float16": 65504.0, "float64": 1.7e308}


@dataclass(frozen=True)
class ResolvedEdit:
    """An edit of a feature of a database, its value in the SAE's own units.

    conditions: those on other features that its scope names.
    """

    edit: Edit
    sae: Sae
    feature: int
    value: float
    scope: EditScope
    conditions: Mapping[TokenSet, Condition]

    @classmethod
    def anywhere(cls, sae: Sae, feature: int, op: str, value: float) -> ResolvedEdit:
        """An edit at every token, in the SAE's own units."""
        edit = Edit(feature, op, value)
        return cls(edit, sae, feature, value, EditScope.parse(edit.where), {})

    @property
    def op(self) -> str:
        return self.edit.op

    @property
    def method(self) -> str:
        return self.edit.method

    @property
    def name(self) -> str:
        """`sae/1234`, as every question takes it."""
        return f"{self.sae.name}/{self.feature}"

    def __str__(self) -> str:
        where = "" if self.edit.where == "everywhere" else f" @ {self.edit.where}"
        given = "" if self.edit.unit == "activation" else f" ({self.edit.strength})"
        return f"{self.name} {OPS[self.op]} {self.value:.4g}{given}{where}"


def resolve_edits(store: Store, edits: Edits, method: str = "code") -> tuple[ResolvedEdit, ...]:
    """The edits of a database's features, in the order in which they were given.

    Args:
        store: The database.
        edits: Objects, or texts such as ``"12=10x @ generated"``.
        method: Of those that are texts.

    Raises:
        UnknownFeatureError: There is no such feature.
        QueryError: An edit is invalid or needs a maximum that the feature lacks, its value is too
            large for the model, or two edits of one feature could meet at a token.
    """
    resolved = tuple(_resolved(store, edit) for edit in parse_edits(edits, method))
    _refuse_conflicts(resolved)
    return resolved


def _resolved(store: Store, edit: Edit) -> ResolvedEdit:
    sae, feature = parse_feature(store.snapshot, _plain(edit.feature))
    value = edit.strength.of(store, sae, feature)
    scope = EditScope.parse(edit.where)
    conditions = {
        each: Condition.parse(store, each.text) for each in scope.sets if each.kind == "feature"
    }
    resolved = ResolvedEdit(edit, sae, feature, value, scope, conditions)
    largest = _LARGEST.get(store.snapshot.model.dtype, 3.4e38)
    reach = abs(value)
    if edit.op == "scale":
        maximum = float(store.features.max_activation(sae)[feature])
        reach *= 1.0 if math.isnan(maximum) else max(abs(maximum), 1.0)
    # The stream holds many such terms, so that one close to the largest number overflows.
    if not reach < largest / 1e3:
        raise QueryError(
            f"{edit} is {reach:.3g}, which overflows the model's {store.snapshot.model.dtype}: "
            "give a smaller strength"
        )
    return resolved


def _plain(feature: int | str) -> int | str:
    return feature.strip() if isinstance(feature, str) else feature


def _refuse_conflicts(edits: Sequence[ResolvedEdit]) -> None:
    for one, two in combinations(edits, 2):
        if (one.sae.name, one.feature) == (two.sae.name, two.feature) and not one.scope.apart(
            two.scope
        ):
            raise QueryError(
                f"{one.edit} and {two.edit} edit the same feature at the same tokens: keep one, or "
                "give places that never meet, such as prompt and generated"
            )
