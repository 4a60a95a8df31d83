"""Attribution: what features contribute to one token's logit.

The logit of token t after a text is linear in the residual stream h at the last token once the
final norm's scale s is held fixed: with its gain g and bias β, and the unembedding U,

    logit = u · h + U_t · β + bias of the head,    u = U_t ⊙ g / s

(u centered for a layer norm). What an SAE reads or writes there is its features, its bias and the
error it does not explain, and h is that and everything the layers after it add. So directly

    logit = Σ features + error + bias + after

Where the path is not direct, through later layers and from other tokens, the gradient of the logit
at the hook stands for u: activation × direction · gradient, per feature and token. A logit that is
capped or scaled (Gemma 2, Cohere) is its share of the uncapped one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn

from featuredb.errors import ModelError, QueryError
from featuredb.render import numbers
from featuredb.render.characters import label
from featuredb.render.view import Column, Heading, Table, View
from featuredb.steering.forward import placed, refuse_no_next_token
from featuredb.store.store import Store
from ingest.attached import AttachedSae
from ingest.extract.recorded import recorded
from ingest.model.hooks import HookPoint
from ingest.model.hooks.capture import hidden_states, unit_rms, with_input, with_output
from ingest.model.load import LoadedModel, final_norm, no_tokenizer, unembedding
from ingest.sae.normalize import undoing
from queries.answers import Answer
from queries.arguments import check_text
from queries.labels import with_labels
from queries.show import label_column
from queries.token_named import token_named

_SHOWN = 20
_PARTS = ("feature", "error", "bias", "after")
_ROW = pa.schema(
    [
        ("sae", pa.string()),
        ("part", pa.string()),
        ("feature_id", pa.int64()),
        ("token_index", pa.int64()),
        ("token", pa.string()),
        ("activation", pa.float32()),
        ("direct", pa.float32()),
        ("attribution", pa.float32()),
    ]
)


@dataclass(frozen=True, repr=False)
class Attribution(Answer):
    """What features contribute to a token's logit.

    Columns: sae string, part string (``feature``, ``error``, ``bias`` or ``after``), feature_id
    i64, token_index i64 (of the text's tokens, without BOS, -1 for BOS), token string, activation
    f32, direct f32 (its share of the logit by the direct path, null but at the last token),
    attribution f32 (activation × gradient, null for ``after``) and label string (the feature's
    preferred one, or null). By SAE, features first, by the size of the attribution descending, ties
    by token and feature id.

    target: the token. logit and probability: of it, as the next. For each SAE the direct parts
    add up to the logit.
    """

    kind: ClassVar[str] = "attribution"

    target: str
    logit: float
    probability: float

    def view(self) -> View:
        """The strongest features of all, and the sums of each SAE's parts."""
        rows = [row for row in self if row.part == "feature"]
        rows = sorted(rows, key=lambda row: -abs(row.attribution))
        shown = rows[:_SHOWN]
        about = f" · logit {self.logit:.4g}, probability {self.probability:.3g}"
        heading = Heading("what leads to ", label(self.target), about)
        features = Table(
            [
                Column("feature", [f"{r.sae}/{r.feature_id}" for r in shown], features=True),
                Column("on", [label(r.token) for r in shown], tokens=True),
                _numbers("activation", [r.activation for r in shown]),
                _numbers("direct", [r.direct for r in shown]),
                _numbers("attribution", [r.attribution for r in shown]),
                *label_column(shown),
            ],
            more=len(rows) - len(shown),
        )
        return View([[heading, features], [Heading("", "direct", " parts"), self._sums()]])

    def _sums(self) -> Table:
        sums: dict[str, dict[str, float]] = {}
        for row in self:
            parts = sums.setdefault(row.sae, dict.fromkeys(_PARTS, 0.0))
            parts[row.part] += row.direct or 0.0
        columns = [Column("SAE", list(sums))]
        columns += [
            _numbers(f"{part}s" if part == "feature" else part, [s[part] for s in sums.values()])
            for part in _PARTS
        ]
        columns.append(_numbers("sum", [sum(s.values()) for s in sums.values()]))
        return Table(columns)


def _numbers(title: str, values: Sequence[float | None]) -> Column:
    cells = ["" if value is None else numbers.number(value) for value in values]
    return Column(title, cells, right=True)


def attribute(store: Store, text: str, token: str | int, where: str | None = None) -> Attribution:
    """See `featuredb.Database.attribute`. where: the model is now."""
    loaded = recorded(store, where)
    model = loaded.model
    refuse_no_next_token(model)
    if model.tokenizer is None:
        raise no_tokenizer(model.path)
    ids = model.tokenizer(check_text(text, "text"), add_special_tokens=False).input_ids
    if not ids:
        raise QueryError("the text has no tokens: give one")
    target = token_named(store, token)
    bos = store.snapshot.corpora[0].bos_token_id
    before = [] if bos is None else [bos]
    names = [store.texts.token_texts[i] for i in (*before, *ids)]
    pass_ = _Pass.run(model, loaded.saes, [*before, *ids], target)
    rows = [row for sae in loaded.saes for row in _rows(sae, pass_, names, len(before))]
    return Attribution(
        with_labels(store, pa.Table.from_pylist(rows, schema=_ROW)),
        target=store.texts.token_texts[target],
        logit=pass_.logit,
        probability=pass_.probability,
    )


class _Pass(NamedTuple):
    """What one pass gave. read, written: by hook name, float32 [t, width], what passes there.
    gradient: of the logit at what is written. direct: u [d_model]. rest: what the final norm's and
    the head's biases add. last: h at the last token. share: of the uncapped logit."""

    read: Mapping[str, Tensor]
    written: Mapping[str, Tensor]
    gradient: Mapping[str, Tensor]
    direct: Tensor
    rest: float
    last: Tensor
    share: float
    logit: float
    probability: float

    @classmethod
    def run(
        cls, model: LoadedModel, saes: Sequence[AttachedSae], ids: Sequence[int], target: int
    ) -> _Pass:
        """Raises `ModelError` where logits are no linear map of the stream."""
        lens = unembedding(model)
        if lens is None:
            raise ModelError(f"{model.id} has no linear map from its stream to logits")
        norm, head = final_norm(model), model.model.get_output_embeddings()
        places = {sae.hook.name: sae.hook for sae in saes}
        places |= {_written(sae).name: _written(sae) for sae in saes}
        values: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}
        with model.lock, torch.enable_grad(), ExitStack() as stack:
            for hook in places.values():
                stack.enter_context(_graph(model.model, hook, values))
            for name, module in (("normed", head), ("last", norm)):
                if module is not None:
                    stack.callback(module.register_forward_pre_hook(_keep(seen, name)).remove)
            tokens = torch.tensor([list(ids)], device=model.device)
            logits = model.model(input_ids=tokens, use_cache=False).logits[0, -1].float()
            written = {_written(sae).name: values[_written(sae).name] for sae in saes}
            gradients = torch.autograd.grad(
                logits[target], list(written.values()), allow_unused=True
            )
        normed = seen["normed"].detach().reshape(-1, lens.weight.shape[1])[-1].float()
        last = seen.get("last", seen["normed"]).detach().reshape(-1, len(normed))[-1].float()
        row = lens.weight[target].float()
        bias = getattr(norm, "bias", None) if norm is not None else None
        shift = torch.zeros_like(normed) if bias is None else bias.detach().float()
        gain = torch.ones_like(normed) if lens.gain is None else lens.gain.to(normed)
        centered = last - last.mean() if lens.center else last
        scale = (gain * centered).norm() / (normed - shift).norm()
        direct = row * gain / scale
        if lens.center:
            direct = direct - direct.mean()
        head_bias = getattr(head, "bias", None)
        rest = float(row @ shift) + (0.0 if head_bias is None else float(head_bias[target]))
        logit, raw = float(logits[target].detach()), float(direct @ last) + rest
        return cls(
            {name: _flat(values[name]) for name in {sae.hook.name for sae in saes}},
            {name: _flat(value) for name, value in written.items()},
            {
                name: torch.zeros_like(_flat(value)) if gradient is None else _flat(gradient)
                for (name, value), gradient in zip(written.items(), gradients, strict=True)
            },
            direct,
            rest,
            last,
            logit / raw if raw else 1.0,
            logit,
            float(logits.detach().softmax(0)[target]),
        )


