"""All about one feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from featuredb.errors import FeatureDBError, QueryError
from featuredb.explorer.address import Address, feature_url
from featuredb.explorer.pages.text import firing_on
from featuredb.explorer.pages.where_it_fires import where_it_fires
from featuredb.explorer.panel import Counted, Panel, literal, macro, method
from featuredb.explorer.parts_of_card import examples
from featuredb.explorer.site import Site, WebPage
from featuredb.render.view import View
from featuredb.store.names import example, parse_feature, sae_named
from featuredb.store.snapshot import Sae
from queries.answers import Answer, Rows
from queries.feature import FeatureCard, FeatureNumbers, feature_neighbors, feature_numbers
from queries.shaded_text import ShadedText

_SHOWN = ("top", "sample", "silent")


def page(site: Site, asked: Address) -> WebPage:
    """The feature that the path names, its contexts and its neighbors."""
    named = asked.path.removeprefix("/feature/")
    if not named:
        raise QueryError(f"no feature is named: open /feature/{example(site.database.snapshot)}")
    sae, number = parse_feature(site.database.snapshot, named)
    name = site.feature(sae.name, number)
    full = f"{sae.name}/{number}"
    numbers = feature_numbers(site.store, sae, number)

    @cache
    def card() -> FeatureCard:
        return site.database.feature(full)

    text = asked.raw("text")

    @cache
    def shaded() -> ShadedText:
        return firing_on(site, text).shaded(full)

    def mark() -> float | None:
        """Its activation on the text that is tested, where that can be told now."""
        if not text.strip():
            return None
        try:
            return float(max(shaded().table.column("activation").to_pylist(), default=0.0))
        except FeatureDBError:
            return None  # the panel of the text says why

    contexts = _contexts(site, asked, name, full)
    spelling = site.spelling(
        "feature", "feature", (name,), sql=f"FROM features WHERE {_is(sae, number)}"
    )
    panels = [
        Panel("feature", "Statistics", card, spelling, drawn=lambda: _numbers(numbers, mark())),
        contexts,
        Panel(
            "nearest",
            "Nearest",
            lambda: _under_one_another(
                {"decoder": card().neighbors, "coactivation": card().coactive}
            ),
            replace(spelling, sql=""),
            lazy=True,
            drawn=lambda: feature_neighbors(site.reader, sae, number),
        ),
        _near(site, asked, name, full, "encoder"),
        *(_coactive(site, name, full, unit) for unit in ("token", "document")),
        *where_it_fires(site, asked, full),
    ]
    if asked.text("show", "top") == "top" and numbers.row["count"]:
        panels.append(
            Panel(
                "range",
                "Over its range",
                lambda: _under_one_another({"sample": card().sample, "silent": card().silent}),
                replace(spelling, sql=""),
                lazy=True,
                drawn=lambda: examples(card().view()),
            )
        )
    if text.strip():
        test = Panel(
            "test",
            "Your text",
            shaded,
            replace(
                site.spelling("fires", "fires_on", (text,), cli={"feature": full}),
                python=method("fires_on", (text,), {}) + f".shaded({name!r})",
            ),
        )
        panels.insert(1, test)
    values = {
        "name": full,
        "previous": feature_url(f"{sae.name}/{number - 1}") if number else "",
        "next": feature_url(f"{sae.name}/{number + 1}") if number + 1 < sae.d_sae else "",
        "sae": sae.name,
        "fires_on": [entry["token"] for entry in (numbers.row.top_tokens or [])[:4]],
        "meaning": numbers.labels[0]["text"] if numbers.labels else "",
        "label_url": feature_url(full).replace("/feature/", "/label/", 1),
        "writable": isinstance(site.database.location, Path),
        "shown": _SHOWN,
        "show_contexts": asked.choice("show", _SHOWN),
        "offset": asked.whole("offset", 0, 0, 10**9),
        "k": asked.whole("k", 10, 1, 200),
        "listed": contexts.ask,
        "n_contexts": numbers.row["n_contexts"],
        "ignored": _ignored(asked),
        "blank": bool(text) and not text.strip(),
    }
    return WebPage(
        "feature.html",
        full,
        tuple(panels),
        values,
        redirect="" if named == full else Address(f"/feature/{full}", asked.pairs).url(),
        lasting=not text.strip(),
    )


def _ignored(asked: Address) -> list[str]:
    """What chooses among top contexts, where others are shown."""
    if asked.text("show", "top") == "top":
        return []
    return [n for n in ("where", "min", "max", "per_document", "distinct") if asked.text(n)]


def _numbers(numbers: FeatureNumbers, mark: float | None) -> View:
    """Without its name, which the page has above."""
    (_, *facts), *rest = numbers.sections(mark)
    return View([facts, *rest])


def _under_one_another(answers: Mapping[str, Answer]) -> Rows:
    """The rows of several, each with which of them it is of."""
    tables = [
        each.table.add_column(0, "part", pa.array([name] * len(each), pa.string()))
        for name, each in answers.items()
    ]
    return Rows(pa.concat_tables(tables, promote_options="default"))


def random_page(site: Site, asked: Address) -> WebPage:
    """To some feature that fires, of one SAE if it is named."""
    sae = asked.text("sae")
    where = f"AND sae = {literal(sae_named(site.database.snapshot, sae).name)}" if sae else ""
    rows = site.database.sql(
        f"SELECT sae || '/' || feature_id FROM features WHERE count > 0 {where} "
        "ORDER BY random() LIMIT 1"
    ).fetchall()
    if not rows:
        raise QueryError("no feature fires")
    return WebPage("feature.html", "", redirect=feature_url(rows[0][0]))


def _contexts(site: Site, asked: Address, name: int | str, full: str) -> Panel:
    """The contexts, chosen as the address says."""
    show = asked.choice("show", _SHOWN)
    if show == "sample":
        return _sample(site, asked, name, full, asked.whole("bins", 10, 1, 100))
    k, window = asked.whole("k", 10, 1, 200), asked.whole("window", 24, 0, 500)
    database = site.database
    if show == "silent":
        like = asked.choice("like", ("tokens", "neighbors", "random"))
        seed = asked.whole("seed", 0, 0, 10**9)
        options = {"k": k, "like": like, "seed": seed, "window": window}
        return Panel(
            "contexts",
            "Contexts where it is silent",
            lambda: database.silent_contexts(full, k, like, seed, window=window),
            site.spelling(
                "silent",
                "silent_contexts",
                (name,),
                options,
                sql=macro(
                    "silent_contexts",
                    [name],
                    {"k": k, "matched_by": like, "seed": seed, "window_size": window},
                ),
            ),
        )
    chosen: dict[str, Any] = {
        "k": k,
        "window": window,
        "where": asked.text("where") or None,
        "min_activation": asked.number("min"),
        "max_activation": asked.number("max"),
        "offset": asked.whole("offset", 0, 0, 10**9),
        "per_document": asked.flag("per_document"),
        "distinct": asked.flag("distinct"),
    }
    always = ("k", "window", *_OPTION)
    given = {
        n: v
        for n, v in chosen.items()
        if v not in (None, False, 0) or (n in always and v is not None)
    }
    return Panel(
        "contexts",
        "Top contexts",
        Counted(lambda: database.top_contexts(full, **chosen)),
        site.spelling(
            "top",
            "top_contexts",
            (name,),
            given,
            cli={_OPTION.get(n, n): v for n, v in given.items()},
            sql=_sql_of_top(name, given),
        ),
    )


_OPTION = {"min_activation": "min-activation", "max_activation": "max-activation"}


def _sql_of_top(name: int | str, given: Mapping[str, Any]) -> str:
    """Nothing where there are bounds, which the macro does not have."""
    if not given.keys().isdisjoint(_OPTION):
        return ""
    renamed = {"window": "window_size"}
    return macro("top_contexts", [name], {renamed.get(n, n): v for n, v in given.items()})


def _sample(site: Site, asked: Address, name: int | str, full: str, bins: int) -> Panel:
    k = max(asked.whole("k", 10, 1, 200), bins)
    by = asked.choice("by", ("width", "quantile"))
    seed, window = asked.whole("seed", 0, 0, 10**9), asked.whole("window", 24, 0, 500)
    options = {"k": k, "bins": bins, "seed": seed, "by": by, "window": window}
    sql = {"k": k, "bins": bins, "seed": seed, "bins_by": by, "window_size": window}
    return Panel(
        "contexts",
        "Contexts over its whole range",
        lambda: site.database.sample_contexts(full, k, bins, seed, by=by, window=window),
        site.spelling(
            "sample", "sample_contexts", (name,), options, sql=macro("sample_contexts", [name], sql)
        ),
    )


def _near(site: Site, asked: Address, name: int | str, full: str, by: str) -> Panel:
    k = asked.whole("near_k", 10, 1, 50)
    return Panel(
        f"near-{by}",
        f"Near by {by}",
        lambda: site.database.near(full, k, by),
        site.spelling(
            "near",
            "near",
            (name,),
            {"k": k, "by": by},
        ),
        lazy=True,
    )


def _coactive(site: Site, name: int | str, full: str, unit: str) -> Panel:
    options = {"k": 10, "unit": unit}
    return Panel(
        f"coactive-{unit}",
        f"Fires together on one {unit}",
        lambda: site.database.coactive(full, 10, unit),
        site.spelling("coactive", "coactive", (name,), options),
        lazy=True,
    )


def _is(sae: Sae, number: int) -> str:
    return f"sae = {literal(sae.name)} AND feature_id = {number}"
