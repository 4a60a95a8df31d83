"""Batches through the model and the SAEs, several under way on an accelerator at once.

One thread launches everything and never waits for the device. What is copied to the host is waited
for once a batch, and made ready to be kept, by other threads, when the batches behind it are
launched already. Whatever the host would have to ask before, such as how many activations there
are, whether a value is finite, or where sinks are, is answered by flags and by buffers that have
room to spare. Where a flag says no, the batch is run again step by step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featuredb.store.values import stored_values
from ingest.attached import AttachedSae
from ingest.extract.batches import Batch
from ingest.extract.device import DeviceMemory
from ingest.extract.forward import (
    Recorded,
    Rule,
    forward,
    included,
    positions,
    run_batch,
    upload,
)
from ingest.extract.overlap import finishing_threads
from ingest.model.device import empty_cache, full_float32, is_out_of_memory
from ingest.model.load import LoadedModel
from ingest.sae.codes import LaunchedCodes

Kept = TypeVar("Kept")

Results = list[tuple[Batch, list[Kept]]]
"""A batch in as many parts as the device's memory needs, with what is kept of each SAE."""

Keep = Callable[[int, Batch, Recorded], Kept]
"""Makes what is kept of an SAE, given its number, the batch and its activations. Called in several
threads at once where batches overlap."""

_ROOM = 1.5
"""Room for so many times the activations per position that a batch has had."""

Ints = npt.NDArray[np.int64]


class _OnHost(NamedTuple):
    """Copies of one SAE's results, filled when the device gets there.

    row, token_index: int64 [n], the positions. sink: bool [n] and norm: float32 [n], None to record
    all. bad: bool [], whether anything must be looked at. pieces: with the number of rows of each.
    """

    row: Ints
    token_index: Ints
    sink: Tensor | None
    norm: Tensor | None
    bad: Tensor
    pieces: list[tuple[int, LaunchedCodes]]


