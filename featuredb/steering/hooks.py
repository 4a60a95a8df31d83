"""Hooks that edit what passes a model, for as long as one caller holds the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from featuredb.errors import HookError, QueryError
from featuredb.steering.passes import ForwardPass, TokenFacts
from featuredb.steering.resolve import ResolvedEdit
from featuredb.steering.rows import CodeReader, SaeEdits
from featuredb.steering.where import EditScope, TokenSet
from ingest.attached import AttachedSae
from ingest.model.hooks import HookPoint
from ingest.model.hooks.capture import hidden_states, reading, unit_rms, with_input, with_output
from ingest.model.hooks.families import base_of
from ingest.model.load import LoadedModel
from queries.conditions import Condition, within

_HELD: WeakSet[LoadedModel] = WeakSet()
_HOLDING = threading.Lock()


class HeldModel:
    """A model that one caller may edit, and no other meanwhile. Use it through `held`.

    Its passes hold the model's lock, so that passes that only read, which place hooks of their own,
    wait. They are never edited.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.recorded: dict[str, Tensor] = {}
        """Values [B, T, width] of the last pass at the hooks to record, by canonical name."""
        self._sites: _Sites | None = None
        self._local = threading.local()
        self._handles: list[Any] = []
        self._locked = False

    @contextmanager
    def editing(
        self,
        edits: Sequence[SaeEdits],
        facts: TokenFacts,
        saes: Sequence[AttachedSae] = (),
        record: Sequence[HookPoint] = (),
    ) -> Iterator[EditCounts]:
        """Edit every pass in the block.

        Args:
            edits: In the order in which they act at one hook.
            facts: What the edits' places need.
            saes: Those of the database, which conditions read.
            record: Hooks whose values, after the edits, each pass leaves in `recorded`.

        Returns:
            How many tokens were edited, counted as passes run.

        Raises:
            QueryError: An edit can never apply.
        """
        sites = _Sites(self, edits, facts, saes, record)
        before, self._sites = self._sites, sites
        handles = sites.place()
        try:
            yield sites.counts
        finally:
            for handle in handles:
                handle.remove()
            self._sites = before
            self.recorded = {}

    @contextmanager
    def prompt_of(self, columns: int) -> Iterator[None]:
        """Take the first `columns` of the passes in the block for the prompt, as in `generate`."""
        before = getattr(self._local, "prompt", None)
        self._local.prompt = columns
        try:
            yield
        finally:
            self._local.prompt = before

    @property
    def current(self) -> ForwardPass | None:
        """The pass that this thread is in."""
        return getattr(self._local, "current", None)

    def place(self) -> None:
        """Watch the model's passes."""
        model: nn.Module = self.loaded.model
        # Some models call their base model, some what is in it. A caller may, too.
        for module in dict.fromkeys((model, base_of(model)[1])):
            self._handles += [
                module.register_forward_pre_hook(self._begin, with_kwargs=True),
                module.register_forward_hook(self._end, always_call=True),
            ]
        generate = getattr(model, "generate", None)
        if generate is not None:
            model.__dict__["generate"] = self._generating(generate)

    def close(self) -> None:
        """Take everything out of the model again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.loaded.model.__dict__.pop("generate", None)
        if self._locked:  # interrupted within a pass
            self._unlock()

    def _generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def generate_from(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
            given = kwargs.get("inputs_embeds") if given is None else given
            if not isinstance(given, Tensor):
                return generate(*args, **kwargs)
            self._local.mask = kwargs.get("attention_mask")
            try:
                with self.prompt_of(given.shape[1]):
                    return generate(*args, **kwargs)
            finally:
                self._local.mask = None

        return generate_from

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if reading() or self.current is not None:
            return
        self.loaded.lock.acquire()
        self._locked = True
        self._local.begun = module
        self._local.current = self._pass(args, kwargs)
        self.recorded = {}

    def _end(self, module: nn.Module, *_: Any) -> None:
        if not reading() and getattr(self._local, "begun", None) is module:
            self._local.begun = self._local.current = None
            self._unlock()

    def _unlock(self) -> None:
        if self._locked:
            self._locked = False
            self.loaded.lock.release()

    def _pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardPass:
        ids = _argument("input_ids", args, kwargs)
        tokens = kwargs.get("inputs_embeds") if ids is None else ids
        if not isinstance(tokens, Tensor):
            raise QueryError("the model was called without input_ids or inputs_embeds")
        batch, count = tokens.shape[:2]
        cache: Any = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        real = None
        for given in (kwargs.get("attention_mask"), getattr(self._local, "mask", None)):
            if isinstance(given, Tensor) and given.ndim == 2 and len(given) == batch:
                real = _real(given, past + count)
                break
        prompt = getattr(self._local, "prompt", None)
        generated = prompt - 1 if prompt is not None else None
        if prompt is None:  # a caller's own loop: the first pass is the prompt
            if past == 0:
                self._local.first = count
            prompt = generated = getattr(self._local, "first", past) if past else count
        facts = self._sites.facts if self._sites is not None else TokenFacts()
        return ForwardPass(
            batch, count, past, ids, real, prompt, int(generated or 0), facts, tokens.device
        )


@contextmanager
def held(loaded: LoadedModel) -> Iterator[HeldModel]:
    """Hold a model for editing.

    Raises:
        QueryError: It is held already.
    """
    with _HOLDING:
        if loaded in _HELD:
            raise QueryError(
                f"the model {loaded.id} is being steered already: edits go into the one model, so "
                "wait until that block or call has ended"
            )
        _HELD.add(loaded)
    model = HeldModel(loaded)
    try:
        model.place()
        yield model
    finally:
        model.close()
        with _HOLDING:
            _HELD.discard(loaded)


class EditCounts:
    """How many tokens each edit has acted on: in the prompt, and where new tokens came from."""

    def __init__(self, edits: Sequence[ResolvedEdit]) -> None:
        self.edits = tuple(edits)
        self._prompt: list[int | Tensor] = [0] * len(edits)
        self._generated: list[int | Tensor] = [0] * len(edits)

    def add(self, number: int, prompt: int | Tensor, generated: int | Tensor) -> None:
        """Count for an edit."""
        self._prompt[number] += prompt
        self._generated[number] += generated

    @property
    def prompt(self) -> list[int]:
        """Tokens of the prompt, per edit."""
        return [int(count) for count in self._prompt]

    @property
    def generated(self) -> list[int]:
        """Places from which new tokens were predicted, per edit."""
        return [int(count) for count in self._generated]


class _Sites:
    """What happens at each place of the model where something is read or written."""

    def __init__(
        self,
        model: HeldModel,
        edits: Sequence[SaeEdits],
        facts: TokenFacts,
        saes: Sequence[AttachedSae],
        record: Sequence[HookPoint],
    ) -> None:
        self.facts = facts
        self.counts = EditCounts([edit for each in edits for edit in each.edits])
        self._model = model
        self._places: dict[str, HookPoint] = {}
        self._actions: dict[str, list[Callable[[ForwardPass, Tensor], Tensor | None]]] = {}
        self._changes: dict[int, Any] = {}
        for sae, readers in _conditions(edits, saes, facts):
            self._at(sae.hook, _condition_reader(sae, readers))
        first = 0
        for number, each in enumerate(edits):
            self._at(each.read, self._reader(number, first, each))
            for hook in each.writes:
                self._at(hook, self._writer(number, each, hook))
            first += len(each.edits)
        for hook in record:
            self._at(hook, self._recorder(hook))

    def place(self) -> list[Any]:
        """Put the hooks into the model. Returns what removes them."""
        model: nn.Module = self._model.loaded.model
        handles: list[Any] = []
        for key, hook in self._places.items():
            module = model.get_submodule(hook.module)
            if hook.side == "input":
                before = self._before(key, hook)
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(self._after(key)))
        return handles

    def _at(self, hook: HookPoint, action: Callable[[ForwardPass, Tensor], Tensor | None]) -> None:
        self._places.setdefault(hook.canonical, hook)
        self._actions.setdefault(hook.canonical, []).append(action)

    def _before(self, key: str, hook: HookPoint) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if reading():
                return None
            current = self._current(key)
            value = hidden_states(args or tuple(kwargs.values()))
            if hook.before_gain:
                self._run(key, current, unit_rms(module, value))
                return None
            new = self._run(key, current, value)
            return None if new is value else with_input(args, kwargs, value, new)

        return run

    def _after(self, key: str) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if reading():
                return None
            current = self._current(key)
            value = hidden_states(output)
            new = self._run(key, current, value)
            return None if new is value else with_output(output, value, new)

        return run

    def _current(self, key: str) -> ForwardPass:
        if (current := self._model.current) is None:
            raise HookError(
                f"{self._places[key].name} ran outside of a call of the model, so what it reads is "
                "not known and is not edited: call the model itself"
            )
        return current

    def _run(self, key: str, current: ForwardPass, value: Tensor) -> Tensor:
        """The value after everything that happens there."""
        if value.numel() != current.batch * current.tokens * value.shape[-1]:
            raise HookError(
                f"{self._places[key].name} has values of shape {list(value.shape)} for "
                f"{current.batch} texts of {current.tokens} tokens: not one vector for each token"
            )
        given = rows = value.reshape(-1, value.shape[-1])
        with torch.no_grad():
            for action in self._actions[key]:
                new = action(current, rows)
                rows = rows if new is None else new
        return value if rows is given else rows.reshape(value.shape)

    def _reader(
        self, number: int, first: int, edits: SaeEdits
    ) -> Callable[[ForwardPass, Tensor], None]:
        names_sinks = any(each.kind == "sinks" for edit in edits.edits for each in edit.scope.sets)

        def read(current: ForwardPass, rows: Tensor) -> None:
            sinks = None
            if names_sinks:
                norm = rows.float().norm(dim=1).reshape(current.batch, current.tokens)
                sinks = norm > edits.attached.sink_norm
            masks = [current.chosen(edit.scope, sinks) for edit in edits.edits]
            for place, mask in enumerate(masks, first):
                self.counts.add(place, *current.count(mask))
            chosen = None
            if any(mask is not None for mask in masks):
                every = rows.new_ones(len(rows), dtype=torch.bool)
                chosen = torch.stack([every if m is None else m for m in masks], 1)
            self._changes[number] = edits.change(rows, chosen)

        return read

    def _writer(
        self, number: int, edits: SaeEdits, hook: HookPoint
    ) -> Callable[[ForwardPass, Tensor], Tensor | None]:
        def write(current: ForwardPass, rows: Tensor) -> Tensor | None:
            delta = edits.delta(rows, self._changes[number], hook)
            return None if delta is None else (rows.float() + delta).to(rows.dtype)

        return write

    def _recorder(self, hook: HookPoint) -> Callable[[ForwardPass, Tensor], None]:
        def record(current: ForwardPass, rows: Tensor) -> None:
            shape = (current.batch, current.tokens, rows.shape[-1])
            self._model.recorded[hook.canonical] = rows.reshape(shape)

        return record


def _condition_reader(
    sae: AttachedSae, conditions: dict[TokenSet, Condition]
) -> Callable[[ForwardPass, Tensor], None]:
    features = sorted({condition.feature for condition in conditions.values()})
    reader = CodeReader(sae.sae, features)

    def read(current: ForwardPass, rows: Tensor) -> None:
        codes = reader.codes(rows)
        for tokens, condition in conditions.items():
            code = codes[:, features.index(condition.feature)]
            held = within(code, condition.bounds)
            current.held[tokens] = held.reshape(current.batch, current.tokens)

    return read


def _conditions(
    edits: Sequence[SaeEdits], saes: Sequence[AttachedSae], facts: TokenFacts
) -> list[tuple[AttachedSae, dict[TokenSet, Condition]]]:
    """The conditions that edits name, by the SAE they are on.

    Raises `QueryError` where one, or another part of a scope, can never be known.
    """
    found: dict[str, dict[TokenSet, Condition]] = {}
    attached = {sae.name: sae for sae in saes}
    for each in edits:
        for edit in each.edits:
            _refuse_unknowable(edit.scope, edit, each, facts)
            for tokens, condition in edit.conditions.items():
                other = attached[condition.sae.name].hook
                here = each.read
                if None not in (here.layer, other.layer) and (other.layer or 0) > (here.layer or 0):
                    raise QueryError(
                        f"{edit.edit} asks about {other.name}, which comes after {here.name}: "
                        "the edit can never apply"
                    )
                found.setdefault(condition.sae.name, {})[tokens] = condition
    return [(attached[name], conditions) for name, conditions in found.items()]


def _refuse_unknowable(
    scope: EditScope, edit: ResolvedEdit, each: SaeEdits, facts: TokenFacts
) -> None:
    for tokens in scope.sets:
        if tokens.kind == "sinks" and each.attached.sink_norm is None:
            raise QueryError(
                f"{edit.edit}: this database records all tokens of SAE {edit.sae.name}, it knows "
                "no sinks"
            )
        if tokens.kind == "bos" and facts.bos is None:
            raise QueryError(f"{edit.edit}: the contexts of this database begin with no BOS")
        if tokens.kind == "role" and facts.roles is None:
            raise QueryError(
                f"{edit.edit} needs to know who says what, which only a chat does: give messages "
                "to Database.steer"
            )


def _real(mask: Tensor, columns: int) -> Tensor | None:
    """bool [B, columns] of an attention mask, new tokens real. None where nothing is padding."""
    real = mask[:, :columns] != 0
    if bool(real.all()):
        return None
    more = columns - real.shape[1]
    return torch.nn.functional.pad(real, (0, more), value=True) if more > 0 else real


def _argument(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    value = kwargs.get(name, args[0] if args else None)
    return value if isinstance(value, Tensor) else None
