"""Records the requests that a scripted model received, and how each answer ended."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import orjson


class Outcome(StrEnum):
    """How an answer ended. FAILED: the scripted failure was played. DISCONNECTED: the caller left before its end."""

    PLAYING = "playing"
    ANSWERED = "answered"
    FAILED = "failed"
    DISCONNECTED = "disconnected"
    NO_RULE = "no_rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One chat request."""

    number: int
    """From 1, in the order of arrival."""
    rule: int
    """The rule that answered, from 1; 0 if none applied."""
    outcome: Outcome
    body: bytes
    headers: Mapping[str, str]
    """Without any credential."""


class Exchanges:
    """The latest exchanges, oldest first."""

    def __init__(self, *, keep: int, file: Path | None = None) -> None:
        """Keeps `keep` exchanges. Appends each request's body to `file`, a JSON line each, when it arrives."""
        self._file = file
        self._latest: deque[Exchange] = deque(maxlen=keep)
        self._count = 0
        self._changed = asyncio.Event()

    def begin(self, *, rule: int, body: bytes, headers: Mapping[str, str]) -> int:
        """Records a request whose body is JSON; returns its number. Raises OSError if the file cannot be written."""
        self._count += 1
        exchange = Exchange(number=self._count, rule=rule, outcome=Outcome.PLAYING, body=body, headers=headers)
        self._latest.append(exchange)
        if self._file is not None:
            with self._file.open("ab") as lines:
                lines.write(orjson.dumps(orjson.loads(body)) + b"\n")
        self._notify()
        return self._count

    def end(self, number: int, outcome: Outcome) -> None:
        """Records how the answer ended."""
        for index, exchange in enumerate(self._latest):
            if exchange.number == number:
                self._latest[index] = replace(exchange, outcome=outcome)
        self._notify()

    def all(self) -> list[Exchange]:
        """Returns the exchanges, oldest first."""
        return list(self._latest)

    def clear(self) -> None:
        """Drops all exchanges; the numbers go on."""
        self._latest.clear()
        self._notify()

    async def until(self, condition: Callable[[Sequence[Exchange]], bool]) -> list[Exchange]:
        """Waits until `condition` is True of the exchanges; returns them."""
        while not condition(self._latest):
            await self._changed.wait()
        return self.all()

    def _notify(self) -> None:
        """Notifies the callers of `until`."""
        self._changed.set()
        self._changed = asyncio.Event()
