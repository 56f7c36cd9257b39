"""Claim turns under a lease, run them, let go of them.

A turn belongs to the worker's task group, never to an RPC: whatever its caller does, it goes on (promise I15).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import Event
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn
from turnkeeper.durations import jittered
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.writer import LeaseLost
from turnkeeper.engine.execution.late_results import OrphanedCall, see_off
from turnkeeper.engine.execution.lease import HeldLease
from turnkeeper.engine.execution.turn_run import RunServices, TurnRun
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import AgentConfigError, ServiceUnavailable
from turnkeeper.faults import fault
from turnkeeper.store.changeset import Claim, Conflict, Snapshot
from turnkeeper.telemetry import logs

CUT_TIME = 5.0
"""Seconds to hand over what was cut; a turn that is not handed over by then is taken over when its lease lapses."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A turn that this worker owns. `seen` is None when it must be read first; `said` is what the step that took it
    has put into the log."""

    key: SessionKey
    turn_id: str
    fence: int
    began: float
    seen: CachedSnapshot | None = None
    said: Sequence[Event] = ()
    lapses: int = 0


class Worker:
    """Runs at most `concurrency` turns at once."""

    def __init__(  # noqa: PLR0913 - the parts and times it is made of
        self,
        parts: RunServices,
        feeds: Feeds,
        *,
        owner: str,
        agent_of: Callable[[str, Turn], Awaitable[Agent | None]],
        session_cache: SessionCache,
        concurrency: int,
        lease: timedelta,
        poll: float,
        schema: int,
    ) -> None:
        """`poll` in seconds: how late a turn may be claimed that nobody hinted at."""
        self._parts = parts
        self._feeds = feeds
        self._agent_of = agent_of
        self._session_cache = session_cache
        self._concurrency = concurrency
        self._poll = poll
        self._held: dict[SessionKey, HeldLease] = {}
        self._tasks: dict[SessionKey, asyncio.Task[None]] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._reserved = 0
        self._starved = False
        self._hint = parts.log_writer.claimable
        self._group: asyncio.TaskGroup | None = None
        self.owner = owner
        self.lease = lease
        self.schema = schema
        self.draining = False

    # --- what the verbs use ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reserve(self) -> Iterator[bool]:
        """Room for one more turn, kept while the caller stores the step that takes it. False: there is none."""
        room = not self.draining and len(self._held) + self._reserved < self._concurrency
        self._reserved += room
        try:
            yield room
        finally:
            self._reserved -= room
            self._has_room()

    async def outlive(self, work: Coroutine[None, None, T]) -> T:
        """The work's result. When the caller goes away, the work goes on: what it stores, it also takes up."""
        if self._group is None:
            raise RuntimeError("the worker does not run")
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._group.create_task(_into(result, work))
        return await asyncio.shield(result)

    def adopt(self, seen: CachedSnapshot, *, began: float, said: Sequence[Event]) -> None:
        """Run a turn whose lease was taken in the step that stored it, with these events."""
        turn = seen.snapshot.turn
        if turn is None:
            raise LookupError("the snapshot has no turn")
        key, fence = turn.session_key, seen.snapshot.head.fence
        self._start(Work(key=key, turn_id=turn.id, fence=fence, began=began, seen=seen, said=said))

    def hint(self) -> None:
        """Something may be claimable now."""
        self._hint.set()

    def nudge(self, key: SessionKey) -> None:
        """Somebody wants something of a turn that may run here."""
        held = self._held.get(key)
        if held is not None:
            held.nudge.set()

    def holds(self, key: SessionKey) -> bool:
        """A turn of this session runs here, and nobody else can have it."""
        held = self._held.get(key)
        return held is not None and held.sure

    def held(self) -> list[HeldLease]:
        """The leases of the turns that run here."""
        return list(self._held.values())

    def lost(self, held: HeldLease) -> None:
        """Somebody else has it: its run ends here. While a step is under way, that one's verdict speaks."""
        if self._held.get(held.key) is held and not held.writes:
            held.lost = True
            self._tasks[held.key].cancel()

    # --- running -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; then every run is stopped where it is, and its lease lapses."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._claim())
                group.create_task(self._renew())
                group.create_task(self._look_for_wishes())
        finally:
            await self._stop_late()

    async def drain(self, *, grace: float) -> None:
        """Stop claiming, let each turn come to the end of its step, hand it over; at most `grace` seconds.

        What has not come to an end by then is cut: a model's message is given up, and its turn handed over.
        """
        self.draining = True
        for held in self._held.values():
            held.releasing = True
            held.nudge.set()
        tasks = [*self._tasks.values(), *self._late]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for held in self._held.values():
            held.cut = True
            held.nudge.set()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=CUT_TIME)

    async def _stop_late(self) -> None:
        for task in list(self._late):
            task.cancel()
        if self._late:
            await asyncio.wait(list(self._late))

    def _start(self, work: Work) -> None:
        if self._group is None:
            raise RuntimeError("the worker does not run")
        held = HeldLease(
            key=work.key,
            turn_id=work.turn_id,
            owner=self.owner,
            fence=work.fence,
            lease=self.lease,
            renewed_at=work.began,
            releasing=self.draining,
        )
        self._held[work.key] = held
        self._tasks[work.key] = self._group.create_task(self._run_turn(work, held))

    async def _run_turn(self, work: Work, held: HeldLease) -> None:
        metrics = self._parts.metrics
        metrics.turn_began()
        try:
            with (
                logs.about(session=work.key.session_id, turn=work.turn_id, fence=work.fence),
                self._feeds.attach(work.key) as feed,
            ):
                await self._attempt(work, held, feed)
        except LeaseLost:
            logger.warning("lost the lease of a turn", extra={"session": work.key.session_id, "turn": work.turn_id})
        except ServiceUnavailable:
            logger.warning("the database does not answer; a turn is left to its lease")
        except Exception:
            logger.exception("a turn's run failed", extra={"session": work.key.session_id, "turn": work.turn_id})
            await self._give_back(work)
        finally:
            metrics.turn_ended()
            if self._held.get(work.key) is held:
                del self._held[work.key]
                del self._tasks[work.key]
            self._has_room()

    def _has_room(self) -> None:
        """A look for turns that found no room for one is made again."""
        if self._starved:
            self.hint()

    async def _attempt(self, work: Work, held: HeldLease, feed: Feed) -> None:
        seen = work.seen
        if seen is None:
            seen = await self._persist(held, lambda: self._read(work))
        snapshot, turn = seen.snapshot, seen.snapshot.turn
        if turn is None or snapshot.head.fence != held.fence:
            raise LeaseLost
        error = turn_rules.lapse_limit_error(turn, lapses=work.lapses)
        if error is not None:
            await self._fail(snapshot, held, error)
            return
        agent = await self._persist(held, lambda: self._agent_of(work.key.tenant, turn))
        if agent is None:
            gone = AgentConfigError("The agent's pinned version is gone; start a new session.")
            await self._fail(snapshot, held, gone.to_event())
            return
        memory = self._session_cache.checkout(snapshot.session)
        try:
            memory.extend(work.said)
            await self._persist(held, lambda: memory.read(until=snapshot.head.last_seq))
            run = TurnRun(self._parts, lease=held, feed=feed, agent=agent, seen=seen, memory=memory)
            await self._run(run, agent, lapses=work.lapses, begun=work.seen is not None)
        finally:
            self._session_cache.checkin(snapshot.session, memory)

    async def _read(self, work: Work) -> CachedSnapshot:
        snapshot = await self._parts.store.snapshot(work.key, turn_id=work.turn_id)
        if snapshot is None:
            raise LeaseLost
        return CachedSnapshot.fresh(snapshot)

    async def _run(self, run: TurnRun, agent: Agent, *, lapses: int, begun: bool) -> None:
        turn = run.turn
        with self._parts.spans.invoke_agent(
            agent.name, session_id=turn.session_id, turn_id=turn.id, attempt=turn.attempt, links=(turn.trace,)
        ) as span:
            started = time.monotonic()
            try:
                await run.run(lapses=lapses, begun=begun)
                if run.turn.error is not None:
                    span.failed(run.turn.error.code.name)
                span.stopped(run.turn.state.value)
            except BaseException as error:
                span.raised(error)
                raise
            finally:
                self._parts.metrics.agent_finished(
                    agent.name, model=agent.model, seconds=time.monotonic() - started, error_type=span.error
                )
                self._see_off(run.left)
        self._session_cache.put(run.seen)
        if run.turn.answer and run.turn.state.ended:
            seconds = (run.turn.update_time - run.turn.create_time).total_seconds()
            self._parts.metrics.response_finished(agent.name, model=agent.model, seconds=max(0.0, seconds))

    def _see_off(self, left: Iterable[OrphanedCall]) -> None:
        for each in left:
            task = asyncio.create_task(see_off(each, store=self._parts.store, log_writer=self._parts.log_writer))
            self._late.add(task)
            task.add_done_callback(self._seen_off)

    def _seen_off(self, task: asyncio.Task[None]) -> None:
        self._late.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a late result is lost", exc_info=error)

    async def _persist(self, held: HeldLease, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` gives, asked for as long as the lease is sure: a hiccup of the database is no lost owner."""
        while True:
            try:
                return await read()
            except ServiceUnavailable:
                held.check()
                await asyncio.sleep(0.1 + self._parts.jitter() * 0.4)

    async def _fail(self, snapshot: Snapshot, held: HeldLease, error: ErrorDetail) -> None:
        now: Snapshot | None = snapshot
        while now is not None and now.head.fence == held.fence and now.turn is not None and not now.turn.state.ended:
            uow = self._parts.log_writer.unit_of_work(now)
            uow.fail_turn(error)
            uow.activate_next_turn()
            step = uow.changeset(changeset_id=self._parts.log_writer.new_id(), fence=held.fence, lease_for=self.lease)
            if not isinstance(await self._persist(held, partial(self._parts.log_writer.commit, step)), Conflict):
                return
            now = await self._persist(held, lambda: self._parts.store.snapshot(held.key, turn_id=held.turn_id))

    async def _give_back(self, work: Work) -> None:
        """After a defect: release the lease under its fence. What cannot be released lapses."""
        try:
            await self._parts.log_writer.append(
                work.key, turn_rules.release_for_retry, turn_id=work.turn_id, fence=work.fence
            )
        except LeaseLost:
            return
        except Exception as error:  # noqa: BLE001 - the first failure is in the log already
            logger.warning("a broken run's lease is left to lapse (%s)", type(error).__name__)

    # --- the tasks ---------------------------------------------------------------------------------------------

    async def _claim(self) -> None:
        while not self.draining:
            self._hint.clear()
            self._starved = False
            with self.reserve() as room:
                began = time.monotonic()
                claim = await self._claim_one() if room else None
                if claim is not None:
                    self._start_claimed(claim, began)
                    if claim.more:
                        continue
            self._starved = not room
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(jittered(self._poll, self._parts.jitter())):
                    await self._hint.wait()

    async def _claim_one(self) -> Claim | None:
        try:
            return await self._parts.leases.claim(self.owner, lease=self.lease)
        except Exception as error:  # noqa: BLE001 - a claim that fails is tried again
            logger.warning("no turn can be claimed now (%s)", type(error).__name__)
            return None

    def _start_claimed(self, claim: Claim, began: float) -> None:
        fault("claim.after")
        if claim.lapses:
            self._parts.metrics.takeover("LEASE_LAPSED", delay=claim.late_by.total_seconds())
            logger.info("took a turn over", extra={"session": claim.session_id, "turn": claim.turn_id})
        key = claim.session_key
        self._start(Work(key=key, turn_id=claim.turn_id, fence=claim.fence, began=began, lapses=claim.lapses))

    async def _renew(self) -> None:
        """Each lease that no step renewed lately; a lost one stops its run."""
        while True:
            await asyncio.sleep(self.lease.total_seconds() / 16)
            due = [held for held in self._held.values() if held.due]
            await asyncio.gather(*(self._renew_one(held) for held in due))

    async def _renew_one(self, held: HeldLease) -> None:
        began = time.monotonic()
        fault("renew.before")
        try:
            ours = await self._parts.leases.renew(held.key, owner=self.owner, fence=held.fence, lease=self.lease)
        except Exception as error:  # noqa: BLE001 - the lease then lapses by itself
            logger.warning("a lease could not be renewed (%s)", type(error).__name__)
            return
        if ours:
            held.renewed(began)
        else:
            self.lost(held)

    async def _look_for_wishes(self) -> None:
        """Cancellations that another replica stored; hints of our own come at once."""
        while True:
            await asyncio.sleep(min(1.0, self._poll))
            if not self._held:
                continue
            try:
                wished = await self._parts.leases.cancelled_among(list(self._held))
            except Exception as error:  # noqa: BLE001 - owners also look at each step
                logger.warning("cancellations cannot be looked for now (%s)", type(error).__name__)
                continue
            for key, held in self._held.items():
                if key.session_id in wished:
                    held.nudge.set()


async def _into(result: asyncio.Future[T], work: Coroutine[None, None, T]) -> None:
    try:
        result.set_result(await work)
    except asyncio.CancelledError:
        result.cancel()
        raise
    except Exception as error:  # noqa: BLE001 - whoever waits for the result gets it
        result.set_exception(error)
        result.exception()  # whoever waited may be gone, and that is no reason for a warning
