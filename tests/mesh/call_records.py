"""What the callers of a run record: how many calls they made, and a line for each that did not go as promised."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from turnkeeper_client.errors import SessionError, TransportError, TurnkeeperError
from turnkeeper_client.pb.v1.error_pb2 import RETRY_ADVICE_SAME_CALL

REPEATED: Final = "repeated"
"""A call that its caller made again, as its error advised."""
FAILED: Final = "failed"
"""A call that failed in the end."""
INEXACT: Final = "inexact"
"""A stream that was not the log, or a text that was not the model's."""
FOREIGN: Final = "foreign"
"""Something of another tenant's that a caller was given."""
LINES: Final = "callers.jsonl"
COUNTS: Final = "counts.json"
PATIENCE: Final = 60.0
"""Seconds after its first error in which a call must have an answer."""
_LEAST_PAUSE: Final = 0.2

T = TypeVar("T")


class CallRecords:
    """The records of all callers, in the folder of the run."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._folder = folder
        self._file = (folder / LINES).open("a", encoding="utf-8")

    def line(self, what: str, *, call: str, error: str) -> None:
        self._file.write(json.dumps({"what": what, "call": call, "error": error, "wall": time.time()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        (self._folder / COUNTS).write_text(json.dumps(self.counts), encoding="utf-8")
        self._file.close()

    async def answered(self, name: str, make: Callable[[], Awaitable[T]]) -> T | None:
        """Makes a unary call, and again as its error advises, for PATIENCE seconds from the first error on.

        Returns None if it failed. `make` makes the same call each time, with the same request id.
        """
        first: float | None = None
        self.counts["unary"] += 1
        while True:
            try:
                return await make()
            except (SessionError, TransportError) as error:
                first = first or time.monotonic()
                if not await self.repeats(name, error, until=first + PATIENCE):
                    self.line(FAILED, call=name, error=repr(error))
                    return None

    async def repeats(self, name: str, error: TurnkeeperError, *, until: float) -> bool:
        """Waits as the error advises, and returns True, if the guide asks for the same call again.

        That is by the error's advice, or because no answer came. Returns False then, too, once it is `until`.
        """
        if not _may_be_repeated(error) or time.monotonic() > until:
            return False
        self.line(REPEATED, call=name, error=repr(error))
        await asyncio.sleep(_pause(error))
        return True


def read(folder: Path) -> tuple[Mapping[str, int], list[dict[str, Any]]]:
    """Returns the counts and the lines of a run. Raises OSError if the callers did not end."""
    lines = (folder / LINES).read_text(encoding="utf-8").splitlines()
    return json.loads((folder / COUNTS).read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def _may_be_repeated(error: TurnkeeperError) -> bool:
    if isinstance(error, SessionError):
        return error.retry == RETRY_ADVICE_SAME_CALL
    return isinstance(error, TransportError)


def _pause(error: TurnkeeperError) -> float:
    advised = error.retry_after if isinstance(error, SessionError) else None
    return max(advised.total_seconds() if advised else 0.0, _LEAST_PAUSE)
