"""The answers to the cookbook's questions, from the arrays that its store was made from.

Plain pandas over every activation, sharing nothing with the store. `ANSWERS` has one function per
heading. Its rows are those of the statement, in order, rounded as the statement rounds.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tests.directions import cosines_of_all
from tests.make_store import World, stored

Rows = list[tuple[Any, ...]]
HEAD, DAY, MONTH, MUSIC, WORKS = range(5)
"""What stands in for the features of the page's table."""


@dataclass
class Arrays:
    """A world as frames. a: activations. tokens: all, BOS included. f: features."""

    world: World
    a: pd.DataFrame
    tokens: pd.DataFrame
    documents: pd.DataFrame
    contexts: pd.DataFrame
    f: pd.DataFrame
    cosines: np.ndarray

    def of(self, feature: int) -> pd.DataFrame:
        return self.a[self.a.feature_id == feature]

    def top(self, feature: int) -> list[str]:
        """The five tokens it fires on most, by summed activation."""
        mass = self.of(feature).groupby("token_id").activation.sum()
        ids = sorted(mass.index, key=lambda i: (-mass[i], i))[:5]
        return [self.world.vocabulary[i] for i in ids]


def arrays(world: World) -> Arrays:
    (sae,) = world.saes
    documents = pd.DataFrame(world.metadata)
    documents["document_id"] = range(len(documents))
    documents["n_tokens"] = [sum(len(c) - 1 for c in own) for own in world.documents]
    places = [(d, i) for d, own in enumerate(world.documents) for i in range(len(own))]
    contexts = pd.DataFrame(places, columns=["document_id", "context_index"])
    contexts["context_id"] = range(len(contexts))
    contexts["n_tokens"] = [len(c) for c in world.contexts]
    about = contexts.drop(columns="n_tokens").merge(documents.drop(columns="n_tokens"))
    tokens = pd.DataFrame(
        [(c, i, t) for c, ids in enumerate(world.contexts) for i, t in enumerate(ids)],
        columns=["context_id", "token_index", "token_id"],
    )
    tokens["token"] = [world.vocabulary[t] for t in tokens.token_id]
    tokens = tokens.merge(about, on="context_id")
    active = [
        (c, int(t), int(f), float(dense[t, f]))
        for c, dense in enumerate(stored(world, sae))
        for t, f in zip(*np.nonzero(dense), strict=True)
    ]
    a = pd.DataFrame(active, columns=["context_id", "token_index", "feature_id", "activation"])
    a = a.merge(tokens, on=["context_id", "token_index"]).sort_values(
        ["feature_id", "context_id", "token_index"], ignore_index=True
    )
    f = pd.DataFrame({"feature_id": range(len(sae.decoder))})
    groups = a.groupby("feature_id")
    f["count"] = f.feature_id.map(groups.size()).fillna(0).astype(int)
    f["density"] = f["count"] / (len(tokens) - len(contexts))
    f["max"] = f.feature_id.map(groups.activation.max())
    f["mean"] = f.feature_id.map(groups.activation.mean())
    f["n_documents"] = f.feature_id.map(groups.document_id.nunique()).fillna(0).astype(int)
    f["norm"] = np.linalg.norm(sae.decoder.astype(float), axis=1).astype(np.float32)
    cosines = cosines_of_all(sae.decoder)
    np.fill_diagonal(cosines, -2)
    return Arrays(world, a, tokens, documents, contexts, f, cosines)


def rows(frame: pd.DataFrame, by: list[str], ascending: list[bool], k: int | None = None) -> Rows:
    """Sorted rows, the columns that are not shown (beginning with an underscore) left out."""
    frame = frame.sort_values(by, ascending=ascending, kind="stable").head(k or len(frame))
    return list(frame[[c for c in frame.columns if c[0] != "_"]].itertuples(index=False, name=None))


def half_up(value: float, decimals: int) -> float:
    scale = 10.0**decimals
    return math.floor(value * scale + 0.5) / scale


ANSWERS: dict[str, Callable[[Arrays], Rows]] = {}


def answers(heading: str) -> Callable[[Callable[[Arrays], Rows]], Callable[[Arrays], Rows]]:
    def keep(function: Callable[[Arrays], Rows]) -> Callable[[Arrays], Rows]:
        assert heading not in ANSWERS
        ANSWERS[heading] = function
        return function

    return keep


