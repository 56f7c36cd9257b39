"""Requests of a tool's server what became of a call whose result is missing."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from turnkeeper.domain.tool import Call, ReconciledState
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.durations import jittered
from turnkeeper.tools.contract import NoAnswerYet, Reconciled
from turnkeeper.tools.toolbox import Toolbox

FIRST_PAUSE: Final = timedelta(milliseconds=250)
"""Between the first two requests. It doubles with each, up to LONGEST_PAUSE."""
LONGEST_PAUSE: Final = timedelta(seconds=5)

logger = logging.getLogger(__name__)


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
        log = _LinesOfRequests(call)
        now = time.monotonic()
        until, last = now + self._patience, now + self._patience + running_for.total_seconds()
        pause = FIRST_PAUSE
        while True:
            answer = await self._toolbox.reconcile(call, caller=self._caller)
            if isinstance(answer, Reconciled):
                log.ended(answer.state)
                return answer
            wait = jittered(pause, self._jitter())
            if isinstance(answer, NoAnswerYet):
                log.unanswered(answer)
            else:
                wait = answer.retry_after
                until = min(last, time.monotonic() + wait.total_seconds() + self._patience)
            if time.monotonic() + wait.total_seconds() >= until:
                log.ended(ReconciledState.NO_ANSWER)
                return Reconciled(state=ReconciledState.NO_ANSWER)
            pause = min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(wait.total_seconds())


class _LinesOfRequests:
    """The lines about one call: a WARNING for the first request without an answer, and one for how it ended then."""

    def __init__(self, call: Call) -> None:
        self._tool = call.tool
        self._about = {"session": call.session_id, "turn": call.turn_id, "tool_call": call.id}
        self._unanswered = 0

    def unanswered(self, answer: NoAnswerYet) -> None:
        """Logs a request that was not answered."""
        level = logging.DEBUG if self._unanswered else logging.WARNING
        self._unanswered += 1
        logger.log(
            level,
            "the server of tool %s does not tell what became of a call (%s): the request is sent again until its "
            "time is over, then a person decides",
            *(self._tool, answer.reason),
            extra=self._about,
        )

    def ended(self, state: ReconciledState) -> None:
        """Logs how the requests ended, if one of them was not answered."""
        if self._unanswered:
            logger.info(
                "what became of a call of tool %s is %s, after %d requests without an answer",
                *(self._tool, state.value, self._unanswered),
                extra=self._about,
            )
