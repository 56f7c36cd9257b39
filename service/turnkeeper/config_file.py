"""Reads the file of `--config`: TOML, with one key for each setting."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from turnkeeper import toml_file
from turnkeeper.start_errors import SettingError
from turnkeeper.toml_file import TomlError, TomlFile

MAX_BYTES: Final = 65_536
"""Each setting fits with a page of comments; a longer file is a mistake, such as a log or a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """The settings of one file."""

    values: Mapping[str, Any]
    """By key. Empty texts are left out: they count as not set, like empty variables."""
    file: TomlFile

    def place(self, key: str) -> str:
        """Returns FILE:LINE of a key."""
        return self.file.place(key)


def read(path: Path, known: Collection[str]) -> ConfigFile:
    """Returns the file's settings. Raises SettingError if it cannot be read, or has a key that is not `known`."""
    try:
        file = toml_file.read(path, max_bytes=MAX_BYTES)
    except TomlError as error:
        raise SettingError(
            f"{path}:{error.line}: this is not TOML: {error}"
            if error.line
            else f"the settings file {path} cannot be read: {error}"
        ) from None
    for key in file.values:
        if key not in known:
            near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            raise SettingError(f"{file.place(key)}: there is no setting {key!r:.42}{suggestion}")
    return ConfigFile(values={key: value for key, value in file.values.items() if value != ""}, file=file)