def _with_top(x: Arrays, frame: pd.DataFrame, by: list[str], up: list[bool], k: int) -> Rows:
    """Rows that end in the feature's tokens. The second column is the feature."""
    return [(*row, x.top(row[1])) for row in rows(frame, by, up, k)]


@answers("Which features are densest?")
def _(x: Arrays) -> Rows:
    frame = x.f.assign(sae="sae")[["sae", "feature_id", "density", "max"]]
    return _with_top(x, frame, ["density", "feature_id"], [False, True], 10)


@answers("How are densities distributed?")
def _(x: Arrays) -> Rows:
    halves = Counter(math.floor(2 * math.log10(d)) / 2 if d else None for d in x.f.density.tolist())
    return sorted(halves.items(), key=lambda item: -math.inf if item[0] is None else item[0])[::-1]


@answers("Which features are rare but strong?")
def _(x: Arrays) -> Rows:
    frame = x.f[(x.f.density < 0.001) & (x.f["count"] > 0)].assign(
        sae="sae", strength=lambda f: f["max"] * f.norm
    )[["sae", "feature_id", "count", "n_documents", "strength"]]
    return _with_top(x, frame, ["strength", "feature_id"], [False, True], 10)


@answers("What does one feature's distribution look like?")
def _(x: Arrays) -> Rows:
    values = x.of(HEAD).activation.to_numpy(np.float32).astype(float)
    width = values.max() / 40
    bins = Counter(min(40, max(1, math.ceil(v / width - 1e-9))) for v in values)
    return [(b, half_up((b - 1) * width, 2), bins[b]) for b in sorted(bins)]


@answers("Which features never fire?")
def _(x: Arrays) -> Rows:
    frame = x.f[x.f["count"] == 0]
    return [("sae", r.feature_id, half_up(r.norm, 3)) for r in frame.itertuples()]


@answers("How much of a feature's firing is weak?")
def _(x: Arrays) -> Rows:
    values = x.of(MUSIC).activation
    tenths = np.minimum(9, np.floor(10 * values / values.max())).astype(int).value_counts()
    return [(t, n, half_up(n / len(values), 4)) for t, n in sorted(tenths.items())]


@answers("Which features have a maximum far above the rest?")
def _(x: Arrays) -> Rows:
    found = []
    for row in x.f[x.f["count"] >= 20].itertuples():
        values = np.sort(x.of(row.feature_id).activation)
        q = values[math.ceil(0.99 * len(values)) - 1]
        found.append(("sae", row.feature_id, len(values), values[-1], half_up(values[-1] / q, 2)))
    return sorted(found, key=lambda r: (-r[4], r[1]))[:10]


@answers("How many features carry half of all activation?")
def _(x: Arrays) -> Rows:
    mass = (x.a.groupby("feature_id").activation.sum() * x.f.set_index("feature_id").norm).dropna()
    running = mass.sort_values(ascending=False).cumsum()
    return [("sae", int((running < mass.sum() / 2).sum()) + 1, len(mass))]


@answers("Which tokens does a feature fire on, and how reliably?")
def _(x: Arrays) -> Rows:
    own = x.of(HEAD).groupby("token_id").activation.agg(["size", "mean"])
    occurs = x.tokens.groupby("token_id").size()
    found = [
        (x.world.vocabulary[t], n, occurs[t], half_up(n / occurs[t], 3), half_up(m, 2))
        for t, n, m in own.itertuples()
    ]
    return sorted(found, key=lambda r: -r[1])[:15]


@answers("Which features fire on a word?")
def _(x: Arrays) -> Rows:
    here = x.a[x.a.token == " king"].groupby("feature_id").size()
    occurs = int((x.tokens.token == " king").sum())
    counts = x.f.set_index("feature_id")["count"]
    found = [
        ("sae", f, n, half_up(n / occurs, 3), half_up(n / counts[f], 3)) for f, n in here.items()
    ]
    return sorted(found, key=lambda r: (-r[2], r[1]))[:15]


@answers("Which features fire on punctuation?")
def _(x: Arrays) -> Rows:
    marked = x.a.assign(
        mark=[bool(t.strip()) and set(t.strip()) <= set(string.punctuation) for t in x.a.token]
    )
    own = marked.groupby("feature_id").mark.agg(["sum", "size"])
    found = [
        ("sae", f, int(n), half_up(n / size, 3)) for f, n, size in own.itertuples() if size >= 20
    ]
    return sorted(found, key=lambda r: (-r[3], -r[2], r[1]))[:15]


