"""Edits as files that other programs steer with: a constant vector at each hook.

========================  ===================================================================
ending                    what it is
========================  ===================================================================
``.safetensors``          one float32 tensor per hook, named by the hook
``.gguf``                 a control vector of llama.cpp: ``direction.N`` behind layer N
``.pt``                   a steering file of lm-evaluation-harness (``--model steered``)
========================  ===================================================================

An edit that adds is such a vector exactly. One that sets the code is taken as adding its value,
which is the same wherever the feature is silent. lm-evaluation-harness can also clamp the
component along a direction, which is what the method project sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from featuredb.errors import QueryError, StorageError
from featuredb.steering.edits import Edits
from featuredb.steering.opened import ReadyEdits, SteeringOptions, ready
from featuredb.steering.resolve import ResolvedEdit
from featuredb.steering.rows import SaeEdits
from featuredb.store.files.atomic import write_atomically
from featuredb.store.store import Store
from featuredb.version import __version__
from ingest.model.hooks import HookPoint
from ingest.model.hooks.families import base_of, text_config


def export_edits(
    store: Store, edits: Edits, path: Path, where: str | None, options: SteeringOptions
) -> None:
    """See `featuredb.Database.export_edits`."""
    writers: dict[str, Callable[[ReadyEdits], bytes]] = {
        ".safetensors": _safetensors,
        ".gguf": _gguf,
        ".pt": _lm_eval,
    }
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise QueryError(
            f"{path} does not say what it is to be: end it in {', '.join(writers)} "
            "(llama.cpp reads .gguf, lm-evaluation-harness .pt)"
        )
    if not path.absolute().parent.is_dir():
        raise StorageError(f"cannot write {path}: there is no folder {path.parent}")
    made = ready(store, edits, where, options)
    for each in made.applied:
        _refuse_changing(each)
    write_atomically(path, writer(made))


def _refuse_changing(edits: SaeEdits) -> None:
    """Raise `QueryError` where what is added is not the same at every token."""
    decoder = edits.attached.sae.decoder
    for edit in edits.edits:
        if not edit.scope.everywhere:
            raise QueryError(
                f"{edit.edit} acts at some tokens only, and a file acts at all: leave @ out"
            )
        if edit.op == "scale" or (edit.op == "set" and edit.value == 0 and edit.method == "code"):
            raise QueryError(
                f"{edit.edit} takes away what is there, which is no constant vector: add with +=, "
                "or set with =, or for lm-evaluation-harness set by the method project"
            )
    if decoder.undoes not in ("none", "center") or decoder.offset is not None or edits.push_out:
        raise QueryError(
            f"SAE {edits.attached.name} writes another length at each token, so its edits are no "
            "constant vector"
        )


def _vectors(made: ReadyEdits) -> dict[HookPoint, Tensor]:
    """float32 [d] by hook, in the order of the edits' SAEs."""
    found: dict[str, tuple[HookPoint, Tensor]] = {}
    for each in made.applied:
        for edit in each.edits:
            if edit.method == "project" and edit.op == "set":
                raise QueryError(
                    f"{edit.edit} clamps a component, which only a .pt file for "
                    "lm-evaluation-harness can say"
                )
        for hook in each.writes:
            terms = [e.value * each.direction(e.feature, hook) for e in each.edits]
            before = found.get(hook.canonical, (hook, torch.zeros(hook.width)))
            found[hook.canonical] = (hook, before[1] + torch.stack(terms).sum(0).cpu())
    return dict(found.values())


def _facts(made: ReadyEdits) -> dict[str, str]:
    record = made.store.snapshot.model
    return {
        "featuredb": __version__,
        "model": record.id,
        "model_sha256": record.sha256,
        "edits": json.dumps([str(edit) for edit in made.resolved]),
    }


def _safetensors(made: ReadyEdits) -> bytes:
    vectors = _vectors(made)
    places = {hook.name: f"{hook.module}.{hook.side}" for hook in vectors}
    facts = _facts(made) | {"places": json.dumps(places)}
    data: bytes = save({hook.name: v.contiguous() for hook, v in vectors.items()}, facts)
    return data


def _gguf(made: ReadyEdits) -> bytes:
    import tempfile

    from gguf import GGUFWriter

    layers: dict[int, Tensor] = {}
    for hook, vector in _vectors(made).items():
        layer = _stream_layer(made, hook)
        layers[layer] = layers.get(layer, torch.zeros_like(vector)) + vector
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.gguf"
        writer = GGUFWriter(path, "controlvector")
        kind = str(text_config(made.model.model).model_type)
        writer.add_string("controlvector.model_hint", kind)
        writer.add_uint32("controlvector.layer_count", len(layers))
        for name, value in _facts(made).items():
            writer.add_string(f"featuredb.{name}", value)
        for layer, vector in sorted(layers.items()):
            writer.add_tensor(f"direction.{layer}", vector.numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _stream_layer(made: ReadyEdits, hook: HookPoint) -> int:
    """The layer behind which llama.cpp adds what is added at `hook`."""
    model = made.model
    for layer in range(1, model.n_layers):
        places = [model.hook(f"blocks.{layer}.hook_resid_post").canonical]
        if layer + 1 < model.n_layers:
            places.append(model.hook(f"blocks.{layer + 1}.hook_resid_pre").canonical)
        if hook.canonical in places:
            return layer
    raise QueryError(
        f"llama.cpp adds behind layers 1 to {model.n_layers - 1} of the residual stream, and "
        f"{hook.name} is not one of these places: give a .safetensors or .pt file"
    )


def _lm_eval(made: ReadyEdits) -> bytes:
    import io

    _, base = base_of(made.model.model)
    names = {id(module): name for name, module in base.named_modules()}
    entries: dict[str, dict[str, Any]] = {}
    for each in made.applied:
        clamps = [e for e in each.edits if e.method == "project" and e.op == "set"]
        for hook in each.writes:
            if hook.side != "output":
                raise QueryError(
                    f"lm-evaluation-harness edits what modules give, and {hook.name} is what one "
                    "is given: give a .safetensors file"
                )
            module = names[id(made.model.model.get_submodule(hook.module))]
            if module in entries or (clamps and len(each.edits) > 1):
                raise QueryError(
                    f"lm-evaluation-harness makes one edit at each place, and there are several at "
                    f"{hook.name}: give one feature, or only edits that add, of one SAE"
                )
            entries[module] = _entry(each, hook, clamps)
    buffer = io.BytesIO()
    torch.save(entries, buffer)
    return buffer.getvalue()


def _entry(each: SaeEdits, hook: HookPoint, clamps: list[ResolvedEdit]) -> dict[str, Any]:
    if clamps:
        (edit,) = clamps
        direction = each.direction(edit.feature, hook)
        value = edit.value * float(direction.norm())
        return {"action": "clamp", "steering_vector": direction.cpu(),
                "steering_coefficient": value, "bias": None, "head_index": None}  # fmt: skip
    vector = torch.stack([e.value * each.direction(e.feature, hook) for e in each.edits]).sum(0)
    return {"action": "add", "steering_vector": vector.cpu(), "steering_coefficient": 1.0,
            "bias": None, "head_index": None}  # fmt: skip
