"""The tools of the suite of tool sources as an MCP server over stdio, of the revision 2026-07-28.

It is written without the SDK, so that it starts at once. Its argument is a folder with `tools.json`, what it lists.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
ABOUT = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
WAITING: dict[Any, Path] = {}


def send(message: dict[str, Any]) -> None:
    """Writes a message of the protocol."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def structured(value: object) -> dict[str, Any]:
    """Returns a result that is this value."""
    return {"content": [], "structuredContent": value, "resultType": "complete"}


def nested(levels: int) -> object:
    """Returns lists inside each other."""
    value: list[object] = []
    for _ in range(levels - 1):
        value = [value]
    return value


VALUES: dict[str, Callable[[dict[str, Any]], object]] = {
    "echo": lambda arguments: arguments["text"] * arguments.get("times", 1),
    "fill": lambda arguments: "x" * arguments["size"],
    "nothing": lambda _: None,
    "nest": lambda arguments: nested(arguments["levels"]),
}


def called(message: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result of a call; None if it has none yet."""
    name, arguments = message["params"]["name"], message["params"].get("arguments", {})
    if name in VALUES:
        return structured(VALUES[name](arguments))
    match name:
        case "refuse":
            words = {"type": "text", "text": "There is no such order."}
            return {"content": [words], "isError": True, "resultType": "complete"}
        case "crash":
            os._exit(3)
        case "wait":
            WAITING[message["id"]] = Path(arguments["file"])
            WAITING[message["id"]].with_suffix(".begun").touch()
            return None
    token = message["params"]["_meta"]["progressToken"]
    if name == "advance":
        line = {"progressToken": token, "progress": 1, "total": 2, "message": "half\n  way \u202e \x1b[2J"}
        send({"method": "notifications/progress", "params": line})
        while not Path(arguments["file"]).exists():
            time.sleep(0.01)
        return structured("done")
    for number in range(arguments["lines"]):
        line = {"progressToken": token, "progress": number, "message": f"line {number} {'x' * 1_000}"}
        send({"method": "notifications/progress", "params": line})
    return structured("done")


def main() -> None:
    """Serves until its input ends."""
    for line in sys.stdin:
        message = json.loads(line)
        match message["method"]:
            case "server/discover":
                versions = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
                send({"id": message["id"], "result": {**versions, **ABOUT}})
            case "tools/list":
                tools = json.loads((FOLDER / "tools.json").read_text())
                send({"id": message["id"], "result": {"tools": tools, **ABOUT}})
            case "tools/call":
                try:
                    result = called(message)
                except RecursionError:
                    result = {"content": [], "isError": True, "resultType": "complete"}
                if result is not None:
                    send({"id": message["id"], "result": result})
            case "notifications/cancelled":
                WAITING.pop(message["params"]["requestId"]).with_suffix(".cancelled").touch()


if __name__ == "__main__":
    main()
