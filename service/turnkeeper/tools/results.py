"""Turns what a tool returns into a result's JSON text, at a cost that the result's own limit bounds."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Final

import pydantic

from turnkeeper.domain import json_text
from turnkeeper.domain.json_text import MOST_LEVELS

RESULT_BYTES: Final = 64 * 1024
"""The largest result as JSON text in UTF-8."""

_MOST_CHARACTERS: Final = 16 * RESULT_BYTES
"""Characters of a value that are counted exactly."""
_VALUE: Final = 16
"""What a value counts beside its characters: as JSON it has a byte at least."""
_ENTRY: Final = 2 * _VALUE
"""What an entry counts beside its value: as JSON it is followed by two bytes."""


class UnfitResult(Exception):
    """What a tool returned cannot be a result. The message is for the model."""


def result_text(value: object) -> str:
    """Returns the value as JSON text. Raises UnfitResult if it is too large, or if JSON cannot hold it."""
    check_size(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError):
        raise _unfit() from None
    if size > RESULT_BYTES:
        raise _too_large(str(size))
    if json_text.problem_of(text):
        raise _unfit()
    return text


def error_text(message: str) -> str:
    """Returns a failure as JSON text for the model."""
    return json.dumps({"error": message}, ensure_ascii=False)


def check_size(value: object) -> None:
    """Raises UnfitResult if the value is certainly too large, or nested deeper than any reader of JSON goes.

    Looks at no more of it than a result may have, because a tool may return anything. An iterator could be without
    end, so it cannot be a result.
    """
    room, left, levels = _MOST_CHARACTERS, [value], [0]  # two lists, not pairs, which would keep the collector busy
    while left and room >= 0:
        part, level = left.pop(), levels.pop()
        if isinstance(part, Iterator):
            raise _unfit()
        room -= len(part) if isinstance(part, str | bytes | bytearray) else _VALUE
        inner = _parts(part)
        if inner is not None and level == MOST_LEVELS:
            raise UnfitResult(f"The tool returned something that is nested deeper than {MOST_LEVELS} levels.")
        for one in inner or ():
            room -= _ENTRY
            if room < 0:
                break
            left.append(one)
            levels.append(level + 1)
    if room < 0:
        raise _too_large(f"more than {RESULT_BYTES}")


def _parts(value: object) -> Iterable[object] | None:
    """Returns what is in a value that holds others, one by one; None for any other value."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        return None
    if isinstance(value, Mapping):
        return (part for pair in value.items() for part in pair)
    if isinstance(value, pydantic.BaseModel):
        return vars(value).values()
    if is_dataclass(value) and not isinstance(value, type):
        return (getattr(value, field.name) for field in fields(value))
    if isinstance(value, Iterable) and hasattr(type(value), "__len__"):
        return value
    return None


def _unfit() -> UnfitResult:
    return UnfitResult("The tool returned something that JSON cannot hold.")


def _too_large(size: str) -> UnfitResult:
    return UnfitResult(f"The result has {size} bytes; at most {RESULT_BYTES} are passed on. Ask for less.")