@answers("Which features fire on one token only?")
def _(x: Arrays) -> Rows:
    found = []
    for feature, own in x.a.groupby("feature_id"):
        if own.token_id.nunique() == 1:
            documents = own.document_id.nunique()
            found.append(("sae", feature, own.token.iloc[0], len(own), documents))
    return sorted(found, key=lambda r: (-r[3], r[1]))[:15]


def _beside(x: Arrays, feature: int, step: int) -> pd.DataFrame:
    own = x.of(feature)[["context_id", "token_index", "activation"]].copy()
    own["token_index"] += step
    return own.merge(x.tokens, on=["context_id", "token_index"])


@answers("What stands right before a feature fires?")
def _(x: Arrays) -> Rows:
    own = _beside(x, HEAD, -1).groupby("token").activation.agg(["size", "mean"])
    found = [(t, n, half_up(m, 2)) for t, n, m in own.itertuples()]
    return sorted(found, key=lambda r: (-r[1], r[0]))[:10]


@answers("What comes right after?")
def _(x: Arrays) -> Rows:
    own = _beside(x, HEAD, 1).groupby("token").size()
    return sorted(own.items(), key=lambda r: (-r[1], r[0]))[:10]


@answers("Which tokens have the most active features?")
def _(x: Arrays) -> Rows:
    places = x.a.groupby(["token", "context_id", "token_index"]).size()
    own = places.groupby("token").agg(["size", "mean"])
    found = [(-m, t, n) for t, n, m in own.itertuples() if n >= 10]
    return [("sae", t, n, half_up(-m, 2)) for m, t, n in sorted(found)[:10]]


@answers("How soon does a feature fire again?")
def _(x: Arrays) -> Rows:
    gaps = x.of(HEAD).groupby("context_id").token_index.diff().dropna().astype(int)
    return sorted(Counter(gaps.tolist()).items())[:20]


@answers("Does a feature fire more strongly later in a context?")
def _(x: Arrays) -> Rows:
    own = x.of(HEAD).merge(x.contexts[["context_id", "n_tokens"]], on="context_id")
    late = 2 * own.token_index >= own.n_tokens
    corr = np.corrcoef(own.token_index, own.activation)[0, 1]
    halves = (own.activation[~late].mean(), own.activation[late].mean())
    return [(half_up(corr, 3), *(half_up(h, 2) for h in halves))]


@answers("Which features promote a word?")
def _(x: Arrays) -> Rows:
    frame = x.f[x.f["count"] > 0].assign(sae="sae", place=3, _count=lambda f: f["count"])
    frame = frame[["sae", "feature_id", "place", "_count"]]
    return _with_top(x, frame, ["_count", "feature_id"], [False, True], 10)


@answers("Which features promote the tokens they fire on?")
def _(x: Arrays) -> Rows:
    found = []
    for feature, own in x.a.groupby("feature_id"):
        mass = own.groupby("token_id").activation.sum()
        top = sorted(mass.index, key=lambda i: (-mass[i], i))[:10]
        names = {x.world.vocabulary[i].strip().lower() for i in top}
        shared = sorted(n for n in names & {"music", "the", "of"} if len(n) > 1)
        if shared:
            found.append(("sae", feature, shared))
    return sorted(found, key=lambda r: (-len(r[2]), r[1]))[:15]


@answers("Where in a context does a feature fire?")
def _(x: Arrays) -> Rows:
    own = x.of(HEAD)
    part = own.token_index * 16 // x.contexts.n_tokens.max()
    groups = own.activation.groupby(part).agg(["size", "mean"])
    return [(p, n, half_up(m, 2)) for p, n, m in groups.itertuples()]


@answers("What is the longest unbroken run of one feature?")
def _(x: Arrays) -> Rows:
    found = []
    for (feature, context), own in x.a.groupby(["feature_id", "context_id"]):
        indexes = set(own.token_index)
        for start in indexes:
            if start - 1 not in indexes:
                length = next(n for n in range(1, 99) if start + n not in indexes)
                found.append(("sae", feature, context, start, length))
    # Ties go by feature and context. A context may have two runs of one length.
    return sorted(found, key=lambda r: (-r[4], *r[1:4]))[:10]


@answers("Which positions were left out as sinks?")
def _(x: Arrays) -> Rows:
    return []


