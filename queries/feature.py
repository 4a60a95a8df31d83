"""Everything the store knows about one feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from featuredb.render import numbers
from featuredb.render.characters import label
from featuredb.render.view import Bars, Column, Facts, Group, Heading, Part, Table, View
from featuredb.store.names import parse_feature
from queries.answers import Answer, Row
from queries.connection import Reader
from queries.near import Neighbors, near
from queries.question import Question
from queries.show import feature_name
from queries.top_contexts import TopContexts, top_contexts

CONTEXTS = 5
NEIGHBORS = 10
_TOKENS_SHOWN = 8


@dataclass(frozen=True, repr=False)
class FeatureCard(Answer):
    """Everything about one feature: one row, a few top contexts, a few neighbors.

    Columns: sae string, feature_id i64, count i64 (activations), density f64, n_contexts i64,
    n_documents i64, min_activation, max_activation, mean_activation, std_activation,
    quantiles list<struct<q, value>>, histogram list<i64> (40 equal bins from min(0, minimum) to
    the maximum), decoder_norm f32, top_tokens list<struct<token, count, mean_activation>>,
    promoted_tokens and suppressed_tokens list<struct<token, logit>>.
    """

    kind: ClassVar[str] = "feature_card"

    contexts: TopContexts
    neighbors: Neighbors

    @property
    def statistics(self) -> Row:
        """The one row."""
        return self[0]

    def view(self) -> View:
        """Each part of the card under its heading."""
        row = self.statistics
        sections: list[list[Part]] = [
            [Heading("feature ", feature_name(row)), *_facts(row)],
            [Group([[_histogram(row)], [_quantiles(row)]])],
            [
                Group(
                    [
                        [_tokens("fires on", row.top_tokens)],
                        [_tokens("promotes", row.promoted_tokens)],
                        [_tokens("suppresses", row.suppressed_tokens)],
                    ]
                )
            ],
        ]
        if len(self.contexts):
            sections.append([Heading("top contexts"), self.contexts.passages()])
        if len(self.neighbors):
            sections.append([Heading(f"nearest by {self.neighbors.by}"), self.neighbors.features()])
        return View(sections)


def feature_card(reader: Reader, feature: int | str, k: int | None = None) -> FeatureCard:
    """The feature's row of ``features``, its first top contexts and its nearest decoders.

    k: how many of each, `CONTEXTS` and `NEIGHBORS` by default. Raises `UnknownFeatureError`,
    `QueryError` for a bad k.
    """
    store = reader.store
    sae, number = parse_feature(store.snapshot, feature)
    return FeatureCard(
        store.features.card(sae, number),
        contexts=top_contexts(reader, feature, CONTEXTS if k is None else k),
        neighbors=near(reader, feature, NEIGHBORS if k is None else k),
    )


def _facts(row: Row) -> list[Part]:
    if not row.count:
        norm = {"decoder norm": numbers.number(row.decoder_norm)}
        return [Heading("never active on the recorded tokens"), Facts(norm)]
    spread = (
        f"{numbers.count(row.n_contexts)} contexts of {numbers.count(row.n_documents)} documents"
    )
    share = numbers.density(row.density)
    share += " of tokens" if share.endswith("%") else " tokens"
    activations = numbers.plural(row["count"], "activation")
    return [
        Facts(
            {
                "active on": f"{share} · {activations} in {spread}",
                "activation": f"maximum {numbers.number(row.max_activation)}"
                f" · mean {numbers.number(row.mean_activation)}"
                f" ± {numbers.number(row.std_activation)}"
                f" · minimum {numbers.number(row.min_activation)}",
                "decoder norm": numbers.number(row.decoder_norm),
            }
        )
    ]


def _histogram(row: Row) -> Bars:
    low = numbers.number(min(0.0, row.min_activation or 0.0))
    high = numbers.number(row.max_activation)
    return Bars("activations (log count)", row.histogram or [], low, high)


def _quantiles(row: Row) -> Table:
    quantiles = row.quantiles or []
    activations = numbers.aligned([entry["value"] for entry in quantiles])
    return Table(
        [
            Column("quantile", [f"{100 * entry['q']:g}%" for entry in quantiles], right=True),
            Column("activation", activations, right=True),
        ]
    )


def _tokens(name: str, entries: list[dict[str, Any]] | None) -> Table:
    """Tokens with the numbers that come with them."""
    entries = entries or []
    if not entries:
        return Table([Column(name, ["none"], style="dim")])
    shown = entries[:_TOKENS_SHOWN]
    columns = [Column(name, [label(entry["token"]) for entry in shown], tokens=True)]
    for key in [key for key in shown[0] if key != "token"]:
        column = [entry[key] for entry in shown]
        cells = [numbers.count(n) for n in column] if key == "count" else numbers.aligned(column)
        columns.append(Column(key.removesuffix("_activation"), cells, right=True, style="dim"))
    return Table(columns, more=len(entries) - len(shown))


QUESTION = Question("feature", FeatureCard, "feature")
