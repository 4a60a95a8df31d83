"""A text that the model goes on with, as it is and with features edited."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from featuredb.errors import FeatureDBError, QueryError
from featuredb.explorer.address import Address
from featuredb.explorer.generation import SteeringRequest, Tell
from featuredb.explorer.panel import Panel, Spelling, call
from featuredb.explorer.site import Site, Waiting, WebPage
from featuredb.render.characters import neutralize
from featuredb.steering.edits import METHODS, Edit
from featuredb.steering.resolve import resolve_edits
from featuredb.steering.steered import Steered
from featuredb.store.names import parse_feature

_LONGEST = 20_000
_MOST_TOKENS = 500
_MOST_EDITS = 20


@dataclass(frozen=True)
class EditLine:
    """An edit of the form: how it is spelled, of which feature, its tokens, its stored maximum.

    strength: what the slider shows, None where the edit is none of multiples of the maximum.
    """

    text: str
    feature: str = ""
    tokens: tuple[str, ...] = ()
    maximum: float | None = None
    strength: float | None = None


def asked_of(asked: Address) -> SteeringRequest | None:
    """What an address asks to generate, None for nothing yet. Raises `QueryError`."""
    prompt = asked.raw("prompt")
    edits = _edits(asked)
    if not (prompt.strip() and edits):
        return None
    if len(prompt) > _LONGEST or len(edits) > _MOST_EDITS:
        raise QueryError(
            f"a prompt has at most {_LONGEST:,} characters and {_MOST_EDITS} edits here: ask "
            "`featuredb steer` for more"
        )
    temperature = asked.number("temperature") or 0.0
    if not 0 <= temperature < 100:
        raise QueryError(f"a temperature is from 0 to 100, not {temperature:g}")
    return SteeringRequest(
        prompt,
        edits,
        asked.flag("chat"),
        asked.whole("max_new_tokens", 40, 1, _MOST_TOKENS),
        temperature,
        asked.whole("seed", 0, 0, 10**9),
        asked.choice("method", METHODS),
    )


def page(site: Site, asked: Address) -> WebPage:
    """The form, and the texts side by side with what the edits changed."""
    wanted = asked_of(asked)
    lines = _lines(site, asked)
    values = {"lines": lines, "methods": METHODS, "streams": False}
    if wanted is None:
        return WebPage("steer.html", "Steer", (), values, missing=_missing(asked))
    # What is wrong is said before a model is loaded.
    resolve_edits(site.store, wanted.edits, wanted.method)
    # What is kept is drawn at once, the rest is followed.
    values["streams"] = streams = site.generations.kept(wanted) is None and not asked.sent
    answer, spelling = partial(_answer, site, wanted), _spelling(site, wanted)
    panel = Panel("steered", "Steered", answer, spelling, lazy=streams)
    return WebPage("steer.html", "Steer", (panel,), values, lasting=False)


def _answer(site: Site, wanted: SteeringRequest) -> Steered:
    kept = site.generations.kept(wanted)
    if kept is not None:
        return kept
    if not site.model.ready():
        raise Waiting("the model is being loaded")
    return site.generations.answer(wanted)


def follow(site: Site, asked: Address, tell: Tell) -> None:
    """Tell a generation as it goes on, and that it is done. Raises `QueryError`."""
    wanted = asked_of(asked)
    if wanted is None:
        raise QueryError("give a prompt and an edit")
    resolve_edits(site.store, wanted.edits, wanted.method)

    def harmless(fact: dict[str, object]) -> None:
        if "text" in fact:
            text = str(fact["text"])
            fact = {**fact, "text": "\n".join(map(neutralize, text.split("\n")))}
        tell(fact)

    site.generations.told(wanted, harmless)
    tell({"state": "done"})


def _missing(asked: Address) -> str:
    if asked.text("prompt"):
        return "Give an edit too, such as 3722=2x."
    return "Give a text that the model goes on from." if _edits(asked) else ""


def _lines(site: Site, asked: Address) -> list[EditLine]:
    """The edits of an address, and an empty line for one more."""
    return [*(_line(site, text) for text in _edits(asked)[:_MOST_EDITS]), EditLine("")]


def _edits(asked: Address) -> tuple[str, ...]:
    """The edits of an address as they are spelled, which may have commas."""
    return tuple(value.strip() for name, value in asked.pairs if name == "set" and value.strip())


def _line(site: Site, text: str) -> EditLine:
    try:
        edit = Edit.parse(text)
        sae, number = parse_feature(site.database.snapshot, edit.feature)
    except FeatureDBError:
        return EditLine(text)  # which the answer says
    row = site.store.features.card(sae, number).to_pylist()[0]
    return EditLine(
        text,
        f"{sae.name}/{number}",
        tuple(entry["token"] for entry in row["top_tokens"][:4]),
        row["max_activation"],
        float(edit.value) if edit.unit == "maximum" else None,
    )


def _spelling(site: Site, wanted: SteeringRequest) -> Spelling:
    default = SteeringRequest("", ())
    given = {
        name: value for name, value in wanted.options().items() if value != getattr(default, name)
    }
    options = {"set": list(wanted.edits), "chat": wanted.chat, "no-controls": True, **given}
    shown = "".join(f", {name}={value!r}" for name, value in given.items())
    python = f"db.steer({wanted.given!r}, {list(wanted.edits)!r}, controls=False{shown})"
    return Spelling(call("steer", site.name, (wanted.prompt,), options), python)
