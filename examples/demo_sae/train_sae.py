"""Train the demo's sparse autoencoder: text -> activations -> BatchTopK -> folder and scores.

    python -m examples.demo_sae.train_sae --out my-sae --work scratch --layer 11

Activations are stored under --work and reused by later runs, so another setting costs only its
training. Scores are written to WORK/reports/NAME.json, where NAME is the last part of --out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.demo_sae import activations, batchtopk, evaluate, saved
from examples.demo_sae.corpus import Corpus, training_corpus
from ingest.demo import fetch

_MEAN_ROWS = 200_000


@dataclass(frozen=True)
class Rows:
    """The stored activations of one layer and their split.

    data: bfloat16 [rows, d]. sinks: bool [rows]. Train, held_out: int64 row numbers
    """

    data: Tensor
    owner: npt.NDArray[np.int64]
    norms: Tensor
    median: float
    sinks: Tensor
    train: Tensor
    held_out: Tensor


def main() -> None:
    """Run the command line."""
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = training_corpus()
    every = len(corpus.windows.shards())
    shards = min(arguments.shards or every, every)
    store = arguments.work / "activations"
    layer = arguments.layer
    activations.store_activations(corpus.windows, fetch.model_folder(), [layer], store, shards)
    if arguments.only_activations:
        return
    rows = _read_rows(corpus.windows, store, layer, shards)
    settings = batchtopk.Settings(
        features=arguments.features,
        k=arguments.k,
        epochs=arguments.epochs,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    trained = batchtopk.train(rows.data, rows.train, settings)
    note = {
        "dataset": "English Wikipedia summaries, Brown corpus, SpamAssassin public e-mail",
        "training_tokens": len(rows.train),
        "training_epochs": settings.epochs,
        "trained_as": f"batchtopk, k={settings.k}, one global threshold",
        "sinks": f"left out: norm above {activations.SINK_FACTOR:g} x the median {rows.median:.2f}",
    }
    saved.save(trained, arguments.out, layer, note)
    report = {
        "name": arguments.out.name,
        "pilot": shards < every,
        "layer": layer,
        "settings": asdict(settings),
        "threshold": trained.threshold,
        "training_seconds": trained.seconds,
        "trained_tokens": trained.tokens,
        "torch": torch.__version__,
        **_scores(saved.load(arguments.out), corpus, rows, layer, arguments.loss_windows),
    }
    text = json.dumps(report, indent=1) + "\n"
    path = arguments.work / "reports" / f"{arguments.out.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


def _read_rows(windows: activations.Windows, store: Path, layer: int, shards: int) -> Rows:
    data = activations.read_activations(store, layer, shards)
    owner = windows.row_window(shards)
    norms = activations.row_norms(data)
    median = float(norms.median())
    sinks = activations.is_sink(norms, median)
    held_out = torch.from_numpy(windows.held_out[owner])
    return Rows(
        data=data,
        owner=owner,
        norms=norms,
        median=median,
        sinks=sinks,
        train=(~sinks & ~held_out).nonzero().squeeze(1),
        held_out=(~sinks & held_out).nonzero().squeeze(1),
    )


def _scores(
    sae: saved.SavedSAE, corpus: Corpus, rows: Rows, layer: int, loss_windows: int | None
) -> dict[str, Any]:
    """All scores of the saved SAE, and statistics of the data."""
    windows = corpus.windows
    scores = evaluate.reconstruction(sae, rows.data, rows.held_out)
    silent = (scores.density == 0).nonzero().squeeze(1)
    dead = evaluate.never_fired(sae, rows.data, rows.train, silent)
    sample = rows.train[:: max(1, len(rows.train) // _MEAN_ROWS)]
    members = np.flatnonzero(windows.held_out[: int(rows.owner[-1]) + 1])[:loss_windows].tolist()
    loss = evaluate.loss_recovered(
        sae,
        activations.load_model(fetch.model_folder()),
        layer,
        windows,
        members,
        rows.data[sample].float().mean(0),
        rows.median,
    )
    sources, counts = np.unique(corpus.source[rows.owner], return_counts=True)
    return {
        "tokens": {
            "stored": len(rows.data),
            "sinks": int(rows.sinks.sum()),
            "train": len(rows.train),
            "held_out": len(rows.held_out),
            **dict(zip(sources.tolist(), counts.tolist(), strict=True)),
        },
        "median_norm": rows.median,
        "largest_norm": float(rows.norms.max()),
        "fvu": scores.fvu,
        "l0": scores.l0,
        "dead": len(dead),
        "dead_on_held_out": len(silent),
        "loss": {**asdict(loss), "recovered": loss.recovered},
    }


def _parser() -> argparse.ArgumentParser:
    defaults = batchtopk.Settings()
    parser = argparse.ArgumentParser(description="Train the demo's sparse autoencoder.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the SAE to")
    parser.add_argument("--work", type=Path, required=True, help="folder for activations")
    parser.add_argument("--layer", type=int, default=11, help="decoder layer, from 0")
    parser.add_argument("--shards", type=int, help="use only the first N shards (a pilot)")
    parser.add_argument("--only-activations", action="store_true", help="stop before training")
    parser.add_argument("--features", type=int, default=defaults.features)
    parser.add_argument("--k", type=int, default=defaults.k, help="mean active features a token")
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--batch", type=int, default=defaults.batch, help="tokens a step")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--loss-windows", type=int, help="score the loss on N windows at most")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=2)
    return parser


if __name__ == "__main__":
    main()
