"""A feature database and query engine for sparse-autoencoder features of language models.

>>> import featuredb
>>> db = featuredb.open("demo.fdb")  # doctest: +SKIP
>>> db.top_contexts(1234)  # doctest: +SKIP

Reading never needs torch; `ingest`, `plan` and `load_sae` need the extra ``featuredb[ingest]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featuredb.errors import FeatureDBError
from featuredb.version import __version__

if TYPE_CHECKING:
    from featuredb.api import (
        add_saes,
        append,
        compact,
        drop,
        ingest,
        load_sae,
        open,
        plan,
        pull,
        push,
        snapshots,
        vacuum,
        verify,
    )
    from featuredb.database import Database

__all__ = [
    "Database",
    "FeatureDBError",
    "__version__",
    "add_saes",
    "append",
    "compact",
    "drop",
    "ingest",
    "load_sae",
    "open",
    "plan",
    "pull",
    "push",
    "snapshots",
    "vacuum",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load the public names on first use: `import featuredb` itself stays instant."""
    if name in __all__:
        return getattr(importlib.import_module("featuredb.api"), name)
    raise AttributeError(f"module 'featuredb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
