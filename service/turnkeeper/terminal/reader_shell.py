"""How the reader of the screen calls this program: the feed prints commands that work in the folder's shell."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

from turnkeeper.terminal.connection import ADDRESS

NAME: Final = "turnkeeper"


def program() -> str:
    """Returns what a shell in this folder runs as this program: its name, or the path of this installation."""
    installed = Path(sysconfig.get_path("scripts"), NAME)
    on_path = shutil.which(NAME)
    if on_path and installed.exists() and Path(on_path).samefile(installed):
        return NAME
    if not installed.exists():
        return f"{shlex.quote(sys.executable)} -m {NAME}"
    relative = os.path.relpath(installed)
    return shlex.quote(relative if not relative.startswith("..") else str(installed))


def command(text: str, *, address: str) -> str:
    """Returns a command for the server at this address; the address is in it unless it is the usual one."""
    return f"{program()} {text}" + ("" if address == ADDRESS else f" --address {address}")
