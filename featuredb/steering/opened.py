"""The model and the SAEs of a database, made ready for edits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from featuredb.errors import HookError, QueryError
from featuredb.steering.edits import Edits
from featuredb.steering.hooks import held
from featuredb.steering.passes import TokenFacts
from featuredb.steering.resolve import ResolvedEdit, resolve_edits
from featuredb.steering.rows import SaeEdits, by_sae
from featuredb.store.store import Store
from ingest.attached import AttachedSae
from ingest.extract.recorded import recorded_model, recorded_saes
from ingest.model.load import LoadedModel


@dataclass(frozen=True)
class SteeringOptions:
    """How edits are made.

    method: of edits that are spelled, see `featuredb.Edit`. push_out: a feature forced into a top-k
    code pushes the weakest out. other_model: allow a model that is not the database's own.
    """

    method: str = "code"
    push_out: bool = False
    other_model: bool = False


@dataclass(frozen=True, eq=False)
class ReadyEdits:
    """Edits of a database, and what runs them. saes: those that edits and conditions name."""

    store: Store
    model: LoadedModel
    saes: tuple[AttachedSae, ...]
    resolved: tuple[ResolvedEdit, ...]
    applied: list[SaeEdits]
    facts: TokenFacts


def ready(
    store: Store,
    edits: Edits,
    where: str | None,
    options: SteeringOptions,
    *,
    every_sae: bool = False,
) -> ReadyEdits:
    """Resolve edits and load what they need.

    Args:
        store: The database.
        edits: Objects or texts.
        where: The model is now. Default: where it was.
        options: How they are made.
        every_sae: Load all SAEs of the database.

    Raises:
        QueryError: An edit is invalid or can never apply.
        ModelError: The model is gone, or is another.
        SaeError: An SAE cannot be loaded, or writes nothing for an edited feature.
    """
    resolved = resolve_edits(store, edits, options.method)
    words = {t.text for e in resolved for t in e.scope.sets if t.kind == "token"}
    ids = {word: _token_ids(store, word) for word in words}
    snapshot = store.snapshot
    model = recorded_model(snapshot.model, where, other=options.other_model)
    names = {e.sae.name for e in resolved}
    names |= {c.sae.name for e in resolved for c in e.conditions.values()}
    saes = recorded_saes(model, store.root, snapshot, None if every_sae else names)
    for sae in saes:
        if sae.hook.width != sae.sae.d_in:
            raise HookError(
                f"SAE {sae.name} reads {sae.sae.d_in} wide, and {sae.hook.name} of {model.id} is "
                f"{sae.hook.width}: this model cannot be steered with it"
            )
    applied = by_sae(saes, resolved, push_out=options.push_out)
    facts = TokenFacts(snapshot.corpora[0].bos_token_id, ids)
    return ReadyEdits(store, model, saes, resolved, applied, facts)


@contextmanager
def intervene(
    store: Store, edits: Edits, where: str | None, options: SteeringOptions
) -> Iterator[Any]:
    """See `featuredb.Database.intervene`."""
    made = ready(store, edits, where, options)
    with held(made.model) as model, model.editing(made.applied, made.facts, made.saes):
        yield made.model.model


def _token_ids(store: Store, word: str) -> list[int]:
    """The tokens that read exactly so. Raises `QueryError` where there is none."""
    found = store.texts.ids_of(word)
    if not found:
        raise QueryError(
            f"no token of the model reads {word!r}, so an edit at it can never apply: mind the "
            'space that most words begin with, as in token " the"'
        )
    return found
