"""Tools whose effects are counted: each start and each end is a line in a file, written before anything else.

A server finds them by an entry point, as it finds all tools: `variables` writes what an installation would.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from turnkeeper.tools import ToolClass, ToolContext, tool

FOLDER = "TURNKEEPER_CHAOS_FOLDER"
EFFECTS = "effects.jsonl"
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
_SHORTEST, _LONGEST = 0.05, 1.0


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


def hash_of(arguments: Mapping[str, object]) -> str:
    """Returns the arguments' SHA-256 (hex), whatever the order of their names."""
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def result_of(name: str, label: str) -> str:
    """Returns the tool's result for this label."""
    return f"{name} of {label}: ✓"


def seconds_of(label: str) -> float:
    """Returns how long a tool takes with this label: 0.05 to 1 s, always the same."""
    share = int.from_bytes(hashlib.sha256(label.encode()).digest()[:2]) / 0xFFFF
    return _SHORTEST + (_LONGEST - _SHORTEST) * share * share


def _work(name: str, arguments: dict[str, object], context: ToolContext) -> str:
    label = str(arguments["label"])
    _write_down("started", name, arguments, context)
    time.sleep(seconds_of(label))
    _write_down("done", name, arguments, context)
    return result_of(name, label)


def _write_down(what: str, name: str, arguments: dict[str, object], context: ToolContext) -> None:
    """Appends one line, which is on the disk when this returns; other processes append to the same file."""
    line = {
        "line": what,
        "tool": name,
        "key": context.key,
        "tenant": context.tenant,
        "session": context.session_id,
        "turn": context.turn_id,
        "call": context.tool_call_id,
        "arguments": hash_of(arguments),
        "pid": os.getpid(),
        "mono": time.monotonic(),
        "wall": time.time(),
    }
    file = os.open(Path(os.environ[FOLDER]) / EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)
