"""A rule as SQL over what is stored.

Only the activations of the rule's features are read, at the places where they are and where they
still matter (`tree.reach`). A rule that can hold in silence is looked at on every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from featuredb.store.recorded import overlap, ranges_read
from featuredb.store.snapshot import Corpus, Snapshot
from queries.catalog import literals
from queries.rules import silence
from queries.rules.rule import FeatureRule
from queries.rules.tree import (
    FIRES,
    WINDOWS,
    Compare,
    Condition,
    Every,
    Extreme,
    Feature,
    Lasting,
    Mean,
    Node,
    Not,
    Number,
    Open,
    Role,
    RunningPeak,
    Some,
    Sum,
    Value,
    nodes,
    reach,
)

_NEVER, _ALWAYS = "'-Infinity'::DOUBLE", "'Infinity'::DOUBLE"
_BY_TEXT = "PARTITION BY document_id ORDER BY pos"


@dataclass
class _Stages:
    """Columns that windows need, computed one layer after another."""

    layers: list[list[str]] = field(default_factory=list)
    n: int = 0

    def column(self, layer: int, sql: str) -> tuple[str, int]:
        """A column of a layer that computes `sql`, and the layer that may read it."""
        while len(self.layers) <= layer:
            self.layers.append([])
        name = f"w{self.n}"
        self.n += 1
        self.layers[layer].append(f"{sql} AS {name}")
        return name, layer + 1


class Compiled:
    """A rule as SQL, over one snapshot."""

    def __init__(self, rule: FeatureRule, snapshot: Snapshot) -> None:
        self.rule = rule
        self._snapshot = snapshot
        self._stages = _Stages()

    def held(self) -> str:
        """CTEs up to ``held``: (document_id, pos, a0, a1, …, score) of every token it holds at.

        pos: the token's place in its document, BOS not counted. a0, …: the features' activations.
        score: the left side of a rule that is one comparison, else null.
        """
        condition, _ = self._condition(self.rule.tree)
        score = "NULL::DOUBLE"
        tree = self.rule.tree
        if isinstance(tree, Compare) and tree.sign in (">", ">="):
            score, _ = self._value(tree.left)
        return self._ctes("held", f"SELECT *, {score} AS score", f" WHERE {condition}")

    def levels(self) -> str:
        """CTEs up to ``levels``: (document_id, pos, level) of every token with a level.

        level: the rule holds there with any number below it in place of the open one.
        """
        level, _ = self._level(self.rule.tree)
        chosen = f"SELECT * FROM (SELECT document_id, pos, {level} AS level"
        return self._ctes("levels", chosen, f") WHERE level > {_NEVER}")

    def _ctes(self, name: str, select: str, end: str) -> str:
        parts = [f"fired AS ({self._fired()})", f"placed AS ({self._placed()})"]
        parts.append(f"grid AS ({self._grid()})")
        last = "grid"
        for layer, columns in enumerate(self._stages.layers):
            parts.append(f"layer{layer} AS (SELECT *, {', '.join(columns)} FROM {last})")
            last = f"layer{layer}"
        parts.append(f"{name} AS ({select} FROM {last}{end})")
        return ",\n".join(parts)

    # Where activations are.

    def _fired(self) -> str:
        """(i, context_id, token_index, activation) of all activations of the features."""
        return " UNION ALL ".join(
            f"SELECT {i} AS i, context_id, token_index, activation "
            f"FROM feature_activations({literals.text(f'{sae}/{number}')})"
            for i, (sae, number) in enumerate(self.rule.features)
        )

    def _placed(self) -> str:
        """(document_id, pos, a0, a1, …) of every token with an activation, each once."""
        by_feature = ", ".join(
            f"CAST(coalesce(max(activation) FILTER (i = {i}), 0) AS DOUBLE) AS a{i}"
            for i in range(len(self.rule.features))
        )
        return (
            f"SELECT document_id, pos, {by_feature} FROM ("
            f"SELECT c.document_id, {self._at('f.token_index')} AS pos, i, activation "
            "FROM fired AS f JOIN contexts AS c USING (context_id) "
            f"WHERE {self._new('f.token_index')}) GROUP BY document_id, pos"
        )

    def _grid(self) -> str:
        """The tokens looked at, with their activations, and roles if the rule reads them."""
        far = reach(self.rule.tree)
        windows = any(isinstance(node, WINDOWS) for node in nodes(self.rule.tree))
        columns = ", ".join(f"coalesce(a{i}, 0) AS a{i}" for i in range(len(self.rule.features)))
        if self.rule.holds_in_silence:
            grid = self._joined(self._every_token(), columns)
        elif self.rule.reads_roles and windows:
            grid = self._joined(
                "SELECT document_id, unnest(range(n_tokens)) AS pos FROM documents "
                "SEMI JOIN placed USING (document_id)",
                columns,
            )
        elif far == 0:
            grid = "FROM placed"
        else:
            end = "d.n_tokens" if far is None else f"least(pos + {far + 1}, d.n_tokens)"
            first = "placed" if far is not None else _FIRST
            grid = self._joined(
                f"SELECT DISTINCT document_id, unnest(range(pos, {end})) AS pos FROM {first} "
                "JOIN (SELECT document_id, n_tokens FROM documents) AS d USING (document_id)",
                columns,
            )
        if not self.rule.reads_roles:
            return grid
        if all(corpus.roles is None for corpus in self._snapshot.corpora):
            return f"SELECT *, NULL::VARCHAR AS role FROM ({grid})"
        return (
            f"SELECT g.*, c.roles[{self.token_index('g')} + 1] AS role FROM ({grid}) AS g "
            f"JOIN contexts AS c ON {self.same_context('g')}"
        )

    def _joined(self, tokens: str, columns: str) -> str:
        return (
            f"SELECT document_id, pos, {columns} FROM ({tokens}) "
            "LEFT JOIN placed USING (document_id, pos)"
        )

    def tokens(self) -> str:
        """A SELECT of (context_id, document_id, n), n the tokens of a context that no context
        before has, of the contexts that all SAEs of the rule have read."""
        fresh, bos = self._fresh(), self._of("bos")
        n = f"CAST(n_tokens - {bos} - {fresh} AS BIGINT)"
        return f"SELECT context_id, document_id, {n} AS n FROM contexts WHERE {self._read()}"

    def _every_token(self) -> str:
        start = f"CAST(context_index AS BIGINT) * {self._of('step')}"
        end = f"{start} + n_tokens - {self._of('bos')}"
        return (
            f"SELECT document_id, unnest(range({start} + {self._fresh()}, {end})) AS pos "
            f"FROM contexts WHERE {self._read()}"
        )

    def _fresh(self) -> str:
        """How many tokens of a context the one before has, too."""
        return f"CASE WHEN context_index = 0 THEN 0 ELSE {self._of('covered')} END"

    def _read(self) -> str:
        names = dict.fromkeys(sae for sae, _ in self.rule.features)
        read = [ranges_read(self._snapshot, name) for name in names]
        both = read[0]
        for other in read[1:]:
            both = overlap(both, other)
        inside = " OR ".join(f"context_id BETWEEN {a} AND {b - 1}" for a, b in both)
        return f"({inside or 'false'})"

    # Where a token is: its context and index, and its place in the document.

    def _at(self, token_index: str) -> str:
        return (
            f"CAST(c.context_index AS BIGINT) * {self._of('step', 'c.')} + {token_index} "
            f"- {self._of('bos', 'c.')}"
        )

    def _new(self, token_index: str) -> str:
        """Whether no window before has the token, and it is no BOS."""
        bos, covered = self._of("bos", "c."), self._of("covered", "c.")
        return f"{token_index} >= {bos} + CASE WHEN c.context_index = 0 THEN 0 ELSE {covered} END"

    def same_context(self, table: str) -> str:
        """That the context ``c`` is the first with the token ``pos`` of a document of `table`."""
        return f"c.document_id = {table}.document_id AND c.context_index = {self._context(table)}"

    def token_index(self, table: str) -> str:
        """The token's index in that context, BOS counted."""
        step, bos = self._of("step", f"{table}."), self._of("bos", f"{table}.")
        return f"CAST({table}.pos - {self._context(table)} * {step} + {bos} AS INTEGER)"

    def bos(self, table: str) -> str:
        """How many tokens stand before the text of each context."""
        return self._of("bos", f"{table}.")

    def _context(self, table: str) -> str:
        window, step = (self._of(part, f"{table}.") for part in ("window", "step"))
        at = f"{table}.pos"
        return f"CASE WHEN {at} < {window} THEN 0 ELSE 1 + ({at} - {window}) // {step} END"

    def _of(self, part: str, prefix: str = "") -> str:
        """A number of the corpus that ``document_id`` is of."""
        corpora = self._snapshot.corpora
        numbers = [_cutting(corpus)[part] for corpus in corpora]
        if len(set(numbers)) <= 1:
            return str(numbers[0] if numbers else 0)
        whens = " ".join(
            f"WHEN {prefix}document_id < {c.first_document + c.n_documents} THEN {number}"
            for c, number in sorted(
                zip(corpora, numbers, strict=True), key=lambda pair: pair[0].first_document
            )
        )
        return f"CASE {whens} END"

    # The rule itself: SQL, and the layer that may read it.

    def _value(self, node: Value) -> tuple[str, int]:
        match node:
            case Feature(index):
                return f"a{index}", 0
            case Number(constant):
                return _number(constant), 0
            case Sum(weights, values):
                parts, layer = self._each(values, self._value)
                terms = [f"{_number(w)} * {p}" for w, p in zip(weights, parts, strict=True)]
                return f"({' + '.join(terms)})", layer
            case Extreme(largest, values):
                parts, layer = self._each(values, self._value)
                return f"{'greatest' if largest else 'least'}({', '.join(parts)})", layer
            case Mean(value, tokens):
                inner, layer = self._value(value)
                silent = _number(silence.value_of(value))
                total = f"sum({inner} - {silent}) OVER ({_last(tokens)})"
                return self._stages.column(layer, f"{silent} + {total} / {tokens}")
            case RunningPeak(value):
                inner, layer = self._value(value)
                silent = _number(silence.value_of(value))
                largest_so_far = f"max({inner}) OVER ({_BY_TEXT} ROWS UNBOUNDED PRECEDING)"
                return self._stages.column(layer, f"greatest({silent}, {largest_so_far})")
            case Open():
                return "NULL::DOUBLE", 0

    def _condition(self, node: Condition) -> tuple[str, int]:
        match node:
            case Compare(left, sign, right):
                (one, two), layer = self._each((left, right), self._value)
                return f"({one} {'<>' if sign == FIRES else sign} {two})", layer
            case Role(name):
                return f"coalesce(role = {literals.text(name)}, false)", 0
            case Every(conditions) | Some(conditions):
                parts, layer = self._each(conditions, self._condition)
                joined = " AND " if isinstance(node, Every) else " OR "
                return f"({joined.join(parts)})", layer
            case Not(condition):
                inner, layer = self._condition(condition)
                return f"(NOT {inner})", layer
            case Lasting(condition, tokens):
                inner, layer = self._condition(condition)
                # Tokens that are no rows, and those before the text, count as silence does.
                if silence.before_text(condition):
                    sql = f"count(*) FILTER (NOT {inner}) OVER ({_last(tokens)}) = 0"
                else:
                    sql = f"count(*) FILTER ({inner}) OVER ({_last(tokens)}) = {tokens}"
                return self._stages.column(layer, sql)

    def _level(self, node: Condition) -> tuple[str, int]:
        """The level of a condition: it holds with any number below it in place of the open one."""
        if not any(isinstance(each, Open) for each in nodes(node)):
            inner, layer = self._condition(node)
            return f"CASE WHEN {inner} THEN {_ALWAYS} ELSE {_NEVER} END", layer
        match node:
            case Compare(left, _, _):
                return self._value(left)
            case Every(conditions) | Some(conditions):
                parts, layer = self._each(conditions, self._level)
                choose = "least" if isinstance(node, Every) else "greatest"
                return f"{choose}({', '.join(parts)})", layer
            case Lasting(condition, tokens):
                inner, layer = self._level(condition)
                silent = _number(silent_level(condition))
                window = _last(tokens)
                return self._stages.column(
                    layer,
                    f"least(min({inner}) OVER ({window}), CASE WHEN count(*) OVER ({window}) "
                    f"< {tokens} THEN {silent} ELSE {_ALWAYS} END)",
                )
        raise AssertionError(node)

    def _each(
        self, given: Sequence[Node], sql: Callable[..., tuple[str, int]]
    ) -> tuple[list[str], int]:
        pairs = [sql(node) for node in given]
        return [text for text, _ in pairs], max(layer for _, layer in pairs)