@answers("Which features belong to one topic?")
def _(x: Arrays) -> Rows:
    counts = x.f.set_index("feature_id")["count"]
    found = []
    for (feature, topic), own in x.a.groupby(["feature_id", "topic"]):
        documents = own.document_id.nunique()
        if len(own) > 0.5 * counts[feature] and documents >= 5:
            share = half_up(len(own) / counts[feature], 3)
            found.append(("sae", feature, topic, documents, share, x.top(feature)))
    return sorted(found, key=lambda r: (-r[4], r[1]))[:15]


@answers("What tells History from Geography?")
def _(x: Arrays) -> Rows:
    """The features that history has more of, by AUROC: pairs of documents, ties half."""
    peaks = x.a.pivot_table(
        index="document_id", columns="feature_id", values="activation", aggfunc="max"
    )
    peaks = peaks.reindex(x.documents.document_id).fillna(0)
    topic = x.documents.topic.to_numpy()
    found = []
    for feature in peaks.columns:
        a, b = (peaks[feature].to_numpy()[topic == t] for t in ("History", "Geography"))
        gap = a[:, None] - b[None, :]
        auroc = float(((gap > 0) + (gap == 0) / 2).mean())
        shares = (half_up((a > 0).mean(), 3), half_up((b > 0).mean(), 3))
        found.append(("sae", int(feature), *shares, half_up(auroc, 3), x.top(feature)))
    return sorted(found, key=lambda r: (-r[4], r[1]))[:10]


@answers("In which documents does most of a feature's mass lie?")
def _(x: Arrays) -> Rows:
    own = x.of(HEAD).groupby("document_id").activation.agg(["size", "sum"])
    frame = own.reset_index().sort_values(["sum", "document_id"], ascending=[False, True])
    so_far = frame["sum"].cumsum() / frame["sum"].sum()
    d = x.documents.set_index("document_id")
    return [
        (i, d.title[i], d.topic[i], n, half_up(m, 1), half_up(s, 3))
        for (_, i, n, m), s in zip(frame.itertuples(), so_far, strict=True)
    ][:10]


@answers("How much more often does a feature fire in each topic?")
def _(x: Arrays) -> Rows:
    own = x.of(HEAD)
    tokens = x.documents.groupby("topic").n_tokens.sum()
    # The rate anywhere is over the topics in which it fires.
    hit = own.groupby("topic").document_id.agg(["size", "nunique"])
    anywhere = len(own) / tokens[hit.index].sum()
    found = [(t, n, d, half_up(n / tokens[t] / anywhere, 2)) for t, n, d in hit.itertuples()]
    return sorted(found, key=lambda r: (-r[3], r[0]))


@answers("Which features does one document decide?")
def _(x: Arrays) -> Rows:
    counts = x.f.set_index("feature_id")["count"]
    titles = x.documents.set_index("document_id").title
    found = [
        (-n, f, d)
        for (f, d), n in x.a.groupby(["feature_id", "document_id"]).size().items()
        if 5 * n > counts[f] >= 20
    ]
    return [("sae", f, titles[d], -n, counts[f]) for n, f, d in sorted(found)[:10]]


@answers("In which documents does a feature fire most densely?")
def _(x: Arrays) -> Rows:
    own = x.of(HEAD).groupby("document_id").size()
    d = x.documents.set_index("document_id")
    found = [(-n / d.n_tokens[i], i, n) for i, n in own.items() if d.n_tokens[i] >= 20]
    return [
        (i, d.title[i], n, d.n_tokens[i], half_up(-rate, 4)) for rate, i, n in sorted(found)[:10]
    ]


@answers("Which features are strongest in one document?")
def _(x: Arrays) -> Rows:
    f = x.f.set_index("feature_id")
    own = x.a[x.a.document_id == 7].groupby("feature_id").activation.agg(["max", "size"])
    found = [(-m / f["max"][i], i, n) for i, m, n in own.itertuples() if f["count"][i] >= 20]
    return [("sae", i, half_up(-share, 3), n) for share, i, n in sorted(found)[:10]]


@answers("Which contexts are most like this one?")
def _(x: Arrays) -> Rows:
    active = x.a.groupby("context_id").feature_id.agg(set)
    titles = x.tokens.drop_duplicates("context_id").set_index("context_id").title
    mine = active[42]
    found = [
        (-len(mine & its) / len(mine | its), c, len(mine & its))
        for c, its in active.items()
        if c != 42 and mine & its
    ]
    return [(c, titles[c], n, half_up(-j, 3)) for j, c, n in sorted(found)[:10]]


