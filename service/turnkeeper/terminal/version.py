"""The command `turnkeeper version`."""

import json
import platform
from importlib.metadata import version
from typing import Annotated

import typer

from turnkeeper.terminal.app import LOOK, app
from turnkeeper.terminal.console import standard_output


@app.command("version", rich_help_panel=LOOK)
def show_version(
    *, as_json: Annotated[bool, typer.Option("--json", help="print the releases as JSON")] = False
) -> None:
    """Show the release of this program, of its client, and of Python."""
    output = standard_output()
    if as_json:
        names = {name: version(name) for name in ("turnkeeper", "turnkeeper-client")}
        output.show(json.dumps({**names, "python": platform.python_version()}))
        return
    output.show(f"turnkeeper {version('turnkeeper')}")
    output.show(f"turnkeeper-client {version('turnkeeper-client')}, Python {platform.python_version()}")