def _rows(
    attached: AttachedSae, done: _Pass, names: Sequence[str], bos: int
) -> Iterator[dict[str, Any]]:
    """The parts of one SAE, as `Attribution` has them."""
    sae, place = attached.sae, _written(attached).name
    x, y, gradient = done.read[attached.hook.name], done.written[place], done.gradient[place]
    codes = sae.encode(x)
    scale = undoing(sae.decoder.undoes, x)
    unit = torch.ones(len(x), 1, device=x.device) if scale is None else scale
    offset = 0.0 if sae.decoder.offset is None else sae.decoder.offset.float()
    rebuilt = sae.decode(codes, x)
    bias = sae.decode(torch.zeros_like(codes), x)
    error = y - rebuilt
    is_direct = y.shape[1] == len(done.direct)
    at, feature = codes.nonzero(as_tuple=True)
    amount = ((codes + offset * (codes > 0)) * unit)[at, feature]
    directions = sae.W_dec[feature]
    indirect = amount * (directions * gradient[at]).sum(dim=1)
    end = len(x) - 1
    direct = amount * (directions @ done.direct) * done.share if is_direct else None
    order = sorted(
        range(len(at)), key=lambda i: (-abs(float(indirect[i])), int(at[i]), int(feature[i]))
    )

    def row(part: str, place: int | None, **more: Any) -> dict[str, Any]:
        token = None if place is None else names[place]
        index = None if place is None else place - bos
        return {"sae": attached.name, "part": part, "token_index": index, "token": token, **more}

    for i in order:
        place_of = int(at[i])
        yield row(
            "feature",
            place_of,
            feature_id=int(feature[i]),
            activation=float(codes[at[i], feature[i]]),
            direct=float(direct[i]) if direct is not None and place_of == end else None,
            attribution=float(indirect[i]),
        )
    constant = done.rest * done.share
    for part, value in (("error", error), ("bias", bias)):
        for index in range(len(x)):
            own = None
            if is_direct and index == end:
                own = float(value[index] @ done.direct) * done.share
                own += constant if part == "bias" else 0.0
            attribution = float(value[index] @ gradient[index])
            yield row(part, index, direct=own, attribution=attribution)
    if is_direct:
        yield row("after", None, direct=float((done.last - y[end]) @ done.direct) * done.share)


