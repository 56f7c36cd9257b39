"""Takes up turns whose lease this replica took in a commit that was stored too late for its caller.

The caller got UNAVAILABLE. Without this, the turn would rest until the lease has lapsed, because no owner knows of it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from turnkeeper import lease_clock
from turnkeeper.engine.eventlog.lease import OWNER_PATIENCE
from turnkeeper.engine.execution.attempt import Assignment
from turnkeeper.engine.execution.rooms import Room
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.rules.messages import LeaseOffer
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Changeset, Committed

PAUSE = 0.25
"""Seconds between two tries to renew such a lease, or to give it back, while the database is unavailable."""

logger = logging.getLogger(__name__)


class LateLeases:
    """Part of the worker."""

    def __init__(
        self,
        services: RunServices,
        *,
        offer: LeaseOffer,
        reserve: Callable[[str], AbstractContextManager[Room]],
        start: Callable[[Assignment], None],
    ) -> None:
        """`offer`, `reserve` and `start` are the worker's."""
        self._services = services
        self._offer = offer
        self._reserve = reserve
        self._start = start

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Waits for the results of such commits, each in a task of the group, until cancelled."""
        while True:
            changeset = await self._services.log_writer.late_leases.get()
            group.create_task(self._take_up(changeset))

    async def _take_up(self, changeset: Changeset) -> None:
        began = time.monotonic()
        about = {"session": changeset.session_id, "turn": changeset.head.active_turn}
        try:
            result = await self._services.log_writer.late_result(changeset)
            if isinstance(result, Committed):
                seconds = time.monotonic() - began
                follows = await self._run_or_give_back(changeset, result.fence)
                logger.info(
                    "a turn was stored %.1f s after its caller got UNAVAILABLE: %s", seconds, follows, extra=about
                )
        except Exception:
            logger.exception(
                "a turn that was stored late was not taken up: a replica runs it once its lease has lapsed", extra=about
            )

    async def _run_or_give_back(self, changeset: Changeset, fence: int) -> str:
        """Runs the turn here, or lets any replica claim it if there is no room. Returns what follows, for the log."""
        key, owner, leases = changeset.session_key, self._offer.owner, self._services.leases
        until = lease_clock.now() + OWNER_PATIENCE
        while True:
            sent_at = lease_clock.now()
            try:
                with self._reserve(changeset.tenant) as room:
                    if not room.is_free:
                        await leases.give_back(key, owner=owner, fence=fence)
                        return "this replica has no room, and any other may claim it"
                    if not await leases.renew(key, owner=owner, fence=fence, lease=self._offer.lease):
                        return "its lease has lapsed, and any replica may claim it"
                    turn_id = changeset.head.active_turn or ""
                    turns = {turn.id: turn for turn in (*changeset.turns, *changeset.new_turns)}
                    agent = turns[turn_id].agent if turn_id in turns else ""
                    self._start(
                        Assignment(key=key, agent=agent, turn_id=turn_id, fence=fence, taken_at=sent_at, is_begun=True)
                    )
                    return "it runs now"
            except ServiceUnavailable:
                if sent_at > until:
                    raise
                await asyncio.sleep(PAUSE)
