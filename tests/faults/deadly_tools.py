"""Tools for servers that a test starts to see them die. No server in the tests' own process may load them."""

import asyncio
import json
import os
import signal
from pathlib import Path

from tests.processes import until
from tests.test_tools import EFFECTS, FOLDER
from turnkeeper.tools import ToolClass, ToolContext, tool


@tool(tool_class=ToolClass.IDEMPOTENT)
def die(label: str, context: ToolContext) -> str:
    """Kills the process that runs it."""
    _write_down("die", label, context)
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@tool(tool_class=ToolClass.IDEMPOTENT)
async def hold(label: str, context: ToolContext) -> str:
    """Returns after the test's release."""
    _write_down("hold", label, context)
    await until((Path(os.environ[FOLDER]) / f"release-{label}").exists, timeout=60)
    await asyncio.sleep(0)
    return f"{label} is done"


def _write_down(name: str, label: str, context: ToolContext) -> None:
    line = json.dumps({"tool": name, "label": label, "key": context.key, "pid": os.getpid()})
    with (Path(os.environ[FOLDER]) / EFFECTS).open("a", encoding="utf-8") as effects:
        effects.write(line + "\n")
        effects.flush()
        os.fsync(effects.fileno())
