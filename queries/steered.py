"""What steering with a feature does, as its card shows it, once that was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from featuredb.render import numbers
from featuredb.render.characters import label
from featuredb.render.view import Column, Facts, Group, Heading, Part, Table
from featuredb.store.snapshot import Sae
from featuredb.store.store import Store

_TOKENS_SHOWN = 8


def measured_row(store: Store, sae: Sae, feature: int) -> dict[str, Any] | None:
    """The feature's row of the table ``measured``, if there is one."""
    if not store.snapshot.user_data:
        return None
    # It imports pyarrow.compute, a tenth of a command's start.
    from featuredb.store.user_data import MEASURED, user_row

    rows = user_row(store.files, store.snapshot, MEASURED, sae, feature).to_pylist()
    return rows[0] if rows else None


def steered(row: Mapping[str, Any]) -> list[Part]:
    """What the model really does when the feature is set to its maximum."""
    score = row["output_score"]
    facts = {
        "output score": "none, the model has no logit lens" if score is None else f"{score:.3f}",
        "next token": f"KL {row['kl']:.3g} nats · {row['kl_per_unit']:.2g} per unit",
        "collateral": f"{numbers.number(row['moved'])} other features move · "
        f"{numbers.number(row['collateral'])} per unit, "
        f"forecast {numbers.number(row['collateral_forecast'])}",
    }
    blocks: list[Sequence[Part]] = [
        [_tokens("raises", row["raised_tokens"])],
        [_tokens("lowers", row["lowered_tokens"])],
    ]
    strength = numbers.number(row["strength"])
    heading = Heading("", "steered", f" to {strength} over {row['n_prompts']} neutral prompts")
    return [heading, Facts(facts), Group(blocks)]


def _tokens(name: str, entries: Sequence[Mapping[str, Any]]) -> Table:
    shown = entries[:_TOKENS_SHOWN]
    changes = [f"×{numbers.number(math.exp(entry['change']))}" for entry in shown]
    return Table(
        [
            Column(name, [label(entry["token"]) for entry in shown], tokens=True),
            Column("probability", changes, right=True, style="dim"),
        ],
        more=len(entries) - len(shown),
    )
