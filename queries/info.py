"""What a database holds, where it comes from, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import msgspec

from featuredb.render import numbers
from featuredb.render.view import Column, Facts, Heading, Part, Table, View
from featuredb.store import schemas
from featuredb.store.snapshot import Corpus, Sae, Snapshot
from featuredb.store.store import Store
from featuredb.store.values import RELATIVE_ERROR
from queries.answers import Info
from queries.connection import Reader
from queries.question import Question


@dataclass(frozen=True, repr=False)
class DatabaseInfo(Info):
    """What a database holds. Shown are the main things, the data and every format have all."""

    def view(self) -> View:
        """The model, the texts, the SAEs and the corpora."""
        return View([*self._sections(), [Heading("", "", _THE_REST)]])

    def _sections(self) -> list[list[Part]]:
        data = self.data
        model = data["model"]
        kept = [name for name, keeps in (("BOS", "keeps_bos"), ("sinks", "keeps_sinks"))
                if data[keeps]]  # fmt: skip
        sizes = sorted(data["size"].items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name.removesuffix('_bytes')} {numbers.size(n)}" for name, n in sizes)
        after = f" · snapshot {data['snapshot']} · {data['created'][:16].replace('T', ' ')}"
        facts = {
            "model": f"{model['name']} · {numbers.plural(model['layers'], 'layer')} · "
            f"d_model {model['d_model']} · {model['dtype']}"
            + (" · compiled" if model["compiled"] else ""),
            "texts": f"{numbers.plural(data['documents'], 'document')} · "
            f"{numbers.plural(data['contexts'], 'context')} · "
            f"{numbers.plural(data['tokens'], 'token')}",
            "activations": f"{numbers.count(data['activations'])} · {data['values']}"
            + "".join(f" · at {name} too" for name in kept),
            "size": f"{numbers.size(data['bytes'])}: {parts}",
            "pooled": f"per document, context and turn: {data['pooled']['how']}, "
            f"{numbers.size(data['pooled']['bytes'])}",
        }
        return [
            [Heading("", PurePosixPath(data["path"]).name, after), Facts(facts)],
            [_saes(data["saes"])],
            [_corpora(data["corpora"])],
        ]


_THE_REST = "sources, hashes and the size of every part: featuredb info DB --format json"


@dataclass(frozen=True, repr=False)
class Overview(DatabaseInfo):
    """What a notebook shows of an open database: what it holds, and what to ask next."""

    feature: str = "0"

    def view(self) -> View:
        """What it holds, and a few questions."""
        asked = {
            'db.search("music")': "features by the words they fire on",
            f"db.feature({self.feature})": "all about one feature",
            f"db.top_contexts({self.feature})": "where it fires most",
            'db.fires_on("a text")': "what fires on a text",
            "db.schema()": "the views and macros of db.sql(…)",
        }
        names = Column("ask next", list(asked), style="bold")
        table = Table([names, Column("", list(asked.values()), wrap=True)])
        return View([*self._sections(), [table]])


def _saes(saes: Sequence[Mapping[str, Any]]) -> Table:
    def column(name: str, cells: Sequence[str], **options: Any) -> Column:
        return Column(name, cells, right=True, **options)

    return Table(
        [
            Column("SAE", [sae["name"] for sae in saes], style="bold"),
            column("features", [numbers.count(sae["features"]) for sae in saes]),
            column("activations", [numbers.count(sae["activations"]) for sae in saes]),
            column("L0", [_number(sae["l0"]) for sae in saes]),
            column("explained", [_number(sae["variance_explained"]) for sae in saes]),
            Column("hook", [sae["hook"] for sae in saes], wrap=True),
        ]
    )


def _corpora(corpora: Sequence[Mapping[str, Any]]) -> Table:
    sizes = ("documents", "contexts", "tokens")
    return Table(
        [
            Column("corpus", [corpus["name"] for corpus in corpora], style="bold"),
            *(Column(n, [numbers.count(c[n]) for c in corpora], right=True) for n in sizes),
            Column("columns", [", ".join(c["metadata"]) or "none" for c in corpora], wrap=True),
        ]
    )


def _number(value: float | None) -> str:
    return numbers.MISSING if value is None else numbers.number(value)


def overview(reader: Reader) -> Overview:
    """What a notebook shows of the database."""
    saes = reader.store.snapshot.saes
    number = min(12, saes[0].d_sae - 1)
    feature = str(number) if len(saes) == 1 else f'"{saes[0].name}/{number}"'
    return Overview(info(reader).data, feature)


def info(reader: Reader) -> DatabaseInfo:
    """What the database holds, where it comes from, how large it is. Reads only the snapshot."""
    store = reader.store
    snapshot = store.snapshot
    activations = sum(s.rows for s in snapshot.segments)
    return DatabaseInfo(
        {
            "path": str(store.root),
            "snapshot": snapshot.number,
            "created": snapshot.created,
            "format_version": snapshot.format,
            "written_by": f"featuredb {snapshot.featuredb}",
            "documents": sum(c.n_documents for c in snapshot.corpora),
            "contexts": sum(c.n_contexts for c in snapshot.corpora),
            "tokens": sum(c.n_tokens for c in snapshot.corpora),
            "activations": activations,
            "bytes": sum(f.bytes for f in snapshot.files()),
            "values": _values(store),
            "largest_relative_error": RELATIVE_ERROR[snapshot.recording.values],
            "keeps_bos": snapshot.recording.keep_bos,
            "keeps_sinks": snapshot.recording.keep_sinks,
            "model": {
                "name": snapshot.model.id,
                "revision": snapshot.model.revision,
                "architecture": snapshot.model.architecture,
                "dtype": snapshot.model.dtype,
                "compiled": snapshot.model.compiled,
                "layers": snapshot.model.n_layers,
                "d_model": snapshot.model.d_model,
                "vocabulary": snapshot.model.vocab_size,
                "sha256": snapshot.model.sha256,
            },
            "saes": [_sae(store, sae) for sae in snapshot.saes],
            "size": _sizes(snapshot),
            "pooled": {"how": "computed when asked", "bytes": 0},
            "corpora": [_corpus(corpus) for corpus in snapshot.corpora],
        }
    )


def _values(store: Store) -> str:
    """What activations are rounded to, and float32 where some were too large for that."""
    rounded = store.snapshot.recording.values
    wide = any(s.values == "float32" for s in store.snapshot.segments)
    return f"{rounded} and float32" if wide and rounded != "float32" else rounded


def _sizes(snapshot: Snapshot) -> dict[str, int]:
    """Bytes below each folder of the database, as docs/format.md has them. Their sum is `bytes`."""
    sizes: dict[str, int] = {}
    for file in snapshot.files():
        folder = PurePosixPath(PurePosixPath(file.path).parts[0]).stem
        sizes[f"{folder}_bytes"] = sizes.get(f"{folder}_bytes", 0) + file.bytes
    return sizes


def _examples(snapshot: Snapshot, sae: str) -> int:
    tables = next(t for t in snapshot.derived.saes if t.sae == sae)
    windows = sum(part.file.bytes for part in tables.windows)
    return tables.examples.bytes + tables.examples_directory.bytes + windows


def _activations(snapshot: Snapshot, sae: str) -> dict[str, int]:
    """Bytes of an SAE's activations by part."""
    segments = snapshot.segments_of(sae)
    order = snapshot.sae(sae).order
    return {
        "by_feature": sum(f.file.bytes for s in segments for f in s.feature_files),
        "by_token": sum(f.file.bytes for s in segments for f in s.token_files),
        "directory": sum(s.directory.bytes for s in segments),
        "feature_order": order.bytes if order is not None else 0,
        "sinks": sum(s.sinks.bytes for s in segments),
    }


