"""Reads files in TOML, and knows the line of each of their values: the parser of the standard library does not."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

MAX_DEPTH: Final = 64
"""Levels of tables and lists in a file, at most."""
_LARGEST_NUMBER: Final = 10**1000
"""Python writes no number of more than 4,300 digits, though it reads one that is written in hexadecimal digits."""
_TOO_DEEP: Final = "it is nested too deeply"
_TOO_LARGE: Final = "a whole number has too many digits"
_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TOKEN: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"{0,5}'
    r"|'''(?:[^']|'(?!''))*+'{0,5}"
    r'|"(?:[^"\\\n]|\\.)*+"?|\'[^\'\n]*+\'?|#[^\n]*|[\[\]{}\n]|[^"\'#\[\]{}\n]+|.',
    re.DOTALL,
)

Keys = tuple[str | int, ...]
"""The way to a value: keys of tables, and numbers of a list's items from 0."""


class TomlError(ValueError):
    """A file cannot be read, or is not TOML. The message is the reason, without the file's name."""

    def __init__(self, reason: str, *, line: int = 0) -> None:
        """`line` is that of a mistake in TOML; 0 if the file cannot be read."""
        super().__init__(reason)
        self.line = line


class TomlFile:
    """A file that was read: its values, and where they stand."""

    def __init__(self, path: Path, text: str) -> None:
        """Raises TomlError if the text is not TOML."""
        self.path = path
        self.values: Mapping[str, Any] = parse(text)
        self._text = text
        self._lines: Mapping[Keys, int] | None = None

    def place(self, *keys: str | int) -> str:
        """Returns FILE:LINE of a value; of the nearest value around it if its own line is not known."""
        if self._lines is None:
            self._lines = dict(reversed(list(_lines(self._text))))  # of what stands twice, the first line counts
        while keys and keys not in self._lines:
            keys = keys[:-1]
        return f"{self.path}:{self._lines.get(keys, 1)}"


def read(path: Path, *, max_bytes: int) -> TomlFile:
    """Returns the file. Raises TomlError if it cannot be read, has more than `max_bytes`, or is not TOML."""
    return TomlFile(path, read_text(path, max_bytes=max_bytes))


def read_text(path: Path, *, max_bytes: int) -> str:
    """Returns the text of a file. Raises TomlError if it cannot be read, or has more than `max_bytes`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise TomlError(f"it has more than {max_bytes:,} bytes")
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise TomlError(error.strerror or type(error).__name__) from None
    except UnicodeDecodeError:
        raise TomlError("it is not UTF-8 text") from None


def parse(text: str) -> dict[str, Any]:
    """Returns the values of a text in TOML. Raises TomlError, also for what no program of ours can hold."""
    try:
        values = tomllib.loads(text + "\n")
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        raise TomlError(_PLACE.sub("", str(error)), line=line) from None
    except (RecursionError, ValueError) as error:  # a ValueError is of a number with more than 4,300 digits
        reason = _TOO_DEEP if isinstance(error, RecursionError) else _TOO_LARGE
        raise TomlError(reason, line=_line_of(reason, text)) from None
    if reason := _fault(values):
        raise TomlError(reason, line=_line_of(reason, text))
    return values


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yields the statements of a text, each with the line at which it begins: headers, and keys with their values."""
    line, first_line, depth, parts = 1, 1, 0, list[str]()
    for token in _TOKEN.finditer(text + "\n"):
        part = token[0]
        if not parts:
            first_line = line
        parts.append(part)
        line += part.count("\n")
        depth += (part in ("[", "{")) - (part in ("]", "}"))
        if part == "\n" and depth <= 0:
            statement, depth, parts = "".join(parts), 0, []
            if statement.strip():
                yield first_line, statement
    if parts:  # a list that never ends
        yield first_line, "".join(parts)


def _lines(text: str) -> Iterator[tuple[Keys, int]]:
    """Yields the line of each value of a text that is TOML: of an inline value, the line of its statement."""
    sizes: dict[Keys, int] = {}
    table: Keys = ()
    for line, statement in _statements(text):
        content = tomllib.loads(statement)
        if not statement.lstrip().startswith("["):
            yield from ((table + keys, line) for keys in _keys_of(content))
            continue
        table = ()
        names, is_list = _header(content)
        for place, name in enumerate(names, 1):
            table = (*table, name)
            if place == len(names) and is_list:
                sizes[table] = sizes.get(table, 0) + 1
            if table in sizes:
                yield table, line
                table = (*table, sizes[table] - 1)
        yield table, line


def _header(content: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Returns the names in a header, and whether it begins an item of a list."""
    names: list[str] = []
    inner: Any = content
    while isinstance(inner, dict) and inner:
        ((name, inner),) = inner.items()
        names.append(name)
    return names, isinstance(inner, list)


def _keys_of(value: object) -> Iterator[Keys]:
    """Yields the way to each value inside a value."""
    waiting: list[tuple[Keys, object]] = [((), value)]
    while waiting:
        keys, inner = waiting.pop()
        if keys:
            yield keys
        if isinstance(inner, dict):
            waiting += [((*keys, name), item) for name, item in inner.items()]
        elif isinstance(inner, list):
            waiting += [((*keys, number), item) for number, item in enumerate(inner)]


def _fault(value: object) -> str:
    """Returns why a value is refused although it is TOML; empty if it is not."""
    waiting = [(value, 1)]
    while waiting:
        inner, depth = waiting.pop()
        if isinstance(inner, int) and not -_LARGEST_NUMBER <= inner <= _LARGEST_NUMBER:
            return _TOO_LARGE
        items = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else None
        if items is not None and depth > MAX_DEPTH:
            return _TOO_DEEP
        waiting += [(item, depth + 1) for item in items or ()]
    return ""


def _line_of(reason: str, text: str) -> int:
    """Returns the line of the first statement that is refused for this reason, 1 if none is by itself."""
    return next((line for line, statement in _statements(text) if _fault_of_statement(statement) == reason), 1)


def _fault_of_statement(statement: str) -> str:
    try:
        return _fault(tomllib.loads(statement))
    except RecursionError:
        return _TOO_DEEP
    except tomllib.TOMLDecodeError:
        return ""
    except ValueError:
        return _TOO_LARGE
