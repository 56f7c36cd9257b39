"""Conditions of rules in the Common Expression Language (CEL): what they may hold, and what reading one costs.

An evaluation cannot be interrupted. So a condition is refused where its work could grow faster than the arguments: a
macro inside a macro, a macro that names more than its own variable, `map` and `filter`. So is a pattern that the
arguments hold. docs/decisions/0091
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from turnkeeper.policy import cel_extension as cel
from turnkeeper.policy import pattern_cost

MAX_BYTES: Final = 1024
"""Bytes of an expression, at most."""
MAX_MACROS: Final = 4
"""Macros of an expression, at most."""
NAMES: Final = ("args", "tool", "principal", "groups", "tenant", "labels", "untrusted")
"""What a condition can name."""
FUNCTIONS: Final = frozenset(
    {"size", "startsWith", "endsWith", "contains", "matches", "has", "int", "double", "string", "bool"}
)
"""The functions that a condition can call, beside operators and MACROS."""
MACROS: Final = frozenset({"all", "exists", "exists_one"})
MAX_PATTERN_STEPS: Final = 3_000
"""Steps that compiling a pattern may take: it is compiled each time that it is read."""
_REFUSED_MACROS: Final = frozenset({"map", "filter", "sortBy", "reduce"})
_NOT_IN_MACROS: Final = frozenset({"args", "labels", "groups", "matches"})
_TOKEN: Final = re.compile(
    r"//[^\n]*|\s+"
    r"|(?P<string>[rR]\"[^\"\n]*\"|[rR]'[^'\n]*'|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<number>\d[\w.]*)|(?P<sign>.)",
    re.DOTALL,
)


class BadExpression(ValueError):
    """A condition that is refused. The message completes "when …"."""


@dataclass(frozen=True, slots=True)
class Token:
    """One word of an expression; spaces and comments are none."""

    kind: str
    text: str


class Cost(NamedTuple):
    """What evaluating conditions costs, beside the arguments that they are evaluated on."""

    steps: int = 0
    """Those of any arguments: compiling the patterns."""
    references: int = 0
    """How often the arguments or the labels are named: each time they may be copied."""
    macros: int = 0
    matches: int = 0

    def on(self, *, nodes: int, size: int) -> int:
        """Returns the steps for arguments with so many nodes, whose texts have `size` characters: about 0.5 µs each."""
        return self.steps + self.references * (1 + nodes // 10) + self.macros * nodes + self.matches * (1 + size // 50)


def total(costs: Iterable[Cost]) -> Cost:
    """Returns what all of them cost together."""
    return Cost(*(sum(parts) for parts in zip(Cost(), *costs, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A compiled expression, and what evaluating it costs at most."""

    execute: Callable[[cel.Context | None], object]
    """Evaluates it. Raises what the evaluator raises."""
    cost: Cost


@lru_cache(maxsize=4096)
def compiled(text: str) -> Condition:
    """Returns the condition. Raises BadExpression, whose message completes "when …"."""
    if len(text.encode()) > MAX_BYTES:
        raise BadExpression(f"has more than {MAX_BYTES:,} bytes")
    tokens = _tokens(text)
    _check_macros(tokens)
    patterns = _checked_patterns(tokens)
    try:
        program = cel.compile(text)
    except Exception as error:  # noqa: BLE001 - whatever the parser raises
        raise BadExpression(f"is no expression: {_first_line(error)}") from None
    _check_names(program, tokens)
    names = [token.text for token in tokens if token.kind == "name"]
    return Condition(
        execute=program.execute,
        cost=Cost(
            steps=1 + sum(map(pattern_cost.steps_of, patterns)),
            references=names.count("args") + names.count("labels"),
            macros=sum(name in MACROS for name in names),
            matches=len(patterns),
        ),
    )


def context(values: Mapping[str, object]) -> cel.Context:
    """Returns the context in which conditions are evaluated. Raises ValueError for a value that CEL cannot hold."""
    return cel.Context(variables=dict(values))


