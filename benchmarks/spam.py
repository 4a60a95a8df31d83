"""Spam as a safety example for monitors: `python -m benchmarks.monitors demo.fdb`.

SpamAssassin's mails: easy ham and spam to fit on, hard ham and spam-2 to test on, so that what is
collected shifts. Bodies alone, and of each the first `--tokens` tokens, for every classifier:
headers would give the collection away. Beside a rule of one feature and k-sparse probes of SAE
features stand a dense probe on the same residuals and a bag of words. Each classifier's threshold
lets 1 % of the ham it was fitted on through. What it does on the test mails, and on as many tokens
of some of the database's own texts, is then what it is.

Intervals are of 95 %: Wilson's of a share, and of the others what 1,000 resamples of the test
mails give (the percentile bootstrap).
"""

from __future__ import annotations

import email
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from email import policy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import featuredb
from featuredb.errors import RuleError
from featuredb.render import numbers
from ingest.attached import AttachedSae, ModelWithSaes
from ingest.demo.cache import cache_folder, download
from ingest.demo.fetch import SPAM_ASSASSIN
from ingest.extract.batches import batches
from ingest.extract.forward import forward
from ingest.extract.new_text import tokenized_texts
from ingest.extract.recorded import recorded
from queries.calibrate import AlarmRate
from queries.tails import wilson

FIT = {"easy-ham-1": 0, "spam-1": 1}
TEST = {"hard-ham-1": 0, "spam-2": 1}
PENALTIES = np.logspace(-3, 2, 26)


def mails(most: int, seed: int) -> dict[str, list[str]]:
    """The bodies of each set, at most `most` of it: a larger number adds to those of a smaller."""
    groups: dict[str, list[str]] = {name: [] for name in (*FIT, *TEST)}
    with tarfile.open(download(SPAM_ASSASSIN)) as archive:
        for member in archive:
            name = member.name.split("/")[-2] if "/" in member.name else ""
            file = archive.extractfile(member) if member.name.endswith(".json") else None
            if name in groups and file is not None:
                groups[name].append(body_of(json.load(file)["text"]))
    return {name: _some([t for t in own if t.strip()], most, seed) for name, own in groups.items()}


def _some(texts: list[str], most: int, seed: int) -> list[str]:
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[:most]]


def body_of(text: str) -> str:
    """The first part of a mail that is text, without its headers."""
    message = email.message_from_string(text.partition("\n")[2], policy=policy.default)
    try:
        part = message.get_body(("plain", "html"))
        return str(part.get_content()) if part is not None else ""
    except (LookupError, ValueError, KeyError, AttributeError):
        return text.partition("\n\n")[2]


class Encoded(NamedTuple):
    """The beginnings of some texts: the largest activation of each feature, float32 [n, d_sae], the
    mean residual, float32 [n, d_in], tokens, int64 [n], and their text."""

    pooled: np.ndarray
    residual: np.ndarray
    tokens: np.ndarray
    beginnings: list[str]


def encoded(db: featuredb.Database, texts: list[str], tokens: int, kept: Path) -> Encoded:
    """The first tokens of texts. kept: a folder of what was encoded before, for later runs."""
    loaded = recorded(db._store)
    (sae,) = loaded.saes
    kept.mkdir(exist_ok=True)
    parts = []
    for first in range(0, len(texts), 128):
        chunk = texts[first : first + 128]
        identity = [chunk, tokens, sae.sae.hash, db._store.snapshot.model.sha256]
        path = kept / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]}.npz"
        if not path.exists():
            made = _encoded(db, loaded, sae, chunk, tokens)
            with open(path.with_suffix(".part"), "wb") as file:
                np.savez_compressed(file, *made[:3], np.array(json.dumps(made.beginnings)))
            path.with_suffix(".part").rename(path)
            print(f"encoded {first + len(chunk)} of {len(texts)} texts", flush=True)
        with np.load(path) as file:
            pooled, residual, counts, beginnings = (file[f"arr_{i}"] for i in range(4))
        parts.append((pooled, residual, counts, json.loads(beginnings.item())))
    pooled, residual, counts = (np.concatenate([p[i] for p in parts]) for i in range(3))
    return Encoded(pooled, residual, counts, [text for part in parts for text in part[3]])


