"""`Database.steer`: texts with and without edits, and what the edits changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from featuredb.errors import QueryError
from featuredb.steering import steered as schemas
from featuredb.steering.controls import Control, control_edits
from featuredb.steering.edits import Edits
from featuredb.steering.generation import GeneratedBatch, Sampling, generate, pad_of
from featuredb.steering.hooks import held
from featuredb.steering.intervals import Interval
from featuredb.steering.opened import ReadyEdits, SteeringOptions, ready
from featuredb.steering.prompts import EncodedPrompt, PromptBatch, Prompts, batch_of, encode_prompts
from featuredb.steering.scoring import Target, TextScores, score
from featuredb.steering.steered import Steered
from featuredb.store.store import Store
from ingest.attached import AttachedSae

_BATCH = 16
"""Prompts that are gone on from at a time."""

_NEXT = 20
_MOVED = 50


def steer(
    store: Store,
    prompts: Prompts,
    edits: Edits,
    where: str | None,
    options: SteeringOptions,
    sampling: Sampling,
    *,
    effect: bool = True,
    controls: bool = True,
    watch: Callable[[str, str], None] | None = None,
) -> Steered:
    """See `featuredb.Database.steer`."""
    sampling.check()
    made = ready(store, edits, where, options, every_sae=effect)
    encoded = encode_prompts(store, made.model, prompts)
    refuse_beyond(made, encoded, sampling)
    with held(made.model) as model:
        variants = [Control("steered", made.applied)]
        if effect and controls:
            variants += control_edits(made, sampling.seed)
        target = Target.of(made) if effect else None
        watched = _watched(made) if effect else []
        texts: dict[str, list[GeneratedBatch]] = {}
        scores: dict[str, list[TextScores]] = {}
        edited = [[0, 0] for _ in made.resolved]
        for batch in batches(made, encoded):
            for variant in [Control("unsteered", []), *variants]:
                name = variant.name
                shown = watch if name in ("unsteered", "steered") else None
                streamer = _streamer(made, partial(shown, name)) if shown else None
                facts = with_roles(made, batch).facts
                with model.editing(variant.edits, facts, made.saes) as counts:
                    text = generate(model, batch, sampling, streamer)
                texts.setdefault(name, []).append(text)
                if target is None:
                    found = None
                else:
                    found = score(
                        model,
                        made,
                        text,
                        variant.edits or None,
                        target,
                        watched if name == "steered" else (),
                    )
                    scores.setdefault(name, []).append(found)
                    assert found.counts is not None
                    counts = found.counts
                if name == "steered":
                    for sums, prompt, new in zip(
                        edited, counts.prompt, counts.generated, strict=True
                    ):
                        sums[0] += prompt
                        sums[1] += new
    table, n_new = _table(made, encoded, texts, scores)
    about = next((v.about for v in variants if v.name == "random feature"), "")
    return Steered(
        table,
        edited=_edited(made, edited, n_new["steered"]),
        random_feature=about,
        labels=edited_labels(made),
        **_measured(made, scores, watched),
    )


def steered_only(stream: Callable[[str], None]) -> Callable[[str, str], None]:
    """For one who watches the steered text alone."""

    def watch(variant: str, text: str) -> None:
        if variant == "steered":
            stream(text)

    return watch


def batches(made: ReadyEdits, prompts: Sequence[EncodedPrompt]) -> list[PromptBatch]:
    """Prompts in batches, chats apart from texts."""
    pad = pad_of(made.model.model)
    return [
        batch_of(prompts[start : start + _BATCH], pad) for start in range(0, len(prompts), _BATCH)
    ]


def edited_labels(made: ReadyEdits) -> dict[str, str]:
    """The labels of the edited features, by name. Only of those that have one."""
    return made.store.labels.named((edit.sae, edit.feature) for edit in made.resolved)


def with_roles(made: ReadyEdits, batch: PromptBatch | GeneratedBatch) -> ReadyEdits:
    """The edits, knowing who says what in a batch."""
    return replace(made, facts=replace(made.facts, roles=batch.roles))


def refuse_beyond(made: ReadyEdits, prompts: Sequence[EncodedPrompt], sampling: Sampling) -> None:
    """Raise `QueryError` for an edit that can apply in none of the prompts."""
    chats = all(prompt.roles is not None for prompt in prompts)
    longest = max(len(prompt.ids) for prompt in prompts)
    reach = longest + sampling.max_new_tokens - 1
    said = {role for prompt in prompts for role in prompt.roles or ()} | {"assistant"}
    for edit in made.resolved:
        for tokens in edit.scope.sets:
            if tokens.kind == "positions":
                start, stop = tokens.start or 0, tokens.stop
                if start >= reach or (stop is not None and stop <= 0 and longest + stop <= 0):
                    raise QueryError(
                        f"{edit.edit} acts outside of the text: the longest prompt has {longest} "
                        f"tokens, and with {sampling.max_new_tokens} new ones positions 0 to "
                        f"{reach - 1} are read"
                    )
            if tokens.kind == "role" and not chats:
                raise QueryError(
                    f"{edit.edit} needs to know who says what: give the prompt as messages"
                )
            if tokens.kind == "role" and tokens.text not in said:
                raise QueryError(
                    f"{edit.edit}: nobody in the chat is {tokens.text!r}, it has "
                    f"{', '.join(sorted(said))}"
                )


def _watched(made: ReadyEdits) -> list[AttachedSae]:
    """The SAEs at the hook of the first edit and later ones."""
    first = min((each.read.layer or 0) for each in made.applied)
    return [sae for sae in made.saes if (sae.hook.layer or 0) >= first]


def _streamer(made: ReadyEdits, write: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text + ("\n" if stream_end else ""))

    return Streamer(made.model.tokenizer, skip_prompt=True)


def _table(
    made: ReadyEdits,
    prompts: Sequence[EncodedPrompt],
    texts: dict[str, list[GeneratedBatch]],
    scores: dict[str, list[TextScores]],
) -> tuple[pa.Table, dict[str, int]]:
    words = made.store.texts.token_texts
    tokenizer = made.model.tokenizer
    rows: list[dict[str, Any]] = []
    n_new = dict.fromkeys(texts, 0)
    for number, prompt in enumerate(prompts):
        batch, row = divmod(number, _BATCH)
        for name, parts in texts.items():
            ids = parts[batch].new_ids(row)
            n_new[name] += len(ids)
            entry: dict[str, Any] = {
                "prompt_index": number,
                "prompt": prompt.text,
                "variant": name,
                "text": tokenizer.decode(ids),
                "tokens": [words[i] for i in ids],
                "n_tokens": len(ids),
            }
            if name in scores:
                found = scores[name][batch]
                entry |= {m: float(getattr(found, m)[row]) for m in _MEASURED}
                entry["perplexity"] = float(np.exp(min(found.nll[row], 700)))
            rows.append(entry)
    return pa.Table.from_pylist(rows, schema=schemas.TEXTS), n_new


_MEASURED = ("kl", "repetition", "target", "hits")


def _edited(made: ReadyEdits, counts: Sequence[Sequence[int]], n_new: int) -> pa.Table:
    rows = [
        {"edit": str(edit), "prompt_tokens": p, "generated_places": g, "n_generated": n_new}
        for edit, (p, g) in zip(made.resolved, counts, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.EDITED)


def _measured(
    made: ReadyEdits, scores: dict[str, list[TextScores]], watched: Sequence[AttachedSae]
) -> dict[str, pa.Table]:
    if not scores:
        return {}
    steered = scores["steered"]
    return {
        "effects_table": pa.Table.from_pylist(_effects(scores), schema=schemas.EFFECTS),
        "next_table": pa.Table.from_pylist(_next_tokens(made, steered), schema=schemas.NEXT_TOKENS),
        "moved_table": pa.Table.from_pylist(_moved(made, steered, watched), schema=schemas.MOVED),
    }


def _effects(scores: dict[str, list[TextScores]]) -> list[dict[str, Any]]:
    rows = []
    for name, parts in scores.items():
        for measure in schemas.MEASURES:
            of = "nll" if measure == "perplexity" else measure
            interval = Interval.of(np.concatenate([getattr(part, of) for part in parts]))
            interval = interval.exp() if measure == "perplexity" else interval
            rows.append(
                {
                    "variant": name,
                    "measure": measure,
                    **interval._asdict(),
                    "n_prompts": interval.n,
                }
            )
    return rows


def _next_tokens(made: ReadyEdits, steered: Sequence[TextScores]) -> list[dict[str, Any]]:
    words = made.store.texts.token_texts
    before = np.concatenate([part.next_before for part in steered])[:, : len(words)]
    after = np.concatenate([part.next_after for part in steered])[:, : len(words)]
    rows = []
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        for token in np.argsort(-np.maximum(old, new), kind="stable")[:_NEXT]:
            rows.append(
                {
                    "prompt_index": number,
                    "token": words[token],
                    "before": float(old[token]),
                    "after": float(new[token]),
                }
            )
    return rows


def _moved(
    made: ReadyEdits, steered: Sequence[TextScores], watched: Sequence[AttachedSae]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    edited = {(edit.sae.name, edit.feature) for edit in made.resolved}
    features = made.store.features
    for sae in watched:
        record = made.store.snapshot.sae(sae.name)
        before, after = (
            np.concatenate([part.moved[sae.name][side] for part in steered]) for side in (0, 1)
        )
        change = after - before
        for feature in np.argsort(-np.abs(change.mean(0)), kind="stable")[:_MOVED].tolist():
            interval = Interval.of(change[:, feature])
            if interval.mean == 0:
                break
            summary = features.summaries([features.row(record, feature)])
            rows.append(
                {
                    "sae": sae.name,
                    "feature_id": feature,
                    "edited": (sae.name, feature) in edited,
                    "before": float(before[:, feature].mean()),
                    "after": float(after[:, feature].mean()),
                    "difference": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    **summary.select(["top_tokens", "label"]).to_pylist()[0],
                }
            )
    rows.sort(key=lambda row: -abs(row["difference"]))
    return rows[:_MOVED]
