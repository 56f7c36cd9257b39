"""All approvals of one turn that lapse together expire in one call, however many they are."""

import asyncio
from datetime import UTC, datetime, timedelta
from random import Random

from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import AGENT, a_call, a_session, a_session_key, a_turn, an_approval, an_event, new_id
from tests.contracts.stores import a_changeset, committed, head_of
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.event import ApprovalExpired, ToolReturned
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import ToolOutcome
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.approvals import Approvals, ArgumentEdits
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.writer import LogWriter, Sources
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.approvals import EXPIRED_AT_ONCE
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import HeadChange
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.tools.toolbox import Toolbox

LAPSED = 2 * EXPIRED_AT_ONCE + 1


class Scene:
    """A store in memory that counts its commits, and the verbs on approvals."""

    def __init__(self) -> None:
        self.commits = 0
        self.database = MemoryDatabase(now=lambda: datetime.now(UTC))
        self.store = store = MemoryStore(
            self.database, codec=WireCodec(), enter=self._enter, random=Random(1), replica="one"
        )
        metrics, feeds = Metrics(NoOpMeterProvider()), Feeds(store, poll=1)
        log_writer = LogWriter(
            store,
            feeds,
            metrics,
            session_cache=SessionCache(store, decode=WireCodec().decode),
            held_leases=HeldLeases(),
            sources=Sources(now=lambda: datetime.now(UTC), new_id=new_id, jitter=lambda: 0.0),
        )
        edits = ArgumentEdits(store, agents=AgentVersions({}, store), toolbox=Toolbox([]))
        self.approvals = Approvals(store, log_writer, feeds, edits=edits, metrics=metrics)

    async def _enter(self, method: str) -> None:
        await asyncio.sleep(0)
        self.commits += method == "commit"

    async def lapsed(self, *ages: timedelta) -> tuple[SessionKey, list[Approval]]:
        """Stores a turn that waits for approvals which lapsed so long ago. Returns its session and the approvals."""
        key = a_session_key()
        session = a_session(key)
        await self.store.create_session(session, AGENT, event=session_rules.created_event(session))
        turn, now = a_turn(key, state=TurnState.AWAITING_APPROVAL), datetime.now(UTC)
        calls = tuple(a_call(key, turn_id=turn.id, position=position) for position in range(len(ages)))
        approvals = tuple(
            an_approval(key, turn_id=turn.id, tool_call_id=call.id, expire_time=now - age)
            for call, age in zip(calls, ages, strict=True)
        )
        changeset = a_changeset(
            await head_of(self.store, key),
            an_event(turn_id=turn.id),
            head=HeadChange(active_turn=turn.id),
            new_turns=(turn,),
            new_calls=calls,
            new_approvals=approvals,
        )
        await committed(self.store.commit(changeset))
        self.commits = 0
        return key, list(approvals)


async def test_d6_more_approvals_of_one_turn_than_a_changeset_takes_expire_in_one_call() -> None:
    scene = Scene()
    key, approvals = await scene.lapsed(*[timedelta(seconds=1)] * LAPSED)
    await scene.approvals.expire(approvals[0])
    stored = scene.database.sessions[key]
    assert {approval.state for approval in stored.approvals.values()} == {ApprovalState.EXPIRED}
    assert scene.commits == 3
    payloads = [logged.event.payload for logged in stored.log]
    expired = [payload.approval_id for payload in payloads if isinstance(payload, ApprovalExpired)]
    assert sorted(expired) == sorted(approval.id for approval in approvals)
    returned = [payload.outcome for payload in payloads if isinstance(payload, ToolReturned)]
    assert returned == [ToolOutcome.EXPIRED] * LAPSED
    assert stored.turns[approvals[0].turn_id].state is not TurnState.AWAITING_APPROVAL


async def test_d6_what_has_not_lapsed_stays_pending_and_its_turn_waits() -> None:
    scene = Scene()
    key, approvals = await scene.lapsed(*[timedelta(seconds=1)] * EXPIRED_AT_ONCE, timedelta(hours=-1))
    await scene.approvals.expire(approvals[0])
    stored = scene.database.sessions[key]
    pending = [approval.id for approval in stored.approvals.values() if approval.state is ApprovalState.PENDING]
    assert pending == [approvals[-1].id]
    assert scene.commits == 1
    assert stored.turns[approvals[0].turn_id].state is TurnState.AWAITING_APPROVAL
