"""What a database holds, where it comes from, and how large it is."""

from __future__ import annotations

from typing import Any

from featuredb import schemas
from featuredb.results import Info
from featuredb.snapshot import Corpus, Sae
from featuredb.store import Store


def info(store: Store) -> Info:
    """From the snapshot alone: no table is read."""
    snapshot = store.snapshot
    activations = sum(s.rows for s in snapshot.segments)
    return Info(
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
            "keeps_bos": snapshot.recording.keep_bos,
            "keeps_sinks": snapshot.recording.keep_sinks,
            "model": {
                "name": snapshot.model.id,
                "revision": snapshot.model.revision,
                "architecture": snapshot.model.architecture,
                "dtype": snapshot.model.dtype,
                "layers": snapshot.model.n_layers,
                "d_model": snapshot.model.d_model,
                "vocabulary": snapshot.model.vocab_size,
                "sha256": snapshot.model.sha256,
            },
            "saes": [_sae(store, sae) for sae in snapshot.saes],
            "corpora": [_corpus(corpus) for corpus in snapshot.corpora],
        }
    )


def _values(store: Store) -> str:
    kinds = sorted({s.values for s in store.snapshot.segments})
    return " and ".join(kinds) if kinds else "float16"


def _sae(store: Store, sae: Sae) -> dict[str, Any]:
    snapshot = store.snapshot
    tokens, rows = snapshot.recorded_tokens(sae.name), snapshot.rows(sae.name)
    segments = snapshot.segments_of(sae.name)
    sinks = sum(s.sinks.rows for s in segments)
    primary = sum(f.file.bytes for s in segments for f in s.feature_files)
    second = sum(f.file.bytes for s in segments for f in s.token_files)
    return {
        "name": sae.name,
        "features": sae.d_sae,
        "hook": sae.hook,
        "writes_hook": sae.hook_out,
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
        "feature_major_bytes": primary,
        "token_major_bytes": second,
        "bytes_per_activation": (primary + second) / rows if rows else None,
        "variance_explained": sae.check.variance_explained,
        "examples_per_feature": schemas.EXAMPLES_TOP,
    }


def _corpus(corpus: Corpus) -> dict[str, Any]:
    return {
        "name": corpus.id,
        "source": corpus.source,
        "documents": corpus.n_documents,
        "contexts": corpus.n_contexts,
        "tokens": corpus.n_tokens,
        "context_size": corpus.context_size,
        "stride": corpus.stride,
        "metadata": list(corpus.metadata),
        "fingerprint": corpus.fingerprint,
    }
