"""A rule over a database's features."""

from __future__ import annotations

from dataclasses import dataclass

from featuredb.errors import QueryError, RuleError, UnknownFeatureError
from featuredb.store.names import parse_feature
from featuredb.store.store import Store
from queries.rules import bounds
from queries.rules.parse import parse
from queries.rules.tree import Condition, Open, Role, feature_text, nodes, spelled
from queries.strength import Strength

MOST_FEATURES = 1_000


@dataclass(frozen=True)
class FeatureRule:
    """A condition on the features of a token and of those before it in its text.

    tree: the condition, all its numbers in the SAEs' own units. features: those it reads, as (SAE,
    number), in the order of their first mention. The tree names them by their place here.
    """

    tree: Condition
    features: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, store: Store, text: str) -> FeatureRule:
        """From text such as ``f12 > 5``.

        Raises:
            RuleError: It cannot be read, or reads no feature.
            UnknownFeatureError: There is no such feature.
            QueryError: A quantile or a multiple of the maximum is of a feature that never fires.
        """
        features: dict[tuple[str, int], int] = {}

        def find(name: str, position: int) -> int:
            try:
                sae, number = parse_feature(store.snapshot, name)
            except UnknownFeatureError as error:
                raise UnknownFeatureError(
                    f"{error} (character {position + 1} of the rule)"
                ) from None
            return features.setdefault((sae.name, number), len(features))

        def strength(spelled: str, index: int, position: int) -> float:
            name, number = list(features)[index]
            try:
                parsed = Strength.parse(spelled)
            except QueryError as error:
                where = f"the rule {text!r} is wrong at character {position + 1}"
                raise RuleError(f"{where}: {error}", position) from None
            return parsed.of(store, store.snapshot.sae(name), number)

        tree = parse(text, find, strength)
        if not features:
            raise RuleError(f"the rule {text!r} reads no feature: name one, as in f12 > 5")
        if len(features) > MOST_FEATURES:
            raise RuleError(
                f"a rule reads at most {MOST_FEATURES:,} features, not {len(features):,}"
            )
        return cls(tree, tuple(features))

    @property
    def text(self) -> str:
        """It as text, every feature with its SAE."""
        return spelled(self.tree, lambda index: feature_text(*self.features[index]))

    @property
    def is_open(self) -> bool:
        """Whether a number is sought in it."""
        return any(isinstance(node, Open) for node in nodes(self.tree))

    @property
    def reads_roles(self) -> bool:
        """Whether it holds for some roles only."""
        return any(isinstance(node, Role) for node in nodes(self.tree))

    @property
    def holds_in_silence(self) -> bool:
        """Whether it can hold where all its features are silent, which is nearly everywhere."""
        silent = [(0.0, 0.0)] * len(self.features)
        return bounds.truth(self.tree, silent).can_hold

    def refuse_decided(self, store: Store) -> None:
        """Raise `RuleError` for a rule that can never hold, or holds at every token."""
        negative = [_negative(store, *feature) for feature in self.features]
        decided = bounds.decided(self.tree, negative)
        if decided is not None:
            what = "always fires: it holds at every token" if decided else "can never fire"
            raise RuleError(f"the rule {self.text} {what}, whatever the activations")


def parse_rule(store: Store, text: str) -> FeatureRule:
    """A rule without an open number that can hold and can fail. Raises as `FeatureRule.parse`."""
    rule = FeatureRule.parse(store, text)
    if rule.is_open:
        raise QueryError(f"the rule {text} leaves a number open: give it, or a rate that sets it")
    rule.refuse_decided(store)
    return rule


def _negative(store: Store, sae: str, number: int) -> bool:
    """Whether a feature has been seen below 0, as some SAEs allow."""
    least = store.features.card(store.snapshot.sae(sae), number).column("min_activation")[0].as_py()
    return least is not None and least < 0
