"""The addresses of the explorer, and how a page becomes an answer to a request."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, unquote

from anyio import CapacityLimiter, to_thread
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from featuredb.errors import (
    FeatureDBError,
    QueryError,
    UnknownContextError,
    UnknownFeatureError,
    first_line,
    one_line,
)
from featuredb.explorer.address import Address, feature_url
from featuredb.explorer.cache import PageCache
from featuredb.explorer.drawing import generate, render, section_of
from featuredb.explorer.early import MARK, Early
from featuredb.explorer.guard import TooMuch, TooSlow
from featuredb.explorer.pages import (
    compare,
    contrast,
    feature,
    find,
    home,
    map,
    monitors,
    search,
    sql,
    steer,
    text,
)
from featuredb.explorer.panel import Panel
from featuredb.explorer.site import PageOf, Site, Waiting, WebPage
from featuredb.explorer.streamed import Streamed
from featuredb.render.formats import to_bytes
from featuredb.version import __version__

_log = logging.getLogger("featuredb.explorer")
_TYPES = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
_ASSETS = {
    "explorer.js": "text/javascript",
    "map.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

_AT_ONCE = 4
"""Pages drawn at the same time. More only wait for one another, each with its memory."""

_RUN = secrets.token_hex(8)
"""Of this process: what another drew may look otherwise."""

_FOLLOWED = 8
"""Generations that are followed, or wait for their turn, at the same time."""

PAGES: Mapping[str, PageOf] = {
    "/": home.page,
    "/feature/{rest:path}": feature.page,
    "/search": search.page,
    "/text": text.page,
    "/compare": compare.page,
    "/contrast": contrast.page,
    "/find": find.page,
    "/steer": steer.page,
    "/map": map.page,
    "/sql": sql.page,
    "/monitors": monitors.page,
}
"""Every page. Each also answers with `.json`, `.csv` or `.parquet` after its path."""


def application(site: Site) -> Starlette:
    """The explorer of one database."""
    cache, turns = PageCache(), CapacityLimiter(_AT_ONCE)
    routes = [
        Route("/assets/{name}", _asset),
        Route("/model", lambda _: JSONResponse(site.model.status())),
        Route("/steer/stream", _following(site, steer.follow), methods=["GET"]),
        Route("/map/points", _points(site, turns)),
        Route("/map/places", _placing(site), methods=["POST"]),
        Route("/map/status", lambda _: JSONResponse(site.placing.status())),
        Route("/random", _answering(site, cache, turns, feature.random_page)),
    ]
    routes.append(Route("/label/{rest:path}", _labeling(site, cache), methods=["POST"]))
    for path, page in PAGES.items():
        if not path.endswith(":path}"):
            twin = "/index.{form}" if path == "/" else path + ".{form}"
            routes.append(Route(twin, _answering(site, cache, turns, page), methods=["GET"]))
        routes.append(Route(path, _answering(site, cache, turns, page), methods=["GET", "POST"]))
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: _refused(site), Exception: _failed(site)},
    )


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _ASSETS:
        raise HTTPException(404)
    return Response(
        _bytes_of(name),
        media_type=_ASSETS[name],
        headers={
            "cache-control": "max-age=31536000, immutable" if request.url.query else "no-cache"
        },
    )


@cache
def _bytes_of(name: str) -> bytes:
    return files("featuredb.explorer").joinpath("assets", name).read_bytes()


def _answering(site: Site, cache: PageCache, turns: CapacityLimiter, page: PageOf) -> Any:
    async def endpoint(request: Request) -> Response:
        path, form = _path_and_form(request)
        pairs = list(request.query_params.multi_items())
        if request.method == "POST":
            pairs += await _form(request)
        asked = Address(path, tuple(pairs))
        key = (request.method, form, asked)
        tag = _tag(site, form, asked)
        kept = cache.get(key)
        if kept is not None:
            same = tag in request.headers.get("if-none-match", "")
            return Response(status_code=304, headers=_asked_again(tag)) if same else kept
        made, lasting = await to_thread.run_sync(answer, site, page, asked, form, limiter=turns)
        lasting = lasting and request.method == "GET"
        if lasting:
            made.headers.update(_asked_again(tag))
        if isinstance(made, Early):
            made.turns, made.whole = turns, partial(cache.put, key) if lasting else None
        elif lasting:
            cache.put(key, made)
        return made

    return endpoint


def _tag(site: Site, form: str, asked: Address) -> str:
    """Of what an address shows: the same as long as the server and its snapshot are."""
    facts = (_RUN, site.store.snapshot.number, form, asked.path, asked.pairs)
    return f'"{hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()}"'


def _asked_again(tag: str) -> dict[str, str]:
    """A browser keeps the page, and asks each time whether it still is the same."""
    return {"etag": tag, "cache-control": "no-cache"}


def _labeling(site: Site, cache: PageCache) -> Any:
    """Writes a label, which only a form that is sent can do, and leads back to its feature."""

    async def endpoint(request: Request) -> Response:
        feature = request.path_params["rest"]
        text = dict(await _form(request)).get("label", "")
        try:
            await to_thread.run_sync(site.label, feature, text)
        except FeatureDBError as error:
            return _error(site, Address("/label", ()), error, "")
        cache.clear()
        return RedirectResponse(feature_url(feature), 303)

    return endpoint


def _following(site: Site, follow: Any) -> Any:
    limiter = CapacityLimiter(_FOLLOWED)

    async def endpoint(request: Request) -> Response:
        asked = Address("/steer", tuple(request.query_params.multi_items()))
        return Streamed(partial(follow, site, asked), limiter)

    return endpoint


def _points(site: Site, turns: CapacityLimiter) -> Any:
    async def endpoint(request: Request) -> Response:
        try:
            asked = Address("/map", tuple(request.query_params.multi_items()))
            data = await to_thread.run_sync(_packed, site, asked, limiter=turns)
        except FeatureDBError as error:
            return JSONResponse({"error": one_line(error)}, 400)
        return Response(data, media_type="application/octet-stream")

    return endpoint


def _packed(site: Site, asked: Address) -> bytes:
    with site.limited():
        return map.packed_of(site, asked)


def _placing(site: Site) -> Any:
    """Begins to place features, which only a form that is sent can do, and leads to the map."""

    async def endpoint(_: Request) -> Response:
        try:
            await to_thread.run_sync(site.placing.begin)
        except FeatureDBError as error:
            return _error(site, Address("/map", ()), error, "")
        return RedirectResponse("/map", 303)

    return endpoint


def _path_and_form(request: Request) -> tuple[str, str]:
    """The path without its ending, and the format that this names."""
    path = request.url.path if "rest" not in request.path_params else request.scope["path"]
    stem, _, ending = path.rpartition(".")
    if ending in _TYPES and stem:
        return ("/" if stem == "/index" else stem), ending
    return path, ""


async def _form(request: Request) -> list[tuple[str, str]]:
    """The fields of a form that was sent. Raises `HTTPException` for what is none."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise HTTPException(415, "a form is sent URL-encoded here, not as multipart")
    try:
        body = await request.body()
    except TooSlow:
        raise HTTPException(408, "what you send comes too slowly") from None
    except TooMuch:
        raise HTTPException(413, "that is more than a page takes") from None
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise HTTPException(400, "what was sent is not UTF-8") from None


