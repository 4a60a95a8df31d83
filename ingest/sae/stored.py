"""What a database keeps of an SAE: its directions, and beside them all else it computes with.

The directions are exact (`featuredb.store.vectors.directions`). A safetensors file holds the rest:
biases, thresholds, a skip connection and, in its metadata, the activation rule and its numbers.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from featuredb.store.files.atomic import write_atomically
from featuredb.store.files.location import Root, location_of, unreadable
from featuredb.store.history import file_entry
from featuredb.store.layout import Layout
from featuredb.store.snapshot import File, Sae, Vectors
from featuredb.store.vectors.directions import DirectionRows, Directions
from ingest.sae.activations import Activation
from ingest.sae.cross_layer import CrossLayer
from ingest.sae.encoder import Encoder
from ingest.sae.sae import Decoder, LoadedSae

_RULES: dict[str, type[Any]] = {rule.__name__: rule for rule in get_args(Activation)}
_BY_ROW = torch.contiguous_format
_DIRECTIONS = {"encoder.W_enc", "decoder.W_dec"}
_FACTS = ("prepend_bos", "context_size", "stated_l0", "model_name", "excluded_tokens", "places_out")


class _Rest(msgspec.Struct, frozen=True):
    """The metadata of the file.

    rule: name of the activation's class. values: fields of the encoder, the decoder and the
    activation that are no tensors, by path. facts: those of `_FACTS`. transposed: matrices whose
    columns, not rows, lie together in memory, on which the order of sums depends. cross_layer: its
    place among SAEs that write to several layers together.
    """

    rule: str
    values: dict[str, Any]
    facts: dict[str, Any]
    transposed: tuple[str, ...]
    cross_layer: dict[str, Any] | None = None


def keep(layout: Layout, sae: LoadedSae) -> File:
    """Store what the directions of `sae` leave out, named by the SHA-256 of its content.

    An SAE whose file is there already has the same one. Raises `StorageError`.
    """
    data = packed(sae)
    path = layout.saes / f"{sha256(data).hexdigest()}.safetensors"
    write_atomically(path, data)
    return file_entry(layout, path)


def stored_sae(root: Root, record: Sae, vectors: Vectors) -> LoadedSae:
    """The SAE of a database as it was when its activations were computed.

    On a CPU it gives the same bits. One of a cross-layer set has the sum of what it writes. What it
    writes to each layer stays in its own files.

    Args:
        root: The database, a folder or a URL.
        record: The SAE, whose `weights` are stored.
        vectors: Its directions.

    Raises:
        CorruptDatabaseError: A file is missing or damaged.
        RemoteError: The URL's server cannot be reached or refuses.
    """
    location, file = location_of(root), record.weights
    assert file is not None
    try:
        data = np.asarray(location.flat(file.path, np.uint8)).tobytes()
    except OSError as error:
        raise unreadable(root, file.path, error) from error
    if sha256(data).hexdigest() != file.sha256:
        raise unreadable(root, file.path, ValueError("its SHA-256 is another"))
    with location.copied(f"vectors.lance/{vectors.table}.lance", vectors.files) as folder:
        rows = (DirectionRows(Layout(folder), [vectors], kind) for kind in Directions._fields)
        directions = Directions(*(each.take(np.arange(len(each))) for each in rows))
    return replace(
        unpacked(data, directions),
        name=record.name,
        format=record.format,
        architecture=record.architecture,
        hook=record.hook,
        hook_out=record.hook_out,
        hash=record.sha256,
        source=record.source,
    )


def packed(sae: LoadedSae) -> bytes:
    """Everything of an SAE but its directions, names and provenance, as a safetensors file."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    transposed: list[str] = []
    activation = sae.encoder.activation
    parts: dict[str, Any] = {
        "encoder": sae.encoder,
        "decoder": sae.decoder,
        "activation": activation,
    }
    for part, content in parts.items():
        for field in fields(content):
            path, value = f"{part}.{field.name}", getattr(content, field.name)
            if isinstance(value, Tensor):
                if value.ndim == 2 and not value.is_contiguous() and value.T.is_contiguous():
                    transposed.append(path)
                if path not in _DIRECTIONS:
                    # Tensors that share memory are refused.
                    tensors[path] = value.detach().cpu().clone(memory_format=_BY_ROW)
            elif value is not activation:
                values[path] = value
    cross = sae.cross_layer
    rest = _Rest(
        type(activation).__name__,
        values,
        {name: getattr(sae, name) for name in _FACTS},
        tuple(transposed),
        None if cross is None else asdict(cross) | {"file": str(cross.file)},
    )
    data: bytes = save(tensors, {"sae": msgspec.json.encode(rest).decode()})
    return data


def unpacked(data: bytes, directions: Directions) -> LoadedSae:
    """The SAE that `packed` was given, but for names and provenance. directions: its own."""
    header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")])
    rest = msgspec.json.decode(header["__metadata__"]["sae"], type=_Rest)
    tensors = load(data)
    tensors["encoder.W_enc"] = torch.from_numpy(directions.encoder).T
    tensors["decoder.W_dec"] = torch.from_numpy(directions.decoder)
    for path, tensor in tensors.items():
        if path in rest.transposed:
            tensors[path] = tensor.T.contiguous().T
        else:
            tensors[path] = tensor.contiguous()
    parts: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}, "activation": {}}
    for path, value in (rest.values | tensors).items():
        part, _, name = path.partition(".")
        parts[part][name] = value
    cross = None
    if (place := rest.cross_layer) is not None:
        places = {"sites": tuple(place["sites"]), "file": Path(place["file"])}
        cross = CrossLayer(**place | places)
    excluded = rest.facts["excluded_tokens"]
    lists = {
        "places_out": tuple(rest.facts["places_out"]),
        "excluded_tokens": excluded if isinstance(excluded, bool) else tuple(excluded),
    }
    activation = _RULES[rest.rule](**parts["activation"])
    return LoadedSae(
        encoder=Encoder(activation=activation, **parts["encoder"]),
        decoder=Decoder(**parts["decoder"]),
        name="", format="", architecture="", hook=None, hook_out=None, config={}, files=(),
        hash="", source="", cross_layer=cross, **rest.facts | lists,
    )  # fmt: skip
