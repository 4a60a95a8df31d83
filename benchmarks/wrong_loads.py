"""Verdicts of the load check on the demo's SAE, loaded correctly and in every wrong way.

    python -m benchmarks.wrong_loads [--sae FOLDER] [--documents N] [--only NAME]

Prints a table: the load, variance explained, L0, and the verdict, with its reason.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from featuredb.errors import LoadCheckError
from featuredb.render.progress import log
from featuredb.store.snapshot import LoadCheck
from ingest.attached import AttachedSae, ModelWithSaes
from ingest.demo.fetch import model_folder, wikipedia_corpus
from ingest.demo.run import SAE_FOLDER
from ingest.extract.device import DeviceMemory
from ingest.inputs import Inputs, load_inputs
from ingest.load_check.check import SAMPLE_TOKENS, judge, measure
from ingest.load_check.sample import SampleTokens
from ingest.options import IngestOptions
from ingest.sae import LoadedSae
from ingest.sae.activations import JumpReLU, ReLU, TopK

_THRESHOLD = 10.0


@dataclass(frozen=True)
class Load:
    """One way to load the SAE."""

    name: str
    sae: LoadedSae
    hook: str
    bos: bool = True
    keep_sinks: bool = False


def loads(sae: LoadedSae, norm: float) -> Iterator[Load]:
    """The correct one first. norm: the mean norm of what the SAE reads."""
    right = sae.hook or ""
    layer = int(right.split(".")[1])
    place = right.split(".", 2)[2]
    yield Load("right", sae, right)
    for step in (-1, 1, -4, 4):
        yield Load(f"layer {step:+d}", sae, f"blocks.{layer + step}.{place}")
    yield Load("pre for post", sae, f"blocks.{layer}.hook_resid_pre")
    yield Load("mid for post", sae, f"blocks.{layer}.hook_resid_mid")
    yield Load("MLP out for residual", sae, f"blocks.{layer}.hook_mlp_out")
    yield Load("no BOS", replace(sae, prepend_bos=None), right, bos=False)
    yield Load("no BOS, sinks kept", replace(sae, prepend_bos=None), right, False, True)
    for kind in ("layer_norm", "constant_norm_rescale"):
        yield Load(
            f"normalized: {kind}",
            replace(
                sae,
                encoder=replace(sae.encoder, normalization=kind),
                decoder=replace(sae.decoder, undoes=kind),
            ),
            right,
        )
    scale = sae.d_in**0.5 / norm
    yield Load("data-set scale lost", _scaled(sae, scale), right)
    yield Load("data-set scale folded twice", _scaled(sae, 1 / scale), right)
    yield Load("threshold lost", _activation(sae, ReLU()), right)
    yield Load("threshold lost, L0 stated", replace(_activation(sae, ReLU()), stated_l0=32), right)
    yield Load("as TopK of 32", replace(_activation(sae, TopK(32)), stated_l0=32), right)
    shuffled = sae.decoder.W_dec[torch.randperm(sae.d_sae)]
    yield Load("another SAE's decoder", replace(sae, decoder=replace(sae.decoder, W_dec=shuffled)),
               right)  # fmt: skip


def _activation(sae: LoadedSae, rule: ReLU | TopK) -> LoadedSae:
    return replace(sae, encoder=replace(sae.encoder, activation=rule))


def _scaled(sae: LoadedSae, scale: float) -> LoadedSae:
    """The SAE of inputs `scale` times as large, as one trained on such inputs is stored."""
    encoder, decoder, rule = sae.encoder, sae.decoder, sae.encoder.activation
    if isinstance(rule, JumpReLU):
        rule = JumpReLU(rule.threshold * scale)
    b_enc = encoder.b_enc * scale if encoder.b_enc is not None else None
    b_pre = encoder.b_pre * scale if encoder.b_pre is not None else None
    return replace(
        sae,
        encoder=replace(encoder, b_enc=b_enc, b_pre=b_pre, activation=rule),
        decoder=replace(decoder, b_dec=decoder.b_dec * scale),
    )


def sample_of(inputs: Inputs, *, bos: bool) -> SampleTokens:
    """A sample of the corpus, with or without a BOS."""
    pieces = [tokenized for _, tokenized in inputs.contexts()]
    tokens = torch.cat([torch.from_numpy(p.token_ids.astype("int64")) for p in pieces])
    lengths = torch.cat([torch.from_numpy(p.context_lengths) for p in pieces]).long()
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    token = inputs.bos.token
    whole = SampleTokens(tokens.numpy(), starts.numpy(), token, token is not None)
    whole = whole.spread(SAMPLE_TOKENS)
    return whole if bos else whole.without_bos()


def verdict(inputs: Inputs, load: Load, sample: SampleTokens) -> tuple[LoadCheck, str]:
    """What the check measures, and its verdict."""
    model, notes = inputs.loaded.model, _Notes()
    threshold = None if load.keep_sinks else _THRESHOLD
    attached = AttachedSae("demo", load.sae, model.hook(load.hook))
    loaded = ModelWithSaes(model, (attached,))
    ((check, *_),) = measure(loaded, sample, threshold, DeviceMemory(4_096))
    log.addHandler(notes)
    try:
        judge(model, attached, check, sample, threshold)
    except LoadCheckError as error:
        return check, f"refused: {error}"
    finally:
        log.removeHandler(notes)
    return check, f"taken, but {notes.messages[0]}" if notes.messages else "taken"


class _Notes(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main(show: Callable[[str], None] = print) -> None:
    """Run every load and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sae", default=str(SAE_FOLDER))
    parser.add_argument("--documents", type=int, default=90)
    parser.add_argument("--only", default="", help="loads whose names contain this")
    told = parser.parse_args()
    options = IngestOptions(
        corpus=str(wikipedia_corpus(told.documents)), model=str(model_folder()), saes=[told.sae]
    )
    inputs = load_inputs(options)
    attached = inputs.loaded.saes[0]
    sae = attached.sae
    log.setLevel(logging.INFO)
    samples = {bos: sample_of(inputs, bos=bos) for bos in (True, False)}
    loaded = ModelWithSaes(inputs.loaded.model, (AttachedSae("demo", sae, attached.hook),))
    memory = DeviceMemory(4_096, show)
    ((first, *_),) = measure(loaded, samples[True], _THRESHOLD, memory)
    show(f"{'load':28}  variance explained       L0  verdict")
    for load in loads(sae, first.median_norm):
        if told.only not in load.name:
            continue
        check, said = verdict(inputs, load, samples[load.bos])
        show(f"{load.name:28}  {check.variance_explained:18.3f}  {check.l0:7.1f}  {said}")


if __name__ == "__main__":
    main()
