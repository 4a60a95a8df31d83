"""Macros that an open database answers in Python: about new text, directions and the model.

In another DuckDB client the catalog's macro of the same name answers what it can, or says who can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from queries.catalog import literals
from queries.question import Macro

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class InPython:
    """A macro whose answer is a function's.

    macro: the catalog's, with the signature. arguments: what the function is given, as SQL over
    the macro's parameters, to its type. returns: the type of the value, or of each column of the
    rows, for which the function gives an `Answer`, or None for no rows.
    """

    macro: Macro
    arguments: Mapping[str, str]
    returns: str | Mapping[str, str]

    def register(self, connection: duckdb.DuckDBPyConnection, answer: Callable[..., Any]) -> None:
        """Let a connection's SQL ask `answer`. Nothing is loaded until a statement does."""
        import duckdb
        from duckdb import func

        function = f"featuredb_python_{self.macro.name}"
        given = ", ".join(f"CAST({sql} AS {kind})" for sql, kind in self.arguments.items())
        call = f"{function}({given})"
        columns = None if isinstance(self.returns, str) else list(self.returns)
        table = columns is not None

        def rows(*values: object) -> list[Any]:
            found = answer(*values)
            listed: list[Any] = [] if found is None else found.table.select(columns).to_pylist()
            return listed

        # DuckDB counts the parameters.
        rows.__signature__ = signature(answer)  # type: ignore[attr-defined]
        connection.create_function(
            function,
            rows if table else answer,
            [duckdb.sqltype(kind) for kind in self.arguments.values()],
            duckdb.sqltype(f"{self._row}[]" if table else self._row),
            null_handling=func.SPECIAL,
            side_effects=False,
        )
        body = f"TABLE SELECT found.* FROM (SELECT unnest({call}) AS found)" if table else call
        connection.execute(f"CREATE OR REPLACE MACRO {self.macro.signature} AS {body}")

    @property
    def _row(self) -> str:
        if isinstance(self.returns, str):
            return self.returns
        return f"STRUCT({', '.join(f'{literals.name(k)} {v}' for k, v in self.returns.items())})"


def elsewhere(signature: str, *, table: bool, about: str) -> Macro:
    """The catalog's macro where SQL alone can answer nothing: it says who can."""
    name = signature.partition("(")[0]
    told = f"{name} needs more than DuckDB can read: ask by Database.sql or `featuredb sql`"
    refusal = f"error({literals.text(told)})"
    return Macro(signature, f"SELECT {refusal} AS refused" if table else refusal, table, about)