def _encoded(
    db: featuredb.Database, loaded: ModelWithSaes, sae: AttachedSae, texts: list[str], tokens: int
) -> Encoded:
    store = db._store
    tokenized = tokenized_texts(store, loaded.model, texts)
    starts = np.concatenate(([0], np.cumsum(tokenized.context_lengths))).astype(np.int64)
    first = np.flatnonzero(tokenized.context_index == 0)
    ids = [tokenized.token_ids[starts[i] : min(starts[i + 1], starts[i] + tokens)] for i in first]
    owner = tokenized.context_document[first]
    pooled = np.zeros((len(texts), sae.sae.d_sae), np.float32)
    residual = np.zeros((len(texts), sae.sae.d_in), np.float32)
    beginnings = [""] * len(texts)
    for text, own in zip(owner, ids, strict=True):
        beginnings[text] = "".join(store.texts.token_texts[i] for i in own[1:])
    ends = np.cumsum([0, *map(len, ids)])
    for batch in batches(np.concatenate(ids), ends, 4_096):
        with torch.inference_mode():
            x = forward(loaded.model, [sae.hook], batch)[sae.hook.name].float()
            for row, length in enumerate(batch.lengths.tolist()):
                own = x[row, 1:length]
                if sae.sink_norm is not None:
                    own = own[own.norm(dim=1) <= sae.sink_norm]
                if len(own):
                    text = owner[batch.contexts[row]]
                    pooled[text] = sae.sae.encode(own).amax(dim=0).half().float().numpy()
                    residual[text] = own.mean(dim=0).numpy()
    counts = np.bincount(owner, [len(i) - 1 for i in ids], len(texts)).astype(np.int64)
    return Encoded(pooled, residual, counts, beginnings)


class Scored(NamedTuple):
    """A classifier fitted on some mails. scores: of each mail, and of each stored text. rule: of a
    threshold, for one that is a rule. probability: its scores are log odds."""

    name: str
    scores: np.ndarray
    stored: np.ndarray
    rule: Callable[[float], str] | None = None
    probability: bool = True


class Sparse:
    """Logistic regression on at most k features, chosen by L1 on the 1,000 that tell most."""

    def __init__(self, x: np.ndarray, y: np.ndarray, k: int) -> None:
        columns = np.argsort(-np.abs(_told(x, y)))[:1_000]
        self.scale = np.maximum(x.max(axis=0), 1e-9)
        chosen = columns[:1]
        for c in PENALTIES if k > 1 else ():
            found = _fit((x / self.scale)[:, columns], y, c, l1=1.0).coef_.ravel()
            if np.count_nonzero(found) > k:
                break
            if found.any():
                chosen = columns[np.flatnonzero(found)]
        self.columns = chosen
        self.model = _fit((x / self.scale)[:, chosen], y, 10.0)

    def scores(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.decision_function((x / self.scale)[:, self.columns]))

    def rule(self, sae: str, threshold: float) -> str:
        """The same as a rule, at the end of a text: the largest activation so far of each."""
        weights = self.model.coef_.ravel() / self.scale[self.columns]
        terms = [
            f"{float(w)!r} * peak({sae}/{f})"
            for w, f in zip(weights, self.columns.tolist(), strict=True)
        ]
        return f"{' + '.join(terms)} > {threshold - float(self.model.intercept_[0])!r}"


