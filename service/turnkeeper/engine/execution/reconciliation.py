"""Requests of a tool's server what became of a call whose result is missing."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from turnkeeper.domain.tool import Call, ReconciledState
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.durations import jittered
from turnkeeper.tools.contract import Reconciled
from turnkeeper.tools.toolbox import Toolbox

FIRST_PAUSE: Final = timedelta(milliseconds=250)
"""Between the first two requests. It doubles with each, up to LONGEST_PAUSE."""
LONGEST_PAUSE: Final = timedelta(seconds=5)


class Reconciler:
    """Requests answers for the calls of one turn."""

    def __init__(
        self, toolbox: Toolbox, *, caller: ToolCaller, patience: timedelta, jitter: Callable[[], float]
    ) -> None:
        """`patience`: how long an answer is waited for. `jitter` returns a random number from 0 to 1."""
        self._toolbox = toolbox
        self._caller = caller
        self._patience = patience.total_seconds()
        self._jitter = jitter

    async def answer(self, call: Call, *, running_for: timedelta) -> Reconciled:
        """Returns what the server of the call's tool tells; NO_ANSWER if none comes in time.

        While the server answers that the call runs, its time begins anew: for `running_for` at most, the tool's time.
        """
        now = time.monotonic()
        until, last = now + self._patience, now + self._patience + running_for.total_seconds()
        pause = FIRST_PAUSE
        while True:
            answer = await self._toolbox.reconcile(call, caller=self._caller)
            if isinstance(answer, Reconciled):
                return answer
            wait = jittered(pause, self._jitter())
            if answer is not None:
                wait = answer.retry_after
                until = min(last, time.monotonic() + wait.total_seconds() + self._patience)
            if time.monotonic() + wait.total_seconds() >= until:
                return Reconciled(state=ReconciledState.NO_ANSWER)
            pause = min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(wait.total_seconds())