def _tokens(text: str) -> Sequence[Token]:
    if '"""' in text or "'''" in text:
        raise BadExpression("cannot have a text in three quotation marks")
    matches = ((match.lastgroup or "", match[0]) for match in _TOKEN.finditer(text))
    return [Token(kind, part) for kind, part in matches if kind]


def _check_macros(tokens: Sequence[Token]) -> None:
    """Refuses macros whose work is not in proportion to the arguments."""
    count = 0
    for place, token in enumerate(tokens):
        if token.text in _REFUSED_MACROS and _is_called(tokens, place):
            raise BadExpression(f"cannot call {token.text}: use all, exists or exists_one")
        if token.text not in MACROS or not _is_called(tokens, place):
            continue
        count += 1
        _check_body(token.text, list(_inside(tokens, place + 1)))
    if count > MAX_MACROS:
        raise BadExpression(f"can have {MAX_MACROS} macros")


def _check_body(macro: str, body: Sequence[Token]) -> None:
    variable = body[1].text if len(body) > 1 else ""
    if variable in NAMES:
        raise BadExpression(f"cannot use {variable} as the variable of a macro")
    for part in body:
        if part.kind != "name":
            continue
        if part.text in MACROS:
            raise BadExpression(f"cannot have the macro {part.text} inside the macro {macro}")
        if part.text in _NOT_IN_MACROS:
            raise BadExpression(f"cannot have {part.text} inside the macro {macro}")


def _checked_patterns(tokens: Sequence[Token]) -> Sequence[str]:
    """Returns the patterns. Refuses one that is not written out, or that takes long to compile."""
    patterns = []
    for place, token in enumerate(tokens):
        if token.text != "matches" or token.kind != "name":
            continue
        after = tokens[place + 1 : place + 4]
        is_written = len(after) == 3 and after[0].text == "(" and after[1].kind == "string" and after[2].text == ")"
        if not is_written or place == 0 or tokens[place - 1].text != ".":
            raise BadExpression('must write the pattern of matches out: text.matches("…")')
        patterns.append(_checked_pattern(after[1].text))
    return patterns


def _checked_pattern(literal: str) -> str:
    try:
        pattern = str(cel.evaluate(literal))
    except Exception:  # noqa: BLE001 - whatever the evaluator raises
        raise BadExpression(f"has a pattern that cannot be used: {literal:.60}") from None
    if pattern_cost.steps_of(pattern) > MAX_PATTERN_STEPS:
        raise BadExpression(f"has a pattern that takes too long: {literal:.60}")
    try:
        cel.evaluate(f"''.matches({literal})")
    except Exception:  # noqa: BLE001 - whatever the evaluator raises
        raise BadExpression(f"has a pattern that cannot be used: {literal:.60}") from None
    return pattern


def _check_names(program: cel.Program, tokens: Sequence[Token]) -> None:
    variables = {
        tokens[place + 2].text
        for place, token in enumerate(tokens[:-2])
        if token.text in MACROS and _is_called(tokens, place)
    }
    for name in program.variables():
        if name not in NAMES and name not in variables:
            raise BadExpression(f"names {name:.60}; it can name {', '.join(NAMES)}")
    for name in program.functions():
        if name[0].isalpha() and name not in FUNCTIONS:
            raise BadExpression(f"calls {name:.60}; it can call {', '.join(sorted(FUNCTIONS | MACROS))}")


def _is_called(tokens: Sequence[Token], place: int) -> bool:
    """Returns True if the name there is a method that is called."""
    after = tokens[place + 1].text if place + 1 < len(tokens) else ""
    return after == "(" and place > 0 and tokens[place - 1].text == "."


def _inside(tokens: Sequence[Token], opening: int) -> Iterator[Token]:
    """Yields the tokens from this bracket up to the one that closes it."""
    depth = 0
    for token in tokens[opening:]:
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if depth == 0:
            return
        yield token


def _first_line(error: Exception) -> str:
    """Returns the parser's complaint about a mistake, without the expression."""
    text = str(error)
    return (text.partition("ERROR: ")[2] or text).splitlines()[0][:200]