@dataclass
class _Launched:
    """A batch that is under way. event: None where nothing has to be waited for."""

    batch: Batch
    event: Any
    saes: list[_OnHost]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Until its copies are there. The first thread waits for the device, others for it."""
        with self._lock:
            if self.event is not None:
                self.event.synchronize()
                self.event = None


@dataclass(frozen=True)
class Pipeline:
    """What stays the same from batch to batch.

    memory: how much the device takes at once. per_row: by SAE, the most activations per position of
    any batch so far. It is filled here, and outlives the pipeline.
    """

    model: LoadedModel
    saes: Sequence[AttachedSae]
    memory: DeviceMemory
    per_row: dict[str, float]
    rule: Rule

    def results(
        self, batches: Iterable[Batch], ahead: int, keep: Keep[Kept]
    ) -> Iterator[Results[Kept]]:
        """The results of each batch, in the order of the batches, `ahead` under way at once.

        ahead: 0 runs them one after the other. Raises as `run_batch` and `DeviceMemory.run`.
        """
        under_way: deque[tuple[Batch, list[Future[tuple[float, Kept] | None]]]] = deque()
        with ThreadPoolExecutor(finishing_threads(len(self.saes)), "finish") as pool:
            for batch in batches:
                launched = self._launch(batch) if ahead else None
                if launched is None:
                    # Alone on the device: what is under way takes memory too.
                    while under_way:
                        yield self._finished(*under_way.popleft(), keep)
                    yield self._step_by_step(batch, keep)
                    continue
                numbers = range(len(self.saes))
                futures = [pool.submit(self._finish, launched, sae, keep) for sae in numbers]
                under_way.append((batch, futures))
                if len(under_way) >= ahead:
                    yield self._finished(*under_way.popleft(), keep)
            while under_way:
                yield self._finished(*under_way.popleft(), keep)

    def _step_by_step(self, batch: Batch, keep: Keep[Kept]) -> Results[Kept]:
        results: Results[Kept] = []
        for part, recorded in self.memory.run(self._run, batch):
            results.append((part, [keep(n, part, each) for n, each in enumerate(recorded)]))
            for number, each in enumerate(recorded):
                self._learn(number, _per_row(each))
        return results

    def _learn(self, sae: int, per_row: float) -> None:
        name = self.saes[sae].name
        self.per_row[name] = max(per_row, self.per_row.get(name, 0.0))

    def _run(self, batch: Batch) -> list[Recorded]:
        return run_batch(self.model, self.saes, batch, self.rule)

    @torch.inference_mode()
    def _launch(self, batch: Batch) -> _Launched | None:
        """None where the batch does not fit, or nothing is known yet of its activations."""
        known = all(attached.name in self.per_row for attached in self.saes)
        if not known or batch.token_ids.size > self.memory.batch_tokens:
            return None
        wanted = positions(batch.lengths, self.rule.skip_first)
        tokens = batch.token_ids[wanted]
        try:
            with full_float32():
                states = forward(self.model, [attached.hook for attached in self.saes], batch)
                saes = [
                    self._launch_sae(attached, states[attached.hook.name], wanted, tokens)
                    for attached in self.saes
                ]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            return _Launched(batch, _mark(self.model.device), saes)
        empty_cache()
        return None

    def _launch_sae(
        self, attached: AttachedSae, states: Tensor, wanted: tuple[Ints, Ints], tokens: Ints
    ) -> _OnHost:
        row, index = included(attached, wanted, tokens)
        flat = upload(row * states.shape[1] + index, states.device)
        x = states.reshape(-1, states.shape[-1]).index_select(0, flat)
        norm = x.float().norm(dim=1)
        sink = None if attached.sink_norm is None else norm > attached.sink_norm
        room = _ROOM * self.per_row[attached.name] + 1
        pieces, large = attached.sae.launch(x, None if sink is None else ~sink, room)
        lengths = [len(each) for each in torch.empty(len(x), 0).tensor_split(len(pieces))]
        return _OnHost(
            row,
            index,
            None if sink is None else _download(sink),
            None if sink is None else _download(norm),
            _download(large | ~torch.isfinite(norm).all()),
            [(n, _downloaded(codes)) for n, codes in zip(lengths, pieces, strict=True)],
        )

    def _finish(self, launched: _Launched, sae: int, keep: Keep[Kept]) -> tuple[float, Kept] | None:
        """Wait for one SAE's activations and keep them. None where there was not enough room, or a
        flag says that something may be wrong."""
        launched.wait()
        recorded = _recorded(launched.saes[sae], self.rule)
        if recorded is None:
            return None
        return _per_row(recorded), keep(sae, launched.batch, recorded)

    def _finished(
        self, batch: Batch, futures: list[Future[tuple[float, Kept] | None]], keep: Keep[Kept]
    ) -> Results[Kept]:
        """What all SAEs keep of a batch. Without one of them it is run step by step, which raises
        the error if there is one."""
        found = [future.result() for future in futures]
        kept = []
        for number, each in enumerate(found):
            if each is None:
                return self._step_by_step(batch, keep)
            self._learn(number, each[0])
            kept.append(each[1])
        return [(batch, kept)]


def as_recorded(sae: int, batch: Batch, recorded: Recorded) -> Recorded:
    """Keeps activations as they are."""
    return recorded


def _per_row(recorded: Recorded) -> float:
    return len(recorded.place) / max(1, recorded.recorded)


def _recorded(given: _OnHost, rule: Rule) -> Recorded | None:
    """One SAE's activations, None if its flags do not allow them."""
    if bool(given.bad):
        return None
    sink = np.zeros(len(given.row), bool) if given.sink is None else given.sink.numpy()
    at, feature, value = [], [], []
    first = 0
    for length, codes in given.pieces:
        rows, features, values = codes.rows.numpy(), codes.features.numpy(), codes.values.numpy()
        if codes.entries is None:
            meant: Any = (values != 0) & ~sink[first + rows]
        elif int(codes.entries) > len(rows):
            return None
        else:
            meant = slice(0, int(codes.entries))
        at.append(first + rows[meant])
        feature.append(features[meant])
        value.append(values[meant])
        first += length
    activation = np.concatenate(value)
    if not np.isfinite(activation).all():
        return None
    norm = np.empty(0, np.float32) if given.norm is None else given.norm.numpy()[sink]
    return Recorded(
        np.concatenate(at),
        given.row,
        given.token_index,
        np.concatenate(feature).astype(np.uint32),
        stored_values(activation, rule.values),
        int(len(sink) - sink.sum()),
        given.row[sink],
        given.token_index[sink],
        norm,
    )


def _download(tensor: Tensor) -> Tensor:
    """A copy for the host, which is not complete until what was launched is waited for."""
    pinned = tensor.device.type == "cuda"
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
    return host.copy_(tensor, non_blocking=True)


def _downloaded(codes: LaunchedCodes) -> LaunchedCodes:
    rows, features, values, entries = codes
    return LaunchedCodes(
        _download(rows),
        _download(features),
        _download(values),
        None if entries is None else _download(entries),
    )


def _mark(device: torch.device) -> Any:
    """An event after what was launched, None on a CPU."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    event = module.Event(blocking=True)  # a thread that waits leaves its core to those that write
    event.record(module.current_stream(device))
    return event