@answers("Which threshold fires on one document in twenty?")
def _(x: Arrays) -> Rows:
    own = x.of(DAY).groupby("document_id").activation.max()
    peaks = np.sort([own.get(d, 0.0) for d in x.documents.document_id])
    threshold = peaks[math.ceil(0.95 * len(peaks)) - 1]
    return [(threshold, int((peaks >= threshold).sum()), len(peaks))]


@answers("How many features are active per token, by topic?")
def _(x: Arrays) -> Rows:
    tokens = x.documents.groupby("topic").n_tokens.sum()
    own = x.a.groupby("topic").size()
    found = [("sae", t, tokens[t], half_up(n / tokens[t], 2)) for t, n in own.items()]
    return sorted(found, key=lambda r: (-r[3], r[1]))


@answers("Where does one feature fire and another not?")
def _(x: Arrays) -> Rows:
    other = set(x.of(MONTH).context_id)
    own = x.of(DAY).groupby(["context_id", "title", "topic"]).activation.max()
    found = [(-v, *place) for place, v in own.items() if place[0] not in other]
    return [(*place, -v) for v, *place in sorted(found)[:10]]


def _both(x: Arrays, one: int, other: int) -> pd.DataFrame:
    return x.of(one).merge(x.of(other), on=["context_id", "token_index"], suffixes=("", "_b"))


@answers("On which tokens do two features fire at once?")
def _(x: Arrays) -> Rows:
    groups = _both(x, DAY, MONTH).groupby("token")
    found = [
        (t, len(g), half_up(g.activation.mean(), 2), half_up(g.activation_b.mean(), 2))
        for t, g in groups
    ]
    return sorted(found, key=lambda r: (-r[1], r[0]))[:10]


@answers("In which documents do two features both fire?")
def _(x: Arrays) -> Rows:
    one, other = (x.of(f).groupby("document_id").activation.max() for f in (DAY, MONTH))
    titles = x.documents.set_index("document_id").title
    found = [(-v, d) for d, v in one.items() if d in other]
    return [(d, titles[d], -v, other[d]) for v, d in sorted(found)[:10]]


@answers("Which documents have at least two of three features?")
def _(x: Arrays) -> Rows:
    found = []
    for d, title in zip(x.documents.document_id, x.documents.title, strict=True):
        own = [str(f) for f in (HEAD, DAY, MONTH) if (x.of(f).document_id == d).any()]
        if len(own) >= 2:
            found.append((d, title, len(own), sorted(own)))
    return sorted(found, key=lambda r: (-r[2], r[0]))[:10]


@answers("How often does one feature follow another within ten tokens?")
def _(x: Arrays) -> Rows:
    places = set(zip(x.of(MONTH).context_id, x.of(MONTH).token_index, strict=True))
    own = list(zip(x.of(DAY).context_id, x.of(DAY).token_index, strict=True))
    followed = sum(any((c, t + n) in places for n in range(1, 11)) for c, t in own)
    return [(len(own), followed)]


def _association(x: Arrays, one: int, other: int, unit: str) -> tuple[int, ...]:
    """(n, both, A only, B only, neither)."""
    columns = ["document_id"] if unit == "document" else ["context_id", "token_index"]
    a, b = ({*x.of(f)[columns].itertuples(index=False, name=None)} for f in (one, other))
    n = len(x.documents) if unit == "document" else int(x.documents.n_tokens.sum())
    return n, len(a & b), len(a - b), len(b - a), n - len(a | b)


def _npmi(n: int, both: int, a: int, b: int) -> float:
    return math.log(both * n / (a * b)) / math.log(n / both) if both else -1.0


@answers("How often do two features fire together, and is that more than chance?")
def _(x: Arrays) -> Rows:
    found = []
    for unit in ("document", "token"):
        n, both, a, b, neither = _association(x, DAY, MONTH, unit)
        table = np.array([[both, a], [b, neither]], float)
        expected = table.sum(1, keepdims=True) * table.sum(0) / n
        with np.errstate(divide="ignore", invalid="ignore"):
            g2 = 2 * np.nansum(np.where(table > 0, table * np.log(table / expected), 0))
        npmi = _npmi(n, both, both + a, both + b)
        found.append((unit, n, both, a, b, neither, half_up(npmi, 3), half_up(float(g2), 1)))
    return found