def _written(attached: AttachedSae) -> HookPoint:
    """Where the SAE writes. Raises `QueryError` for one that writes to several layers."""
    if attached.hooks_out:
        raise QueryError(
            f"SAE {attached.name} writes to several layers: its features' contributions cannot be "
            "told apart yet"
        )
    return attached.hook_out or attached.hook


@contextmanager
def _graph(model: nn.Module, hook: HookPoint, values: dict[str, Tensor]) -> Iterator[None]:
    """Keep what passes a hook, as something that the logit has a gradient by."""

    def kept(value: Tensor) -> Tensor:
        values[hook.name] = value if value.requires_grad else value.detach().requires_grad_()
        return values[hook.name]

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = hidden_states(args or tuple(kwargs.values()))
        if hook.before_gain:  # the model computes it again from what comes before
            values[hook.name] = unit_rms(module, value)
            return None
        return with_input(args, kwargs, value, kept(value))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = hidden_states(output)
        return with_output(output, value, kept(value))

    with placed(model, hook, before, after):
        yield


def _keep(seen: dict[str, Tensor], name: str) -> Any:
    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[name] = args[0]

    return before


def _flat(value: Tensor) -> Tensor:
    """float32 [t, width] of [1, t, width]."""
    return value.detach().reshape(-1, value.shape[-1]).float()
