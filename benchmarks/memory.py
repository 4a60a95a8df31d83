"""Host memory of an ingest as the corpus grows.

No real model: a Llama of random weights, 32 wide, with two layers run, and a TopK SAE of 512
features with 30 active on every token. So sorting and writing per token are as with real ones, and
little is computed. Documents consist of a few words.

Each size is a separate ingest through the command line, in a separate process, which this
one watches from outside through ``/proc`` (Linux). Its output gives the current phase. Two
figures a phase: *own*, the anonymous memory (``RssAnon``), which is what an ingest has to fit in.
And *resident* (``VmRSS``), which adds pages of mapped files, the runs being merged among them,
that the system takes back when it needs them.

Run ``python -m benchmarks.memory --help``.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import click
from rich.console import Console
from rich.table import Table

from tests.tiny import tiny_documents, tiny_model, tiny_sae

D_SAE = 512
L0 = 30
CONTEXT = 128
_EVERY_S = 0.1

PHASES = {
    "": "opening",
    "tokeni": "tokenizing",
    "storing the directions": "partitions",
    "merging": "merging",
    "statistics": "deriving",
}
"""The phase that begins with a message of this prefix."""


@dataclass
class Watched:
    """One ingest. Bytes by phase are peaks. The curve is (seconds, phase, own, resident)."""

    tokens: int
    seconds: float = 0.0
    phase_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    own: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    resident: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    curve: list[tuple[float, str, int, int]] = field(default_factory=list)

    @property
    def rss(self) -> int:
        """The peak of the whole process."""
        return max(self.resident.values())


def write_corpus(path: Path, tokens: int, seed: int = 0) -> Path:
    """JSON Lines of at least `tokens` tokens, a token a word. A prefix of any larger one's text.

    A document is one to eight out of a thousand short texts, in an order that never changes.
    """
    rng = random.Random(seed)
    pool = [d["text"] for d in tiny_documents(1_000, seed)]
    words = {text: text.count(" ") for text in pool}
    written = row = 0
    with path.open("w", encoding="utf-8") as file:
        while written < tokens:
            texts = rng.choices(pool, k=rng.randint(1, 8))
            document = {"text": "".join(texts), "title": f"Title {row}", "topic": f"{row % 7}"}
            file.write(json.dumps(document) + "\n")
            written += sum(words[text] for text in texts)
            row += 1
    return path


def small_inputs(folder: Path) -> tuple[Path, Path]:
    """The folders of the model and of the SAE."""
    model = tiny_model(folder / "model")
    sae = tiny_sae(folder / "sae", d_sae=D_SAE, architecture="topk", k=L0)
    return model, sae


def watch(
    database: Path, corpus: Path, model: Path, sae: Path, *, tokens: int, memory: str
) -> Watched:
    """Ingest the first `tokens` tokens of the corpus and measure it.

    Raises `RuntimeError` with the last line it printed where the ingest fails.
    """
    command = [
        *(sys.executable, "-W", "ignore", "-m", "featuredb.cli", "ingest", str(database)),
        *("--corpus", str(corpus), "--model", str(model), "--sae", str(sae)),
        *("--max-tokens", str(tokens), "--context-size", str(CONTEXT), "--memory", memory),
        *("--dtype", "float32", "--device", "cpu", "--no-check"),
    ]
    began = time.monotonic()
    # Two threads on matrices this small only wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    assert process.stderr is not None
    printed = [""]
    listener = threading.Thread(target=_listen, args=(process.stderr, printed))
    listener.start()
    watched = Watched(tokens)
    phase, last = PHASES[""], began
    while process.poll() is None:
        phase = next((p for start, p in PHASES.items() if start and printed[-1].startswith(start)),
                     phase)  # fmt: skip
        own, resident = _memory(process.pid)
        now = time.monotonic()
        watched.own[phase] = max(watched.own[phase], own)
        watched.resident[phase] = max(watched.resident[phase], resident)
        watched.phase_s[phase] += now - last
        watched.curve.append((now - began, phase, own, resident))
        last = now
        time.sleep(_EVERY_S)
    listener.join()
    watched.seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"the ingest of {tokens:,} tokens failed: {printed[-1]}")
    return watched


def _listen(stream: IO[bytes], printed: list[str]) -> None:
    for line in stream:
        if line.strip():
            printed.append(line.decode().strip())


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of anonymous and of all resident memory. Zeros once the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(RssAnon|VmRSS):\s+(\d+) kB", status, re.MULTILINE))
    return int(found.get("RssAnon", 0)) * 1024, int(found.get("VmRSS", 0)) * 1024


@click.command()
@click.option("--sizes", default="1,3,10", help="Millions of tokens, with commas between.")
@click.option("--memory", default="500MB", help="As an ingest is told.")
@click.option("--curve", type=click.Path(path_type=Path), help="Write the curves here, as CSV.")
def main(sizes: str, memory: str, curve: Path | None) -> None:
    """Print peak memory by phase for each size of corpus."""
    wanted = sorted(round(float(size) * 1e6) for size in sizes.split(","))
    folder = Path(tempfile.mkdtemp(prefix="featuredb-bench-"))
    try:
        model, sae = small_inputs(folder)
        corpus = write_corpus(folder / "corpus.jsonl", wanted[-1])
        runs = []
        for tokens in wanted:
            database = folder / "store.fdb"
            runs.append(watch(database, corpus, model, sae, tokens=tokens, memory=memory))
            shutil.rmtree(database)
    finally:
        shutil.rmtree(folder)
    _show(runs, memory)
    if curve is not None:
        lines = [f"{w.tokens},{t:.2f},{p},{o},{r}\n" for w in runs for t, p, o, r in w.curve]
        curve.write_text("tokens,seconds,phase,own,resident\n" + "".join(lines), encoding="utf-8")


def _show(runs: list[Watched], memory: str) -> None:
    out = Console()
    phases = list(PHASES.values())
    peaks = {
        "own memory (RssAnon), peak MB": [watched.own for watched in runs],
        "resident memory (VmRSS), peak MB": [watched.resident for watched in runs],
    }
    for title, by_run in peaks.items():
        table = Table("tokens", *phases, "partitions : smallest's", title=title)
        base = by_run[0]["partitions"]
        for watched, own in zip(runs, by_run, strict=True):
            shown = [f"{own[phase] / 1e6:,.0f}" for phase in phases]
            table.add_row(f"{watched.tokens:,}", *shown, f"{own['partitions'] / base:.3f}")
        out.print(table)
    table = Table("tokens", *phases, "all", "peak RSS, MB", "of smallest", title="seconds")
    for watched in runs:
        shown = [f"{watched.phase_s[phase]:,.1f}" for phase in phases]
        ratio = f"{watched.rss / runs[0].rss:.3f}"
        table.add_row(f"{watched.tokens:,}", *shown, f"{watched.seconds:,.1f}",
                      f"{watched.rss / 1e6:,.0f}", ratio)  # fmt: skip
    out.print(table)
    out.print(f"--memory {memory}, {D_SAE} features, L0 {L0}, contexts of {CONTEXT} tokens")


if __name__ == "__main__":
    main()
