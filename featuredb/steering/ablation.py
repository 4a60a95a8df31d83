"""The causal check of features, stored."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from featuredb.steering.causal import ablate_each
from featuredb.steering.effects import Ablated, ablated
from featuredb.store.files.remote import local_folder
from featuredb.store.names import parse_feature
from featuredb.store.store import Store
from featuredb.store.user_data import ABLATED
from ingest.operations.user_data import refuse_no_writing, write_user_data
from queries.connection import Reader
from queries.labels import with_labels


def effect(
    reader: Reader,
    features: Sequence[int | str],
    k: int,
    sample: bool,
    seed: int,
    model: str | None,
    *,
    save: bool,
) -> Ablated:
    """See `featuredb.Database.effect`."""
    root = reader.store.root
    if not save:
        return Ablated(_named(reader, ablate_each(reader, features, k, sample, seed, model)))
    folder = local_folder(root if not hasattr(root, "url") else root.url, "storing effects")
    refuse_no_writing(folder, "effect")
    rows = ablate_each(reader, features, k, sample, seed, model)
    write_user_data(folder, ABLATED, rows, "effect")
    names = [parse_feature(reader.snapshot, feature) for feature in features]
    live = Reader(Store.open(folder))
    try:
        return ablated(live, [(sae.name, number) for sae, number in names])
    finally:
        live.close()


def _named(reader: Reader, rows: pa.Table) -> pa.Table:
    """The rows with the SAE's name for what it is, and labels."""
    names = {(s.sha256, s.hook): s.name for s in reader.snapshot.saes}
    keys = zip(rows.column("sae_sha256").to_pylist(), rows.column("hook").to_pylist(), strict=True)
    sae = pa.array([names[key] for key in keys])
    named = rows.drop(["sae_sha256", "hook"]).add_column(0, "sae", sae)
    ordered = named.sort_by([("sae", "ascending"), ("feature_id", "ascending")])
    return with_labels(reader.store, ordered)
