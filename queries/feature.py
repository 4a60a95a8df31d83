"""Everything the store knows about one feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from featuredb.render import numbers
from featuredb.render.characters import label
from featuredb.render.view import (
    AnyColumn,
    BarColumn,
    Bars,
    Column,
    Facts,
    Group,
    Heading,
    Part,
    Passages,
    Table,
    View,
)
from featuredb.store.names import parse_feature
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store
from queries import plots
from queries.activations import FeatureContexts, feature_contexts
from queries.answers import Answer, Row, Rows
from queries.connection import Reader
from queries.directions import Chance, chance
from queries.labels import label_facts
from queries.lens import standing_out
from queries.near import Neighbors, near_on_card
from queries.question import Question
from queries.reliability import occurrences
from queries.sample_contexts import SampledContexts, drawn
from queries.show import feature_name
from queries.silent_contexts import SilentContexts, with_tokens
from queries.steered import measured_row, steered
from queries.top_contexts import TopContexts, top_contexts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTEXTS = 5
NEIGHBORS = 10
FIFTHS = 5
PER_FIFTH = 2
SILENT = 3
_TOKENS_SHOWN = 8
_KINDS = ("decoder", "coactivation")


@dataclass(frozen=True, repr=False)
class FeatureCard(Answer):
    """Everything about one feature: one row, contexts of each kind, neighbors of two kinds.

    Columns: sae string, feature_id i64, count i64 (activations), density f64, n_contexts i64,
    n_documents i64, min_activation, max_activation, mean_activation, std_activation,
    quantiles list<struct<q, value>>, histogram list<i64> (40 equal bins from min(0, minimum) to
    the maximum), decoder_norm f32, top_tokens list<struct<token, count, mean_activation>>,
    promoted_tokens and suppressed_tokens list<struct<token, logit>>, top_token_occurrences
    list<i64> (of each of top_tokens how often it was recorded, firing or not), promoted_above and
    suppressed_below f64 (logits beyond which a token stands out, `queries.lens.standing_out`).

    contexts: the strongest. sample: `PER_FIFTH` from each fifth of the range of its maxima, as
    `sample_contexts` draws them with seed 0. silent: `SILENT` contexts that have one of its tokens
    and in which it never fires, as `silent_contexts` draws them with seed 0. neighbors, coactive:
    the nearest by decoder and by co-activation. chance: what to hold their scores against, by kind
    (`queries.directions.Chance`; random for co-activation is the largest Jaccard index that firing
    independently of each other would give with any feature of the SAE). Of a remote database whose
    corpus is large, top_token_occurrences is null and silent empty: both read all of its tokens.
    measured: its row of what `featuredb.measure` found, None before that. labels: its labels, the
    preferred one first.
    """

    kind: ClassVar[str] = "feature_card"

    contexts: TopContexts
    sample: SampledContexts
    silent: SilentContexts
    neighbors: Neighbors
    coactive: Neighbors
    chance: Mapping[str, Mapping[str, float | None]]
    measured: Mapping[str, Any] | None = None
    labels: Sequence[Mapping[str, Any]] = ()

    @property
    def statistics(self) -> Row:
        """The one row."""
        return self[0]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The histogram of its activations. Raises `MissingExtraError` without matplotlib.

        Args:
            ax: Axes to draw into. Default: those of a new figure.

        Returns:
            The axes. Nothing is shown: a notebook does that by itself.
        """
        bars = _histogram(self.statistics)
        name = feature_name(self.statistics)
        return plots.histogram(plots.axes(ax), bars.counts, bars.low, bars.high, name)

    def view(self) -> View:
        """Each part of the card under its heading: numbers, tokens, contexts, neighbors."""
        row = self.statistics
        sections = FeatureNumbers(row, self.measured, self.labels).sections()
        if len(self.contexts):
            sections.append([Heading("", "top contexts"), self.contexts.passages()])
        # Of few contexts all are above.
        if row.n_contexts > len(self.contexts):
            first, *others = map(self._not_above, self.sample.bins())
            sections += [[Heading("", "a sample of each fifth of its range"), *first], *others]
        if len(self.silent):
            heading = Heading("", "silent", " though one of its tokens is there")
            sections.append([heading, self.silent.passages()])
        sections += _near((self.neighbors, self.coactive), self.chance)
        return View(sections)

    def _not_above(self, parts: Sequence[Part]) -> list[Part]:
        """A bin without the contexts that are among the strongest, which its heading counts."""
        above = set(self.contexts.table.column("context_id").to_pylist())
        shown: list[Part] = []
        for part in parts:
            if isinstance(part, Passages):
                new = [item for item in part.items if item.context not in above]
                if (twice := len(part.items) - len(new)) and isinstance(shown[0], Heading):
                    shown[0] = replace(shown[0], after=f"{shown[0].after} · {twice} above")
                part = replace(part, items=new)
            shown.append(part)
        return shown