@answers("Which features fire in the same documents?")
def _(x: Arrays) -> Rows:
    found = []
    for other in x.f.feature_id:
        n, both, a, b, _ = _association(x, MUSIC, other, "document")
        if other != MUSIC and both >= 10:
            score = _npmi(n, both, both + a, both + b)
            found.append((-round(score, 9), other, both, both / (both + a)))
    return [
        (rank, f, half_up(-score, 3), both, half_up(p, 3))
        for rank, (score, f, both, p) in enumerate(sorted(found)[:10], 1)
    ]


@answers("Do two features grow together where both fire?")
def _(x: Arrays) -> Rows:
    pair = _both(x, MUSIC, HEAD)
    return [(len(pair), half_up(np.corrcoef(pair.activation, pair.activation_b)[0, 1], 3))]


def _jaccard(x: Arrays, one: int, other: int) -> float:
    _, both, a, b, _ = _association(x, one, other, "token")
    return both / (both + a + b)


@answers("Which features are near duplicates?")
def _(x: Arrays) -> Rows:
    found = [(-x.cosines[i, j], i, j) for i in x.f.feature_id for j in x.f.feature_id if i < j]
    return [
        ("sae", i, "sae", j, half_up(float(-c), 3), half_up(_jaccard(x, i, j), 3))
        for c, i, j in sorted(found)[:15]
    ]


@answers("Which features fire together although their directions differ?")
def _(x: Arrays) -> Rows:
    counts = x.f["count"]
    found = [
        (-np.float32(_jaccard(x, i, j)), i, j)
        for i in x.f.feature_id
        for j in x.f.feature_id
        if i < j and counts[i] >= 20 and x.cosines[i, j] < 0.3 and counts[j]
    ]
    return [
        ("sae", i, j, half_up(float(-v), 3), half_up(float(x.cosines[i, j]), 3), counts[i])
        for v, i, j in sorted(found)[:15]
    ]


@answers("Which features are the nearest of many others?")
def _(x: Arrays) -> Rows:
    first = x.cosines.argmax(axis=1)
    scores = x.cosines.max(axis=1).astype(float)
    found = [
        ("sae", f, int((first == f).sum()), half_up(scores[first == f].mean(), 3))
        for f in set(first.tolist())
    ]
    return sorted(found, key=lambda r: (-r[2], r[1]))[:10]


@answers("How near is the nearest feature, usually?")
def _(x: Arrays) -> Rows:
    scores = np.sort(x.cosines.max(axis=1)).astype(float)
    return [
        (q, half_up(scores[max(0, math.ceil(q * len(scores)) - 1)], 3)) for q in (0.05, 0.5, 0.95)
    ]


@answers("Where does it fire moderately?")
def _(x: Arrays) -> Rows:
    peaks = x.of(HEAD).groupby(["context_id", "title"]).activation.max()
    top = np.float32(peaks.max())
    inside = [
        (-v, c, title)
        for (c, title), v in peaks.items()
        if 0.5 * float(top) <= v <= float(np.float64(0.7) * top)
    ]
    return [(c, title, -v) for v, c, title in sorted(inside)[:10]]


@answers("Where is a feature silent though a token of its is there?")
def _(x: Arrays) -> Rows:
    fires = set(x.of(HEAD).context_id)
    own = x.tokens[x.tokens.token == " king"].drop_duplicates("context_id")
    return [(c, t) for c, t in zip(own.context_id, own.title, strict=True) if c not in fires][:10]


@answers("Where in the text does a feature fire?")
def _(x: Arrays) -> Rows:
    found, at = [], 0
    own = x.of(DAY).set_index(["context_id", "token_index"]).activation
    for row in x.tokens[x.tokens.document_id == DOCUMENT].itertuples():
        if row.token_index == 0:
            continue
        if (row.context_id, row.token_index) in own.index:
            value = own[row.context_id, row.token_index]
            found.append((at, at + len(row.token), row.token, value))
        at += len(row.token)
    return found


DOCUMENT = 19


