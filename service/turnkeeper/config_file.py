"""Reads the file of `--config`: TOML, a key a setting."""

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from turnkeeper.start_errors import SettingError

LARGEST: Final = 65_536
"""Bytes. Each setting fits with a page of comments; a longer file is a mistake, such as a log or a device."""
_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """What was read from a file of settings."""

    path: Path
    values: Mapping[str, Any]
    """By key. Empty texts are left out: they count as not set, like empty variables."""
    text: str

    def place(self, key: str) -> str:
        """Returns FILE:LINE of a key."""
        return f"{self.path}:{self._lines().get(key, 1)}"

    def _lines(self) -> Mapping[str, int]:
        """Returns the line at which each key begins: the parser of the standard library does not know it.

        A statement ends with the first line at which what was read of it is TOML.
        """
        lines: dict[str, int] = {}
        statement, start = "", 1
        for number, line in enumerate(self.text.split("\n"), 1):
            statement += line + "\n"
            try:
                keys = tomllib.loads(statement)
            except ValueError:
                continue
            for key in keys:
                lines.setdefault(key, start)
            statement, start = "", number + 1
        return lines


def read(path: Path, known: Collection[str]) -> ConfigFile:
    """Returns the file's settings. Raises SettingError if it cannot be read, or has a key that is not `known`."""
    text = _text(path)
    try:
        values = tomllib.loads(text + "\n")
    except (ValueError, RecursionError) as error:
        raise SettingError(_no_toml(path, error)) from None
    file = ConfigFile(path=path, values={key: value for key, value in values.items() if value != ""}, text=text)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            raise SettingError(f"{file.place(key)}: there is no setting {key!r:.42}{suggestion}")
    return file


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise SettingError(f"the settings file {path} cannot be read: it has more than {LARGEST:,} bytes")
        return content.decode().replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingError(f"the settings file {path} cannot be read: {reason}") from None


def _no_toml(path: Path, error: Exception) -> str:
    place = _PLACE.search(str(error))
    at = f"{path}:{place[1]}" if place and place[1] else f"{path}"
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else _PLACE.sub("", str(error))
    return f"{at}: this is not TOML: {reason}"