@dataclass(frozen=True)
class FeatureNumbers:
    """What a card says besides contexts and neighbors: its row, its labels, what was measured."""

    row: Row
    measured: Mapping[str, Any] | None = None
    labels: Sequence[Mapping[str, Any]] = ()

    def sections(self, mark: float | None = None) -> list[list[Part]]:
        """Its name and numbers, the histogram with quantiles, its tokens, what steering did.

        mark: an activation that is marked in the histogram.
        """
        row = self.row
        shown: list[list[Part]] = [
            [Heading("feature ", feature_name(row)), *label_facts(self.labels), *_facts(row)],
            [Group([[replace(_histogram(row), mark=mark)], [_quantiles(row)]])],
            _tokens(row),
        ]
        return [*shown, *([steered(self.measured)] if self.measured is not None else [])]


def feature_numbers(store: Store, sae: Sae, number: int) -> FeatureNumbers:
    """A feature's numbers alone, in a fraction of a card's time: what a page shows at once."""
    contexts = feature_contexts(store, sae, number)
    row = Rows(_row(store, sae, store.features.card(sae, number), contexts))[0]
    return FeatureNumbers(row, measured_row(store, sae, number), store.labels.of(sae, number))


def feature_neighbors(reader: Reader, sae: Sae, number: int) -> View:
    """A feature's neighbors alone, as its card shows them, without reading texts."""
    near_to = [near_on_card(reader, sae, number, NEIGHBORS, by) for by in _KINDS]
    return View(_near(near_to, _chances(reader.store, sae, number)))


def feature_card(reader: Reader, feature: int | str, k: int | None = None) -> FeatureCard:
    """The feature's row of ``features``, contexts of each kind and its neighbors.

    k: how many top contexts and how many neighbors, `CONTEXTS` and `NEIGHBORS` by default. Raises
    `UnknownFeatureError`, `QueryError` for a bad k.
    """
    store = reader.store
    sae, number = parse_feature(store.snapshot, feature)
    top = top_contexts(reader, feature, CONTEXTS if k is None else k)
    contexts = feature_contexts(store, sae, number)
    silent = SILENT if store.texts.scannable else 0
    most = NEIGHBORS if k is None else k
    return FeatureCard(
        _row(store, sae, store.features.card(sae, number), contexts),
        contexts=top,
        sample=drawn(store, sae, number, contexts, FIFTHS * PER_FIFTH, FIFTHS),
        silent=with_tokens(store, sae, number, contexts.context_id, silent),
        neighbors=near_on_card(reader, sae, number, most, "decoder"),
        coactive=near_on_card(reader, sae, number, most, "coactivation"),
        chance=_chances(store, sae, number),
        measured=measured_row(store, sae, number),
        labels=store.labels.of(sae, number),
    )


def _row(store: Store, sae: Sae, card: pa.Table, contexts: FeatureContexts) -> pa.Table:
    """The feature's row with what the card has besides."""
    row = card.to_pylist()[0]
    counted = None
    if store.texts.scannable:
        counted = occurrences(store, sae, contexts, row["top_tokens"])
    promoted, suppressed = (
        [entry["logit"] for entry in row[name]] for name in ("promoted_tokens", "suppressed_tokens")
    )
    vocabulary = store.snapshot.model.vocab_size
    ends = standing_out(promoted, suppressed, vocabulary, sae.d_sae) or (None, None)
    columns = {
        "top_token_occurrences": pa.array([counted], pa.list_(pa.field("element", pa.int64()))),
        "promoted_above": pa.array([ends[0]], pa.float64()),
        "suppressed_below": pa.array([ends[1]], pa.float64()),
    }
    for name, column in columns.items():
        card = card.append_column(name, column)
    return card


def _coactive_by_chance(store: Store, sae: Sae, number: int) -> Chance:
    """random: the largest Jaccard index that independent firing would give with another feature.

    Of densities p and q it is ``p q / (p + q - p q)``, which grows with q.
    """
    shares = store.features.count(sae) / max(1, store.snapshot.recorded_tokens(sae.name))
    p, q = float(shares[number]), float(np.delete(shares, number).max(initial=0.0))
    independent = p * q / (p + q - p * q) if p and q else 0.0
    return chance(store, sae, "coactivation")._replace(random=independent)


def _facts(row: Row) -> list[Part]:
    if not row.count:
        return [Heading("never active on the recorded tokens"), Facts(_norm(row))]
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
                **_norm(row),
            }
        )
    ]


