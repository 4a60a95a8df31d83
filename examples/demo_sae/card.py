"""Write the model card: the scores, the settings tried, and recognizable features.

    python -m examples.demo_sae.card --sae ingest/demo/sae --work scratch --report NAME

Scores come from the reports of `examples.demo_sae.train_sae` in WORK/reports, snippets from the
Wikipedia summaries, and the features' names from names.json next to this file. The names were
written after reading each feature's top contexts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch

from examples.demo_sae import activations, contexts, saved
from examples.demo_sae.corpus import training_corpus

_NAMES = Path(__file__).with_name("names.json")
_TEMPLATE = Path(__file__).with_name("card.md")
_SNIPPETS = 4


def main() -> None:
    """Write README.md into the SAE's folder."""
    parser = argparse.ArgumentParser(description="Write the demo SAE's model card.")
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="as given to train_sae")
    parser.add_argument("--report", required=True, help="name of the chosen run's report")
    arguments = parser.parse_args()
    reports = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((arguments.work / "reports").glob("*.json"))
    ]
    chosen = next(report for report in reports if report["name"] == arguments.report)
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        values(chosen),
        pilot=table([report for report in reports if report["pilot"]], chosen),
        tried=table([report for report in reports if not report["pilot"]], chosen),
        feature_list=feature_list(arguments.sae, arguments.work / "activations", chosen),
    )
    (arguments.sae / "README.md").write_text(text, encoding="utf-8")


def values(report: dict[str, Any]) -> dict[str, str]:
    """The chosen run's figures by their names in the template."""
    tokens, settings, loss = report["tokens"], report["settings"], report["loss"]
    counts = {f"{name}_tokens": f"{count:,}" for name, count in tokens.items()}
    return counts | {
        "layer": str(report["layer"]),
        "width": f"{settings['features']:,}",
        "features": str(settings["features"]),
        "batch_plain": str(settings["batch"]),
        "k": str(settings["k"]),
        "epochs": str(settings["epochs"]),
        "batch": f"{settings['batch']:,}",
        "learning_rate": f"{settings['learning_rate']:g}",
        "aux_k": str(settings["aux_k"]),
        "dead_after": f"{settings['dead_after_tokens']:,}",
        "seed": str(settings["seed"]),
        "sinks": f"{tokens['sinks']:,}",
        "median": f"{report['median_norm']:.2f}",
        "largest": f"{report['largest_norm']:,.0f}",
        "threshold": f"{report['threshold']:.4f}",
        "fvu": f"{report['fvu']:.4f}",
        "l0": f"{report['l0']:.2f}",
        "dead": str(report["dead"]),
        "dead_share": f"{report['dead'] / settings['features']:.2%}",
        "seen_tokens": f"{tokens['train'] + tokens['held_out']:,}",
        "recovered": f"{loss['recovered']:.4f}",
        "clean": f"{loss['clean']:.4f}",
        "spliced": f"{loss['spliced']:.4f}",
        "ablated": f"{loss['ablated']:.4f}",
        "loss_tokens": f"{loss['tokens']:,}",
        "trained_tokens": f"{report['trained_tokens']:,}",
        "training_minutes": f"{report['training_seconds'] / 60:.0f}",
        "torch": report["torch"],
        "report": report["name"],
    }


def table(reports: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> str:
    """A Markdown table with a row per run, the chosen run's in bold."""
    lines = [
        "| layer | features | k | epochs | batch | rate | FVU | L0 | dead | recovered | minutes |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for report in sorted(reports, key=lambda one: (one["layer"], one["fvu"])):
        settings = report["settings"]
        cells = [
            str(report["layer"]),
            f"{settings['features']:,}",
            str(settings["k"]),
            str(settings["epochs"]),
            f"{settings['batch']:,}",
            f"{settings['learning_rate']:g}",
            f"{report['fvu']:.4f}",
            f"{report['l0']:.1f}",
            f"{report['dead'] / settings['features']:.2%}",
            f"{report['loss']['recovered']:.4f}",
            f"{report['training_seconds'] / 60:.1f}",
        ]
        if report is chosen:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def feature_list(folder: Path, store: Path, chosen: dict[str, Any]) -> str:
    """The named features with their top contexts over the Wikipedia summaries."""
    names: dict[str, str] = json.loads(_NAMES.read_text(encoding="utf-8"))
    corpus = training_corpus()
    windows = corpus.windows
    data = activations.read_activations(store, chosen["layer"], len(windows.shards()))
    owner = windows.row_window()
    sinks = activations.is_sink(activations.row_norms(data), chosen["median_norm"])
    wikipedia = torch.from_numpy(corpus.source[owner] == "wikipedia")
    rows = (wikipedia & ~sinks).nonzero().squeeze(1)
    features = np.array([int(feature) for feature in names])
    fired = contexts.firings(saved.load(folder), data, rows, torch.from_numpy(features))
    blocks = []
    for place, (feature, name) in enumerate(names.items()):
        snippets = contexts.top_snippets(fired, place, _SNIPPETS, windows, owner, corpus.tokenizer)
        lines = [f"**{feature}: {name}**", ""]
        lines += [f"- {markdown(snippet)} ({snippet.value:.1f})" for snippet in snippets]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def markdown(snippet: contexts.Snippet) -> str:
    """The snippet on one line, its peak token in bold, other markup escaped."""
    before, peak, after = (
        " ".join(f"x{part}x".split())[1:-1].replace("*", "\\*").replace("_", "\\_")
        for part in (snippet.before, snippet.peak, snippet.after)
    )
    # Markdown allows no space directly inside the asterisks.
    left = " " if peak.startswith(" ") else ""
    right = " " if peak.endswith(" ") and peak.strip() else ""
    return f"…{before}{left}**{peak.strip()}**{right}{after}…"


if __name__ == "__main__":
    main()
