"""A feature database and query engine for sparse-autoencoder features of language models.

>>> import featuredb
>>> db = featuredb.open("demo.fdb")  # doctest: +SKIP
>>> db.top_contexts(1234)  # doctest: +SKIP

Queries never need torch. `ingest`, `plan`, `append`, `add_saes` and `load_sae` need the extra
``featuredb[ingest]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featuredb.errors import FeatureDBError
from featuredb.version import __version__

if TYPE_CHECKING:
    from featuredb.api import (
        add_monitor,
        add_saes,
        append,
        card,
        compact,
        demo,
        drop,
        explain,
        export_activations,
        export_labels,
        import_activations,
        import_labels,
        ingest,
        load_sae,
        make_labels,
        map_features,
        mcp,
        measure,
        open,
        plan,
        pull,
        push,
        serve,
        set_monitor,
        site,
        snapshots,
        vacuum,
        verify,
    )
    from featuredb.types import (
        Activations,
        Compacted,
        Database,
        Edit,
        Encoded,
        Explained,
        FeatureCard,
        Firing,
        Info,
        Labeled,
        Labels,
        Neighbors,
        Outcome,
        Problem,
        Report,
        Rows,
        SearchHits,
        Snapshot,
        TopContexts,
        Transfer,
        Vacuumed,
    )

__all__ = [
    "Activations",
    "Compacted",
    "Database",
    "Edit",
    "Encoded",
    "Explained",
    "FeatureCard",
    "FeatureDBError",
    "Firing",
    "Info",
    "Labeled",
    "Labels",
    "Neighbors",
    "Outcome",
    "Problem",
    "Report",
    "Rows",
    "SearchHits",
    "Snapshot",
    "TopContexts",
    "Transfer",
    "Vacuumed",
    "__version__",
    "add_monitor",
    "add_saes",
    "append",
    "card",
    "compact",
    "demo",
    "drop",
    "explain",
    "export_activations",
    "export_labels",
    "import_activations",
    "import_labels",
    "ingest",
    "load_sae",
    "make_labels",
    "map_features",
    "mcp",
    "measure",
    "open",
    "plan",
    "pull",
    "push",
    "serve",
    "set_monitor",
    "site",
    "snapshots",
    "vacuum",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import featuredb` is instant."""
    if name not in __all__:
        raise AttributeError(f"module 'featuredb' has no attribute {name!r}")
    if name[0].isupper():
        from featuredb import types

        return getattr(types, name)
    from featuredb import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
