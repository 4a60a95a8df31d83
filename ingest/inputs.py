"""The model, the SAEs and the corpus of an ingest, loaded and matched to one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from featuredb.errors import HookError, IngestError, SaeError
from featuredb.store.snapshot import Model
from ingest.attached import AttachedSae, ModelWithSaes, hooks_written
from ingest.corpus import CorpusReader, open_corpus
from ingest.load_check.check import fit
from ingest.model.compiled import compile_layers
from ingest.model.load import LoadedModel, load_model, no_tokenizer
from ingest.options import ENCODED_ON, EncodeDtype, Hooks, IngestOptions
from ingest.sae import LoadedSae, load_sae, members
from ingest.sae.centered_weights import on_plain_weights
from ingest.sae.naming import check_sae_name
from ingest.tokens.bos import Bos, choose_bos
from ingest.tokens.contexts import TokenizedBatch
from ingest.tokens.store import MAX_CONTEXT_SIZE
from ingest.tokens.tokenize import iter_contexts

_DEFAULT_CONTEXT = 256

_TOKENIZER_THREADS = 1
"""The tokenizer spreads a batch over all cores itself."""


Load = Callable[[IngestOptions], ModelWithSaes]


@dataclass(frozen=True)
class Inputs:
    """Everything an ingest reads, and how the corpus is cut into contexts.

    bos: what every context begins with. stride, max_tokens: as in `IngestOptions`.
    """

    loaded: ModelWithSaes
    corpus: CorpusReader
    context_size: int
    bos: Bos
    stride: int | None
    max_tokens: int | None
    corpus_name: str | None = None

    def contexts(self) -> Iterator[tuple[pa.RecordBatch, TokenizedBatch]]:
        """Batches of documents with their contexts."""
        model = self.loaded.model
        return iter_contexts(
            self.corpus,
            model.tokenizer,
            context_size=self.context_size,
            bos_id=self.bos.token,
            stride=self.stride,
            vocab_size=model.vocab_size,
            # Tokenizing ahead of an early stop would be wasted.
            workers=_TOKENIZER_THREADS if self.max_tokens is None else 0,
        )

    def model_record(self) -> Model:
        """What the snapshot keeps of the model."""
        model = self.loaded.model
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
            compiled=model.compiled,
        )

    def identity(self, options: IngestOptions) -> dict[str, str]:
        """What decides the content of the database, as readable text by name."""
        settings = {
            "corpus content": self.corpus.fingerprint(),
            "text column": options.text_column,
            "tokens column": options.tokens_column,
            "messages column": options.messages_column,
            "max documents": options.max_documents,
            "max tokens": self.max_tokens,
            "context size": self.context_size,
            "stride": self.stride,
            "BOS": self.bos.token,
            "sink threshold": options.sink_threshold,
            "keep sinks": options.keep_sinks,
            "keep BOS": options.keep_bos,
            "values": options.recording().values,
            "SAEs": ", ".join(attached.name for attached in self.loaded.saes),
        }
        identity = {name: str(value) for name, value in settings.items()}
        if self.corpus_name is not None:
            identity["corpus name"] = self.corpus_name
        return identity | self.loaded.identity()


def load_inputs(options: IngestOptions, load: Load | None = None, bos: Bos | None = None) -> Inputs:
    """Load and match everything, the cheapest first. Raises the `IngestError` of what is wrong.

    load: gives the model and the SAEs. Default: `load_model_with_saes`. bos: that of a database.
    Default: see `choose_bos`.
    """
    corpus = open_corpus(
        options.corpus,
        text_column=options.text_column,
        id_column=options.id_column,
        tokens_column=options.tokens_column,
        messages_column=options.messages_column,
        max_documents=options.max_documents,
    )
    loaded = (load or load_model_with_saes)(options)
    if loaded.model.tokenizer is None and corpus.column.role != "tokens":
        raise no_tokenizer(loaded.model.path)
    return Inputs(
        loaded,
        corpus,
        _context_size(loaded, options.context_size),
        choose_bos(loaded, options.bos) if bos is None else bos,
        options.stride,
        options.max_tokens,
        options.corpus_name,
    )


def load_model_with_saes(options: IngestOptions, revision: str | None = None) -> ModelWithSaes:
    """The model and the SAEs that `options` name. See `attach_saes`."""
    loaded = attach_saes(
        options.model,
        options.saes,
        options.names,
        hook=options.hook,
        hook_out=options.hook_out,
        device=options.device,
        dtype=options.dtype,
        torch_compile=options.torch_compile,
        revision=revision,
        check=options.check,
    )
    return _encoded_in(loaded, options.encode_dtype)


def _encoded_in(loaded: ModelWithSaes, encoding: EncodeDtype) -> ModelWithSaes:
    """The same, to be encoded so. Raises `SaeError` where that is not possible."""
    if encoding == "float32":
        return loaded
    model = loaded.model
    place = {"cuda": "an NVIDIA GPU", "cpu": "a CPU"}[ENCODED_ON[encoding]]
    if model.device.type != ENCODED_ON[encoding]:
        raise SaeError(
            f"encoding in {encoding} is for {place}, and the model is on {model.device}: "
            "leave --encode-dtype out"
        )
    for attached in loaded.saes:
        if not attached.sae.can_encode_in(encoding, model.dtype):
            screened = ", with ReLU or JumpReLU" if encoding == "screened" else ""
            raise SaeError(
                f"SAE {attached.name} cannot be encoded in {encoding}, which needs a bfloat16 "
                f"model and an SAE that does not normalize its input{screened}: "
                "leave --encode-dtype out"
            )
    return replace(loaded, saes=tuple(replace(each, encoding=encoding) for each in loaded.saes))


def attach_saes(
    model: str,
    saes: Sequence[str],
    names: Sequence[str] | None,
    *,
    hook: Hooks,
    hook_out: Hooks = None,
    device: str,
    dtype: str,
    torch_compile: bool = False,
    revision: str | None = None,
    check: bool = True,
) -> ModelWithSaes:
    """Load the model and the SAEs and match them. Arguments as in `IngestOptions`.

    revision: of the model, if it is from the hub. check: refuse a transcoder that cannot be
    measured because the hook point of its output is unknown. Raises the `IngestError` of what is
    wrong.
    """
    references = [members(reference) for reference in saes]
    loaded = [[load_sae(reference) for reference in group] for group in references]
    every = [sae for group in loaded for sae in group]
    names = _names(loaded, names)
    into = load_model(
        model, device=device, dtype=dtype, revision=revision, torch_compile=torch_compile
    )
    if torch_compile:
        compile_layers(into)  # now, as whether that is possible must be known first
    attached = tuple(
        _attach(into, sae, name, reference, read, write, check=check)
        for sae, name, reference, read, write in zip(
            every,
            names,
            [reference for group in references for reference in group],
            _each(hook, loaded),
            _each(hook_out, loaded),
            strict=True,
        )
    )
    return ModelWithSaes(into, attached)


def _each(hooks: Hooks, groups: Sequence[Sequence[LoadedSae]]) -> list[str | None]:
    """The hook of each SAE. Raises `HookError` if one is given for a set of several."""
    given = [hooks] * len(groups) if isinstance(hooks, str | None) else hooks
    for hook, group in zip(given, groups, strict=True):
        if hook is not None and len(group) > 1:
            raise HookError(
                f"{hook} cannot be the hook of {len(group)} SAEs that each have a layer of their "
                "own: name one of them instead of the whole set, or leave the hook out"
            )
    return [hook for hook, group in zip(given, groups, strict=True) for _ in group]


def absolute(reference: str | Path) -> str:
    """A local path made absolute, so that the database can find it again. Others unchanged."""
    path = Path(reference).expanduser()
    # layer_5 of a circuit-tracer set is a name in its configuration
    in_set = re.fullmatch(r"layer_?\d+", path.name) and path.parent.is_dir()
    return str(path.resolve()) if path.exists() or in_set else str(reference)


def _names(groups: Sequence[Sequence[LoadedSae]], given: Sequence[str] | None) -> list[str]:
    """given: one for each group, from which the names of a set's members are made, or for each."""
    names = list(given) if given is not None else [sae.name for group in groups for sae in group]
    if len(names) == len(groups):
        names = [
            f"{name}-{sae.cross_layer.member}" if len(group) > 1 and sae.cross_layer else name
            for name, group in zip(names, groups, strict=True)
            for sae in group
        ]
    for name in names:
        check_sae_name(name)
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise IngestError(
            f"two SAEs are named {sorted(twice)[0]!r}: give each its own with --name, in order"
        )
    return names


