"""Expires approvals past their `expire_time`, and warns of those that come near it. The replicas share the work."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Protocol, TypeAlias

from turnkeeper.domain.approval import Approval
from turnkeeper.domain.turn import TurnKey
from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.errors import ServiceUnavailable, SessionContended
from turnkeeper.store.changeset import Snapshot
from turnkeeper.store.maintenance import Maintenance

TURNS_AT_ONCE = 64
"""Turns that are read together, at most, and whose approvals are then expired at the same time."""
HELD_BACK = timedelta(milliseconds=2)
"""A turn goes on so much later for each approval that is left to expire: run at once, the turns would take the machine
from it. A replica expires some 700 a second.
"""
MOST_HELD_BACK = timedelta(seconds=30)
"""A turn goes on later by this much, at most."""
READS_AHEAD = 2
"""So many times TURNS_AT_ONCE are under way: while some are stored, the next ones are read and decided."""

logger = logging.getLogger(__name__)


Act: TypeAlias = Callable[[Approval, Snapshot | None], Awaitable[None]]
"""`Approvals.announce_expiring`, or a function like it."""


class Expire(Protocol):
    """`Approvals.expire`, or a function like it."""

    async def __call__(self, approval: Approval, snapshot: Snapshot | None, *, wake: timedelta) -> None: ...


class Expirer:
    """Expires lapsed approvals at intervals, and warns before. One on every replica: each begins with its share."""

    def __init__(
        self,
        store: Maintenance,
        *,
        expire: Expire,
        announce: Act,
        interval: JitteredInterval,
    ) -> None:
        self._store = store
        self._expire = expire
        self._announce = announce
        self._interval = interval

    async def run(self) -> None:
        """Expires and warns at each interval until it is cancelled."""
        await every(self._interval, self.expire_and_warn, failure="lapsed approvals not expired")

    async def expire_and_warn(self) -> None:
        """Expires all lapsed approvals, then warns of those that will expire soon. Raises ServiceUnavailable."""
        await self.expire_lapsed()
        await self.warn()

    async def warn(self) -> None:
        """Stores the warnings that are due. A turn that fails delays no other; the next call tries it again.

        Raises ServiceUnavailable if the database is unavailable.
        """
        failed: dict[TurnKey, BaseException] = {}
        async for page in self._store.expiring_approvals():
            failed |= await self._of_each_turn(page, self._announce, but=failed)
        _log_failures(list(failed.values()), "will soon expire: not announced")

    async def expire_lapsed(self) -> None:
        """Expires all lapsed approvals. A turn that fails delays no other; the next call tries it again.

        Raises ServiceUnavailable if the database is unavailable.
        """
        failed: dict[TurnKey, BaseException] = {}
        async for page in self._store.lapsed_approvals():
            expire = partial(self._expire, wake=min(HELD_BACK * page.left, MOST_HELD_BACK))
            failed |= await self._of_each_turn(page.approvals, expire, but=failed)
        _log_failures(list(failed.values()), "have lapsed: not expired")

    async def _of_each_turn(
        self, approvals: Sequence[Approval], act: Act, *, but: Collection[TurnKey]
    ) -> Mapping[TurnKey, BaseException]:
        """Acts on one of the approvals of each turn, but of those named. Returns the errors of turns that failed."""
        one_of = {TurnKey(approval.session_key, approval.turn_id): approval for approval in approvals}
        turns = [turn for turn in one_of if turn not in but]
        groups = [turns[first : first + TURNS_AT_ONCE] for first in range(0, len(turns), TURNS_AT_ONCE)]
        limit = asyncio.Semaphore(READS_AHEAD)

        async def of_group(group: Sequence[TurnKey]) -> Mapping[TurnKey, BaseException]:
            async with limit:
                try:
                    snapshots = await self._store.snapshots(group)
                except Exception as error:  # noqa: BLE001 - logged with the others; the next call tries again
                    return dict.fromkeys(group, error)
                acts = (act(one_of[turn], snapshots.get(turn)) for turn in group)
                results = await asyncio.gather(*acts, return_exceptions=True)
            return {turn: error for turn, error in zip(group, results, strict=True) if error is not None}

        failed: dict[TurnKey, BaseException] = {}
        for errors in await asyncio.gather(*map(of_group, groups)):
            failed |= errors
        return failed


def _log_failures(failed: list[BaseException], what: str) -> None:
    """Logs how many turns failed, and the first defect among the failures."""
    defects = [error for error in failed if not isinstance(error, ServiceUnavailable | SessionContended)]
    if defects:
        logger.error(
            "approvals of %d turns %s, because of a defect; trying again at each interval",
            len(defects),
            what,
            exc_info=defects[0],
        )
    if len(failed) > len(defects):
        logger.warning(
            "approvals of %d turns %s: the database is unavailable, too many callers change their sessions, or they "
            "need a newer version; trying again at each interval",
            len(failed) - len(defects),
            what,
        )
