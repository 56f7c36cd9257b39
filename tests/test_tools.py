"""Tools for tests. Each records that it was started; those that hold go on when the test releases them.

A server finds them by an entry point, as it finds all tools: `install` writes what an installation would.
"""

import asyncio
import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import processes
from turnkeeper.tools import ToolClass, ToolContext, ToolError, tool

FOLDER = "TURNKEEPER_TEST_TOOLS"
REPOSITORY = Path(__file__).parents[1]
EFFECTS = "effects.jsonl"

SERVER_LOOP = asyncio.get_running_loop() if asyncio._get_running_loop() else None  # noqa: SLF001 - None raises otherwise
"""The event loop of the server process that loads these tools; None in the tests' own process."""

RAISED: Mapping[str, BaseException] = {
    "says so": ToolError("The printer is out of paper."),
    "says too much": ToolError("x" * 300_000),
    "says half a character": ToolError("\ud83d"),
    "raises": ValueError("a secret of the tool"),
    "is cancelled from inside": asyncio.CancelledError(),
    "exits": SystemExit(3),
}
RETURNED: Mapping[str, object] = {
    "returns no JSON": float("nan"),
    "returns half a character": "\ud83d",
    "floods": "x" * 70_000,
}


@tool(tool_class=ToolClass.READ_ONLY)
async def hold_reading(label: str, context: ToolContext) -> str:
    """Reads, after the test's release."""
    return await _hold("hold_reading", label, context)


@tool(tool_class=ToolClass.IDEMPOTENT)
async def hold_idempotent(label: str, context: ToolContext) -> str:
    """Has an effect that may be repeated under the same key."""
    return await _hold("hold_idempotent", label, context)


@tool(tool_class=ToolClass.IRREVERSIBLE)
async def hold_irreversible(label: str, context: ToolContext) -> str:
    """Has an irreversible effect, and returns late."""
    return await _hold("hold_irreversible", label, context)


@tool(tool_class=ToolClass.IRREVERSIBLE)
def hold_irreversible_in_thread(label: str, context: ToolContext) -> str:
    """As hold_irreversible, in a thread."""
    _write_down("hold_irreversible_in_thread", label, context)
    return asyncio.run(_released(label))


@tool(tool_class=ToolClass.READ_ONLY)
def count_pages(label: str, context: ToolContext) -> str:
    """Tells how far it is, and returns late."""
    context.report(f"{label} is half done")
    return asyncio.run(_released(label))


@tool(tool_class=ToolClass.IRREVERSIBLE)
def act(label: str, context: ToolContext) -> str:
    """Has an irreversible effect."""
    _write_down("act", label, context)
    return f"{label} is done"


@tool(tool_class=ToolClass.IDEMPOTENT)
def block(label: str, seconds: float, context: ToolContext) -> str:
    """Blocks the server's event loop at its first start."""
    _write_down("block", label, context)
    if len(_effects(label)) == 1 and SERVER_LOOP is not None:
        ended = threading.Event()

        def sleep() -> None:
            time.sleep(seconds)
            ended.set()

        SERVER_LOOP.call_soon_threadsafe(sleep)
        ended.wait()
    return f"{label} is done"


@tool(tool_class=ToolClass.IDEMPOTENT)
async def stumble(label: str, times: int, how: str, context: ToolContext) -> str:
    """Fails so many times before it works: it raises, or hangs longer than its time, or fails with its own words."""
    _write_down("stumble", label, context)
    if len(_effects(label)) > times:
        return f"{label} is done"
    if how == "hangs":
        await asyncio.get_running_loop().create_future()
    raise ToolError("There is no such order.") if how == "says so" else ValueError("a secret of the tool")


@tool(tool_class=ToolClass.READ_ONLY)
def pour(what: str, size: int) -> object:
    """Returns as much as it is told to, or more than there is."""
    match what:
        case "text":
            return "x" * size
        case "numbers":
            return [0] * size
        case "levels":
            value: list[object] = []
            for _ in range(size):
                value = [value]
            return value
        case _:
            return itertools.count()


@tool(tool_class=ToolClass.READ_ONLY)
async def misbehave(how: str) -> object:
    """Fails in one of the ways of RAISED and RETURNED, hangs, or does not heed that it is cancelled."""
    while how == "clings":
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    if how == "hangs":
        await asyncio.Event().wait()
    if how in RAISED:
        raise RAISED[how]
    return RETURNED[how]


async def _hold(name: str, label: str, context: ToolContext) -> str:
    _write_down(name, label, context)
    return await _released(label)


async def _released(label: str) -> str:
    await processes.until((_folder() / f"release-{label}").exists, timeout=60)
    return f"{label} is done"


def _write_down(name: str, label: str, context: ToolContext) -> None:
    line = json.dumps({"tool": name, "label": label, "key": context.key, "pid": os.getpid()})
    with (_folder() / EFFECTS).open("a", encoding="utf-8") as effects:
        effects.write(line + "\n")


def _effects(label: str, *, folder: Path | None = None) -> "list[Effect]":
    try:
        lines = ((folder or _folder()) / EFFECTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [effect for effect in (Effect(**json.loads(line)) for line in lines) if effect.label == label]


def _folder() -> Path:
    return Path(os.environ[FOLDER])


@dataclass(frozen=True, slots=True)
class Effect:
    """One start of a tool, as the tool recorded it."""

    tool: str
    label: str
    key: str
    pid: int


class ToolControl:
    """Installs, releases and watches the tools, for a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, module: str = "tests.test_tools") -> None:
        """Writes a distribution with these tools into the folder, for the import path."""
        metadata = self.folder / "turnkeeper_test_tools-1.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: turnkeeper-test-tools\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[turnkeeper.tools]\ntest_tools = {module}\n")

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables with which a server process finds the tools."""
        path = (self.folder, REPOSITORY, REPOSITORY / "service")
        return {FOLDER: str(self.folder), "PYTHONPATH": os.pathsep.join(map(str, path))}

    def effects(self, label: str) -> list[Effect]:
        """Returns every start with this label, in order."""
        return _effects(label, folder=self.folder)

    async def started(self, label: str, *, times: int = 1) -> list[Effect]:
        """Waits until tools with this label were started so often."""
        await processes.until(lambda: len(self.effects(label)) >= times, timeout=20)
        return self.effects(label)

    def release(self, label: str) -> None:
        """Releases the tools with this label."""
        (self.folder / f"release-{label}").touch()
