"""`python -m tests.chaos.services.over_stdio NAME FOLDER`: an MCP server over stdio, of the revision 2026-07-28.

It keeps no keys: each call that reaches it takes effect. It is written without the SDK, whose import would take more
time than a replica has to start, on a machine that runs all parts.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Final

from tests.chaos import effects
from tests.chaos.services.offered import ATTEMPT, CLASSES, KEY, SCHEMA, source_of, tools_of

_ABOUT: Final = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}


class Shed:
    """The tools of the server of this name, whose effects are lines in the folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._calls: dict[Any, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Serves until its input ends."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        match message["method"]:
            case "server/discover":
                versions = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
                _answer(message, {**versions, **_ABOUT})
            case "tools/list":
                _answer(message, {"tools": self._listed(), **_ABOUT})
            case "tools/call":
                task = asyncio.create_task(self._call(message))
                self._calls[message["id"]] = task
                task.add_done_callback(lambda _: self._calls.pop(message["id"], None))
            case "notifications/cancelled":
                if (running := self._calls.get(message["params"]["requestId"])) is not None:
                    running.cancel()

    def _listed(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "description": f"The tool {name}.", "inputSchema": SCHEMA}
            | ({"annotations": {"readOnlyHint": True}} if reads else {})
            for name, reads in tools_of(self._name).items()
        ]

    async def _call(self, message: dict[str, Any]) -> None:
        params = message["params"]
        name, meta = f"{self._name}__{params['name']}", params["_meta"]
        text = await effects.work(self._folder, name, params["arguments"], key=meta[KEY], attempt=meta[ATTEMPT])
        _answer(message, {"content": [{"type": "text", "text": text}], "resultType": "complete"})


def _answer(message: dict[str, Any], result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted({source_of(tool) for tool in CLASSES}))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    asyncio.run(Shed(args.name, args.folder).serve())
