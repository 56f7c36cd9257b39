"""The command `turnkeeper version`."""

import platform
from importlib.metadata import version

from turnkeeper.terminal.app import LOOK, app
from turnkeeper.terminal.console import standard_output


@app.command("version", rich_help_panel=LOOK)
def show_version() -> None:
    """Show the release of this program, of its client, and of Python."""
    output = standard_output()
    output.show(f"turnkeeper {version('turnkeeper')}")
    output.show(f"turnkeeper-client {version('turnkeeper-client')}, Python {platform.python_version()}")
