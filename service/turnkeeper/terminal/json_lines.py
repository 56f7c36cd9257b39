"""Writes JSON text in lines, without reading its values: every number and every escape stays as it is written."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from turnkeeper.visible_text import is_hidden

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s"\[\]{}:,]+')
_ESCAPES: Final = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)")
_STEP: Final = "  "


def in_lines(text: str) -> str:
    """Returns the text with a line for each member and item, and the tokens between as they are."""
    return "".join(_spaced(text))


def hidden_characters(text: str) -> dict[str, int]:
    """Returns the names of the hidden characters that the JSON holds as escapes, each with how often it is there."""
    names: dict[str, int] = {}
    for run in _ESCAPES.findall(text.replace("\\\\", "")):  # an escaped backslash begins no escape
        characters = bytes.fromhex(run.replace("\\u", "")).decode("utf-16-be", "replace")
        for character in characters:
            if is_hidden(character):
                name = f"U+{ord(character):04X} {unicodedata.name(character, 'a control character')}"
                names[name] = names.get(name, 0) + 1
    return names


def _spaced(text: str) -> Iterator[str]:
    depth, before = 0, ""
    for part in _TOKEN.findall(text):
        opened, ends = before in ("[", "{"), part in ("]", "}")
        depth -= ends
        if before == "," or opened is not ends:
            yield "\n" + _STEP * depth
        yield ": " if part == ":" else part
        depth += part in ("[", "{")
        before = part
