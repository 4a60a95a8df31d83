"""What a command is given, looked at before torch is imported: a mistyped path fails at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featuredb.errors import SaeError
from featuredb.store.history import refuse_nothing_to_write_to
from featuredb.store.layout import Layout
from ingest.corpus.hub import PREFIX
from ingest.corpus.locate import near, refuse_missing
from ingest.model.files import local

_SAE_PREFIXES = ("hf:", "sae-lens:")
_MEMBER = "layer_"
"""How members of a set of SAEs are named below its folder, where no such file need be."""


def check_paths(
    *,
    database: Path | None = None,
    corpus: Any = None,
    model: str | os.PathLike[str] | None = None,
    saes: Sequence[str | os.PathLike[str]] | None = None,
) -> None:
    """Raise the error of what is not there.

    database: one that has to exist. corpus, model, saes: as of `featuredb.ingest`, None for those
    that are not given. What may be on the hub, and what is no path, is left for later.
    """
    if database is not None:
        refuse_nothing_to_write_to(Layout(database.expanduser().resolve()))
    if isinstance(corpus, str | os.PathLike):
        source = str(os.fspath(corpus))
        if source != "-" and not source.startswith(PREFIX):
            refuse_missing(source)
    if model is not None:
        local(os.fspath(model))
    for sae in saes or ():
        path = Path(sae).expanduser()
        on_a_hub = isinstance(sae, str) and sae.startswith(_SAE_PREFIXES)
        member = path.name.startswith(_MEMBER) and path.parent.is_dir()
        if not (on_a_hub or member or path.exists()):
            raise SaeError(f"no SAE at {path}: {near(path)}")