def _attach(
    model: LoadedModel,
    sae: LoadedSae,
    name: str,
    reference: str,
    read: str | None,
    write: str | None,
    *,
    check: bool,
) -> AttachedSae:
    """read, write: hooks that the user names, None for those of the SAE's files."""
    read, write = read or sae.hook, write or sae.hook_out
    if read is None:
        raise HookError(f"the files of SAE {name} do not say where it reads: give it with --hook")
    hook = model.hook(read)
    sae = on_plain_weights(sae, model, hook)
    if write is not None and sae.cross_layer is not None:
        raise HookError(
            f"SAE {name} writes to several layers, and its files say which: leave out {write}"
        )
    hook_out = model.hook(write) if write else None
    if hook_out is not None and hook_out.canonical == hook.canonical:
        hook_out = None
    hooks_out = hooks_written(model, sae)
    fit(sae, name, hook, [*hooks_out.values(), *([hook_out] if hook_out else [])], check=check)
    return AttachedSae(
        name,
        sae.to(device=model.device),
        hook,
        hook_out,
        absolute(reference),
        hooks_out=hooks_out,
        excluded=excluded_tokens(model, sae),
    )


def excluded_tokens(model: LoadedModel, sae: LoadedSae) -> tuple[int, ...]:
    """The token ids at which an SAE's activations are not recorded, ascending.

    Raises `ModelError` if that needs a tokenizer and there is none.
    """
    if not isinstance(sae.excluded_tokens, bool):
        return sae.excluded_tokens
    if not sae.excluded_tokens:
        return ()
    if model.tokenizer is None:
        raise no_tokenizer(model.path)
    return tuple(sorted({int(token) for token in model.tokenizer.all_special_ids}))


def _context_size(loaded: ModelWithSaes, size: int | None) -> int:
    most = loaded.model.context_length
    if size is None:
        stated = [a.sae.context_size for a in loaded.saes if a.sae.context_size]
        size = min([*stated, most]) if stated else min(_DEFAULT_CONTEXT, most)
    if size > min(most, MAX_CONTEXT_SIZE):
        raise IngestError(
            f"context size {size} is more than the model's {most}: give a smaller --context-size"
        )
    return size
