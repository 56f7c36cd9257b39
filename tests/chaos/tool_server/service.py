"""The tool server: each effect is a line on the disk. It counts the kills that fell between an effect and its answer.

`pay` can tell by its own lines what became of a lost call; `wire` cannot, so that a person must decide.
"""

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from turnkeeper_client.pb.tools.v1 import tool_pb2
from turnkeeper_tool_server import Call, KeyLedger, ToolServer

SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
EFFECTS, ANSWERS, KILLS = "effects.jsonl", "answers.jsonl", "kills.jsonl"
PAUSE = 0.3
"""Seconds between an effect and its answer."""


def lines(file: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file; a kill may have cut the last one."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def append(file: Path, line: dict[str, Any], *, surely: bool) -> None:
    """Appends a line. `surely`: it is on the disk when this returns."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
        if surely:
            os.fsync(handle)
    finally:
        os.close(handle)


class Service(ToolServer):
    """The helper's service with two tools."""

    def __init__(self, folder: Path, *, tells: bool) -> None:
        """`tells`: False leaves Reconcile unimplemented."""
        ledger = KeyLedger(folder / "calls.sqlite", skew=-60.0)  # one machine has one clock
        super().__init__("ledger", database=ledger, key_set=None)
        self._folder, self._tells = folder, tells
        self.tool(SCHEMA, lookup=self._found)(self.pay)
        self.tool(SCHEMA)(self.wire)

    async def pay(self, arguments: dict[str, Any], call: Call) -> str:
        """Pays once."""
        return await self._work(arguments, call)

    async def wire(self, arguments: dict[str, Any], call: Call) -> str:
        """Wires once."""
        return await self._work(arguments, call)

    def count_kill(self) -> None:
        """Notes how many calls the last process had in hand between effect and answer."""
        effects = {line["key"] for line in lines(self._folder / EFFECTS)}
        answers = {line["key"] for line in lines(self._folder / ANSWERS)}
        counted = {key for line in lines(self._folder / KILLS) for key in line["keys"]}
        between = sorted(effects - answers - counted)
        append(self._folder / KILLS, {"keys": between}, surely=True)

    async def _work(self, arguments: dict[str, Any], call: Call) -> str:
        line = {"key": call.key, "attempt": call.attempt, "label": arguments["label"], "pid": os.getpid()}
        append(self._folder / EFFECTS, line, surely=True)
        await asyncio.sleep(PAUSE)
        return f"{arguments['label']} is done"

    async def _found(self, key: str) -> str | None:
        labels = [line["label"] for line in lines(self._folder / EFFECTS) if line["key"] == key]
        return f"{labels[0]} is done" if labels else None

    async def CallTool(
        self, request: tool_pb2.CallToolRequest, context: Any
    ) -> AsyncIterator[tool_pb2.CallToolResponse]:
        async for response in super().CallTool(request, context):
            yield response
        append(self._folder / ANSWERS, {"key": request.idempotency_key}, surely=False)

    async def Reconcile(self, request: tool_pb2.ReconcileRequest, context: Any) -> tool_pb2.ReconcileResponse:
        if not self._tells:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "it cannot tell")
        return await super().Reconcile(request, context)


async def serve(folder: Path, port: int, *, tells: bool) -> None:
    """Serves until it is killed."""
    service = Service(folder, tells=tells)
    service.count_kill()
    server = aio.server()
    service.add_to(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("serves", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--mute", action="store_true", help="leave Reconcile unimplemented")
    args = parser.parse_args()
    asyncio.run(serve(args.folder, args.port, tells=not args.mute))
