"""A sparse classifier of pooled activations, beside a bag of words, on the same split.

**Probe.** Logistic regression with an L1 penalty on the pooled activations of the `CANDIDATES`
features of most evidence on the training part, each divided by its largest absolute value there.
The weakest penalty of `PENALTIES` that leaves at most K features chooses them; they are fitted
again with little penalty, as that of L1 shrinks their weights.

**Bag of words.** Logistic regression with an L2 penalty on tf-idf of words in at least two
documents, all of them: the plain alternative that needs no SAE.

Both classes weigh the same. Strengths are chosen without looking at the held-out part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featuredb.errors import MissingExtraError, QueryError
from featuredb.render import numbers
from queries.connection import Reader
from queries.contrasts.chosen import Compared
from queries.contrasts.scores import Scores
from queries.pooled import Pairs
from queries.rules.tree import feature_text
from queries.sql import duckdb_errors

CANDIDATES = 1_000
PENALTIES = np.logspace(-3, 2, 26)
"""sklearn's C, the inverse of the penalty's weight, strongest penalty first."""


def probe(
    reader: Reader,
    compared: Compared,
    scores: Scores,
    tested: npt.NDArray[np.bool_],
    side: npt.NDArray[np.uint8],
    train: npt.NDArray[np.bool_],
    held: npt.NDArray[np.bool_],
    k: int,
) -> dict[str, Any]:
    """Fit on `train`, measure on `held`. All bool per unit; side: 1 in A, 2 in B.

    Returns:
        features: list of {feature, weight, scale}, strongest first: the score of a unit is
        ``intercept + Σ weight · activation / scale``, above 0 for A. auroc, auroc_words: on the
        held-out units. n_train, n_held. about: the same in words. rule: the same as the rule of a
        monitor, which holds at the end of a document of A, None for others than documents' maxima.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        import scipy.sparse  # noqa: F401
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise MissingExtraError(
            "scikit-learn is not installed: pip install 'featuredb[probes]'"
        ) from error
    rows = scores.best(tested, CANDIDATES)
    if not len(rows):
        raise QueryError("no feature is within the bounds: a probe has nothing to choose from")
    units = np.flatnonzero(side)
    matrix = _matrix(reader, compared, scores, rows, units)
    is_train, is_held = train[units], held[units]
    y = side[units] == 1
    scale = abs(matrix[is_train]).max(axis=0).toarray().ravel()
    scale[scale == 0] = 1
    scaled = matrix.multiply(1 / scale).tocsr()

    def fitted(columns: npt.NDArray[np.int64], c: float, l1: bool) -> Any:
        model = LogisticRegression(
            C=c, l1_ratio=float(l1), solver="liblinear", class_weight="balanced", random_state=0
        )
        return model.fit(scaled[is_train][:, columns], y[is_train])

    every = np.arange(len(rows))
    chosen = every[:1]
    for c in PENALTIES:
        weights = fitted(every, c, True).coef_.ravel()
        if np.count_nonzero(weights) > k:
            break
        if weights.any():
            chosen = np.flatnonzero(weights)
    model = fitted(chosen, 10.0, False)
    weights = model.coef_.ravel()
    own = scaled[is_held][:, chosen]
    auroc = float(roc_auc_score(y[is_held], model.decision_function(own)))
    words = _bag_of_words(_texts(reader, compared, units), y, is_train, is_held)
    order = np.argsort(-np.abs(weights), kind="stable")
    named = [
        f"{scores.saes[int(scores.sae[rows[i]])].name}/{int(scores.feature[rows[i]])}"
        for i in chosen[order].tolist()
    ]
    shown = ", ".join(named[:8]) + (" …" if len(named) > 8 else "")
    features = [
        {"feature": name, "weight": float(weights[i]), "scale": float(scale[chosen[i]])}
        for name, i in zip(named, order.tolist(), strict=True)
    ]
    intercept = float(model.intercept_[0])
    of = compared.units
    whole = compared.pool == "max" and of.kind == "document" and of.on is None
    beside = "no word" if words is None else f"{words:.3f} of a bag of words"
    return {
        "features": features,
        "intercept": intercept,
        "rule": _rule(features, intercept) if whole else None,
        "auroc": auroc,
        "auroc_words": words,
        "n_train": int(is_train.sum()),
        "n_held": int(is_held.sum()),
        "about": f"{numbers.plural(len(chosen), 'feature')}, AUROC {auroc:.3f} on "
        f"{int(is_held.sum())} held out, beside {beside}: {shown}",
    }


def _rule(features: Sequence[dict[str, Any]], intercept: float) -> str:
    """The score above 0 as a rule: the largest activations so far are those of a document."""
    terms = []
    for each in features:
        sae, _, number = each["feature"].rpartition("/")
        weight = each["weight"] / each["scale"]
        terms.append(f"{weight!r} * peak({feature_text(sae, int(number))})")
    return f"{' + '.join(terms)} > {-intercept!r}"


def _matrix(
    reader: Reader,
    compared: Compared,
    scores: Scores,
    rows: npt.NDArray[np.int64],
    units: npt.NDArray[np.int64],
) -> Any:
    """Pooled activations of some features of some units, CSR [units, rows]."""
    import scipy.sparse

    place = np.full(compared.n, -1, np.int64)
    place[units] = np.arange(len(units))
    parts = []
    for index, sae in enumerate(compared.saes):
        column = np.full(sae.d_sae, -1, np.int64)
        own = np.flatnonzero(scores.sae[rows] == index)
        column[scores.feature[rows[own]]] = own

        def picked(pairs: Pairs, column: npt.NDArray[np.int64] = column) -> Any:
            at, unit = column[pairs.first + pairs.feature], place[pairs.unit]
            wanted = (at >= 0) & (unit >= 0)
            return unit[wanted], at[wanted], pairs.value[wanted]

        parts += list(compared.map(reader, sae, picked))
    unit, at, value = (np.concatenate(c) for c in zip(*parts, strict=True))
    shape = len(units), len(rows)
    return scipy.sparse.csr_matrix((value.astype(np.float64), (unit, at)), shape=shape)


def _texts(reader: Reader, compared: Compared, units: npt.NDArray[np.int64]) -> list[str] | None:
    """The text of each unit. None where some document has none, or units are no documents."""
    stored = compared.units
    if stored.kind != "document":
        return None
    with duckdb_errors(reader.location):
        relation = reader.cursor().sql("SELECT document_id, text FROM documents ORDER BY 1")
        table = relation.to_arrow_table()
    texts = table.column("text").to_pylist() + [text for _, text in compared.texts]
    chosen = [texts[i] for i in units.tolist()]
    return None if any(text is None for text in chosen) else chosen


def _bag_of_words(
    texts: list[str] | None,
    y: npt.NDArray[np.bool_],
    is_train: npt.NDArray[np.bool_],
    is_held: npt.NDArray[np.bool_],
) -> float | None:
    """The held-out AUROC of words, None without any."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    if texts is None:
        return None
    train = [text for text, chosen in zip(texts, is_train, strict=True) if chosen]
    held = [text for text, chosen in zip(texts, is_held, strict=True) if chosen]
    words = TfidfVectorizer(min_df=2, sublinear_tf=True)
    try:
        matrix = words.fit_transform(train)
    except ValueError:  # no word is in two documents
        return None
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1_000)
    model.fit(matrix, y[is_train])
    return float(roc_auc_score(y[is_held], model.decision_function(words.transform(held))))
