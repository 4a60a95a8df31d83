"""Contexts as answers show them: the tokens around a peak, their activations, the document."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featuredb.render.view import Passage, Passages
from featuredb.store.files.parquet import float_array
from featuredb.store.names import ANSWER_COLUMNS, metadata_columns
from featuredb.store.store import Store
from queries.answers import Row


class Peak(NamedTuple):
    """One context of a feature: its maximum, the first token reaching it, all active tokens."""

    context_id: int
    activation: float
    token_index: int
    token_indexes: npt.NDArray[np.integer]
    activations: npt.NDArray[np.float32]


def peak_columns(
    store: Store, peaks: Sequence[Peak], window: int, offset: int
) -> dict[str, pa.Array]:
    """The columns of an answer after those that name the feature."""
    texts = store.texts
    texts.fetch([peak.context_id for peak in peaks])
    documents, firsts = [], []
    words: list[str] = []
    shown: list[npt.NDArray[np.float32]] = []
    tokens: list[str] = []
    offsets = [0]
    for peak in peaks:
        ids = texts.token_ids(peak.context_id)
        first = max(peak.token_index - window, 0)
        stop = min(peak.token_index + window + 1, len(ids))
        low, high = np.searchsorted(peak.token_indexes, [first, stop])
        values = np.zeros(stop - first, np.float32)
        values[peak.token_indexes[low:high].astype(np.int64) - first] = peak.activations[low:high]
        spelled = texts.read(ids[first:stop])
        documents.append(texts.document_of(peak.context_id))
        firsts.append(first)
        shown.append(values)
        words += spelled
        tokens.append(spelled[peak.token_index - first])
        offsets.append(offsets[-1] + stop - first)
    starts = pa.array(offsets, pa.int32())
    columns = {
        # Of a page that no list is long enough for there are none to rank.
        "rank": pa.array([offset + i for i in range(1, len(peaks) + 1)], pa.int32()),
        "context_id": pa.array([p.context_id for p in peaks], pa.int64()),
        "document_id": pa.array(documents, pa.int64()),
        "activation": pa.array([p.activation for p in peaks], pa.float32()),
        "token_index": pa.array([p.token_index for p in peaks], pa.int32()),
        "token": pa.array(tokens, pa.string()),
        "window_start": pa.array(firsts, pa.int32()),
        "tokens": pa.ListArray.from_arrays(starts, pa.array(words, pa.string())),
        "activations": pa.ListArray.from_arrays(
            starts, float_array(np.concatenate([*shown, np.empty(0, np.float32)]))
        ),
    }
    about = texts.documents(documents)
    columns |= zip(metadata_columns(about.column_names), about.columns, strict=True)
    return columns


def passages(
    rows: Iterable[Row], scale: float, special: Collection[str], value: str = "activation"
) -> Passages:
    """Contexts one under the other. value: the column that is shown beside each.

    special: texts of special tokens. Those that a context begins with are left out, the others are
    faint, unless the feature is active on them or they are the peak.
    """
    return Passages([_passage(row, row[value], special) for row in rows], scale)


def _passage(row: Row, value: float, special: Collection[str]) -> Passage:
    peak = row.token_index - row.window_start
    faint = [
        i
        for i, (token, active) in enumerate(zip(row.tokens, row.activations, strict=True))
        if token in special and not active and i != peak
    ]
    first = 0
    while row.window_start == 0 and faint[first : first + 1] == [first]:
        first += 1
    title, link, about = _provenance(row)
    return Passage(
        row.tokens[first:],
        row.activations[first:],
        peak=peak - first,
        rank=str(row.rank),
        value=value,
        title=title,
        link=link,
        about=about,
        inside=row.window_start > 0,
        context=row.context_id,
        faint=frozenset(i - first for i in faint[first:]),
    )


def _provenance(row: Row) -> tuple[str, str, str]:
    """`title · context 12 token 7 · topic History`, its first part, and the document's address.

    What matters most comes first. At most `_MORE` short columns are shown besides. What only
    repeats the title, links and where a file was are left to the other formats. The address is the
    first column, in their order, whose value is one of the web.
    """
    names = [name for name in row.keys() if name not in ANSWER_COLUMNS]  # noqa: SIM118
    about = {name: _spelled(row[name]) for name in names if row[name] is not None}
    title = about.pop("title", "")
    source = about.pop("source", None)
    said = {_folded(title)} if title else set()
    rest = []
    for name, value in about.items():
        if len(value) <= _SHORT and "://" not in value and _folded(value) not in said:
            said.add(_folded(value))
            rest.append(f"{name} {value}")
    if not title and not rest and source:
        rest = [re.split(r"[\\/]", source)[-1]]
    place = f"context {row.context_id} token {row.token_index}"
    link = next((value for value in about.values() if _ADDRESS.fullmatch(value)), "")
    shown = [*([title] if title else []), place, *rest[:_MORE]]
    return shown[0], link, " · ".join(shown)


_ADDRESS = re.compile(r"https?://[^\s\x00-\x20\x7f]+", re.IGNORECASE)
_MORE = 2
_SHORT = 40


def _folded(value: str) -> str:
    """A value without case and without what stands for a space."""
    return value.replace("_", " ").casefold()


def _spelled(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