def is_a_sample(x: Arrays, answer: Rows) -> None:
    """Each fifth has its contexts, at most four, none weaker than those of the fifth below."""
    of = x.contexts.set_index("context_id").document_id
    top = {context: (-value, token) for value, context, token in _top(x, HEAD)}
    weakest = 0.0
    for fifth in range(1, 6):
        own = [row for row in answer if row[0] == fifth]
        assert 1 <= len(own) <= 4
        for _, activation, token, title, context in own:
            value, index = top[context]
            assert (activation, title) == (value, x.documents.title[of[context]])
            assert token == x.world.vocabulary[x.world.contexts[context][index]]
            assert value >= weakest
        weakest = max(row[1] for row in own)
    assert [row[0] for row in answer] == sorted(row[0] for row in answer)


def _in_context(x: Arrays, context: int) -> list[tuple[int, float, float, float, str, int]]:
    """(feature, specificity, maximum, sum, token, tokens) of one context."""
    recorded = int(x.documents.n_tokens.sum())
    f = x.f.set_index("feature_id")
    maxima = np.sort(x.f["max"].dropna())
    typical = maxima[math.ceil(0.5 * len(maxima)) - 1]
    found = []
    for feature, own in x.a[x.a.context_id == context].groupby("feature_id"):
        peak = own.activation.max()
        n, top = f["count"][feature], f["max"][feature]
        raised = max(top, (n * top + PRIOR * typical) / (n + PRIOR))
        score = peak / raised * math.log2((recorded + 1) / (n + 1))
        token = own.token[own.activation == peak].iloc[0]
        found.append((feature, score, peak, own.activation.sum(), token, len(own)))
    return found


PRIOR = 30


@answers("Which features are specific to one context?")
def _(x: Arrays) -> Rows:
    best = sorted(_in_context(x, 42), key=lambda r: (-np.float32(r[1]), r[0]))[:10]
    return [
        (rank, f, half_up(score, 2), token, n, x.top(f))
        for rank, (f, score, _, _, token, n) in enumerate(best, 1)
    ]


@answers("Which features have the most mass in one context?")
def _(x: Arrays) -> Rows:
    density = x.f.set_index("feature_id").density
    inside = [row for row in _in_context(x, 42) if density[row[0]] <= 0.5]
    best = sorted(inside, key=lambda r: (-r[3], r[0]))[:10]
    return [(rank, r[0], half_up(r[3], 2), r[5]) for rank, r in enumerate(best, 1)]


@answers("Which of my labeled features fire in History?")
def _(x: Arrays) -> Rows:
    found = []
    for feature, label in ((HEAD, "title before a name"), (DAY, "month after the day")):
        own = x.of(feature)[x.of(feature).topic == "History"]
        documents = own.document_id.nunique()
        found.append((label, len(own), documents, half_up(own.activation.max(), 2)))
    return sorted(found, key=lambda r: (-r[1], r[0]))


def _top(x: Arrays, feature: int) -> list[tuple[float, int, int]]:
    """(-maximum, context, first token that reaches it), the strongest first."""
    found = []
    for context, own in x.of(feature).groupby("context_id"):
        peak = own.activation.max()
        found.append((-peak, context, int(own.token_index[own.activation == peak].min())))
    return sorted(found)


@answers("How do I see each document and each text once?")
def _(x: Arrays) -> Rows:
    seen: set[Any] = set()
    found: Rows = []
    of = x.contexts.set_index("context_id").document_id
    for value, context, token in _top(x, HEAD):
        ids = x.world.contexts[context]
        if of[context] in seen or tuple(ids) in seen:
            continue
        seen |= {of[context], tuple(ids)}
        title = x.documents.title[of[context]]
        found.append((len(found) + 1, title, x.world.vocabulary[ids[token]], -value))
    return found[:20]


def _passage(x: Arrays, context: int, token: int, window: int) -> str:
    ids = x.world.contexts[context][max(0, token - window) : token + window + 1]
    return "".join(x.world.vocabulary[i] for i in ids)


@answers("What are the top contexts of a hundred features?")
def _(x: Arrays) -> Rows:
    return [
        ("sae", f, rank, -value, _passage(x, context, token, 16))
        for f in x.f[x.f["count"] > 0].feature_id
        for rank, (value, context, token) in enumerate(_top(x, f)[:3], 1)
    ]


@answers("How do I export a feature for annotation?")
def _(x: Arrays) -> Rows:
    of = x.contexts.set_index("context_id").document_id
    return [
        (
            rank,
            x.documents.title[of[context]],
            _passage(x, context, token, 8),
            x.world.vocabulary[x.world.contexts[context][token]],
            -value,
        )
        for rank, (value, context, token) in enumerate(_top(x, HEAD)[:50], 1)
    ]
