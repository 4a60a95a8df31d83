"""Stored activations match a rerun of the model and the SAEs, and mismatches are detected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featuredb
from featuredb.errors import ModelError, OptionError
from featuredb.store.history import read_snapshot
from featuredb.store.layout import Layout
from featuredb.store.values import FLOAT16_TINY, RELATIVE_ERROR, Values, stored_values
from featuredb.verification import Report, verify
from featuredb.verification import source as recomputation
from featuredb.verification.source import compare
from ingest.extract import new_text as live
from ingest.extract import recorded
from tests.tiny import tiny_documents, tiny_model, tiny_sae, write_jsonl

_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An ingest of two SAEs at two hooks, with more options. The database's path."""
    folder = tmp_path_factory.mktemp("source")
    model = tiny_model(folder / "model")
    saes = [tiny_sae(folder / "a"), tiny_sae(folder / "b", d_sae=40, seed=5)]

    def make(name: str, **options: Any) -> Path:
        corpus = write_jsonl(folder / "corpus.jsonl", tiny_documents())
        told: dict[str, Any] = {"dtype": "float32", "check": False, "sink_threshold": 1.2}
        featuredb.ingest(
            folder / name,
            corpus=str(corpus),
            model=str(model),
            saes=[str(s) for s in saes],
            names=["a", "b"],
            **(told | options),
        )
        return folder / name

    return make


@pytest.fixture(scope="module")
def plain(made: Callable[..., Path]) -> Path:
    return made("plain.fdb")


@pytest.mark.parametrize(
    "options",
    [{}, {"exact": True}, {"keep_bos": True, "keep_sinks": True}, {"stride": 9}],
    ids=lambda o: ",".join(o),
)
def test_a_sound_database_agrees(made: Callable[..., Path], options: dict[str, Any]) -> None:
    path = made(f"{'-'.join(options)}.fdb", **options)
    report = featuredb.verify(path, source=1_000)
    assert report.ok, str(report)
    again, snapshot = report.recomputed, read_snapshot(Layout(path))
    assert again is not None
    assert again.contexts == snapshot.corpora[0].n_contexts  # there are no more
    assert again.activations + again.flips >= report.activations
    assert again.flips <= 2
    assert again.largest_error <= 5e-4 + (0 if "exact" in options else 2**-11)
    assert f"recomputed: {again.activations:,} activations of" in str(report)


def test_a_sample_is_the_same_sample_again(plain: Path) -> None:
    one, other = (featuredb.verify(plain, source=7).recomputed for _ in range(2))
    assert one is not None
    assert one == other
    assert one.contexts == 7


def changed(plain: Path, change: Callable[[pa.Table], pa.Table]) -> Report:
    """The comparison with every by-token row changed. The files are restored."""
    files = [t.file.path for s in read_snapshot(Layout(plain)).segments for t in s.token_files]
    before = {name: (plain / name).read_bytes() for name in files}
    try:
        for name in files:
            pq.write_table(change(pq.read_table(plain / name)), plain / name)
        return compare(plain, Report(0, 0, 0, ()), 50, live.encode_contexts)
    finally:
        for name, whole in before.items():
            (plain / name).write_bytes(whole)


def test_other_values_are_found(plain: Path) -> None:
    def larger(table: pa.Table) -> pa.Table:
        lists = table.column("activations").combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        values = lists.values.to_numpy(zero_copy_only=False) * np.float16(1.01)
        new = pa.ListArray.from_arrays(lists.offsets, pa.array(values), type=lists.type)
        return table.set_column(2, table.field(2), new)

    report = changed(plain, larger)
    assert [p.where for p in report.problems] == ["SAE a", "SAE b"]
    assert "activations differ from the model's by more than" in report.problems[0].what


@pytest.mark.parametrize("values", ["float16", "log8"])
def test_rounding_explains_the_differences_of_small_activations(values: Values) -> None:
    """Below 2⁻¹⁴ float16 has steps of one size, and nothing is rounded to zero."""
    drawn = np.random.default_rng(0).lognormal(np.log(5e-6), 3, 20_000)
    wanted = np.concatenate([drawn, -drawn, [1e-12]]).astype(np.float32)
    stored = stored_values(wanted, values).astype(np.float32)
    key = np.arange(len(wanted))
    most = RELATIVE_ERROR[values] + 1e-6

    def beyond(have: np.ndarray, least: float) -> int:
        one, other = recomputation._Activations(key, wanted), recomputation._Activations(key, have)
        return recomputation._difference(one, other, most, least).beyond

    assert beyond(stored, FLOAT16_TINY) == 0
    assert beyond(stored, 0.0) > 0
    assert beyond(stored + np.float32(2**-22), FLOAT16_TINY) > 0


def test_missing_tokens_are_found(plain: Path) -> None:
    report = changed(plain, lambda table: table.slice(0, len(table) - 60))
    assert {p.where for p in report.problems} == {"SAE a", "SAE b"}
    assert "activations are only stored or only computed" in str(report)


def test_what_is_needed_for_it(plain: Path) -> None:
    with pytest.raises(OptionError, match="source must be 1 to 32,768 contexts, not 100,000"):
        featuredb.verify(plain, source=100_000)
    snapshot = read_snapshot(Layout(plain))
    recorded._load_model.cache_clear()
    weights = Path(snapshot.model.path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match="is not the one this database was ingested with"):
        featuredb.verify(plain, source=1)
    weights.write_bytes(whole)
    assert featuredb.verify(plain, source=1).ok
    assert verify(plain).ok


def test_damage_is_told_before_the_model_is_loaded(plain: Path) -> None:
    name = read_snapshot(Layout(plain)).vocabulary.path
    whole = (plain / name).read_bytes()
    (plain / name).write_bytes(whole[:-1])
    report = featuredb.verify(plain, source=5)
    (plain / name).write_bytes(whole)
    assert [p.where for p in report.problems] == [name]
    assert report.recomputed is None


def test_chats_agree(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": _TEMPLATE}))
    chats = [{"messages": [{"role": "user", "content": d["text"]}]} for d in tiny_documents(12)]
    featuredb.ingest(
        tmp_path / "chats.fdb",
        corpus=str(write_jsonl(tmp_path / "chats.jsonl", chats)),
        model=str(model),
        saes=[str(tiny_sae(tmp_path / "sae"))],
        messages_column="messages",
        dtype="float32",
        check=False,
    )
    report = featuredb.verify(tmp_path / "chats.fdb", source=recomputation.MOST_CONTEXTS)
    assert report.ok, str(report)
    assert report.recomputed is not None
