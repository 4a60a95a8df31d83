"""The model, the SAEs and the corpus of an ingest, loaded and matched to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featuredb.errors import HookError, IngestError
from featuredb.store.snapshot import LoadCheck, Model
from featuredb.store.snapshot import Sae as SaeRecord
from ingest.corpus import CorpusReader, open_corpus
from ingest.load_check.check import fit
from ingest.model.hooks import HookPoint
from ingest.model.load import LoadedModel, bos_token_id, load_model
from ingest.options import Hooks, IngestOptions
from ingest.progress import say
from ingest.sae import LoadedSae, load_sae
from ingest.tokens.store import MAX_CONTEXT_SIZE

_DEFAULT_CONTEXT = 256


@dataclass(frozen=True)
class PlacedSae:
    """An SAE and where it reads; hook_out is where a transcoder's output belongs, if known."""

    name: str
    source: str
    sae: LoadedSae
    hook: HookPoint
    hook_out: HookPoint | None

    def record(self, check: LoadCheck) -> SaeRecord:
        """What the snapshot keeps."""
        sae = self.sae
        return SaeRecord(
            name=self.name,
            source=self.source,
            format=sae.format,
            architecture=sae.architecture,
            sha256=sae.hash,
            hook=self.hook.name,
            hook_out=self.hook_out.name if self.hook_out else None,
            d_in=sae.d_in,
            d_out=sae.d_out,
            d_sae=sae.d_sae,
            encode_dtype=str(sae.dtype).removeprefix("torch."),
            check=check,
        )


@dataclass(frozen=True)
class Reader:
    """The model and the SAEs at their hooks: what running a partition takes."""

    model: LoadedModel
    saes: tuple[PlacedSae, ...]

    def identity(self) -> dict[str, str]:
        """What of an ingest's identity is in the model's and the SAEs' files, by name."""
        told = {
            "model weights": self.model.weights_hash,
            "tokenizer": self.model.tokenizer_hash,
            "model dtype": str(self.model.dtype),
        }
        for placed in self.saes:
            where = f"{placed.sae.hash} at {placed.hook.canonical}"
            if placed.hook_out is not None:
                where += f" to {placed.hook_out.canonical}"
            told[f"SAE {placed.name}"] = where
        return told


@dataclass(frozen=True)
class Inputs:
    """Everything an ingest reads."""

    model: LoadedModel
    saes: tuple[PlacedSae, ...]
    corpus: CorpusReader
    context_size: int
    bos: int | None

    @property
    def reader(self) -> Reader:
        """Without the corpus."""
        return Reader(self.model, self.saes)

    def model_record(self) -> Model:
        """What the snapshot keeps."""
        model = self.model
        return Model(
            id=model.id,
            path=absolute(model.path),
            revision=model.revision,
            sha256=model.weights_hash,
            tokenizer_sha256=model.tokenizer_hash,
            architecture=model.architecture,
            dtype=str(model.dtype).removeprefix("torch."),
            d_model=model.d_model,
            n_layers=model.n_layers,
            vocab_size=model.vocab_size,
        )

    def identity(self, options: IngestOptions) -> dict[str, str]:
        """What decides the content of the database, as readable text by name."""
        told = {
            "corpus": self.corpus.source,
            "corpus content": self.corpus.fingerprint(),
            "text column": options.text_column,
            "tokens column": options.tokens_column,
            "messages column": options.messages_column,
            "max documents": options.max_documents,
            "max tokens": options.max_tokens,
            "context size": self.context_size,
            "stride": options.stride,
            "BOS": self.bos,
            "sink threshold": options.sink_threshold,
            "keep sinks": options.keep_sinks,
            "keep BOS": options.keep_bos,
            "values": options.recording().values,
        }
        told["SAEs"] = ", ".join(p.name for p in self.saes)
        read = self.reader.identity()
        return {name: str(value) for name, value in told.items()} | read


