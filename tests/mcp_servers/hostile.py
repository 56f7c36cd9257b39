"""An MCP server over stdio that misbehaves as it is told: each tool is a way to do so. Needs nothing but Python.

It speaks the revision 2025-11-25. Its first argument is a folder, where it records what it received.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
STRUCTURED = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}


def send(message: dict[str, Any]) -> None:
    """Writes a message of the protocol."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def record(name: str, value: object) -> None:
    """Adds a line to a file of the folder."""
    with (FOLDER / name).open("a") as file:
        file.write(json.dumps(value) + "\n")


def text(value: str) -> dict[str, Any]:
    """Returns a result with one text."""
    return {"content": [{"type": "text", "text": value}]}


def die(_: dict[str, Any]) -> dict[str, Any]:
    """Ends the process in mid-call, without an answer."""
    os._exit(7)


def endless(_: dict[str, Any]) -> dict[str, Any]:
    """Writes a line that has no end."""
    while True:
        os.write(1, b"x" * 65_536)


def chatter(_: dict[str, Any]) -> dict[str, Any]:
    """Writes what is no message before its answer."""
    os.write(1, b"Loading...\n\n{\n[1, 2]\nnull\n\xff\xfe\n" + b'{"jsonrpc": "2.0", "id": 999999, "result": {}}\n')
    return text("done")


def flood_stderr(arguments: dict[str, Any]) -> dict[str, Any]:
    """Writes as many bytes to standard error, then answers."""
    for _ in range(arguments["bytes"] // 65_536):
        os.write(2, b"e" * 65_535 + b"\n")
    return text("done")


def flood_progress(params: dict[str, Any]) -> dict[str, Any]:
    """Reports progress many times, then answers."""
    token = params["_meta"]["progressToken"]
    for step in range(500):
        progress = {"progressToken": token, "progress": step, "total": 500, "message": "counting \u202e" + "y" * 2_000}
        send({"method": "notifications/progress", "params": progress})
    return text("done")


def spawn(_: dict[str, Any]) -> dict[str, Any]:
    """Starts a process that leaves the server's group and session, and returns its id."""
    command = [sys.executable, "-c", "import signal; signal.signal(15, 1); signal.pause()"]
    child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return text(str(child.pid))


def elicit(_: dict[str, Any]) -> dict[str, Any]:
    """Asks the client's user in mid-call, and returns what the client answers."""
    send({"id": "q1", "method": "elicitation/create", "params": {"message": "?", "requestedSchema": STRUCTURED}})
    return text(sys.stdin.readline())


def change(arguments: dict[str, Any]) -> dict[str, Any]:
    """Adds a tool, and announces that the list has changed."""
    TOOLS[arguments["name"]] = lambda _: text("I am new.")
    send({"method": "notifications/tools/list_changed"})
    return text("done")


def environment(_: dict[str, Any]) -> dict[str, Any]:
    """Returns the names of its variables, and the folder it runs in."""
    return text(json.dumps({"names": sorted(os.environ), "folder": str(Path.cwd())}))


TOOLS: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "echo": lambda arguments: text(json.dumps(arguments, ensure_ascii=False)),
    "big": lambda arguments: text("x" * arguments["bytes"]),
    "many": lambda _: {"content": [{}] * 30_000},
    "nested": lambda _: {"content": [], "structuredContent": json.loads("[" * 900 + "]" * 900)},
    "hold": lambda _: None,
    "fail": lambda _: {**text("The printer is out of paper."), "isError": True},
    "structured": lambda _: {**text('{"count": 3}'), "structuredContent": {"count": 3}},
    "misfit": lambda _: {**text("?"), "structuredContent": {"count": "three"}},
    "nothing": lambda _: {"content": []},
    "no_result": lambda _: {"content": "no list"},
    "die": die,
    "endless": endless,
    "chatter": chatter,
    "flood_stderr": flood_stderr,
    "spawn": spawn,
    "ask": elicit,
    "change": change,
    "environment": environment,
}


def listed() -> list[dict[str, Any]]:
    """Returns the tools as the protocol lists them."""
    schema = {"type": "object"}
    tools = [{"name": name, "description": f"Does {name}.", "inputSchema": schema} for name in (*TOOLS, "meta")]
    tools += [{"name": "flood_progress", "inputSchema": schema}, {"name": "über tool.v2", "inputSchema": schema}]
    for tool in tools:
        if tool["name"] in ("structured", "misfit"):
            tool["outputSchema"] = STRUCTURED
    return [*tools, {"name": "refused", "inputSchema": {"type": "object", "$ref": "https://elsewhere.test/schema"}}]


def answer(message: dict[str, Any]) -> None:
    """Answers a request."""
    method, params, number = message["method"], message.get("params", {}), message["id"]
    if method == "initialize":
        info = {"name": "hostile", "version": "1"}
        about = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": True}}, "serverInfo": info}
        send({"id": number, "result": about})
    elif method == "tools/list":
        send({"id": number, "result": {"tools": listed()}})
    elif method == "tools/call" and params["name"] == "meta":
        send({"id": number, "result": text(json.dumps(params["_meta"]))})
    elif method == "tools/call" and params["name"] == "flood_progress":
        send({"id": number, "result": flood_progress(params)})
    elif method == "tools/call" and params["name"] in TOOLS:
        record("calls", params["name"])
        result = TOOLS[params["name"]](params.get("arguments", {}))
        if result is not None:
            send({"id": number, "result": result})
    else:
        send({"id": number, "error": {"code": -32601, "message": f"there is no {params.get('name', method)}"}})


def main() -> None:
    """Serves until its input ends. With `--deaf` it ignores that, too."""
    record("starts", os.getpid())
    if "--fails" in sys.argv:
        sys.exit("the license has expired")
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message and "method" in message:
            answer(message)
        elif message.get("method") == "notifications/cancelled":
            record("cancelled", message["params"])
    while "--deaf" in sys.argv:
        time.sleep(1)


if __name__ == "__main__":
    main()
