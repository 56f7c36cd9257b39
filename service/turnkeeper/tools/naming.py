"""Names of tools as models accept them; of those that servers offer: `source__tool`."""

import hashlib
import re
from typing import Final

FORM: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What a model accepts as the name of a tool."""
LONGEST: Final = 64
SEPARATOR: Final = "__"
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")
_DIGITS: Final = 6
"""Characters of the hash in a name that is mapped."""


def full_name(source: str, tool: str) -> str:
    """Returns the name by which agents and models know a server's tool: `source__tool`.

    A tool's name that does not fit is mapped: what no name may have becomes `_`, the rest is cut, and 6 characters of
    the name's own SHA-256 follow. `source` has at most 32 characters.
    """
    name = f"{source}{SEPARATOR}{tool}"
    if tool and FORM.fullmatch(name):
        return name
    digest = hashlib.sha256(tool.encode(errors="surrogatepass")).hexdigest()[:_DIGITS]
    room = LONGEST - len(source) - len(SEPARATOR) - len(digest) - 1
    return f"{source}{SEPARATOR}{_FOREIGN.sub('_', tool)[:room]}_{digest}"


def foreign_name(name: str, tool: str) -> str:
    """Returns what the server calls its tool if the full name maps that; empty if the full name shows it."""
    return "" if name == f"{name.partition(SEPARATOR)[0]}{SEPARATOR}{tool}" else tool