def answer(site: Site, page_of: PageOf, asked: Address, form: str = "") -> tuple[Response, bool]:
    """The page, one of its panels alone, or its data, and whether that stays the same."""
    try:
        with site.limited():
            page = page_of(site, asked)
        if page.redirect and not (form and page.panels):
            return RedirectResponse(page.redirect, 303), False
        return _of_page(site, page, asked, form), page.lasting
    except Waiting as error:
        return JSONResponse({"error": str(error)}, 503, {"retry-after": "5"}), False
    except FeatureDBError as error:
        return _error(site, asked, error, form), False


def draw_one(site: Site) -> None:
    """Draw some feature's page for nobody: the first of a process reads and compiles the most."""
    with suppress(FeatureDBError):  # a request will say so
        somewhere = feature.random_page(site, Address("/random")).redirect
        page, _ = answer(site, feature.page, Address(unquote(somewhere)))
        if isinstance(page, Early):
            page.drawn()


def _of_page(site: Site, page: WebPage, asked: Address, form: str) -> Response:
    name = asked.text("panel")
    panel = page.panel(name)
    if name and panel is None:
        known = ", ".join(p.name for p in page.panels)
        raise QueryError(f"there is no panel {name!r} here: {known or 'this page has none'}")
    if form:
        if panel is None:
            raise QueryError(page.missing or "nothing is asked here yet: there are no rows")
        with site.limited():
            return _data(panel, form)
    if asked.flag("fragment") and panel is not None:
        return Response(str(drawn(site, panel, asked)[0]), media_type="text/html")
    shown = (panel,) if name and panel is not None else page.panels
    return _html(site, page, asked, shown)


