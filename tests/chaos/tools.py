"""Python tools whose effects are counted.

A server finds them by an entry point, as it finds all tools: `variables` writes what an installation would.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tests.chaos import effects
from turnkeeper.tools import ToolClass, ToolContext, tool

FOLDER = "TURNKEEPER_CHAOS_FOLDER"
CLASSES: Mapping[str, str] = {
    "look_up": "READ_ONLY",
    "write_down": "IDEMPOTENT",
    "pay": "IRREVERSIBLE",
    "pledge": "IRREVERSIBLE",
    "post": "IRREVERSIBLE",
}
NEED_APPROVAL = frozenset({"pay", "pledge"})
"""The tools that need an approval, as in agents.toml."""

_REPOSITORY = Path(__file__).parents[2]


@tool(tool_class=ToolClass.READ_ONLY)
def look_up(label: str, context: ToolContext) -> str:
    """Looks something up."""
    return _work("look_up", {"label": label}, context)


@tool(tool_class=ToolClass.IDEMPOTENT)
def write_down(label: str, context: ToolContext) -> str:
    """Writes something down; a repeat under the same key has no further effect."""
    return _work("write_down", {"label": label}, context)


@tool(tool_class=ToolClass.IRREVERSIBLE)
def pay(label: str, amount: int, context: ToolContext) -> str:
    """Pays, after an approval."""
    return _work("pay", {"label": label, "amount": amount}, context)


@tool(tool_class=ToolClass.IRREVERSIBLE)
def pledge(label: str, context: ToolContext) -> str:
    """Pledges, if it is approved soon."""
    return _work("pledge", {"label": label}, context)


@tool(tool_class=ToolClass.IRREVERSIBLE)
def post(label: str, context: ToolContext) -> str:
    """Posts without an approval."""
    return _work("post", {"label": label}, context)


def variables(folder: Path, module: str = "tests.chaos.tools") -> Mapping[str, str]:
    """Returns the variables with which a server finds the tools of `module`; those of this one write into `folder`."""
    metadata = folder / "installed" / "turnkeeper_chaos-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: turnkeeper-chaos\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[turnkeeper.tools]\nchaos = {module}\n")
    path = (metadata.parent.resolve(), _REPOSITORY, _REPOSITORY / "service")
    return {FOLDER: str(folder.resolve()), "PYTHONPATH": os.pathsep.join(map(str, path))}


def _work(name: str, arguments: dict[str, object], context: ToolContext) -> str:
    label = str(arguments["label"])
    _write_down(effects.STARTED, name, arguments, context)
    time.sleep(effects.seconds_of(label))
    _write_down(effects.DONE, name, arguments, context)
    return effects.result_of(name, label)


def _write_down(what: str, name: str, arguments: dict[str, object], context: ToolContext) -> None:
    about = {"tenant": context.tenant, "session": context.session_id, "turn": context.turn_id}
    effects.write_down(
        Path(os.environ[FOLDER]),
        what,
        name,
        arguments,
        key=context.key,
        attempt=context.attempt,
        call=context.tool_call_id,
        **about,
    )
