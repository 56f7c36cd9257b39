"""Expires approvals past their `expire_time`. The replicas share the work."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from turnkeeper.domain.approval import Approval
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.replica.schedule import JitteredInterval, every
from turnkeeper.errors import ServiceUnavailable, SessionContended
from turnkeeper.store.contract import Maintenance

TURNS_AT_ONCE = 96
"""Turns whose approvals are expired at the same time. The store commits changesets in groups of 32: while one group is
committed, the next ones are read and decided.
"""

logger = logging.getLogger(__name__)


class Expirer:
    """Expires lapsed approvals at intervals. One on every replica: each begins with its share."""

    def __init__(
        self,
        store: Maintenance,
        *,
        expire: Callable[[Approval], Awaitable[object]],
        interval: JitteredInterval,
    ) -> None:
        """`expire` ends the lapsed approvals of one turn, given one of them."""
        self._store = store
        self._expire = expire
        self._interval = interval

    async def run(self) -> None:
        """Expires at each interval until it is cancelled."""
        await every(self._interval, self.expire_lapsed, failure="lapsed approvals not expired")

    async def expire_lapsed(self) -> None:
        """Expires all lapsed approvals. A turn that fails delays no other; the next call tries it again.

        Raises ServiceUnavailable if the database is unavailable.
        """
        failed: dict[tuple[SessionKey, str], BaseException] = {}
        limit = asyncio.Semaphore(TURNS_AT_ONCE)
        async for page in self._store.lapsed_approvals():
            turns = {(approval.session_key, approval.turn_id): approval for approval in page}
            turns = {turn: approval for turn, approval in turns.items() if turn not in failed}
            results = await asyncio.gather(
                *(self._expire_turn(approval, limit) for approval in turns.values()), return_exceptions=True
            )
            failed |= {
                turn: result for turn, result in zip(turns, results, strict=True) if isinstance(result, BaseException)
            }
        self._log_failures(list(failed.values()))

    async def _expire_turn(self, approval: Approval, limit: asyncio.Semaphore) -> None:
        async with limit:
            await self._expire(approval)

    def _log_failures(self, failed: list[BaseException]) -> None:
        """Logs how many turns failed, and the first defect among the failures."""
        defects = [error for error in failed if not isinstance(error, ServiceUnavailable | SessionContended)]
        if defects:
            logger.error(
                "lapsed approvals of %d turns not expired because of a defect; trying again at each interval",
                len(defects),
                exc_info=defects[0],
            )
        if len(failed) > len(defects):
            logger.warning(
                "lapsed approvals of %d turns not expired: the database is unavailable, too many callers change their "
                "sessions, or they need a newer version; trying again at each interval",
                len(failed) - len(defects),
            )
