"""Whether contexts begin with a BOS token: the user's choice, the SAEs' files or the tokenizer."""

from __future__ import annotations

from typing import NamedTuple

from featuredb.errors import IngestError
from featuredb.render.progress import log
from featuredb.store.snapshot import BosFrom, Corpus
from ingest.attached import ModelWithSaes
from ingest.model.load import bos_token_id


class Bos(NamedTuple):
    """token: what every context begins with, None for nothing. decided_by: what says so."""

    token: int | None
    decided_by: BosFrom | None

    @classmethod
    def of(cls, corpus: Corpus) -> Bos:
        """That of a stored corpus."""
        return cls(corpus.bos_token_id, corpus.bos_from)


def choose_bos(loaded: ModelWithSaes, choice: bool | None) -> Bos:
    """The BOS of a new database.

    choice: the user's, None for what the SAEs' files say. An SAE whose files do not say takes
    either. If none says, the tokenizer's own behavior decides. Logs a choice that contradicts an
    SAE's files. Raises `IngestError` if SAEs disagree and there is no choice, `ModelError` if a
    BOS is asked for and the tokenizer has none.
    """
    if choice is not None:
        for name, stated in _stated(loaded).items():
            if stated != choice:
                _warn(name, stated=stated)
        return Bos(bos_token_id(loaded.model, choice), "option")
    names = {stated: name for name, stated in _stated(loaded).items()}
    if len(names) > 1:
        raise IngestError(
            f"SAE {names[True]} was trained with a BOS token and SAE {names[False]} without one: "
            "ingest them into separate databases, or give --bos or --no-bos to choose for both"
        )
    if names:
        (stated,) = names
        return Bos(bos_token_id(loaded.model, stated), "sae")
    return Bos(bos_token_id(loaded.model, None), "tokenizer")


def check_bos(loaded: ModelWithSaes, stored: Bos, choice: bool | None) -> None:
    """Raise `IngestError` if the files of one of these SAEs ask for another BOS than is stored.

    A `choice` of what is stored only logs it.
    """
    for name, stated in _stated(loaded).items():
        if choice is not None:
            if stated != choice:
                _warn(name, stated=stated)
        elif (wanted := bos_token_id(loaded.model, stated)) != stored.token:
            raise IngestError(
                f"SAE {name} was trained {_spelled(wanted)} and the contexts are stored "
                f"{_spelled(stored.token)}: ingest it into a database of its own, or give "
                f"{_flag(stored.token is not None)} to add it all the same"
            )


def refuse_other_bos(stored: Bos, choice: bool | None) -> None:
    """Raise `IngestError` if a choice for a database that exists is not what it has."""
    if choice is not None and choice != (stored.token is not None):
        raise IngestError(
            f"the contexts of this database are stored {_spelled(stored.token)}: leave out "
            f"{_flag(choice)}, or ingest into another path with it"
        )


def _stated(loaded: ModelWithSaes) -> dict[str, bool]:
    """What the files of SAEs say, by name, of those that say anything."""
    wanted = {attached.name: attached.sae.prepend_bos for attached in loaded.saes}
    return {name: stated for name, stated in wanted.items() if stated is not None}


def _warn(name: str, *, stated: bool) -> None:
    log.warning(
        f"the files of SAE {name} say that it was trained {'with' if stated else 'without'} a BOS "
        f"token: leave out {_flag(not stated)} if they are right"
    )


def _flag(bos: bool) -> str:
    return "--bos" if bos else "--no-bos"


def _spelled(token: int | None) -> str:
    return "without a BOS token" if token is None else f"with BOS token {token}"
