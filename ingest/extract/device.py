"""How much the device takes at once: halved whenever it runs out of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from featuredb.errors import ModelError
from featuredb.render.progress import log
from ingest.extract.batches import Batch
from ingest.model.device import empty_cache, is_out_of_memory

Result = TypeVar("Result")


class DeviceMemory:
    """The most padded tokens that a forward pass is given, from `batch_tokens` downwards.

    note: called with a message whenever that changes.
    """

    def __init__(self, batch_tokens: int, note: Callable[[str], None] = log.info) -> None:
        self.batch_tokens = batch_tokens
        self._note = note
        self._lock = threading.Lock()

    def run(self, work: Callable[[Batch], Result], batch: Batch) -> Iterator[tuple[Batch, Result]]:
        """Yield `work(batch)`, or that of its halves if the device's memory is too small for it.

        Yields (part of the batch, result) by row. Raises `ModelError` if a single context does not
        fit.
        """
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            if len(part.contexts) > 1 and part.token_ids.size > self.batch_tokens:
                waiting += reversed(_halves(part))
                continue
            try:
                result = work(part)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(part.contexts) == 1:
                    raise ModelError(
                        f"the device has too little memory for one context of "
                        f"{int(part.lengths[0])} tokens: give a smaller --context-size, "
                        "or --dtype bfloat16"
                    ) from error
            else:
                yield part, result
                continue
            # Outside the handler: until it ends, the error keeps the failed pass's tensors alive.
            self._shrink(part.token_ids.size)
            waiting += reversed(_halves(part))

    def _shrink(self, failed: int) -> None:
        empty_cache()
        with self._lock:
            self.batch_tokens = min(self.batch_tokens, max(1, failed // 2))
            self._note(
                f"the device ran out of memory with {failed:,} tokens a batch: "
                f"going on with {self.batch_tokens:,}"
            )


def in_pieces(work: Callable[[slice], None], n: int, rows: int, what: str) -> None:
    """Call `work` with consecutive slices of `n` rows, fewer at a time if they do not fit.

    rows: in a slice, at most. `work` is repeated from where it failed, so it must change nothing
    before it has all its memory. Raises `ModelError`, naming `what`, if a single row does not fit.
    """
    start = 0
    while start < n:
        end = min(n, start + rows)
        try:
            work(slice(start, end))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if end - start == 1:
                raise ModelError(f"the device has too little memory for {what}") from error
        else:
            start = end
            continue
        empty_cache()
        rows = (end - start + 1) // 2


def _halves(batch: Batch) -> list[Batch]:
    middle = (len(batch.contexts) + 1) // 2
    return [_rows(batch, slice(0, middle)), _rows(batch, slice(middle, None))]


def _rows(batch: Batch, rows: slice) -> Batch:
    lengths = batch.lengths[rows]
    return Batch(batch.contexts[rows], lengths, batch.token_ids[rows, : int(lengths.max())])
