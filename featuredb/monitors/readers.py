"""Texts and chats to watch: lines, JSON lines, tables, OpenAI messages, Inspect logs.

``.jsonl`` and ``.ndjson``: per line a text, a record with a text, or a chat, which is a list of
messages or a record with ``messages``. ``.json``: one of these, or a list of them. ``.eval``: the
messages of every sample of an Inspect log. ``.csv``, ``.tsv`` and ``.parquet``: a column of texts.
Any other file, and ``-`` for standard input: a text per line.
"""

from __future__ import annotations

import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featuredb.errors import CorpusError, QueryError, first_line
from featuredb.monitors.watching import NewText
from ingest.corpus.chat import parse_chat
from queries.arguments import check_text
from queries.text_files import Columns, read_texts


@dataclass
class BrokenRecords:
    """What happens to records that cannot be read: the first is an error, or all are counted.

    reasons: of those that were skipped, each naming its place.
    """

    skip: bool = False
    reasons: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        """Raise `QueryError` unless broken records are skipped."""
        if not self.skip:
            raise QueryError(f"{reason}: mend it, or skip such records with --skip-broken")
        self.reasons.append(reason)


def read_new_texts(
    path: str,
    broken: BrokenRecords,
    columns: Columns | None = None,
    *,
    json_lines: bool = False,
) -> Iterator[NewText]:
    """The texts and chats of a file, as it is read. Raises `QueryError`.

    json_lines: whatever the file is called, it has JSON lines.
    """
    ending = Path(path).suffix.lower()
    columns = columns or Columns()
    if ending == ".eval":
        yield from _inspect(path, broken)
    elif json_lines or ending in (".jsonl", ".ndjson"):
        yield from _json_lines(path, broken, columns)
    elif ending == ".json":
        yield from _json(path, broken, columns)
    else:
        yield from (NewText(name, text) for name, text in read_texts(path, columns))


def new_texts(texts: Any) -> Iterator[NewText]:
    """Python's texts and chats: any iterable, pairs of an id and a text, a mapping of ids to
    texts, or one chat. Raises `QueryError`."""
    if isinstance(texts, str):
        raise QueryError("texts is one text: give a list of texts")
    given = list(texts.items()) if isinstance(texts, Mapping) else texts
    if isinstance(given, list) and _is_chat(given):
        given = [given]
    for number, each in enumerate(given):
        name = f"text {number}"
        if isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str | None):
            own, each = each
        else:
            own = None
        if isinstance(each, str):
            yield NewText(own, check_text(each, name))
        else:
            yield _record(each, name, Columns(), own)


def _json_lines(path: str, broken: BrokenRecords, columns: Columns) -> Iterator[NewText]:
    try:
        opened: Any = (
            nullcontext(sys.stdin.buffer) if path == "-" else Path(path).expanduser().open("rb")
        )
        with opened as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from _line(line, f"{path}, line {number}", broken, columns)
    except OSError as error:
        raise _unreadable(path, "texts", error) from None


def _line(line: bytes, name: str, broken: BrokenRecords, columns: Columns) -> Iterator[NewText]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        broken.add(f"{name} is not JSON ({first_line(error)})")
        return
    yield from _one(record, name, broken, columns)


def _one(record: Any, name: str, broken: BrokenRecords, columns: Columns) -> Iterator[NewText]:
    try:
        yield _record(record, name, columns)
    except QueryError as error:
        broken.add(str(error))


def _json(path: str, broken: BrokenRecords, columns: Columns) -> Iterator[NewText]:
    try:
        record = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _unreadable(path, "JSON", error) from None
    except (ValueError, RecursionError) as error:
        raise QueryError(f"{path} is not JSON: {first_line(error)}") from None
    if isinstance(record, dict) and isinstance(record.get("samples"), list):  # Inspect's other log
        for number, each in enumerate(record["samples"], 1):
            yield from _of_sample(each, f"{path}, sample {number}", broken)
        return
    if not isinstance(record, list) or _is_chat(record):
        yield from _one(record, path, broken, columns)
        return
    for number, each in enumerate(record, 1):
        yield from _one(each, f"{path}, record {number}", broken, columns)