def drawn(site: Site, panel: Panel, asked: Address) -> tuple[Markup, bool]:
    """What a panel shows, and whether that is its answer. A failure is its own."""
    inside, failure, waiting = Markup(""), "", False
    try:
        with site.limited():
            view = panel.view()
        inside = section_of(view)
    except Waiting:
        waiting = True
    except FeatureDBError as error:
        failure = one_line(error)
    section = _section(panel, asked, inside=inside, failure=failure, waiting=waiting)
    return section, not (failure or waiting)


def _section(panel: Panel, asked: Address, **values: Any) -> Markup:
    none = {"inside": "", "failure": "", "waiting": False}
    return Markup(render("panel.html", panel=panel, asked=asked, **none | values))


def _data(panel: Panel, form: str) -> Response:
    data = to_bytes(panel.ask(), form)  # type: ignore[arg-type]
    name = f'inline; filename="{panel.name}.{form}"'
    return Response(data, media_type=_TYPES[form], headers={"content-disposition": name})


class _Panels(dict[str, Panel]):
    """Panels by name, each drawn as a template comes to it."""

    def __init__(self, site: Site, panels: Sequence[Panel], asked: Address) -> None:
        super().__init__({panel.name: panel for panel in panels})
        self._site = site
        self._asked = asked
        self.broken = False

    def drawn(self, name: str) -> Markup | None:
        """None where the page asks for it later."""
        panel = self[name]
        if panel.lazy and not self._asked.text("panel"):
            return None
        try:
            section, sound = drawn(self._site, panel, self._asked)
            self.broken |= not sound
            return section
        except Exception as error:
            # The page's beginning may be sent: only the panel can say so.
            self.broken = True
            return _section(panel, self._asked, failure=_bug(self._asked.path, error))


def _html(site: Site, page: WebPage, asked: Address, panels: Sequence[Panel] = ()) -> Response:
    drawings = _Panels(site, panels, asked)
    pieces = generate(
        page.template,
        site=site,
        page=page,
        asked=asked,
        panels=drawings,
        alone=len(panels) == 1 and bool(asked.text("panel")),
        embedded=asked.flag("embed"),
        version=__version__,
        early=MARK,
        **page.values,
    )
    return Early(pieces, page.status, lambda: not drawings.broken)


def _error(site: Site, asked: Address, error: FeatureDBError, form: str) -> Response:
    missing = isinstance(error, UnknownFeatureError | UnknownContextError)
    status = 404 if missing else 400 if isinstance(error, QueryError) else 500
    if form:
        return JSONResponse({"error": one_line(error)}, status)
    page = WebPage("error.html", "Not found" if missing else "No answer", (), {}, status)
    page = WebPage(page.template, page.title, (), {"reason": one_line(error)}, status)
    return _html(site, page, asked)


def _refused(site: Site) -> Any:
    def handle(request: Request, error: HTTPException) -> Response:
        asked = Address(request.url.path)
        reasons = {404: "there is no such page", 405: f"it does not answer {request.method}"}
        reason = reasons.get(error.status_code, error.detail)
        title = "No such page" if error.status_code == 404 else "No answer"
        page = WebPage("error.html", title, (), {"reason": reason}, error.status_code)
        return _html(site, page, asked)

    return handle


def _failed(site: Site) -> Any:
    def handle(request: Request, error: Exception) -> Response:
        reason = _bug(request.url.path, error)
        page = WebPage("error.html", "An error", (), {"reason": reason}, 500)
        return _html(site, page, Address(request.url.path))

    return handle


def _bug(path: str, error: Exception) -> str:
    """Logs an error of ours. Returns what a reader is told."""
    _log.error("%s: %s", path, first_line(error), exc_info=error)
    return f"an error of featuredb itself ({type(error).__name__}), which `serve` has logged"
