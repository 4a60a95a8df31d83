"""How well SAEs that write to several layers together explain what they write to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ingest.attached import AttachedSae
from ingest.load_check.sample import Errors, States, squared_errors
from ingest.sae.codes import SparseCodes

_ROWS = 1 << 14
"""Activations decoded at a time."""


@torch.inference_mode()
def explain_together(
    saes: Sequence[AttachedSae],
    states: Mapping[str, States],
    sink_threshold: float | None,
    medians: Mapping[str, float],
) -> dict[str, Errors]:
    """What is left unexplained where each SAE's own layer writes, by name of the SAE.

    Only of SAEs that write to several layers, and only where every SAE that may write to the place
    is among `saes`, with its files. Positions that are sinks for one of them, by its median norm,
    are left out.
    """
    sets: dict[str, dict[int, AttachedSae]] = {}
    for attached in saes:
        cross = attached.sae.cross_layer
        if cross is not None and cross.file.exists():
            sets.setdefault(cross.group, {})[cross.place] = attached
    return {
        members[place].name: errors
        for members in sets.values()
        for place, errors in _explain(members, states, sink_threshold, medians).items()
    }


def _explain(
    members: Mapping[int, AttachedSae],
    states: Mapping[str, States],
    sink_threshold: float | None,
    medians: Mapping[str, float],
) -> dict[int, Errors]:
    """What is left unexplained at each place of a set. members: by place."""
    read = {place: states[attached.hook.name] for place, attached in members.items()}
    ordinary = torch.stack(
        [
            read[place].ordinary(sink_threshold, medians[attached.name])
            for place, attached in members.items()
        ]
    ).all(0)
    x = {place: each.x[ordinary] for place, each in read.items()}
    codes = {place: each.sae.encode_sparse(x[place]) for place, each in members.items()}
    results = {}
    for place, attached in members.items():
        cross, hook = attached.sae.cross_layer, attached.hooks_out.get(place)
        if cross is None or hook is None or not cross.complete(place, members):
            continue
        decoder = attached.sae.decoder
        rebuilt = decoder.b_dec.float().repeat(len(x[place]), 1)
        if decoder.W_skip is not None:
            rebuilt += x[place] @ decoder.W_skip.float().T
        for feeder in cross.feeders(place):
            given = members[feeder].sae.cross_layer
            if given is not None and place >= given.first:
                _add(rebuilt, codes[feeder], given.towards(place))
        y = states[hook.name].x[ordinary]
        squared = squared_errors(y, rebuilt)
        results[place] = Errors(squared, y, states[hook.name].context[ordinary])
    return results


def _add(rebuilt: Tensor, codes: SparseCodes, W: Tensor) -> None:
    """Add codes @ W to `rebuilt`, without the dense matrix of activations."""
    W = W.to(rebuilt.device)
    for rows, features, values in zip(*(torch.split(part, _ROWS) for part in codes), strict=True):
        rebuilt.index_add_(0, rows, values[:, None] * W[features])