def _sae(store: Store, sae: Sae) -> dict[str, Any]:
    snapshot = store.snapshot
    tokens, rows = snapshot.recorded_tokens(sae.name), snapshot.rows(sae.name)
    segments = snapshot.segments_of(sae.name)
    sinks = sum(s.sinks.rows for s in segments)
    parts = _activations(snapshot, sae.name)
    both = parts["by_feature"] + parts["by_token"]
    parts["examples"] = _examples(snapshot, sae.name)
    return {
        "name": sae.name,
        "features": sae.d_sae,
        "hook": sae.hook,
        "writes_hook": sae.hook_out,
        "hooks_out": list(sae.writes),
        "d_in": sae.d_in,
        "architecture": sae.architecture,
        "format": sae.format,
        "source": sae.source,
        "sha256": sae.sha256,
        "recorded_tokens": tokens,
        "activations": rows,
        "l0": rows / tokens if tokens else None,
        "sinks": sinks,
        "segments": len(segments),
        "bytes_per_activation": both / rows if rows else None,
        "variance_explained": snapshot.variance_explained(sae),
        "load_check": [msgspec.structs.asdict(check) for check in sae.checks],
        "examples_per_feature": schemas.EXAMPLES_TOP,
        "size": {f"{part}_bytes": size for part, size in parts.items()},
        "size_per_activation": {part: size / rows for part, size in parts.items()} if rows else {},
    }


def _corpus(corpus: Corpus) -> dict[str, Any]:
    return {
        "name": corpus.called,
        "id": corpus.id,
        "source": corpus.source,
        "documents": corpus.n_documents,
        "contexts": corpus.n_contexts,
        "tokens": corpus.n_tokens,
        "context_size": corpus.context_size,
        "stride": corpus.stride,
        "bos_token_id": corpus.bos_token_id,
        "bos_from": corpus.bos_from,
        "metadata": list(corpus.metadata),
        "fingerprint": corpus.fingerprint,
    }


QUESTION = Question("info", DatabaseInfo, "info")
