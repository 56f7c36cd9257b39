"""Claims turns under leases, runs them, renews their leases, and hands them over when the server drains.

A turn's run belongs to the worker's task group, never to an RPC: it goes on whatever its caller does (promise I15).
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from turnkeeper import lease_clock
from turnkeeper.admission.gate import CURRENT
from turnkeeper.domain.event import Event
from turnkeeper.durations import jittered
from turnkeeper.engine.eventlog.lease import CHECK_EVERY, HeldLease, HeldLeases, LeaseLost
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot
from turnkeeper.engine.execution.attempt import Assignment, TurnAttempt
from turnkeeper.engine.execution.late_leases import LateLeases
from turnkeeper.engine.execution.late_results import LateResults
from turnkeeper.engine.execution.rooms import Room, Rooms
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.rules.messages import LeaseOffer
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.faults import fault
from turnkeeper.isolation import ends_task
from turnkeeper.store.changeset import NONE_BUSY, Busy, Claim, LogEnd
from turnkeeper.telemetry import logs

TURN_BYTES = 60 * 1024
"""Memory of a turn that runs, about: its tasks, its objects, and its model's connection with what waits in its window.

What its conversation holds is counted besides.
"""
CUT_TIME = 5.0
"""Seconds for the hand-over of turns that are cut. A turn not handed over by then lapses, and is taken over later."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Worker:
    """Runs at most `concurrency` turns at a time."""

    def __init__(
        self,
        services: RunServices,
        held_leases: HeldLeases,
        *,
        offer: LeaseOffer,
        concurrency: int,
        poll: timedelta,
    ) -> None:
        """`offer` is what this replica offers as an owner.

        `poll` is the time between looks for claimable turns and for cancellations when no notification comes.
        """
        self._services = services
        self.held_leases = held_leases
        self.rooms = Rooms(concurrency, running=lambda: len(held_leases), most_of_agent=services.agents.most_turns)
        self._is_starved = False
        """True if the last look for claimable turns had no room for one, or for those of some agents or tenants."""
        self._late_results = LateResults(services.store, services.log_writer, detached=services.detached)
        self._late_leases = LateLeases(services, offer=offer, reserve=self.reserve, start=self._start)
        self._group: asyncio.TaskGroup | None = None
        self._poll = poll.total_seconds()
        self.offer = offer
        self.draining = False
        self._backlog = services.log_writer.load.backlog
        self._backlog.room = lambda: self.rooms.left

    # --- for the verbs -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reserve(self, tenant: str = "") -> Iterator[Room]:
        """Reserves room for one more turn, of this tenant, while the caller stores the commit that takes its lease."""
        try:
            with self.rooms.reserve(tenant, is_open=not self.draining) as room:
                yield room
        finally:
            self._claim_if_starved()

    async def shield(self, work: Coroutine[None, None, T]) -> T:
        """Returns the work's result. The work goes on to its end even if the caller is cancelled.

        Raises ServiceUnavailable, without beginning it, if the worker has stopped.
        """
        if self._group is None:
            raise RuntimeError("the worker does not run")
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        whole = _set_result(result, work)
        try:
            self._group.create_task(whole)
        except RuntimeError:  # the server stops
            whole.close()
            work.close()
            raise ServiceUnavailable from None
        return await asyncio.shield(result)

    def adopt(self, cached: CachedSnapshot, *, taken_at: float, events: Sequence[Event], before: LogEnd) -> None:
        """Runs a turn whose lease was taken by the commit that accepted it.

        `cached` is the session as that commit left it, `events` are the ones that it stored behind `before`, and
        `taken_at` is when it was sent, in monotonic seconds.
        """
        turn = cached.snapshot.turn
        if turn is None:
            raise LookupError("the snapshot has no turn")
        fence = cached.snapshot.head.fence
        self._start(
            Assignment(
                key=turn.session_key,
                agent=turn.agent,
                turn_id=turn.id,
                fence=fence,
                taken_at=taken_at,
                cached=cached,
                is_begun=True,
                events=events,
                before=before,
            )
        )

    def notify(self) -> None:
        """Makes the worker look for claimable turns now."""
        self._services.log_writer.claimable.set()

    # --- running -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claims and runs turns until cancelled. Every run is then stopped where it is, and its lease lapses."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._claim_turns())
                group.create_task(self._late_leases.run(group))
                group.create_task(self._renew_leases())
                group.create_task(self._watch_cancellations())
        finally:
            await self._late_results.stop()

    async def drain(self, *, grace: float) -> None:
        """Claims no more, lets each turn come to the end of its step, and hands it over; takes `grace` seconds at most.

        Turns that are not handed over by then are cut: their unfinished messages are dropped, and they are handed over.
        """
        self.draining = True
        for lease in self.held_leases:
            lease.releasing = True
            lease.notified.set()
        tasks = [*self._runs(), *self._late_results.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for lease in self.held_leases:
            lease.cut = True
            lease.notified.set()
        if runs := self._runs():
            await asyncio.wait(runs, timeout=CUT_TIME)

    def _runs(self) -> list[asyncio.Task[None]]:
        return [lease.run for lease in self.held_leases if lease.run is not None]

    def _start(self, assignment: Assignment) -> None:
        if self._group is None:
            raise RuntimeError("the worker does not run")
        lease = HeldLease(
            key=assignment.key,
            turn_id=assignment.turn_id,
            owner=self.offer.owner,
            fence=assignment.fence,
            duration=self.offer.lease,
            renewed_at=assignment.taken_at,
            releasing=self.draining,
        )
        self.held_leases.add(lease)
        self.rooms.began(agent=assignment.agent, tenant=assignment.key.tenant)
        self._backlog.began(assignment.turn_id)
        lease.run = self._group.create_task(self._run_turn(assignment, lease))

    async def _run_turn(self, assignment: Assignment, lease: HeldLease) -> None:
        services, session_id, turn_id = self._services, assignment.key.session_id, assignment.turn_id
        CURRENT.set(None)  # from here on the turn is its own work, whatever becomes of the call that brought it
        attempt = TurnAttempt(services, assignment, lease=lease, late_results=self._late_results)
        services.metrics.turn_began()
        try:
            with (
                logs.about(session=session_id, turn=turn_id, fence=assignment.fence),
                services.memory.held(TURN_BYTES),
                services.feeds.attach(assignment.key) as feed,
            ):
                await attempt.run(feed)
        except LeaseLost:
            logger.warning(
                "a turn's lease was lost: its run stops here, and its new owner goes on",
                extra={"session": session_id, "turn": turn_id},
            )
        except ServiceUnavailable as error:
            logger.warning(
                "%s: a turn's run stops here, and a replica takes the turn over once its lease has lapsed",
                "only a newer version can read the session"
                if error.needs_newer_version
                else "the database is unavailable for too long",
                extra={"session": session_id, "turn": turn_id},
            )
        except BaseException as error:
            if ends_task(error):
                raise
            logger.exception(
                "a turn's run failed because of a defect: the turn is tried once more, on another replica if there is "
                "one, and then fails with RUN_DEFECT",
                extra={"session": session_id, "turn": turn_id},
            )
            await attempt.give_back_broken()
            self.notify()
        finally:
            services.metrics.turn_ended()
            self.held_leases.remove(lease)
            self.rooms.ended(agent=assignment.agent, tenant=assignment.key.tenant)
            self._claim_if_starved()

    def _claim_if_starved(self) -> None:
        if self._is_starved:
            self.notify()

    # --- claims, leases, cancellations -------------------------------------------------------------------------

    async def _claim_turns(self) -> None:
        claimable = self._services.log_writer.claimable
        while not self.draining:
            claimable.clear()
            self._is_starved = False
            busy = self.rooms.busy
            with self.reserve() as room:
                claim = await self._claim(busy) if room.is_free else None
                if claim is not None:
                    await self._start_claimed(claim)
                    if claim.more:
                        continue
            self._is_starved = not room.is_free or busy != NONE_BUSY
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(jittered(self._poll, self._services.jitter())):
                    await claimable.wait()

    async def _claim(self, busy: Busy) -> Claim | None:
        try:
            return await self._services.leases.claim(self.offer.owner, lease=self.offer.lease, without=busy)
        except Exception as error:  # noqa: BLE001 - claimed again after the next poll
            logger.warning(
                "turns not claimed (%s): trying again within %.2g s", type(error).__name__, 1.25 * self._poll
            )
            return None

    async def _start_claimed(self, claim: Claim) -> None:
        """Runs a claimed turn, or gives it back if its agent or tenant has become busy meanwhile."""
        fault("claim.after")
        if self.rooms.agents.is_full(claim.agent) or self.rooms.tenants.is_full(claim.tenant):
            await self._give_back(claim)
            return
        if claim.lapses:
            self._services.metrics.takeover("LEASE_LAPSED", delay=claim.late_by.total_seconds())
            logger.info(
                "took over a turn whose owner's lease had lapsed",
                extra={"session": claim.session_id, "turn": claim.turn_id},
            )
        self._start(
            Assignment(
                key=claim.session_key,
                agent=claim.agent,
                turn_id=claim.turn_id,
                fence=claim.fence,
                taken_at=claim.sent_at,
                lapses=claim.lapses,
                lost_owners=claim.lost_owners,
                broken_runs=claim.broken_runs,
            )
        )

    async def _give_back(self, claim: Claim) -> None:
        try:
            await self._services.leases.give_back(claim.session_key, owner=self.offer.owner, fence=claim.fence)
        except Exception as error:  # noqa: BLE001 - the worker goes on, and the lease lapses
            logger.warning(
                "the lease of a turn for which there was no room was not released (%s): a replica takes the turn over "
                "once the lease has lapsed",
                type(error).__name__,
                extra={"session": claim.session_id, "turn": claim.turn_id},
            )

    async def _renew_leases(self) -> None:
        """Renews the leases that are due, all at once. Cancels the run of a turn whose lease is lost."""
        while True:
            await asyncio.sleep(self.offer.lease.total_seconds() * CHECK_EVERY)
            if due := [lease for lease in self.held_leases if lease.renewal_due]:
                await self._renew_all(due)

    async def _renew_all(self, due: Sequence[HeldLease]) -> None:
        """Renews these leases. One of which it is not known in time whether it is renewed is then renewed alone.

        For the head of one may be locked, by the transaction of a killed server, and the others would wait for it.
        """
        by_key, sent_at = {lease.key: lease for lease in due}, lease_clock.now()
        fault("renew.before")
        try:
            known = await self._services.leases.renew_all(
                {key: lease.fence for key, lease in by_key.items()}, owner=self.offer.owner, lease=self.offer.lease
            )
        except Exception as error:  # noqa: BLE001 - tried again, until the leases lapse
            known = {}
            logger.warning(
                "the leases of %d turns were not renewed (%s): trying again until they lapse",
                *(len(due), type(error).__name__),
            )
        for key, lease in by_key.items():
            if key in known:
                self._renewed(lease, sent_at, is_ours=known[key])
            elif self._group is not None and not lease.is_renewed_alone:
                lease.is_renewed_alone = True
                self._group.create_task(self._renew_alone(lease))

    async def _renew_alone(self, lease: HeldLease) -> None:
        sent_at = lease_clock.now()
        try:
            is_ours = await self._services.leases.renew(
                lease.key, owner=self.offer.owner, fence=lease.fence, lease=self.offer.lease
            )
        except Exception as error:  # noqa: BLE001 - tried again, until the lease lapses
            logger.warning(
                "a turn's lease was not renewed (%s): trying again until it lapses",
                type(error).__name__,
                extra={"session": lease.key.session_id, "turn": lease.turn_id},
            )
            return
        finally:
            lease.is_renewed_alone = False
        self._renewed(lease, sent_at, is_ours=is_ours)

    def _renewed(self, lease: HeldLease, sent_at: float, *, is_ours: bool) -> None:
        if is_ours:
            lease.renewed(sent_at)
        else:
            self.held_leases.lose(lease)

    async def _watch_cancellations(self) -> None:
        """Notifies the runs whose cancellation another replica stored. Those stored here are notified at once."""
        pause = min(1.0, self._poll)
        while True:
            await asyncio.sleep(pause)
            keys = [lease.key for lease in self.held_leases]
            if not keys:
                continue
            try:
                cancelled = await self._services.leases.cancelled_among(keys)
            except Exception as error:  # noqa: BLE001 - owners also read the session at each step
                logger.warning("cancellations not read (%s): trying again in %.2g s", type(error).__name__, pause)
                continue
            for lease in self.held_leases:
                if lease.key.session_id in cancelled:
                    lease.notified.set()


async def _set_result(result: asyncio.Future[T], work: Coroutine[None, None, T]) -> None:
    try:
        result.set_result(await work)
    except BaseException as error:
        if ends_task(error):
            result.cancel()
            raise
        result.set_exception(error)
        result.exception()  # marks it as retrieved: asyncio logs nothing if the caller is gone
