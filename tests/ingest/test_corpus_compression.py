"""Compressed files: every member and frame is read, and one cut short is told."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from featuredb.errors import CorpusError
from ingest.corpus import open_corpus

TEXTS = [f"text {i * i}" for i in range(2000)]
LINES = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
ONE, TWO = b"".join(LINES[:700]), b"".join(LINES[700:])
SKIPPED = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"\0\0\0\0"


def lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def long_zstd(data: bytes) -> bytes:
    """As ``zstd --long=31`` writes it."""
    settings = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    worker = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return worker.compress(data) + worker.flush()


SQUEEZERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".lz4": lz4,
}


def texts(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    corpus = open_corpus(path)
    return [row for batch in corpus.batches() for row in batch.column("text").to_pylist()]


@pytest.mark.parametrize("ending", SQUEEZERS)
def test_files_joined_end_to_end_are_read_to_the_end(tmp_path: Path, ending: str) -> None:
    squeeze = SQUEEZERS[ending]
    assert texts(tmp_path / f"c.jsonl{ending}", squeeze(ONE) + squeeze(TWO)) == TEXTS
    # The first bytes tell, whatever the name.
    assert texts(tmp_path / "c.jsonl", squeeze(ONE + TWO)) == TEXTS
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"c.json{ending}").write_bytes(squeeze(ONE + TWO))
    assert open_corpus(tmp_path / "folder").rows == len(TEXTS)


@pytest.mark.parametrize("ending", SQUEEZERS)
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_file_cut_short_is_told(tmp_path: Path, ending: str, kept: float) -> None:
    content = SQUEEZERS[ending](ONE + TWO)
    with pytest.raises(CorpusError, match=rf"cannot read .*c\.jsonl{ending}: ") as caught:
        texts(tmp_path / f"c.jsonl{ending}", content[: int(len(content) * kept)])
    assert "\n" not in str(caught.value)


def test_frames_of_zstandard(tmp_path: Path) -> None:
    squeeze = SQUEEZERS[".zst"]
    path = tmp_path / "c.jsonl.zst"
    assert texts(path, squeeze(ONE) + SKIPPED + squeeze(TWO) + SKIPPED) == TEXTS
    assert texts(path, SKIPPED + squeeze(b"") + squeeze(ONE + TWO)) == TEXTS
    assert texts(path, long_zstd(ONE) + squeeze(TWO)) == TEXTS
    for content in (squeeze(ONE) + squeeze(TWO)[:20], squeeze(ONE) + b"garbage" * 9):
        with pytest.raises(CorpusError, match=r"cannot read .*c\.jsonl\.zst: "):
            texts(path, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04rest", "is a zip archive; unpack it"),
        (b"7z\xbc\xaf\x27\x1crest", "is a 7-Zip archive; unpack it"),
        (
            gzip.compress(b"\0" * 257 + b"ustar" + b"\0" * 250, mtime=0),
            "is a tar archive; unpack it",
        ),
    ],
)
def test_archives_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("c.bin", "c.jsonl", "c.tar.gz"):
        with pytest.raises(CorpusError, match=said):
            texts(tmp_path / name, content)
