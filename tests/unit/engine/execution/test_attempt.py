"""An attempt at a turn on the store in memory: a cancellation beside a drain's cut, and writes that conflict."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import AGENT, a_call, a_session, a_session_key, new_id
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from tests.unit.telemetry.calls import Traces
from turnkeeper.codes import Code
from turnkeeper.domain.event import MessageCompleted, TurnCancelled, TurnFailed
from turnkeeper.domain.message import FinishReason, Part
from turnkeeper.domain.newer_version import newer_version_needed
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState, ToolOutcome, ToolResult
from turnkeeper.domain.turn import CancelReason, RetryPolicy, Turn, TurnOptions, TurnState
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.eventlog.lease import HeldLease, HeldLeases, LeaseLost
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.execution.attempt import Assignment, TurnAttempt
from turnkeeper.engine.execution.late_results import LateResults
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.execution.tool_runner import OrphanedCall
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, accept
from turnkeeper.engine.rules.turns import MAX_BROKEN_RUNS, MAX_LOST_OWNERS
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.model.contract import ModelAnswer, ModelRequest
from turnkeeper.policy.policies import Policies
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Cancel, Head, RequestKey
from turnkeeper.telemetry import logs
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.tools.toolbox import Finished, Toolbox

LEASE = timedelta(seconds=30)
TIMEOUT = 5


class SlowModel:
    """Writes one word and no more, until the call is closed."""

    server = ("127.0.0.1", 80)

    def __init__(self) -> None:
        self.wrote = asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncIterator[str | ModelAnswer]:
        yield "Once"
        self.wrote.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


@dataclass
class Replica:
    """A replica that owns the one turn of a session. `before` is called with the name of each call of the store."""

    key: SessionKey = field(default_factory=a_session_key)
    model: SlowModel = field(default_factory=SlowModel)
    before: Callable[[str], object] = lambda _: None
    traces: Traces = field(default_factory=Traces)

    def __post_init__(self) -> None:
        self.database = MemoryDatabase(now=lambda: datetime.now(UTC))
        metrics, toolbox, spans = Metrics(NoOpMeterProvider()), Toolbox([]), self.traces.spans
        self.store = MemoryStore(self.database, codec=WireCodec(), enter=self._enter, random=Random(1), replica="one")
        self.feeds = Feeds(self.store, poll=1)
        session_cache = SessionCache(self.store, decode=WireCodec().decode)
        self.log_writer = LogWriter(
            self.store,
            self.feeds,
            metrics,
            session_cache=session_cache,
            held_leases=HeldLeases(),
            sources=Sources(now=lambda: datetime.now(UTC), new_id=new_id, jitter=lambda: 0.0),
        )
        self.services = RunServices(
            store=self.store,
            leases=self.store,
            log_writer=self.log_writer,
            session_cache=session_cache,
            feeds=self.feeds,
            agents=AgentVersions({AGENT.name: AGENT}, self.store),
            toolbox=toolbox,
            policies=Policies({}),
            model_caller=ModelCaller(lambda _: self.model, toolbox=toolbox, spans=spans, metrics=metrics),
            metrics=metrics,
            spans=spans,
            retries=RetryPolicy(),
            jitter=lambda: 0.0,
        )

    async def _enter(self, method: str) -> None:
        self.before(method)
        await asyncio.sleep(0)

    async def attempt(self, *, lost_owners: int = 0, broken_runs: int = 0) -> TurnAttempt:
        """Stores a message whose turn this replica owns from then on, and returns the attempt at it."""
        session = a_session(self.key, agent=AGENT.name, agent_version=AGENT.version)
        await self.store.create_session(session, AGENT, event=session_rules.created_event(session))
        message = NewMessage(
            key=RequestKey(
                tenant=self.key.tenant,
                session_id=self.key.session_id,
                principal="ada",
                family="message",
                request_id=new_id("request"),
            ),
            fingerprint="same",
            content=(Part(text="Tell a tale."),),
            if_busy="REJECT",
            options=TurnOptions(),
        )
        offer = LeaseOffer(owner="one", lease=LEASE, schema=1)
        stored = await self.log_writer.append(self.key, lambda uow: accept(uow, message, offer=offer))
        assert isinstance(stored, Stored)
        self.turn_id = stored.value[0].id
        fence = (await self.head()).fence
        self.lease = HeldLease(key=self.key, turn_id=self.turn_id, owner="one", fence=fence, duration=LEASE)
        assignment = Assignment(
            key=self.key,
            agent=AGENT.name,
            turn_id=self.turn_id,
            fence=fence,
            taken_at=self.lease.renewed_at,
            lost_owners=lost_owners,
            broken_runs=broken_runs,
        )
        late_results = LateResults(self.store, self.log_writer)
        return TurnAttempt(self.services, assignment, lease=self.lease, late_results=late_results)

    async def head(self) -> Head:
        stored = await self.store.session(self.key)
        assert stored is not None
        return stored[1]

    async def turn(self) -> Turn:
        turn = await self.store.turn(self.key, self.turn_id)
        assert turn is not None
        return turn

    def request_cancel(self) -> None:
        """Requests the cancellation at once, between two steps of the run."""
        stored = self.database.sessions[self.key]
        stored.cancel = Cancel(turn_id=self.turn_id, by="ada", reason=CancelReason.REQUESTED.value)
        stored.revision += 1

    def cut(self) -> None:
        self.lease.releasing = self.lease.cut = True
        self.lease.notified.set()


async def run_until_written(replica: Replica) -> asyncio.Task[None]:
    """Returns the task of an attempt whose model has begun to write."""
    attempt = await replica.attempt()

    async def run() -> None:
        with replica.feeds.attach(replica.key) as feed:
            await attempt.run(feed)

    task = asyncio.create_task(run())
    await asyncio.wait_for(replica.model.wrote.wait(), TIMEOUT)
    return task


async def cancelled_with_its_text(replica: Replica) -> None:
    head, turn = await replica.head(), await replica.turn()
    assert (turn.state, head.owner, head.active_turn) == (TurnState.CANCELLED, "", "")
    payloads = [logged.event.payload for logged in replica.database.sessions[replica.key].log]
    (message,) = (payload for payload in payloads if isinstance(payload, MessageCompleted))
    assert (message.content, message.finish_reason) == ((Part(text="Once"),), FinishReason.INTERRUPTED)
    assert isinstance(payloads[-1], TurnCancelled)


async def test_a_cut_run_that_has_read_a_cancellation_cancels_the_turn_and_stores_its_text() -> None:
    replica = Replica()
    run = await run_until_written(replica)
    replica.before = lambda method: replica.cut() if method == "snapshot" else None
    replica.request_cancel()
    replica.lease.notified.set()
    await asyncio.wait_for(run, TIMEOUT)
    await cancelled_with_its_text(replica)


async def test_a_cut_run_that_meets_a_cancellation_as_it_hands_over_cancels_the_turn_and_stores_its_text() -> None:
    replica = Replica()
    run = await run_until_written(replica)
    replica.before = lambda method: replica.request_cancel() if method == "commit" else None
    replica.cut()
    await asyncio.wait_for(run, TIMEOUT)
    await cancelled_with_its_text(replica)


async def test_a_cut_run_hands_over_and_stores_no_text() -> None:
    replica = Replica()
    run = await run_until_written(replica)
    replica.cut()
    await asyncio.wait_for(run, TIMEOUT)
    head, turn = await replica.head(), await replica.turn()
    assert (turn.state, head.owner, head.active_turn) == (TurnState.RUNNING, "", turn.id)
    log = replica.database.sessions[replica.key].log
    assert not [logged for logged in log if isinstance(logged.event.payload, MessageCompleted)]


async def test_the_span_and_the_log_lines_of_a_claimed_turn_have_the_number_of_the_attempt_that_begins() -> None:
    """The commit that accepted the turn began attempt 1; a claim begins the next one."""
    replica, written = Replica(), io.StringIO()
    logging_to = logs.start(stream=written, as_json=True)
    replica.before = lambda method: logging.getLogger("turnkeeper.test").info("%s", method)
    run = await run_until_written(replica)
    assert (await replica.turn()).attempt == 2
    replica.cut()
    await asyncio.wait_for(run, TIMEOUT)
    logging_to.stop()
    (span,) = (span for span in replica.traces.exporter.get_finished_spans() if span.name.startswith("invoke_agent"))
    assert (span.attributes or {})["turnkeeper.turn.attempt"] == 2
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    inside = [line["attempt"] for line in lines if line.get("trace_id") == f"{span.context.trace_id:032x}"]
    assert inside
    assert set(inside) == {2}


async def test_the_log_line_of_a_failed_turn_has_its_attempt_and_sequence(caplog: pytest.LogCaptureFixture) -> None:
    replica = Replica()
    attempt = await replica.attempt(lost_owners=MAX_LOST_OWNERS)
    with replica.feeds.attach(replica.key) as feed:
        await asyncio.wait_for(attempt.run(feed), TIMEOUT)
    (line,) = (vars(record) for record in caplog.records if "a turn of agent" in record.getMessage())
    last = replica.database.sessions[replica.key].log[-1].event
    assert (line["turn"], line["attempt"], line["sequence"]) == (replica.turn_id, 1, last.sequence)


@pytest.mark.parametrize(
    ("lost_owners", "broken_runs", "code"),
    [
        (MAX_LOST_OWNERS, 0, Code.AGENT_CONFIG_ERROR),
        (0, MAX_BROKEN_RUNS, Code.RUN_DEFECT),
        (MAX_LOST_OWNERS, MAX_BROKEN_RUNS, Code.RUN_DEFECT),
    ],
)
async def test_a_turn_that_fails_at_its_start_fails_once_although_its_first_write_conflicts(
    lost_owners: int, broken_runs: int, code: Code
) -> None:
    replica = Replica()
    attempt = await replica.attempt(lost_owners=lost_owners, broken_runs=broken_runs)
    replica.before = lambda method: replica.request_cancel() if method == "commit" else None
    with replica.feeds.attach(replica.key) as feed:
        await asyncio.wait_for(attempt.run(feed), TIMEOUT)
    head, turn = await replica.head(), await replica.turn()
    assert turn.error is not None
    assert (turn.error.code, head.owner, head.active_turn) == (code, "", "")
    log = replica.database.sessions[replica.key].log
    assert len([logged for logged in log if isinstance(logged.event.payload, TurnFailed)]) == 1


async def test_a_broken_run_gives_its_turn_back_and_reads_nothing_of_the_session() -> None:
    """What the session holds may be what broke the run."""
    replica = Replica()
    attempt = await replica.attempt()
    called: list[str] = []
    replica.before = called.append
    await attempt.give_back_broken()
    assert called == ["give_back"]
    head = await replica.head()
    assert (head.owner, head.active_turn) == ("", replica.turn_id)
    claim = await replica.store.claim("one", lease=LEASE)
    assert claim is not None
    assert (claim.turn_id, claim.broken_runs, claim.lapses) == (replica.turn_id, 1, 0)


async def test_a_turn_is_given_back_although_the_database_is_unavailable_at_first() -> None:
    replica = Replica()
    attempt = await replica.attempt()
    failures = iter((ServiceUnavailable(), ServiceUnavailable()))

    def fail(method: str) -> None:
        if error := next(failures, None):
            raise error

    replica.before = fail
    await asyncio.wait_for(attempt.give_back_broken(), TIMEOUT)
    assert not (await replica.head()).owner


async def test_a_prepared_decision_is_prepared_anew_until_its_input_is_current() -> None:
    replica = Replica()
    await replica.attempt()
    prepared: list[int] = []

    async def prepare() -> Callable[[UnitOfWork], int]:
        prepared.append(len(prepared) + 1)
        number = prepared[-1]

        def decide(uow: UnitOfWork) -> int:
            if number < 3:
                raise DecideAgain
            return number

        return decide

    stored = await replica.log_writer.append_prepared(replica.key, prepare)
    assert isinstance(stored, Stored)
    assert (stored.value, prepared) == (3, [1, 2, 3])


@pytest.mark.parametrize("grown", [False, True], ids=["shorter", "another history"])
async def test_an_owner_whose_log_is_gone_stops_and_stores_nothing(grown: bool) -> None:
    """The database was restored: owner and fence are as they were, so that only the log shows it."""
    replica = Replica()
    task = await run_until_written(replica)
    log = replica.database.sessions[replica.key].log
    lost = log.pop()
    if grown:
        log.append(replace(lost, changeset_id="other", stored=lost.stored._replace(changeset_id="other")))
    before = list(log)
    replica.lease.notified.set()
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(task, TIMEOUT)
    assert log == before


def _only_a_newer_version_reads(replica: Replica) -> None:
    """A newer replica has stored what this one cannot read. Commits and renewals still come through."""

    def fail(method: str) -> None:
        if method == "snapshot":
            raise newer_version_needed()

    replica.before = fail


async def test_a_run_whose_session_only_a_newer_version_reads_leaves_the_turn_to_it() -> None:
    """A lease is renewed while its owner tries again: that would keep the turn from every newer replica."""
    replica = Replica()
    task = await run_until_written(replica)
    _only_a_newer_version_reads(replica)
    replica.lease.notified.set()
    with pytest.raises(ServiceUnavailable):
        await asyncio.wait_for(task, TIMEOUT)


async def test_a_run_that_cannot_read_its_session_at_the_start_leaves_the_turn_to_a_newer_version() -> None:
    replica = Replica()
    attempt = await replica.attempt()
    _only_a_newer_version_reads(replica)
    with replica.feeds.attach(replica.key) as feed, pytest.raises(ServiceUnavailable):
        await asyncio.wait_for(attempt.run(feed), TIMEOUT)


async def test_a_late_result_is_kept_beside_a_call_whose_session_only_a_newer_version_reads() -> None:
    replica = Replica()
    await replica.attempt()
    turn = await replica.turn()
    call = a_call(replica.key, turn_id=turn.id, state=CallState.STARTED, attempt=1, fence=replica.lease.fence)
    replica.database.sessions[replica.key].calls[call.id] = call
    _only_a_newer_version_reads(replica)
    result = ToolResult(outcome=ToolOutcome.OK, result_json='"late"')
    tool = asyncio.create_task(_returns(Finished(call_id=call.id, result=result, duration=timedelta())))
    late_results = LateResults(replica.store, replica.log_writer)
    await asyncio.wait_for(late_results.await_late_result(OrphanedCall(call=call, tool=tool)), TIMEOUT)
    kept = await replica.store.call(replica.key, call.id)
    assert kept is not None
    assert kept.late_result_json == '"late"'


async def _returns(finished: Finished) -> Finished:
    return finished