def silent_level(node: Condition) -> float:
    """The level of a condition where every feature is silent, see `Compiled.levels`."""
    if not any(isinstance(each, Open) for each in nodes(node)):
        return float("inf") if silence.before_text(node) else float("-inf")
    match node:
        case Compare(left, _, _):
            return silence.value_of(left)
        case Every(conditions):
            return min(map(silent_level, conditions))
        case Some(conditions):
            return max(map(silent_level, conditions))
        case Lasting(condition, _):
            return silent_level(condition)
    raise AssertionError(node)


_FIRST = "(SELECT document_id, min(pos) AS pos FROM placed GROUP BY document_id)"


def _last(tokens: int) -> str:
    return f"{_BY_TEXT} RANGE BETWEEN {tokens - 1} PRECEDING AND CURRENT ROW"


def _number(value: float) -> str:
    return f"{literals.text(repr(float(value)))}::DOUBLE"


def _cutting(corpus: Corpus) -> dict[str, int]:
    """How a corpus's documents are cut: text tokens of a window, from one window to the next, of
    which so many are in the window before, and tokens before the text."""
    bos = int(corpus.bos_token_id is not None)
    window = corpus.context_size - bos
    step = corpus.stride or window
    return {"window": window, "step": step, "covered": window - step, "bos": bos}
