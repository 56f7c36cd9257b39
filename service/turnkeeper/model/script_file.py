"""Reads a script file: TOML in, a Script out. docs/reference/scripted-model.md describes the format."""

import difflib
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from turnkeeper import durations, toml_file
from turnkeeper.model.script import Reply, Script, ScriptedCall, ScriptedFailure, ScriptError, TokenCount
from turnkeeper.toml_file import TomlError

MAX_BYTES = 64 << 20
"""Of a script, which may hold long answers; a longer file is a mistake, such as a device."""
_Keys = Mapping[str, Callable[[object], object]]

ECHO = """\
[[reply]]
after_tools = 0
text = "You said: {user}"

[[reply]]
text = "The tool said: {tool_result}"
"""


def load_script(path: Path) -> Script:
    """Reads a script file. Raises ScriptError, also if there is no such file."""
    try:
        text = toml_file.read_text(path, max_bytes=MAX_BYTES)
    except TomlError as error:
        raise ScriptError(f"{path}: cannot be read: {error}") from None
    return parse_script(text, source=str(path))


def parse_script(text: str, *, source: str = "script") -> Script:
    """Returns the Script of a TOML text. Raises ScriptError, whose message begins with `source`."""
    try:
        table = toml_file.parse(text)
    except TomlError as error:
        raise ScriptError(f"{source}: is not TOML: {error} (line {error.line})") from None
    try:
        values = _read(table, _SCRIPT_KEYS)
        rules = values.pop("reply", [])
        if not rules:
            raise ScriptError("reply: there must be at least one [[reply]]")
    except ScriptError as error:
        raise ScriptError(f"{source}: {error}") from None
    return Script(
        replies=tuple(_reply(rule, where=f"{source}: reply {n}") for n, rule in enumerate(rules, 1)), **values
    )


def duration(value: object) -> timedelta:
    """Returns the duration of "5ms", "1.5s", "2m", or of a number of seconds. Raises ScriptError otherwise."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6:
        return timedelta(seconds=value)
    try:
        return durations.parse(value if isinstance(value, str) else "")
    except ValueError:
        raise ScriptError('must be a duration, such as "5ms", "1.5s" or "2m"') from None


def _reply(rule: object, *, where: str) -> Reply:
    """Returns a rule. Raises ScriptError, whose message begins with `where`."""
    try:
        return Reply(**_read(rule, _REPLY_KEYS))
    except ScriptError as error:
        raise ScriptError(f"{where}: {error}") from None


def _read(table: object, keys: _Keys) -> dict[str, Any]:
    """Returns the table's values, each by its key's reader. Raises ScriptError for a table that does not fit."""
    if not isinstance(table, dict):
        raise ScriptError("must be a table")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            suggestion = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(keys)}"
            raise ScriptError(f"{key}: there is no such key; {suggestion}")
        try:
            values[key] = keys[key](value)
        except ScriptError as error:
            raise ScriptError(f"{key}: {error}") from None
    return values


def _text(value: object) -> str:
    """Reads a text."""
    if not isinstance(value, str):
        raise ScriptError("must be text")
    return value


def _pattern(value: object) -> str:
    """Reads a regular expression."""
    try:
        re.compile(_text(value))
    except re.error as error:
        raise ScriptError(f"is not a regular expression: {error}") from None
    return _text(value)


def _count(least: int) -> Callable[[object], int]:
    """Returns the reader of a whole number of at least `least`."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ScriptError(f"must be a whole number of at least {least}")
        return value

    return read


def _list(value: object) -> list[object]:
    """Reads a list."""
    if not isinstance(value, list):
        raise ScriptError("must be a list")
    return value


def _names(value: object) -> tuple[str, ...]:
    """Reads a list of texts."""
    return tuple(_text(name) for name in _list(value))


def _fail(value: object) -> ScriptedFailure:
    """Reads the name of a failure."""
    try:
        return ScriptedFailure(_text(value))
    except ValueError:
        raise ScriptError(f"must be one of {', '.join(ScriptedFailure)}") from None


def _usage(value: object) -> TokenCount | bool:
    """Reads token counts, or true or false."""
    if isinstance(value, bool):
        return value
    tokens = _read(value, {"input_tokens": _count(0), "output_tokens": _count(0)})
    return TokenCount(input_tokens=tokens.get("input_tokens", 0), output_tokens=tokens.get("output_tokens", 0))


def _wait(value: object) -> str:
    """Reads a Retry-After: whole seconds, or any text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _headers(value: object) -> dict[str, str]:
    """Reads a table of header names and printable values."""
    if not isinstance(value, dict):
        raise ScriptError("must be a table of texts")
    if not all(f"{name}{_text(text)}".isprintable() for name, text in value.items()):
        raise ScriptError("must hold printable characters only")
    return value


def _arguments(value: object) -> str:
    """Reads the arguments of a call: a table, or a text that is sent unchanged."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise ScriptError("must be a table, or the text to send")
    return orjson.dumps(value).decode()


def _tool_calls(value: object) -> tuple[ScriptedCall, ...]:
    """Reads the tool calls of a reply."""
    calls = []
    for call in _list(value):
        read = _read(call, {"name": _text, "arguments": _arguments, "id": _text})
        if "name" not in read:
            raise ScriptError("name: each call needs one")
        escape = isinstance(call, dict) and isinstance(call.get("arguments"), dict)
        arguments = read.get("arguments", "{}")
        calls.append(ScriptedCall(name=read["name"], arguments=arguments, call_id=read.get("id"), escape=escape))
    return tuple(calls)


_SCRIPT_KEYS: _Keys = {"models": _names, "reply": _list}
_REPLY_KEYS: _Keys = {
    "match": _pattern,
    "after_tools": _count(0),
    "times": _count(1),
    "every": _count(1),
    "text": _text,
    "chunk": _count(1),
    "delay": duration,
    "first_delay": duration,
    "tool_calls": _tool_calls,
    "finish_reason": _text,
    "usage": _usage,
    "fail": _fail,
    "fail_after": _count(0),
    "retry_after": _wait,
    "headers": _headers,
    "bytes_per_write": _count(1),
}
