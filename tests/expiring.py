"""Turns whose approvals have lapsed, and the verbs that expire them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import AGENT, a_call, a_session, a_session_key, a_turn, an_approval, an_event, new_id
from tests.contracts.stores import a_changeset, committed, head_of
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.approvals import Approvals, ArgumentEdits
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.writer import LogWriter
from turnkeeper.engine.replica.expirer import Expirer
from turnkeeper.engine.replica.schedule import JitteredInterval
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.policy.policies import Policies
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import HeadChange
from turnkeeper.store.contract import Store
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.tools.toolbox import Toolbox


def approvals_on(store: Store) -> Approvals:
    """Returns the verbs on approvals of a replica with this store."""
    metrics, feeds = Metrics(NoOpMeterProvider()), Feeds(store, poll=1)
    log_writer = LogWriter(
        store,
        feeds,
        metrics,
        session_cache=SessionCache(store, decode=WireCodec().decode),
        held_leases=HeldLeases(),
        sources=Sources(now=lambda: datetime.now(UTC), new_id=new_id, jitter=lambda: 0.0),
    )
    edits = ArgumentEdits(store, agents=AgentVersions({}, store), toolbox=Toolbox([]), policies=Policies({}))
    return Approvals(store, log_writer, feeds, edits=edits)


def expirer_on(store: Store) -> Expirer:
    """Returns the expirer of a replica with this store."""
    approvals, interval = approvals_on(store), JitteredInterval(0.1, lambda: 0.0)
    return Expirer(store, expire=approvals.expire, announce=approvals.announce_expiring, interval=interval)


async def lapsed_turn(store: Store, *ages: timedelta) -> tuple[SessionKey, list[Approval]]:
    """Stores a turn that waits for approvals which lapsed so long ago. Returns its session and the approvals."""
    now = datetime.now(UTC).replace(microsecond=0)
    return await waiting_turn(store, *({"expire_time": now - age} for age in ages))


async def waiting_turn(store: Store, *given: Mapping[str, Any]) -> tuple[SessionKey, list[Approval]]:
    """Stores a turn that waits for approvals with these fields. Returns its session and the approvals."""
    key = a_session_key()
    session = a_session(key)
    await store.create_session(session, AGENT, event=session_rules.created_event(session))
    turn = a_turn(key, state=TurnState.AWAITING_APPROVAL)
    calls = tuple(a_call(key, turn_id=turn.id, position=position) for position in range(len(given)))
    approvals = tuple(
        an_approval(key, turn_id=turn.id, tool_call_id=call.id, **fields)
        for call, fields in zip(calls, given, strict=True)
    )
    changeset = a_changeset(
        await head_of(store, key),
        an_event(turn_id=turn.id),
        head=HeadChange(active_turn=turn.id),
        new_turns=(turn,),
        new_calls=calls,
        new_approvals=approvals,
    )
    await committed(store.commit(changeset))
    return key, list(approvals)
