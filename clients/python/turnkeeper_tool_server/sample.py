"""A sample: an account book whose transfers take effect once. Its own table tells what became of a lost call.

python -m turnkeeper_tool_server.sample --port 50061 --key-set http://127.0.0.1:8081/.well-known/jwks.json
"""

import argparse
import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from grpc import aio

from turnkeeper_tool_server import Call, ToolFailed, ToolServer

SCHEMA = {
    "type": "object",
    "properties": {"to": {"type": "string"}, "amount": {"type": "integer"}},
    "required": ["to", "amount"],
    "additionalProperties": False,
}


class Book:
    """Transfers, one for each key, in a table with the key."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS transfers (key TEXT PRIMARY KEY, payee TEXT, amount INTEGER)")

    async def transfer(self, arguments: dict[str, Any], call: Call) -> str:
        """Transfers an amount to a person. It cannot be taken back."""
        if arguments["amount"] <= 0:
            raise ToolFailed("The amount must be above 0.")
        call.progress("writing the transfer into the book")
        with self._db:  # effect and key in one transaction: after a crash the key tells whether it took effect
            self._db.execute("INSERT INTO transfers VALUES (?, ?, ?)", (call.key, arguments["to"], arguments["amount"]))
        return f"{arguments['amount']} to {arguments['to']}: done"

    async def of_key(self, key: str) -> str | None:
        """Returns the result of the transfer under this key; None if there is none."""
        row = self._db.execute("SELECT payee, amount FROM transfers WHERE key = ?", (key,)).fetchone()
        return None if row is None else f"{row[1]} to {row[0]}: done"


def tools(folder: Path, *, name: str = "ledger", key_set: str | None) -> ToolServer:
    """Returns the sample's tools. Its files are in the folder."""
    book = Book(folder / "book.sqlite")
    server = ToolServer(name, database=folder / "calls.sqlite", key_set=key_set)
    server.tool(SCHEMA, lookup=book.of_key)(book.transfer)
    return server


async def serve(folder: Path, *, port: int, key_set: str | None) -> None:
    """Serves until it is cancelled."""
    server = aio.server()
    tools(folder, key_set=key_set).add_to(server)
    taken = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"tools on 127.0.0.1:{taken}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Reads the options, and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=50061)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--key-set", help="URL of Turnkeeper's keys; without it every caller is trusted")
    args = parser.parse_args()
    asyncio.run(serve(args.folder, port=args.port, key_set=args.key_set))


if __name__ == "__main__":
    main()
