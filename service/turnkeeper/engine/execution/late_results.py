"""Tools that run on after their turn waits for them no longer: each is awaited, and its result kept beside the call.

Either their owner has lost its lease, or their time is over. Both leave the call's outcome unknown.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from turnkeeper.domain.tool import UNTOLD, Call
from turnkeeper.engine.eventlog.lease import LeaseLost
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.execution.detached import stop
from turnkeeper.engine.execution.tool_runner import OrphanedCall
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ServiceUnavailable, SessionContended
from turnkeeper.store.contract import SessionStore
from turnkeeper.tools.toolbox import Finished

RETRY_PAUSE = 1.0
"""Seconds between tries to store a result while the database is unavailable, or others change the session."""

logger = logging.getLogger(__name__)


class LateResults:
    """Awaits the orphaned calls of this replica."""

    def __init__(
        self, store: SessionStore, log_writer: LogWriter, *, detached: set[asyncio.Task[Any]] | None = None
    ) -> None:
        """`detached` holds the cancelled tools that do not end in time."""
        self._store = store
        self._log_writer = log_writer
        self._detached = set() if detached is None else detached
        self.tasks: set[asyncio.Task[None]] = set()
        """One for each call whose result is not stored yet."""

    def add(self, orphans: Iterable[OrphanedCall]) -> None:
        """Awaits each of the calls in a task of its own."""
        for orphan in orphans:
            task = asyncio.create_task(self.await_late_result(orphan))
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Cancels the calls that still run, and waits until they have ended."""
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks))

    async def await_late_result(self, orphan: OrphanedCall) -> None:
        """Waits for the tool's end, then stores its result: as an event while the fence that started the call still
        holds, otherwise beside the call. A result that does not tell whether the tool took effect is not stored.

        Tries again while the database is unavailable. A cancellation cancels the tool too; what it returns within
        CANCEL_TIME is stored, if the database takes it at once. Raises ServiceUnavailable if only a newer version can
        read the call.
        """
        call = orphan.call
        try:
            await asyncio.wait([orphan.tool])  # to await the tool itself would leave the cancellation to it alone
        except asyncio.CancelledError:
            if not await stop(orphan.tool, self._detached):
                raise
        finished = orphan.tool.result()
        if finished.result.outcome in UNTOLD:
            return
        while True:
            try:
                if await self._record_under_fence(call, finished):
                    return
                kept = await self._store.keep_late_result(
                    call.session_key,
                    call.id,
                    attempt=call.attempt,
                    fence=call.fence,
                    result=finished.result,
                )
            except (ServiceUnavailable, SessionContended) as error:
                if error.needs_newer_version or _is_cancelled():
                    raise
                await asyncio.sleep(RETRY_PAUSE)
                continue
            logger.info(
                "tool %s returned after its time was over or its turn's lease was lost; its result is %s",
                call.tool,
                "stored beside the call, for the person who decides on its outcome" if kept else "not needed any more",
                extra={"session": call.session_id, "turn": call.turn_id},
            )
            return

    async def _record_under_fence(self, call: Call, finished: Finished) -> bool:
        """Returns True if the result was stored as the owner's. The lease is not extended: its owner has stopped.

        Returns False also if only a newer version can read the session: beside the call, the result needs no reading.
        """

        def decide(uow: UnitOfWork) -> bool:
            return turn_rules.record_late_result(uow, call, finished)

        try:
            stored = await self._log_writer.append_as_owner(
                call.session_key, decide, turn_id=call.turn_id, fence=call.fence
            )
        except LeaseLost:
            return False
        except ServiceUnavailable as error:
            if error.needs_newer_version:
                return False
            raise
        return isinstance(stored, Stored) and stored.value

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Logs the error of a task that failed."""
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "a tool's late result was not stored and is lost: the call's outcome stays unknown until decided",
                exc_info=error,
            )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
