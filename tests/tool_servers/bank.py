"""The helper's sample, in this process: its book, its ledger of keys, and what it refused."""

import sqlite3
from pathlib import Path

from grpc import aio

from turnkeeper_tool_server.ledger import REFUSED, Entry, KeyLedger
from turnkeeper_tool_server.sample import SCHEMA, Book
from turnkeeper_tool_server.server import ToolServer

CATALOGUE = """
[[server]]
name = "ledger"
grpc = "{address}"
plaintext = true
keys = [{keys}]

[[tool]]
tool = "ledger__*"
class = "irreversible"
timeout = "20s"
"""


class WatchedLedger(KeyLedger):
    """A ledger of keys; the starts that it refuses are counted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, skew=-5.0)  # one machine has one clock, and nothing was forgotten before
        self.refused: list[tuple[str, int]] = []

    def begin(self, key: str, attempt: int, start_time: float) -> Entry:
        entry = super().begin(key, attempt, start_time)
        if entry is REFUSED:
            self.refused.append((key, attempt))
        return entry


class Bank:
    """The server, and what it has done."""

    def __init__(self, folder: Path, key_set: str | None) -> None:
        self._path = folder / "book.sqlite"
        self.book = Book(self._path)
        self.ledger = WatchedLedger(folder / "calls.sqlite")
        self.server = ToolServer("ledger", database=self.ledger, key_set=key_set)
        self.server.tool(SCHEMA, lookup=self.book.of_key)(self.book.transfer)

    def add_to(self, server: aio.Server) -> None:
        self.server.add_to(server)

    def transfers(self) -> list[tuple[str, str, int]]:
        """Returns key, payee and amount of each transfer."""
        with sqlite3.connect(self._path) as book:
            return list(book.execute("SELECT key, payee, amount FROM transfers"))


def catalogue(folder: Path, address: str, *keys: Path) -> Path:
    """Writes a catalogue with the server at this address, and returns its file."""
    file = folder / "catalogue.toml"
    file.write_text(CATALOGUE.format(address=address, keys=", ".join(f'"{key}"' for key in keys)))
    return file
