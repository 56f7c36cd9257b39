"""Reads the file of `--config`: TOML, with one key for each setting."""

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from turnkeeper.start_errors import SettingError

MAX_BYTES: Final = 65_536
"""Each setting fits with a page of comments; a longer file is a mistake, such as a log or a device."""
_TOMLLIB_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """The settings of one file."""

    path: Path
    values: Mapping[str, Any]
    """By key. Empty texts are left out: they count as not set, like empty variables."""
    text: str

    def place(self, key: str) -> str:
        """Returns FILE:LINE of a key."""
        return f"{self.path}:{self._lines().get(key, 1)}"

    def _lines(self) -> Mapping[str, int]:
        """Returns the number of the line at which each key begins.

        `tomllib` does not report it. So lines are added to a statement until they are valid TOML: there it ends.
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
        raise SettingError(_syntax_error(path, error)) from None
    file = ConfigFile(path=path, values={key: value for key, value in values.items() if value != ""}, text=text)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            raise SettingError(f"{file.place(key)}: there is no setting {key!r:.42}{suggestion}")
    return file


def _text(path: Path) -> str:
    """Returns the content of the file. Raises SettingError if it cannot be read, is too long, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SettingError(f"the settings file {path} cannot be read: it has more than {MAX_BYTES:,} bytes")
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingError(f"the settings file {path} cannot be read: {reason}") from None


def _syntax_error(path: Path, error: Exception) -> str:
    """Returns the message for an error of `tomllib`, with its place in front: FILE:LINE, or FILE at the end."""
    place = _TOMLLIB_PLACE.search(str(error))
    at = f"{path}:{place[1]}" if place and place[1] else f"{path}"
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else _TOMLLIB_PLACE.sub("", str(error))
    return f"{at}: this is not TOML: {reason}"