def _record(record: Any, name: str, columns: Columns, own: str | None = None) -> NewText:
    """A text or a chat from a value of JSON. Raises `QueryError`."""
    if isinstance(record, str):
        return NewText(own, check_text(record, name))
    if isinstance(record, Mapping):
        if columns.id is not None and columns.id not in record:
            raise QueryError(f"{name} has no {columns.id!r}: name another column")
        given = record.get(columns.id or "id")
        own = own if given is None else check_text(str(given), f"the id of {name}")
        messages = record.get("messages")
        if messages is None:
            text = record.get(columns.text)
            if not isinstance(text, str):
                raise QueryError(f"{name} has no text in {columns.text!r} and no messages")
            return NewText(own, check_text(text, name))
        record = messages
    if not isinstance(record, list | tuple):
        raise QueryError(f"{name} is no text and no chat, which is a list of messages")
    return NewText(own, _chat(record, name))


def _chat(messages: Sequence[Any], name: str) -> list[Any]:
    """A chat whose contents are text. Parts that are no text, such as images, are refused."""
    try:
        written = [json.dumps(m, default=dict, ensure_ascii=False) for m in messages]
        return list(parse_chat([check_text(m, name) for m in written], name))
    except (CorpusError, TypeError, ValueError) as error:
        raise QueryError(first_line(error)) from None


def _is_chat(record: Sequence[Any]) -> bool:
    return bool(record) and all(isinstance(m, Mapping) and "role" in m for m in record)


def _inspect(path: str, broken: BrokenRecords) -> Iterator[NewText]:
    """The samples of an Inspect log: ``samples/ID_epoch_N.json`` in a zip archive."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as archive:
            names = [n for n in archive.namelist() if n.startswith("samples/")]
            if not names and "header.json" not in archive.namelist():
                raise QueryError(f"{path} is no log of Inspect: it has no header and no samples")
            for name in names:
                try:
                    data = _member(archive, name)
                except (zlib.error, EOFError, zipfile.BadZipFile, struct.error) as error:
                    broken.add(f"{path}, {name} is damaged ({first_line(error)})")
                    continue
                yield from _sample(data, f"{path}, {name}", broken)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _unreadable(path, "a log of Inspect", error) from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip archive. Inspect compresses with zstd, which Python's own module cannot read
    before 3.14."""
    info = archive.getinfo(name)
    if info.compress_type != _ZSTD:
        return archive.read(info)
    import zstandard

    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    lengths = struct.unpack("<HH", header[-4:])  # of the name, and of what else follows
    file.seek(info.header_offset + _LOCAL_HEADER + sum(lengths))
    packed = file.read(info.compress_size)
    try:
        return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(packed))
    except zstandard.ZstdError as error:
        raise zipfile.BadZipFile(first_line(error)) from None


_ZSTD = 93
_LOCAL_HEADER = 30
"""Bytes of a member's header in a zip archive before its name."""


def _sample(data: bytes, name: str, broken: BrokenRecords) -> Iterator[NewText]:
    try:
        sample = json.loads(data)
    except (ValueError, RecursionError) as error:
        broken.add(f"{name} is not JSON ({first_line(error)})")
        return
    yield from _of_sample(sample, name, broken)


def _of_sample(sample: Any, name: str, broken: BrokenRecords) -> Iterator[NewText]:
    if not isinstance(sample, Mapping) or not isinstance(sample.get("messages"), list):
        broken.add(f"{name} has no messages")
        return
    try:
        own = f"{sample.get('id')}/{sample.get('epoch', 1)}"
        yield NewText(own, _chat([_message(m) for m in sample["messages"]], name))
    except QueryError as error:
        broken.add(str(error))


def _message(message: Any) -> Any:
    """A message of Inspect as one of OpenAI: what was said, reasoned and called."""
    if not isinstance(message, Mapping):
        return message
    content = message.get("content")
    made: dict[str, Any] = {"role": message.get("role"), "content": content}
    if isinstance(content, list):
        made["content"] = [_text_part(part) for part in content if not _is_reasoning(part)]
        reasoning = [p.get("reasoning", "") for p in content if _is_reasoning(p)]
        if reasoning:
            made["reasoning_content"] = "".join(reasoning)
    if calls := _calls(message.get("tool_calls") or ()):
        made["tool_calls"] = calls
    return made


def _text_part(part: Any) -> Any:
    if isinstance(part, Mapping) and part.get("type") == "text":
        return {"type": "text", "text": part.get("text", "")}
    return part


def _is_reasoning(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "reasoning"


def _calls(calls: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": call.get("id"),
            "type": "function",
            "function": {"name": call.get("function"), "arguments": call.get("arguments") or {}},
        }
        for call in calls
        if isinstance(call, Mapping)
    ]


def _unreadable(path: str, what: str, error: Exception) -> QueryError:
    reason = error.strerror if isinstance(error, OSError) else None
    return QueryError(f"{path} cannot be read as {what}: {reason or first_line(error)}")