def load_inputs(options: IngestOptions, revision: str | None = None) -> Inputs:
    """Load and match everything. The cheap things that can be wrong are looked at first.

    revision: of the model, where it comes from the hub; the newest by default.

    Raises the `IngestError` of whatever is wrong.
    """
    corpus = open_corpus(
        options.corpus,
        text_column=options.text_column,
        id_column=options.id_column,
        tokens_column=options.tokens_column,
        messages_column=options.messages_column,
        max_documents=options.max_documents,
        on_warning=partial(say, show=options.progress),
    )
    read = reader_for(options, revision)
    model, saes = read.model, [placed.sae for placed in read.saes]
    size, bos = _context_size(model, saes, options), bos_of(read)
    return Inputs(model, read.saes, corpus, size, bos)


def reader_for(options: IngestOptions, revision: str | None = None) -> Reader:
    """What `options` say of the model and the SAEs; see `load_reader`."""
    return load_reader(
        options.model,
        options.saes,
        options.names,
        hook=options.hook,
        hook_out=options.hook_out,
        device=options.device,
        dtype=options.dtype,
        revision=revision,
        check=options.check,
    )


def load_reader(
    model: str,
    saes: Sequence[str],
    names: Sequence[str] | None,
    *,
    hook: Hooks,
    hook_out: Hooks = None,
    device: str,
    dtype: str,
    revision: str | None = None,
    check: bool = True,
) -> Reader:
    """Load the model and the SAEs and match them; arguments as in `IngestOptions`.

    revision: of the model, where it comes from the hub. check: refuse a transcoder that cannot be
    measured, since nobody says where what it writes belongs. Raises the `IngestError` of whatever
    is wrong.
    """
    loaded = [load_sae(reference) for reference in saes]
    called = _names(loaded, names)
    into = load_model(model, device=device, dtype=dtype, revision=revision)
    placed = tuple(
        _place(into, sae, name, reference, read, write, check=check)
        for sae, name, reference, read, write in zip(
            loaded, called, saes, _each(hook, len(saes)), _each(hook_out, len(saes)), strict=True
        )
    )
    return Reader(into, placed)


def _each(hooks: Hooks, count: int) -> Sequence[str | None]:
    """The place of each of `count` SAEs."""
    return [hooks] * count if isinstance(hooks, str | None) else hooks


def absolute(reference: str | Path) -> str:
    """A local path made absolute, so that the database can find it again; others unchanged."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else str(reference)


def _names(saes: Sequence[LoadedSae], given: Sequence[str] | None) -> list[str]:
    names = list(given) if given is not None else [s.name for s in saes]
    for name in names:
        if not name or "/" in name or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name):
            raise IngestError(
                f"an SAE's name cannot be {name!r}: not empty, no slash, UTF-8 text (--name)"
            )
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise IngestError(
            f"two SAEs are named {sorted(twice)[0]!r}: give each its own with --name, in order"
        )
    return names


def _place(
    model: LoadedModel,
    sae: LoadedSae,
    name: str,
    reference: str,
    read: str | None,
    write: str | None,
    *,
    check: bool,
) -> PlacedSae:
    where, to = read or sae.hook, write or sae.hook_out
    if where is None:
        raise HookError(f"the files of SAE {name} do not say where it reads: give it with --hook")
    hook = model.hook(where)
    out = model.hook(to) if to else None
    if out is not None and out.canonical == hook.canonical:
        out = None
    fit(sae, name, hook, out, check=check)
    return PlacedSae(name, absolute(reference), sae.to(device=model.device), hook, out)


def _context_size(model: LoadedModel, saes: Sequence[LoadedSae], options: IngestOptions) -> int:
    size = options.context_size
    if size is None:
        stated = [s.context_size for s in saes if s.context_size]
        size = min([*stated, model.context_length]) if stated else _DEFAULT_CONTEXT
        size = min(size, model.context_length)
    if size > min(model.context_length, MAX_CONTEXT_SIZE):
        raise IngestError(
            f"context size {size} is more than the model's {model.context_length}: "
            "give a smaller --context-size"
        )
    return size


def bos_of(reader: Reader) -> int | None:
    """The BOS token that contexts begin with, None for none. Raises `IngestError` where the SAEs
    disagree."""
    found = {bos_token_id(reader.model, placed.sae.prepend_bos) for placed in reader.saes}
    if len(found) > 1:
        raise IngestError(
            "some of these SAEs were trained with a BOS token and some without: "
            "ingest them into separate databases"
        )
    return found.pop()