def _norm(row: Row) -> dict[str, str]:
    """Nothing for a feature without a direction."""
    norm = row.decoder_norm
    return {"decoder norm": numbers.number(norm)} if norm == norm else {}


def _histogram(row: Row) -> Bars:
    low = min(0.0, row.min_activation or 0.0)
    high = max(0.0, row.max_activation or 0.0)
    return Bars("activations per bin, log scale", "activation", row.histogram or [], low, high)


def _quantiles(row: Row) -> Table:
    quantiles = row.quantiles or []
    activations = numbers.aligned([entry["value"] for entry in quantiles])
    return Table(
        [
            Column("quantile", [f"{100 * entry['q']:g}%" for entry in quantiles], right=True),
            Column("activation", activations, right=True),
        ]
    )


def _tokens(row: Row) -> list[Part]:
    """What it fires on and how reliably, and what it promotes and suppresses, if anything."""
    blocks: list[list[Part]] = [[_fires_on(row.top_tokens or [], row.top_token_occurrences)]]
    nothing: dict[str, str] = {}
    for name, entries, end, sign in (
        ("promotes", row.promoted_tokens or [], row.promoted_above, 1),
        ("suppresses", row.suppressed_tokens or [], row.suppressed_below, -1),
    ):
        beyond = [e for e in entries if end is not None and sign * e["logit"] > sign * end]
        if beyond:
            blocks.append([_logits(name, beyond)])
        else:
            why = "no token's logit stands out" if end is not None else "too few tokens to tell"
            nothing[name] = f"{numbers.MISSING} ({why})" if entries else numbers.MISSING
    if len(nothing) == 2 and len(set(nothing.values())) == 1:
        nothing = {", ".join(nothing): nothing["promotes"]}
    return [Group(blocks), *([Facts(nothing)] if nothing else [])]


def _fires_on(entries: Sequence[Mapping[str, Any]], occurrences: Sequence[int] | None) -> Table:
    """Tokens, on how many of their occurrences it fires, and how strongly."""
    if not entries:
        return Table([Column("fires on", ["none"], style="dim")])
    shown = entries[:_TOKENS_SHOWN]
    counts = [numbers.count(entry["count"]) for entry in shown]
    columns: list[AnyColumn] = [
        Column("fires on", [label(entry["token"]) for entry in shown], tokens=True)
    ]
    if occurrences is None:
        columns.append(Column("count", counts, right=True))
    else:
        of = [numbers.count(n) for n in occurrences[:_TOKENS_SHOWN]]
        widest = max(map(len, of))
        cells = [f"{count} of {n.rjust(widest)}" for count, n in zip(counts, of, strict=True)]
        shares = [entry["count"] / n for entry, n in zip(shown, occurrences, strict=False)]
        columns += [Column("occurrences", cells, right=True), BarColumn("share", shares)]
    means = numbers.aligned([entry["mean_activation"] for entry in shown])
    columns.append(Column("mean", means, right=True, style="dim"))
    return Table(columns, more=len(entries) - len(shown))


def _logits(name: str, entries: Sequence[Mapping[str, Any]]) -> Table:
    shown = entries[:_TOKENS_SHOWN]
    columns = [
        Column(name, [label(entry["token"]) for entry in shown], tokens=True),
        Column("logit", numbers.aligned([entry["logit"] for entry in shown]), right=True),
    ]
    return Table(columns, more=len(entries) - len(shown))


def _chances(store: Store, sae: Sae, number: int) -> dict[str, dict[str, float | None]]:
    """By way of being near, what chance gives: fields of `Chance`."""
    return {
        "decoder": chance(store, sae, "decoder")._asdict(),
        "coactivation": _coactive_by_chance(store, sae, number)._asdict(),
    }


def _near(
    near_to: Sequence[Neighbors], chances: Mapping[str, Mapping[str, float | None]]
) -> list[list[Part]]:
    """A section of neighbors by each way of being near, none without any."""
    blocks = [_near_by(each, Chance(**chances[each.by])) for each in near_to if len(each)]
    return [[Group(blocks)]] if blocks else []


def _near_by(neighbors: Neighbors, chance: Chance) -> list[Part]:
    by = "co-activation" if neighbors.by == "coactivation" else neighbors.by
    shown = []
    if chance.random is not None:
        shown.append(f"up to {_score(chance.random)}")
    if chance.nearest is not None:
        shown.append(f"usual nearest {_score(chance.nearest)}")
    parts: list[Part] = [Heading("nearest by ", by)]
    if shown:
        parts.append(Facts({"by chance": " · ".join(shown)}))
    return [*parts, neighbors.short()]


def _score(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


QUESTION = Question("feature", FeatureCard, "feature")
