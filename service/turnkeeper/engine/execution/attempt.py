"""One attempt of this replica at a turn that it owns: from the first read to the release of the lease."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import Event
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.lease import HeldLease
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot
from turnkeeper.engine.execution.late_results import LateResults
from turnkeeper.engine.execution.owned_turn import OwnedTurn, retry_while_held
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.execution.turn_run import TurnRun
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.errors import AgentConfigError
from turnkeeper.store.changeset import LogEnd
from turnkeeper.telemetry import logs

_NO_LOG: Final = LogEnd(0)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A turn whose lease this replica took."""

    key: SessionKey
    agent: str
    """The agent's name; empty if the session is of an older version."""
    turn_id: str
    fence: int
    taken_at: float
    """By the lease clock, before the write that took the lease was sent."""
    cached: CachedSnapshot | None = None
    """The session as the commit that took the lease left it. None if it must be read."""
    is_begun: bool = False
    """The commit that took the lease began the attempt; a claim does not."""
    events: Sequence[Event] = ()
    """What that commit stored."""
    before: LogEnd = _NO_LOG
    """The log's end before that."""
    lapses: int = 0
    lost_owners: int = 0
    broken_runs: int = 0
    """These three are as in the claim."""


class TurnAttempt:
    """Runs one assignment."""

    def __init__(
        self, services: RunServices, assignment: Assignment, *, lease: HeldLease, late_results: LateResults
    ) -> None:
        self._services = services
        self._assignment = assignment
        self._lease = lease
        self._late_results = late_results

    async def run(self, feed: Feed) -> None:
        """Runs the turn, or fails it if it must not be tried again or its agent's version is gone.

        Raises LeaseLost, or ServiceUnavailable if the database is unavailable for longer than the lease.
        """
        services, assignment = self._services, self._assignment
        owned = await OwnedTurn.open(services, lease=self._lease, cached=assignment.cached)
        error = turn_rules.give_up_error(lost_owners=assignment.lost_owners, broken_runs=assignment.broken_runs)
        if error is not None:
            await _fail(owned, error)
            return
        agent = await retry_while_held(services, self._lease, lambda: services.agents.pinned_by(owned.turn))
        if agent is None:
            gone = AgentConfigError("The agent's pinned version is gone; start a new session.")
            await _fail(owned, gone.to_event())
            return
        session = owned.snapshot.session
        conversation = services.session_cache.checkout(session)
        try:
            conversation.extend(assignment.events, after=assignment.before, end=owned.snapshot.head.end)
            await owned.read_conversation(conversation)
            await self._run(owned, feed=feed, agent=agent, conversation=conversation)
        finally:
            services.session_cache.checkin(session, conversation)

    async def give_back_broken(self) -> None:
        """Gives the turn back after its run broke on a defect. If that is not possible, the lease lapses.

        Reads nothing of the session: what it holds may be what broke the run.
        """
        services, lease = self._services, self._lease
        try:
            await retry_while_held(
                services,
                lease,
                lambda: services.leases.give_back(lease.key, owner=lease.owner, fence=lease.fence, broken=True),
            )
        except Exception as error:  # noqa: BLE001 - the defect itself is in the log already
            logger.warning(
                "the lease of a turn whose run broke was not released (%s): a replica takes the turn over once the "
                "lease has lapsed",
                type(error).__name__,
                extra={"session": lease.key.session_id, "turn": lease.turn_id},
            )

    async def _run(self, owned: OwnedTurn, *, feed: Feed, agent: Agent, conversation: Conversation) -> None:
        services, assignment, turn = self._services, self._assignment, owned.turn
        run = TurnRun(
            services, owned, feed=feed, agent=agent, conversation=conversation, late_results=self._late_results
        )
        attempt = turn.attempt if assignment.is_begun else turn.attempt + 1
        with (
            logs.about(attempt=attempt),
            services.spans.invoke_agent(
                agent.name, session_id=turn.session_id, turn_id=turn.id, attempt=attempt, links=(turn.trace,)
            ) as span,
        ):
            started = time.monotonic()
            try:
                await run.run(lapses=assignment.lapses, is_begun=assignment.is_begun)
                if owned.turn.error is not None:
                    span.failed(owned.turn.error.code.name)
                span.stopped(owned.turn.state.value)
            except BaseException as error:
                span.raised(error)
                raise
            finally:
                services.metrics.agent_finished(
                    agent.name, model=agent.model, seconds=time.monotonic() - started, error_type=span.error
                )
        services.session_cache.put(owned.cached)
        turn = owned.turn
        if turn.answer and turn.state.ended:
            seconds = (turn.update_time - turn.create_time).total_seconds()
            services.metrics.response_finished(agent.name, model=agent.model, seconds=max(0.0, seconds))


async def _fail(owned: OwnedTurn, error: ErrorDetail) -> None:
    def decide(uow: UnitOfWork) -> None:
        uow.fail_turn(error)
        uow.activate_next_turn()

    await owned.append(decide)
