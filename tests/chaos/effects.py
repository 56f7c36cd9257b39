"""What tools write down: each start and each end is a line in one file, on the disk before anything else happens."""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

EFFECTS = "effects.jsonl"
STARTED, DONE = "started", "done"
_SHORTEST, _LONGEST = 0.05, 1.0


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


def write_down(
    folder: Path, what: str, name: str, arguments: Mapping[str, object], *, key: str, attempt: int, **about: str
) -> None:
    """Appends one line, which is on the disk when this returns; other processes append to the same file.

    `key` and `attempt` are those of the call. `about`: its tenant, session, turn and id, of a tool that knows them.
    """
    line = {
        "line": what,
        "tool": name,
        "label": str(arguments.get("label", "")),
        "key": key,
        "attempt": attempt,
        **about,
        "arguments": hash_of(arguments),
        "pid": os.getpid(),
        "mono": time.monotonic(),
        "wall": time.time(),
    }
    file = os.open(folder / EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


class Tail:
    """The calls that take effect, of those that were written down since this was made."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / EFFECTS
        self._at = self._file.stat().st_size if self._file.exists() else 0
        self._open: set[tuple[str, int]] = set()

    def takes_effect(self, source: str) -> bool:
        """Returns True if a call of this server has begun, and has not come to its end."""
        if self._file.exists():
            with self._file.open("rb") as file:
                file.seek(self._at)
                *whole, rest = file.read().split(b"\n")
                self._at = file.tell() - len(rest)
            for line in map(json.loads, whole):
                if line["tool"].startswith(f"{source}__"):
                    change = self._open.add if line["line"] == STARTED else self._open.discard
                    change((line["key"], line["attempt"]))
        return bool(self._open)


async def work(folder: Path, name: str, arguments: Mapping[str, object], *, key: str, attempt: int) -> str:
    """Does what a tool of a server does: it takes effect, takes its time, and returns its result."""
    label = str(arguments["label"])
    write_down(folder, STARTED, name, arguments, key=key, attempt=attempt)
    await asyncio.sleep(seconds_of(label))
    write_down(folder, DONE, name, arguments, key=key, attempt=attempt)
    return result_of(name, label)
