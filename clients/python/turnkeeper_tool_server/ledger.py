"""Remembers what became of each key, for 24 hours, in SQLite: every answer is on the disk before it is given."""

import sqlite3
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KEEP: Final = 24 * 3600.0
"""Seconds for which a key is remembered."""
BARRED, RUNNING, BROKEN, DONE, FAILED = "BARRED", "RUNNING", "BROKEN", "DONE", "FAILED"
"""The states of a key. BARRED: no start up to its attempt may run. BROKEN: it ran, and nothing tells how it ended."""
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, attempt INTEGER NOT NULL, state TEXT NOT NULL,
    result TEXT NOT NULL DEFAULT '', took_effect INTEGER NOT NULL DEFAULT 0, process TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS by_time ON calls (at);
CREATE TABLE IF NOT EXISTS born (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """What is known of a key."""

    state: str
    result_json: str = ""
    took_effect: bool = False


STARTS, REFUSED = Entry("STARTS"), Entry("REFUSED")
"""Answers to `begin`: the call may run now; or this start must not, and had no effect."""


class KeyLedger:
    """One process has the file at a time. Its methods wait for the disk: call them in one thread beside the loop."""

    def __init__(self, path: Path | str, *, skew: float = 60.0, clock: Callable[[], float] = time.time) -> None:
        """`skew`: seconds by which the clock of a caller may differ. Raises sqlite3.OperationalError if it is taken."""
        self._process, self._skew, self._clock = uuid.uuid4().hex, skew, clock
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=0.2)
        self._db.executescript("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
        self._db.executescript(_TABLES)
        self._db.execute("INSERT OR IGNORE INTO born VALUES (1, ?)", (clock(),))
        self._pruned = 0.0

    def close(self) -> None:
        """Lets another process have the file."""
        self._db.close()

    def begin(self, key: str, attempt: int, start_time: float) -> Entry:
        """Returns STARTS, stored as RUNNING; REFUSED; or what is known of an earlier start that this one repeats."""
        with self._transaction():
            known = self._known(key)
            if known is None and not self._remembers(start_time + abs(self._skew)):
                return REFUSED  # it may have been given up before what is remembered
            before, entry = known or (0, Entry(BARRED))
            if attempt < before:  # another start came after this one: the caller has given this one up
                return REFUSED
            if entry.state in (DONE, FAILED):
                return entry
            if attempt > before and entry.state != RUNNING:  # after BROKEN the caller has decided to start it again
                self._put(key, attempt, Entry(RUNNING))
                return STARTS
            return REFUSED if entry.state == BARRED else entry

    def end(self, key: str, entry: Entry) -> None:
        """Stores how a RUNNING call ended."""
        with self._transaction():
            if (known := self._known(key)) is not None and known[1].state == RUNNING:
                self._put(key, known[0], entry)

    def reconcile(self, key: str, attempt: int, start_time: float) -> Entry:
        """Returns what became of the key. BARRED is a promise, stored before it is given."""
        with self._transaction():
            known = self._known(key)
            if known is None and not self._remembers(start_time - self._skew):
                return Entry(BROKEN)
            before, entry = known or (0, Entry(BARRED))
            if entry.state == BARRED and attempt > before:
                self._put(key, attempt, entry)
            return entry

    def settle(self, key: str, attempt: int, result_json: str | None) -> Entry:
        """Stores what the service's own records tell of a BROKEN call: its result, or that it never took effect."""
        with self._transaction():
            known = self._known(key)
            if known is None or known[1].state != BROKEN:
                return known[1] if known else Entry(BROKEN)
            entry = Entry(BARRED) if result_json is None else Entry(DONE, result_json, took_effect=True)
            self._put(key, max(attempt, known[0]), entry)
            return entry

    def _known(self, key: str) -> tuple[int, Entry] | None:
        query = "SELECT attempt, state, result, took_effect, process FROM calls WHERE key = ?"
        row = self._db.execute(query, (key,)).fetchone()
        if row is None:
            return None
        is_lost = row[1] == RUNNING and row[4] != self._process
        return row[0], Entry(BROKEN if is_lost else row[1], row[2], bool(row[3]))

    def _put(self, key: str, attempt: int, entry: Entry) -> None:
        values = (key, attempt, entry.state, entry.result_json, entry.took_effect, self._process, self._clock())
        self._db.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def _remembers(self, start_time: float) -> bool:
        """Returns True if a start of that time could not be forgotten: else nothing certain can be told of it."""
        (born,) = self._db.execute("SELECT at FROM born").fetchone()
        return start_time >= max(float(born), self._clock() - KEEP)

    def _transaction(self) -> "_Transaction":
        now = self._clock()
        if now - self._pruned > 60:
            self._pruned = now
            old = "DELETE FROM calls WHERE at < ? AND NOT (state = ? AND process = ?)"  # what still runs is kept
            self._db.execute(old, (now - KEEP - 2 * self._skew, RUNNING, self._process))
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("ROLLBACK" if kind else "COMMIT")
