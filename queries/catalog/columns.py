"""What every column of the catalog's views and tables is, in a few words."""

from __future__ import annotations

from featuredb.store.names import corpus_columns, folded
from featuredb.store.snapshot import Snapshot

COLUMNS = {
    "sae": "name of the SAE",
    "feature_id": "the feature's number in its SAE",
    "document_id": "the document",
    "context_id": "the context",
    "token_index": "index of the token in its context, BOS counted",
    "token_id": "id of the token in the vocabulary",
    "token": "the token's text",
    "tokens": "texts of the tokens around the peak",
    "role": "role of the message that the token is from, null but in chats",
    "activation": "the activation, as it is stored",
    "activations": "activations of the tokens, in their order",
    "token_ids": "ids of the context's tokens, BOS included",
    "token_indexes": "indexes of the context's active tokens",
    "roles": "role of each token",
    "rank": "place in the order, from 1",
    "kind": "0: a top context, 1 to 5: of a fifth of the contexts, weakest fifth first",
    "window_start": "index in the context of the first of the tokens",
    "neighbor_sae": "SAE of the neighbor",
    "neighbor_id": "the neighbor's number in its SAE",
    "score": "cosine of the two directions",
    "norm": "Euclidean norm at the SAE's hook",
    "source": "file or data set that it comes from",
    "source_offset": "row of the source, from 0",
    "text": "the text",
    "n_tokens": "number of tokens",
    "n_contexts": "number of contexts",
    "n_documents": "number of documents",
    "context_index": "place of the context in its document, from 0",
    "token_start": "index of the context's first token in tokens.bin",
    "char_start": "first character of the context in the document's text",
    "char_end": "character after the last of the context in the document's text",
    "count": "number of stored activations",
    "density": "activations divided by recorded tokens",
    "min_activation": "least activation, null if it never fires",
    "max_activation": "greatest activation, null if it never fires",
    "mean_activation": "mean of the activations, null if it never fires",
    "std_activation": "standard deviation of the activations (population)",
    "quantiles": "quantiles q of the activations and their values",
    "histogram": "counts of 40 equal bins from min(0, minimum) to max(0, maximum)",
    "decoder_norm": "length of the decoder direction",
    "top_tokens": "the 20 tokens with the greatest total activation",
    "promoted_tokens": "the 20 tokens that the direction promotes most (logit lens)",
    "suppressed_tokens": "the 20 tokens that the direction suppresses most (logit lens)",
    "bytes": "bytes of the token",
    "special": "whether it is a special token",
    "sae_index": "place in the order of SAEs, from 0",
    "hook": "hook point that the SAE reads",
    "hook_out": "hook point that its output should match",
    "hooks_out": "hook points that it writes, where it writes several",
    "d_in": "numbers it reads per token",
    "d_out": "numbers it writes per token",
    "d_sae": "number of features",
    "architecture": "activation function and shape",
    "format": "format of its files",
    "encode_dtype": "what it computed in",
    "sha256": "hash of its weights",
    "recorded_tokens": "tokens whose activations were recorded",
    "rows": "number of stored activations",
    "l0": "active features per recorded token",
    "variance_explained": "of the load check",
    "ingest": "number of the ingest, from 1",
    "run": "number of the ingest, from 1",
    "started": "when it began, UTC",
    "finished": "when it ended, UTC",
    "featuredb": "version that wrote it",
    "corpus": "name of the corpus",
    "corpus_id": "id of the corpus, the name of its folder",
    "saes": "names of the SAEs",
    "seconds": "how long it took",
    "device": "device of the model",
    "host": "name of the machine",
    "fingerprint": "hash of the corpus and how it was read",
    "context_size": "most tokens per context, BOS included",
    "first_document": "id of its first document, the others follow",
    "first_context": "id of its first context, the others follow",
    "metadata": "names of its own columns in documents",
}
"""By the column's name, where it is the same in every view that has it."""

_ELSE = {
    ("windows", "activation"): "the context's maximum",
    ("windows", "token_index"): "index of the first token that reaches the maximum",
    ("windows", "token"): "text of that token",
    ("windows", "activations"): "activations of the tokens, 0 where it is not active",
    ("examples", "activation"): "the context's maximum",
    ("examples", "token_index"): "index of the first token that reaches the maximum",
    ("examples", "rank"): "place within its kind, from 1",
    ("examples", "activations"): "activations of the active tokens, in their order",
    ("coactivation", "score"): "Jaccard index of the two sets of active tokens",
    ("ingests", "corpus"): "ids of the corpora",
    ("runs", "corpus"): "ids of the corpora",
    ("documents", "n_tokens"): "number of tokens, BOS not counted",
    ("contexts", "n_tokens"): "number of tokens, BOS counted",
    ("features", "n_contexts"): "contexts it fires in",
    ("features", "n_documents"): "documents it fires in",
    **{
        (view, column): about
        for view in ("document_features", "context_features")
        for column, about in {
            "max_activation": "greatest activation in it",
            "sum_activation": "sum of the activations in it",
            "n_tokens": "number of activations in it",
        }.items()
    },
    ("vocabulary", "text"): "the token's text",
    ("saes", "source"): "where it was loaded from",
    ("ingests", "tokens"): "number of tokens",
    ("ingests", "activations"): "number of activations",
    ("runs", "tokens"): "number of tokens",
    ("runs", "activations"): "number of activations",
}
"""By view and column, where a column is something else there."""


def about_column(snapshot: Snapshot, relation: str, column: str) -> str:
    """What a column is."""
    if relation == "documents":
        if folded(column) in {folded(n) for corpus in snapshot.corpora for n in corpus.metadata}:
            return "a column of the corpus"
        ours = dict(zip(corpus_columns(snapshot), ("corpus", "corpus_id"), strict=True))
        column = ours.get(column, column)
    return _ELSE.get((relation, column)) or COLUMNS[column]
