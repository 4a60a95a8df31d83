"""Stream data sets of the Hugging Face hub through the `datasets` library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from featuredb.errors import CorpusError, MissingExtraError, first_line
from ingest.corpus.part import BATCH_ROWS, PartRows, Scan
from ingest.corpus.tables import storable_schema, typed_rows

PREFIX = "hf:"
_SOURCE = re.compile(r"hf:(?P<path>[^:@\s]+)(:(?P<config>[^@\s]+))?(@(?P<split>\S+))?")


@dataclass(frozen=True)
class HubPart:
    """One split of a data set at one revision (a commit)."""

    name: str
    path: str
    config: str | None
    split: str
    revision: str
    kind: str = "data set"

    def scan(self, limit: int | None) -> Scan:
        with _hub_errors(self.name):
            stream = self._stream()
            features = stream.features
            if features is not None:
                schema = features.arrow_schema
            else:
                first = next(iter(stream.with_format("arrow").iter(BATCH_ROWS)), None)
                if first is None:
                    raise CorpusError(f"{self.name} is empty; name another split")
                schema = first.schema
        return Scan(storable_schema(schema, self.name, of_bytes=pa.binary()), None)

    def rows(self, schema: Any) -> Iterator[PartRows]:
        first = 0
        with _hub_errors(self.name):
            for table in self._stream().with_format("arrow").iter(BATCH_ROWS):
                for batch in table.to_batches():
                    yield typed_rows(batch, first, schema, self.name)
                    first += batch.num_rows

    def digest(self) -> bytes:
        identity = [self.path, self.config or "", self.split, self.revision]
        return hashlib.sha256("\n".join(identity).encode()).digest()

    def size(self) -> int:
        return 0

    def _stream(self) -> Any:
        return _datasets().load_dataset(
            self.path, self.config, split=self.split, streaming=True, revision=self.revision
        )


def hub_part(source: str) -> HubPart:
    """Resolve ``hf:owner/dataset[:config][@split]``. The default split is ``train``.

    The revision is pinned here, so all reads of a corpus see the same commit.

    Raises:
        CorpusError: the source is malformed, or the hub has no such data set.
        MissingExtraError: `datasets` is not installed.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise CorpusError(f"{source} is no data set; write hf:owner/dataset[:config][@split]")
    _datasets()
    with _hub_errors(source):
        revision = _revision(match["path"])
    return HubPart(source, match["path"], match["config"], match["split"] or "train", revision)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "reading a data set of the hub needs the package 'datasets'; "
            "install featuredb[hub], or give files"
        ) from error
    return datasets


def _revision(path: str) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(path).sha)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (CorpusError, MissingExtraError):
        raise
    except Exception as error:  # raised by whichever file system the library uses
        raise CorpusError(
            f"cannot read {name}: {first_line(error)}; check its name, config and split"
        ) from error
