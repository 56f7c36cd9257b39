"""What a scripted model was asked, and how each answer ended."""

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
    """One chat request. `rule` counts from 1, 0 when none applied; `headers` never holds a credential."""

    number: int
    rule: int
    outcome: Outcome
    body: bytes
    headers: Mapping[str, str]


class Exchanges:
    """The latest ones, oldest first. With `file`, every request's body is also a line there, from its beginning on."""

    def __init__(self, *, keep: int, file: Path | None = None) -> None:
        self._file = file
        self._kept: deque[Exchange] = deque(maxlen=keep)
        self._count = 0
        self._changed = asyncio.Event()

    def begin(self, *, rule: int, body: bytes, headers: Mapping[str, str]) -> int:
        """Record a request whose body is JSON; its number. Raises OSError when the file cannot be written."""
        self._count += 1
        exchange = Exchange(number=self._count, rule=rule, outcome=Outcome.PLAYING, body=body, headers=headers)
        self._kept.append(exchange)
        if self._file is not None:
            with self._file.open("ab") as lines:
                lines.write(orjson.dumps(orjson.loads(body)) + b"\n")
        self._tell()
        return self._count

    def end(self, number: int, outcome: Outcome) -> None:
        for place, exchange in enumerate(self._kept):
            if exchange.number == number:
                self._kept[place] = replace(exchange, outcome=outcome)
        self._tell()

    def all(self) -> list[Exchange]:
        return list(self._kept)

    def clear(self) -> None:
        self._kept.clear()
        self._tell()

    async def until(self, condition: Callable[[Sequence[Exchange]], bool]) -> list[Exchange]:
        """Wait until the record fulfils `condition`."""
        while not condition(self._kept):
            await self._changed.wait()
        return self.all()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
