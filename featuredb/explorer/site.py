"""What pages are drawn from: an open database and what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from featuredb.database import Database
from featuredb.errors import FeatureDBError
from featuredb.explorer.address import Address
from featuredb.explorer.console import Console
from featuredb.explorer.generation import Generations
from featuredb.explorer.model import ModelLoader
from featuredb.explorer.panel import Panel, Spelling, call, method
from featuredb.explorer.placing import Placing
from featuredb.store.store import Store
from queries.connection import Reader
from queries.overseen import Overseer

SECONDS = 20.0
"""That a statement of a page may take. A first one over a network reads what others have there."""


@dataclass(frozen=True)
class Site:
    """A database, its SQL console, its model and what that generates.

    name: how the command line calls the database.
    """

    database: Database
    console: Console
    model: ModelLoader
    generations: Generations
    placing: Placing
    name: str
    overseer: Overseer = field(default_factory=Overseer)

    def limited(self) -> AbstractContextManager[None]:
        """Stop the statements of a page's question after a while. Raises `SQLError` then."""
        return self.overseer.limit(SECONDS, "ask for less, or ask the command line, see Copy as")

    @property
    def store(self) -> Store:
        """The database's, which moves on when a label is written."""
        return self.database._store

    @property
    def reader(self) -> Reader:
        """Of what is served."""
        return self.database._reader

    def label(self, feature: str, text: str) -> None:
        """Label a feature. Pages and the console see it then. Raises as `Database.label`."""
        self.database.label(feature, text)
        self.console.move_on(self.store)

    def move_on(self) -> None:
        """Show the newest snapshot."""
        self.database._move_on(Store.open(self.database.path).snapshot)
        self.console.move_on(self.store)

    def feature(self, sae: str, number: int) -> int | str:
        """How a feature is named in a call: by its number where there is one SAE."""
        return number if len(self.database.saes) == 1 else f"{sae}/{number}"

    def spelling(
        self,
        verb: str,
        function: str,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
        *,
        cli: Mapping[str, Any] | None = None,
        sql: str = "",
    ) -> Spelling:
        """The same question on the command line, in Python and in SQL.

        cli: options of the command where they differ from those of the method.
        """
        options = options or {}
        return Spelling(
            call(verb, self.name, arguments, options if cli is None else cli),
            method(function, arguments, options),
            sql,
        )

    def sql(self, statement: str) -> Spelling:
        """A statement on the command line, in Python and as it is."""
        cli = call("sql", self.name, (statement,), {})
        return Spelling(cli, f"db.sql({statement!r})", statement)


@dataclass(frozen=True)
class WebPage:
    """What an address shows. The first panel is what ``.json`` and its like give.

    values: what the template needs besides. status: of the answer. redirect: where the page is
    instead. lasting: it is the same whenever it is asked for. missing: what the form needs besides
    before anything can be asked.
    """

    template: str
    title: str
    panels: tuple[Panel, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    redirect: str = ""
    lasting: bool = True
    missing: str = ""

    def panel(self, name: str) -> Panel | None:
        """The panel of that name, the first for none."""
        return next((p for p in self.panels if p.name == name or not name), None)


PageOf = Callable[[Site, Address], WebPage]


class Waiting(FeatureDBError):
    """The model is still being loaded."""
