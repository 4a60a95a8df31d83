"""Edits of one SAE's features, applied to rows of what passes its hook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featuredb.errors import HookError, QueryError, SaeError
from featuredb.steering.resolve import ResolvedEdit
from ingest.attached import AttachedSae
from ingest.model.hooks import HookPoint
from ingest.sae.activations import GroupMax, TopK
from ingest.sae.encoder import Encoder
from ingest.sae.normalize import undoing
from ingest.sae.sae import LoadedSae


class CodeChange(NamedTuple):
    """What edits do to the codes of rows, before it is decoded.

    change: [N, n], how much more of each edited feature's direction is written. dense: [N, d_sae]
    in its place, where a forced feature pushes others out. scale: [N, 1], the SAE's normalization
    of each row, None for none. chosen: bool [N, n_edits], None where every edit acts on every row.
    """

    change: Tensor | None
    dense: Tensor | None
    scale: Tensor | None
    chosen: Tensor | None


class CodeReader:
    """Activations of some features of an SAE. Only they are encoded, where that is exact."""

    def __init__(self, sae: LoadedSae, features: Sequence[int]) -> None:
        self._sae = sae
        self._ids = torch.tensor(features, device=sae.device)
        self._encoder = encoder_of(sae.encoder, self._ids)
        self._apart = self._encoder is not sae.encoder

    def codes(self, x: Tensor) -> Tensor:
        """float32 [N, n] for rows x [N, d_in]."""
        if not self._apart:
            return self._sae.encode(x)[:, self._ids]
        rows = x.to(self._sae.device, self._sae.dtype)
        return self._encoder.activation.dense(self._encoder.pre_activations(rows)).float()


class SaeEdits:
    """Edits of features of one SAE.

    ``change`` reads rows of what passes `read` and says how codes change. ``delta`` says what that
    adds to rows of what passes each hook of `writes`, the same hook for an autoencoder.
    """

    def __init__(
        self, attached: AttachedSae, edits: Sequence[ResolvedEdit], *, push_out: bool = False
    ) -> None:
        """push_out: a feature that is forced into a top-k SAE's code pushes the weakest out.

        Raises:
            SaeError: The SAE's decoder is missing, or is zero for an edited feature.
            HookError: Nothing can be written where it writes.
            QueryError: push_out is asked of an SAE without a k.
        """
        sae = attached.sae
        self.attached, self.edits, self.push_out = attached, tuple(edits), push_out
        self.features = sorted({edit.feature for edit in edits})
        self._columns = [self.features.index(edit.feature) for edit in edits]
        self.read = attached.hook
        self._places = _directions(attached, self.features)
        self.writes = tuple(self._places)
        for hook in self.writes:
            if hook.before_gain:
                raise HookError(
                    f"SAE {attached.name} writes at {hook.name}, which the model computes again "
                    "from what comes before: an edit there can never apply"
                )
        if push_out and not isinstance(sae.encoder.activation, TopK):
            raise QueryError(
                f"SAE {attached.name} has no k that a forced feature could exceed, so none is "
                "pushed out: leave push_out away"
            )
        if push_out and any(edit.method != "code" for edit in edits):
            raise QueryError("only edits of the code push features out: use the method code")
        self.reader = CodeReader(sae, self.features)
        ids = torch.tensor(self.features, device=sae.device)
        offset = sae.decoder.offset
        self._offset = None if offset is None else offset.float()[ids]
        self._reads_code = any(edit.method == "code" for edit in edits)
        self._projects = any(edit.method == "project" for edit in edits)
        self._pseudo_inverses: dict[str, Tensor] = {}

    def direction(self, feature: int, hook: HookPoint) -> Tensor:
        """float32 [d_out], what one edited feature writes at a hook."""
        return self._places[hook][self.features.index(feature)]

    def change(self, x: Tensor, chosen: Tensor | None = None) -> CodeChange:
        """How the edits change the codes of rows x [N, d_in].

        chosen: bool [N, n_edits], the rows each edit acts on. Default: all.
        """
        sae = self.attached.sae
        scale = undoing(sae.decoder.undoes, x.float())
        if self.push_out:
            return CodeChange(None, self._pushed_out(x, chosen), scale, chosen)
        code = self.reader.codes(x) if self._reads_code else None
        return CodeChange(self._written(code, "code", x, chosen), None, scale, chosen)

    def delta(self, x: Tensor, change: CodeChange, hook: HookPoint) -> Tensor | None:
        """What is added, float32 [N, d_out], to rows x of what passes `hook`. None for nothing."""
        directions = self._places[hook]
        if change.dense is not None:
            return _scaled(change.dense @ self.attached.sae.W_dec, change.scale)
        written = change.change
        if self._projects:
            unscaled = x.float() if change.scale is None else x.float() / change.scale
            along = unscaled @ self._pseudo_inverse(hook)
            projected = self._written(along, "project", x, change.chosen)
            written = projected if written is None or projected is None else written + projected
        if written is None or (written.device.type == "cpu" and not written.any()):
            return None
        return _scaled(written @ directions, change.scale)

    def _written(
        self, code: Tensor | None, method: str, x: Tensor, chosen: Tensor | None
    ) -> Tensor | None:
        """Edited minus code, [N, n], by the edits of one method (and those along directions)."""
        edits = [
            (number, edit)
            for number, edit in enumerate(self.edits)
            if edit.method == method or (edit.method == "direction" and method == "code")
        ]
        if not edits:
            return None
        change = x.new_zeros((len(x), len(self.features)), dtype=torch.float32)
        for number, edit in edits:
            column = self._columns[number]
            if edit.op == "add" and (edit.method != "code" or self._offset is None):
                more: Tensor | float = edit.value
            else:
                assert code is not None
                before = code[:, column]
                after = edited(before, edit)
                if method == "code" and self._offset is not None:
                    lift = self._offset[column]
                    before, after = before + lift * (before > 0), after + lift * (after > 0)
                more = after - before
            if chosen is not None:
                more = chosen[:, number] * more
            change[:, column] += more
        return change

    def _pushed_out(self, x: Tensor, chosen: Tensor | None) -> Tensor:
        """How all codes change, [N, d_sae], the k strongest kept, the edited among them."""
        sae = self.attached.sae
        rule = sae.encoder.activation
        assert isinstance(rule, TopK)
        before = sae.encode(x)
        after = before.clone()
        forced = torch.zeros_like(before, dtype=torch.bool)
        for number, edit in enumerate(self.edits):
            column = edited(before[:, edit.feature], edit)
            acts = torch.ones_like(column, dtype=torch.bool)
            if chosen is not None:
                acts = chosen[:, number]
            after[:, edit.feature] = torch.where(acts, column, before[:, edit.feature])
            forced[:, edit.feature] |= acts
        rank = after.abs() if rule.weights is None else (after * rule.weights.float()).abs()
        rank = torch.where(forced & (after != 0), torch.inf, rank)
        kept = torch.zeros_like(forced).scatter_(1, rank.topk(rule.k, dim=1).indices, True)
        after = torch.where(kept, after, torch.zeros_like(after))
        if (offset := sae.decoder.offset) is not None:
            before, after = before + offset * (before > 0), after + offset * (after > 0)
        return after - before

    def _pseudo_inverse(self, hook: HookPoint) -> Tensor:
        """[d_out, n]: the components of a row along the directions, together."""
        if hook.canonical not in self._pseudo_inverses:
            self._pseudo_inverses[hook.canonical] = torch.linalg.pinv(self._places[hook])
        return self._pseudo_inverses[hook.canonical]


def edited(code: Tensor, edit: ResolvedEdit) -> Tensor:
    """The activations that an edit makes of activations, of any shape."""
    if edit.op == "set":
        return torch.full_like(code, edit.value)
    return code + edit.value if edit.op == "add" else code * edit.value


def edit_rows(
    attached: AttachedSae,
    edits: Sequence[ResolvedEdit],
    x: Tensor,
    chosen: Tensor | None = None,
    *,
    push_out: bool = False,
) -> Tensor:
    """Rows x [N, d] of what passes an SAE's hook, edited there, in the dtype of x.

    For an SAE that writes where it reads. chosen: bool [N, n_edits], the rows that each edit acts
    on. Default: all. Raises as `SaeEdits`, and `SaeError` for a transcoder.
    """
    applied = SaeEdits(attached, edits, push_out=push_out)
    if applied.writes != (attached.hook,):
        raise SaeError(f"SAE {attached.name} writes elsewhere than it reads: hook both places")
    delta = applied.delta(x, applied.change(x, chosen), attached.hook)
    return x if delta is None else (x.float() + delta).to(x.dtype)


def by_sae(
    saes: Sequence[AttachedSae], edits: Sequence[ResolvedEdit], *, push_out: bool = False
) -> list[SaeEdits]:
    """Edits of several SAEs, in the order of the database's SAEs. Raises as `SaeEdits`."""
    grouped: dict[str, list[ResolvedEdit]] = {attached.name: [] for attached in saes}
    for edit in edits:
        grouped[edit.sae.name].append(edit)
    return [
        SaeEdits(attached, grouped[attached.name], push_out=push_out)
        for attached in saes
        if grouped[attached.name]
    ]