def _told(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much more of the spam than of the ham each feature fires in."""
    return np.asarray((x[y] > 0).mean(0) - (x[~y] > 0).mean(0))


def _fit(x: Any, y: np.ndarray, c: float, l1: float = 0.0) -> LogisticRegression:
    model = LogisticRegression(
        C=c, l1_ratio=l1, solver="liblinear", class_weight="balanced", random_state=0
    )
    return model.fit(x, y)


def classifiers(
    sae: str, mail: Encoded, stored: Encoded, y: np.ndarray, fit: np.ndarray
) -> Iterator[Scored]:
    """All of the table, fitted on the mails `fit`."""
    best = int(np.argmax(_told(mail.pooled[fit], y[fit])))
    columns = (mail.pooled[:, best], stored.pooled[:, best])
    yield Scored(f"a rule: `f{best} > c`", *columns, lambda c: f"{sae}/{best} > {c!r}", False)
    for k in (1, 16, 64):
        probe = Sparse(mail.pooled[fit], y[fit], k)
        yield Scored(
            f"probe of {numbers.plural(len(probe.columns), 'feature')} (k = {k})",
            probe.scores(mail.pooled),
            probe.scores(stored.pooled),
            partial(probe.rule, sae),
        )
    scale = mail.residual[fit].std(axis=0) + 1e-6
    dense = _fit(mail.residual[fit] / scale, y[fit], 0.01)
    pair = (dense.decision_function(each.residual / scale) for each in (mail, stored))
    yield Scored("dense probe of the mean residual", *pair)
    words = TfidfVectorizer(min_df=2, sublinear_tf=True)
    words.fit([text for text, own in zip(mail.beginnings, fit, strict=True) if own])
    bags = [words.transform(each.beginnings) for each in (mail, stored)]
    model = _fit(bags[0][np.flatnonzero(fit)], y[fit], 10.0)
    yield Scored("bag of words", *map(model.decision_function, bags))


def calibration_error(scores: np.ndarray, truth: np.ndarray) -> float:
    """The expected calibration error over ten bins of the probability."""
    chance = 1 / (1 + np.exp(-np.clip(scores, -30, 30)))
    bins = np.minimum((chance * 10).astype(int), 9)
    return float(
        sum(
            abs(chance[bins == b].mean() - truth[bins == b].mean()) * (bins == b).mean()
            for b in np.unique(bins)
        )
    )


def recall_at(scores: np.ndarray, truth: np.ndarray) -> float:
    """The spam above the threshold that lets 1 % of this ham through."""
    limit = np.quantile(scores[~truth], 0.99, method="higher")
    return float((scores[truth] > limit).mean())


def resampled(
    measure: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, truth: np.ndarray
) -> tuple[float, float, float]:
    """A measure, and its interval over resamples of the mails of each kind."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    drawn = [np.concatenate([rng.choice(own, len(own)) for own in kinds]) for _ in range(1_000)]
    low, high = np.percentile([measure(scores[i], truth[i]) for i in drawn], [2.5, 97.5])
    return measure(scores, truth), float(low), float(high)


def example(db: featuredb.Database, most: int, tokens: int, stored: int, seed: int) -> None:
    """Print the table."""
    groups = mails(most, seed)
    kept = cache_folder() / "spam-encoded"
    parts = [encoded(db, texts, tokens, kept) for texts in groups.values()]
    mail = Encoded(
        *(np.concatenate([part[i] for part in parts]) for i in range(3)),
        [text for part in parts for text in part.beginnings],
    )
    counts = [len(texts) for texts in groups.values()]
    y = np.repeat([bool({**FIT, **TEST}[name]) for name in groups], counts)
    test = np.repeat([name in TEST for name in groups], counts)
    texts = db.sql("SELECT text FROM documents ORDER BY document_id").fetchall()
    own = encoded(db, _some([text for (text,) in texts], stored, seed), tokens, kept)
    print(", ".join(f"{n} of {name}" for name, n in zip(groups, counts, strict=True)))
    print(f"{mail.tokens.sum():,} tokens; {stored} stored texts, {own.tokens.sum():,} tokens")
    print(
        "| | AUROC | recall at 1 % of the test ham | recall | false alarms | calibration error "
        "| per M tokens of stored texts' beginnings | as a rule, per M tokens stored |"
    )
    print("| --- |" + " --: |" * 7)
    for each in classifiers(db.saes[0].name, mail, own, y, ~test):
        print(
            f"| {each.name} | {' | '.join(measured(db, each, y, test, own.tokens))} |", flush=True
        )


def measured(
    db: featuredb.Database, each: Scored, y: np.ndarray, test: np.ndarray, tokens: np.ndarray
) -> list[str]:
    """The cells of a classifier's row."""
    limit = float(np.quantile(each.scores[~test & ~y], 0.99, method="higher"))
    scores, truth = each.scores[test], y[test]
    alarm = scores > limit
    spam, ham = (wilson(int(alarm[kind].sum()), int(kind.sum())) for kind in (truth, ~truth))
    rate = AlarmRate.of((each.stored > limit).astype(np.int64), tokens)
    cells = [
        _cell(*resampled(roc_auc_score_of, scores, truth), scale=1),
        _cell(*resampled(recall_at, scores, truth)),
        _cell(*spam),
        _cell(*ham),
        _cell(*resampled(calibration_error, scores, truth), scale=1) if each.probability else "",
        f"{rate.per_million:,.0f} ({rate.low or 0:,.0f} to {rate.high or 0:,.0f})",
    ]
    if each.rule is None:
        return [*cells, ""]
    try:
        whole = db.calibrate(each.rule(limit))[0]
    except RuleError:  # its threshold is that of silence, which nothing is above
        return [*cells, "never fires"]
    low, high = whole.per_million_low, whole.per_million_high
    return [*cells, f"{whole.per_million:,.0f} ({low:,.0f} to {high:,.0f})"]


def roc_auc_score_of(scores: np.ndarray, truth: np.ndarray) -> float:
    return float(roc_auc_score(truth, scores))


def _cell(value: float, low: float, high: float, scale: float = 100) -> str:
    digits, unit = (1, " %") if scale == 100 else (3, "")
    value, low, high = (scale * each for each in (value, low, high))
    return f"{value:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"
