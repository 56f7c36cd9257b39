"""`python -m tests.chaos.services.over_grpc FOLDER`: the bank, a tool server on the Python helper.

`charge` can tell by its own lines what became of a lost call; `wire` cannot, so that a person must decide.
"""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from grpc import aio

from tests.chaos import effects
from tests.chaos.services.offered import BANK, SCHEMA
from turnkeeper_tool_server import Call, KeyLedger, ToolServer


class Bank:
    """Its tools, and the charges that took effect."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._charged = _charged_in(folder / effects.EFFECTS)

    def server(self) -> ToolServer:
        """Returns the server of its tools. One process has the folder at a time."""
        ledger = KeyLedger(self._folder / "bank.sqlite", skew=-60.0)  # begun before the first replica
        server = ToolServer(BANK, database=ledger, key_set=None)
        server.tool(SCHEMA, lookup=self._result_of)(self.charge)
        server.tool(SCHEMA)(self.wire)
        server.tool(SCHEMA)(self.quote)
        return server

    async def charge(self, arguments: dict[str, Any], call: Call) -> str:
        """Charges once."""
        self._charged[call.key] = str(arguments["label"])
        return await self._work("charge", arguments, call)

    async def wire(self, arguments: dict[str, Any], call: Call) -> str:
        """Wires once."""
        return await self._work("wire", arguments, call)

    async def quote(self, arguments: dict[str, Any], call: Call) -> str:
        """Quotes a price."""
        return await self._work("quote", arguments, call)

    async def _work(self, own: str, arguments: dict[str, Any], call: Call) -> str:
        return await effects.work(self._folder, f"{BANK}__{own}", arguments, key=call.key, attempt=call.attempt)

    async def _result_of(self, key: str) -> str | None:
        label = self._charged.get(key)
        return None if label is None else effects.result_of(f"{BANK}__charge", label)


def _charged_in(file: Path) -> dict[str, str]:
    """Returns the labels of the charges that took effect in earlier processes, by key."""
    if not file.exists():
        return {}
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1])
    return {line["key"]: line["label"] for line in lines if line["tool"] == f"{BANK}__charge"}


async def _serve(folder: Path) -> None:
    server = aio.server()
    Bank(folder).server().add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{BANK}: serving on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    asyncio.run(_serve(parser.parse_args().folder))
