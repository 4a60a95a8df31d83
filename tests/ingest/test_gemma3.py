"""A real decoder with SentencePiece tokens and a vocabulary of 262,144: Gemma 3 270M."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import featuredb
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.values import RELATIVE_ERROR
from ingest.demo.fetch import wikipedia_corpus
from tests.content import activations
from tests.gemma3 import gemma3_folder

pytestmark = pytest.mark.gemma3

DOCUMENTS, CONTEXT, LAYER, RANK = 200, 32, 2, 48
MEMORY = 512 << 20
BOS = 2


class Made:
    """The database, what it was made of, and how far resident memory rose above what it was."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.root = folder / "gemma.fdb"
        self.tokenizer = AutoTokenizer.from_pretrained(gemma3_folder())
        self.model = AutoModelForCausalLM.from_pretrained(gemma3_folder(), dtype=torch.float32)
        rows = pq.read_table(wikipedia_corpus(DOCUMENTS), columns=["title", "text"]).to_pylist()
        self.texts = [f"{row['title']}\n\n  {row['text'][:130]}" for row in rows]
        self.states = [self._states(ids) for ids in self._contexts()]
        self.sae = self._sae(folder / "sae")
        self.rose = Rise()
        with self.rose:
            featuredb.ingest(
                self.root,
                corpus=pa.table({"text": self.texts}),
                model=str(gemma3_folder()),
                saes=[str(folder / "sae")],
                names=["gemma"],
                context_size=CONTEXT,
                dtype="float32",
                device="cpu",
                memory=str(MEMORY),
                keep_sinks=True,
                check=False,  # in these layers the axes of one are nearly those of the next
            )

    def _contexts(self) -> Iterator[list[int]]:
        for text in self.texts:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            for start in range(0, len(ids), CONTEXT - 1):
                yield [BOS, *ids[start : start + CONTEXT - 1]]

    @torch.no_grad()
    def _states(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """The residual stream after `LAYER`, as transformers returns it, one context at a time."""
        base = self.model.model
        kept, base.layers = base.layers, base.layers[: LAYER + 2]
        try:
            found = base(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        finally:
            base.layers = kept
        states: npt.NDArray[np.float32] = found.hidden_states[LAYER + 1][0].numpy()
        return states

    def _sae(self, folder: Path) -> dict[str, npt.NDArray[np.float32]]:
        """Both directions of the first principal axes of the stream, so that ReLU loses nothing."""
        x = np.concatenate([states[1:] for states in self.states])
        mean = x.mean(0)
        axes = np.linalg.svd((x - mean)[::4], full_matrices=False)[2][:RANK]
        axes = np.concatenate([axes, -axes])
        weights = {"W_enc": axes.T, "W_dec": axes, "b_enc": -(axes @ mean), "b_dec": mean}
        folder.mkdir()
        save_file(
            {name: torch.tensor(each).contiguous() for name, each in weights.items()},
            folder / "sae_weights.safetensors",
        )
        told = {
            "architecture": "standard",
            "d_in": len(mean),
            "d_sae": len(axes),
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "metadata": {"hook_name": f"blocks.{LAYER}.hook_resid_post"},
        }
        (folder / "cfg.json").write_text(json.dumps(told))
        return weights

    def dense(self) -> npt.NDArray[np.float32]:
        """relu(x W_enc + b_enc) at every position that is no BOS, by context."""
        x = np.concatenate([states[1:] for states in self.states])
        acts: npt.NDArray[np.float32] = np.maximum(x @ self.sae["W_enc"] + self.sae["b_enc"], 0)
        return acts


class Rise:
    """The most that resident memory rises inside a `with` block, in bytes."""

    def __enter__(self) -> None:
        self.bytes, self._over, start = 0, threading.Event(), _resident()

        def watch() -> None:
            while not self._over.wait(0.02):
                self.bytes = max(self.bytes, _resident() - start)

        self._thread = threading.Thread(target=watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _resident() -> int:
    """Resident memory that is no page of a file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("gemma"))


def test_every_activation_is_that_of_a_dense_computation(made: Made) -> None:
    snapshot = read_snapshot(Layout(made.root))
    assert snapshot.model.architecture == "Gemma3ForCausalLM"
    assert snapshot.corpora[0].n_documents == DOCUMENTS
    assert snapshot.corpora[0].bos_token_id == BOS
    assert (snapshot.saes[0].check.variance_explained or 0) > 0.8
    lengths = [len(states) for states in made.states]
    starts = np.cumsum([0, *(length - 1 for length in lengths)])
    have = np.zeros((starts[-1], 2 * RANK), np.float32)
    table = activations(made.root, "gemma").to_pydict()
    rows = starts[np.asarray(table["context_id"])] + np.asarray(table["token_index"]) - 1
    have[rows, table["feature_id"]] = table["activation"]
    want = made.dense()
    assert snapshot.recorded_tokens("gemma") == len(want)
    # Batches of other shapes sum in another order. Where the stream is thousands long that is more.
    noise = 1e-4 * np.abs(want).max(axis=1, keepdims=True)
    assert np.all(np.abs(have - want) <= RELATIVE_ERROR["float16"] * np.abs(want) + noise)
    assert np.count_nonzero(have) == snapshot.rows("gemma") > RANK * len(want) / 2


def test_spaces_and_newlines_are_shown_as_they_are(made: Made) -> None:
    with featuredb.open(made.root) as db:
        contexts = db.sql(
            "SELECT document_id, token_ids FROM contexts ORDER BY context_id"
        ).fetchall()
        spelled = db.sql("SELECT bytes, text FROM vocabulary ORDER BY token_id").fetchall()
        shown = [token for context in db.top_contexts(0, k=3) for token in context.tokens]
    joined = [b""] * DOCUMENTS
    for document, ids in contexts:
        joined[document] += b"".join(spelled[number][0] for number in ids[1:])
    assert [each.decode() for each in joined] == made.texts
    texts = [text for _, text in spelled]
    newlines, spaces = (made.tokenizer.convert_tokens_to_ids(t) for t in ("\n\n", "▁▁"))
    assert (texts[newlines], texts[spaces], texts[BOS]) == ("\n\n", "  ", "<bos>")
    assert not any("▁" in token for token in shown)


def test_a_large_vocabulary_within_the_memory(made: Made) -> None:
    with featuredb.open(made.root) as db:
        (count,) = db.sql("SELECT count(*) FROM vocabulary").fetchall()[0]
        stored = db.sql(
            "SELECT promoted_tokens FROM features WHERE feature_id IN (0, 77) ORDER BY feature_id"
        ).fetchall()
        spelled = [text for (text,) in db.sql("SELECT text FROM vocabulary").fetchall()]
    assert count == len(spelled) == 262_144
    weights = sum(p.numel() * p.element_size() for p in made.model.parameters())
    assert made.rose.bytes < weights + MEMORY, f"{made.rose.bytes >> 20} MiB"
    # The logit lens over all of it: the directions through the final norm's 1 + weight.
    gain = 1 + made.model.model.norm.weight.detach().numpy()
    W_U = made.model.lm_head.weight.detach().numpy()
    for (promoted,), feature in zip(stored, (0, 77), strict=True):
        effect = W_U @ (made.sae["W_dec"][feature] * gain)
        best = np.argsort(-effect, kind="stable")[: len(promoted)]
        assert [each["token"] for each in promoted] == [spelled[number] for number in best]
        assert np.allclose([each["logit"] for each in promoted], effect[best], rtol=1e-4)
