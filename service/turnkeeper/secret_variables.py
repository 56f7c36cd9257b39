"""Secrets in variables, or in files that variables name: `MONGODB_URI`, or else the file in `MONGODB_URI_FILE`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from turnkeeper.start_errors import SettingError

SUFFIX: Final = "_FILE"
MOST_BYTES: Final = 64 << 10
"""Bytes of such a file, at most."""


def value_of(environ: Mapping[str, str], name: str) -> str:
    """Returns the variable's value, or the content of its file without white space around it; "" if neither is set.

    Raises SettingError if both are set, or if the file cannot be read. The message shows no content.
    """
    value, path = environ.get(name, ""), environ.get(name + SUFFIX, "")
    if value and path:
        raise SettingError(f"{name} and {name}{SUFFIX} are both set: keep one of them")
    return _content(name, Path(path)) if path else value


def _content(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) <= MOST_BYTES:
            return content.decode().strip()
        reason = f"it has more than {MOST_BYTES} bytes"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError:
        reason = "it is not UTF-8 text"
    raise SettingError(f"{name}{SUFFIX} names {path}, which cannot be read: {reason}")