def _directions(attached: AttachedSae, features: Sequence[int]) -> dict[HookPoint, Tensor]:
    """What each feature writes at each hook, float32 [n, d_out], zero rows refused."""
    sae = attached.sae
    ids = torch.tensor(features, device=sae.device)
    if sae.cross_layer is not None:
        places = {
            hook: sae.cross_layer.towards(place)[ids.cpu()].to(sae.device)
            for place, hook in attached.hooks_out.items()
            if place in sae.places_out
        }
    else:
        places = {attached.hook_out or attached.hook: sae.decoder.W_dec[ids].float()}
    for hook, directions in places.items():
        if hook.width != directions.shape[1]:
            raise SaeError(
                f"SAE {attached.name} writes {directions.shape[1]} wide and {hook.name} is "
                f"{hook.width}: its files do not say where it writes, so it cannot be steered"
            )
    if not places:
        raise SaeError(f"the files of SAE {attached.name} do not say where it writes")
    norms = torch.stack([directions.norm(dim=1) for directions in places.values()]).amax(dim=0)
    for feature, norm in zip(features, norms.tolist(), strict=True):
        if norm == 0:
            raise SaeError(
                f"SAE {attached.name} has no decoder direction for feature {feature}: an edit of "
                "it can never change anything"
            )
    return places


def encoder_of(encoder: Encoder, ids: Tensor) -> Encoder:
    """The encoder of some features, where they do not depend on others."""
    activation = encoder.activation
    if isinstance(activation, TopK | GroupMax):
        return encoder
    parts: dict[str, Any] = {
        name: value[ids]
        for name, value in vars(activation).items()
        if isinstance(value, Tensor) and value.ndim == 1
    }
    return replace(
        encoder,
        W_enc=encoder.W_enc[:, ids].contiguous(),
        b_enc=None if encoder.b_enc is None else encoder.b_enc[ids],
        activation=replace(activation, **parts),
    )


def _scaled(delta: Tensor, scale: Tensor | None) -> Tensor:
    return delta if scale is None else delta * scale
