"""No task group of a replica ends by what a model, a tool or a caller provides: the worker goes on after each."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import AGENT, a_session, a_session_key, new_id
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from tests.unit.telemetry.calls import Traces
from turnkeeper.codes import Code
from turnkeeper.domain.agent import Agent, PolicyRule
from turnkeeper.domain.event import MessageCompleted, ToolReturned
from turnkeeper.domain.message import FinishReason, Part, ToolRequest, Usage
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolOutcome, ToolSpec
from turnkeeper.domain.turn import RetryPolicy, Turn, TurnOptions, TurnState
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.writer import LogWriter, Sources, Stored
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, accept
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.model.contract import ModelAnswer, ModelRequest, TextDelta
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import event_failure
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import RequestKey
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.toolbox import Toolbox

TIMEOUT = 10
RUNNER = replace(
    AGENT,
    tools=("*",),
    policy=(PolicyRule(tool="*", action=PolicyAction.AUTO),),
    limits=replace(AGENT.limits, max_attempts=1),
)


class Panic(BaseException):
    """As a Rust library raises it: no Exception."""


RAISED = [
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    asyncio.CancelledError,
    Panic,
    RecursionError,
    StopAsyncIteration,
]


class Model:
    """Raises `error` after one word, in the stream; without one it answers, after a call of `tool` if that is set."""

    server = ("127.0.0.1", 80)

    def __init__(self) -> None:
        self.error: type[BaseException] | BaseException | None = None
        self.tool = ""
        self.calls = 0
        self.wrote = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def stream(self, request: ModelRequest) -> AsyncIterator[TextDelta | ModelAnswer]:
        self.calls += 1
        yield TextDelta(text="Once")
        self.wrote.set()
        await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        tool, self.tool = self.tool, ""
        requests = (ToolRequest(tool_call_id="", tool=tool, arguments_json="{}"),) if tool else ()
        yield ModelAnswer(
            text="Once",
            tool_requests=requests,
            finish_reason=FinishReason.TOOL_CALLS if tool else FinishReason.STOP,
            usage=Usage(model_calls=1),
            model="small",
        )

    async def close(self) -> None:
        pass


class Tools:
    """A source whose one tool raises `error`."""

    error: type[BaseException] = RuntimeError

    def specs(self) -> Sequence[ToolSpec]:
        return [
            ToolSpec(name="act", description="", schema_json="{}", tool_class=ToolClass.IRREVERSIBLE, source="python")
        ]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        raise self.error


class Replica:
    """A worker on the store in memory."""

    def __init__(self, runner: Agent = RUNNER) -> None:
        self.runner = runner
        self.database = MemoryDatabase(now=lambda: datetime.now(UTC))
        self.model, self.tools = Model(), Tools()
        self.breaks: type[BaseException] | None = None
        """What the owner's next commit raises, once."""
        self.broke = asyncio.Event()
        self.store = MemoryStore(self.database, codec=WireCodec(), enter=self._enter, random=Random(1), replica="one")
        metrics, toolbox, spans = Metrics(NoOpMeterProvider()), Toolbox([self.tools]), Traces().spans
        feeds, held_leases = Feeds(self.store, poll=1), HeldLeases()
        session_cache = SessionCache(self.store, decode=WireCodec().decode)
        self.log_writer = LogWriter(
            self.store,
            feeds,
            metrics,
            session_cache=session_cache,
            held_leases=held_leases,
            sources=Sources(now=lambda: datetime.now(UTC), new_id=new_id, jitter=lambda: 0.0),
        )
        services = RunServices(
            store=self.store,
            leases=self.store,
            log_writer=self.log_writer,
            session_cache=session_cache,
            feeds=feeds,
            agents=AgentVersions({runner.name: runner}, self.store),
            toolbox=toolbox,
            model_caller=ModelCaller(lambda _: self.model, toolbox=toolbox, spans=spans, metrics=metrics),
            metrics=metrics,
            spans=spans,
            retries=RetryPolicy(base=timedelta(milliseconds=1)),
            jitter=lambda: 0.0,
        )
        self.worker = Worker(
            services,
            held_leases,
            offer=LeaseOffer(owner="one", lease=timedelta(seconds=30), schema=1),
            concurrency=4,
            poll=timedelta(milliseconds=50),
        )

    async def _enter(self, method: str) -> None:
        await asyncio.sleep(0)
        if method == "commit" and self.breaks is not None:
            error, self.breaks = self.breaks, None
            self.broke.set()
            raise error

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.worker.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def turn(self) -> tuple[SessionKey, Turn]:
        """Returns the turn of a new session's first message, as it is at its end."""
        key = a_session_key(session_id=new_id("session"))
        session = a_session(key, agent=self.runner.name, agent_version=self.runner.version)
        await self.store.create_session(session, self.runner, event=session_rules.created_event(session))
        request_key = RequestKey(
            tenant=key.tenant,
            session_id=key.session_id,
            principal="ada",
            family="message",
            request_id=new_id("request"),
        )
        message = NewMessage(
            key=request_key,
            fingerprint="same",
            content=(Part(text="Tell a tale."),),
            if_busy="REJECT",
            options=TurnOptions(),
        )
        stored = await self.log_writer.append(key, lambda uow: accept(uow, message, offer=None))
        assert isinstance(stored, Stored)
        self.worker.notify()
        async with asyncio.timeout(TIMEOUT):
            while True:
                turn = await self.store.turn(key, stored.value[0].id)
                assert turn is not None
                if turn.state.ended:
                    return key, turn
                await asyncio.sleep(0.005)

    def payloads(self, key: SessionKey) -> list[Any]:
        return [logged.event.payload for logged in self.database.sessions[key].log]


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_a_models_stream_raises_fails_its_call_alone(
    error: type[BaseException],
) -> None:
    replica = Replica()
    async with replica.running() as worker:
        replica.model.error = error
        key, turn = await replica.turn()
        assert turn.error is not None
        assert (turn.state, turn.error.code) == (TurnState.FAILED, Code.LLM_API_ERROR)
        assert replica.model.calls == 1
        assert not [payload for payload in replica.payloads(key) if isinstance(payload, MessageCompleted)]
        replica.model.error = None
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        assert not worker.done()


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (RuntimeError(), 2),
        (failure(Reason.CUT), 2),
        (failure(Reason.STALL_TIMEOUT), 2),
        (failure(Reason.MALFORMED), 2),
        (event_failure({"error": {"code": 429, "message": "Slow down."}}), 2),
        (failure(Reason.NO_CONNECTION), 4),
        (failure(Reason.SERVER_ERROR, http_status=503), 4),
        (failure(Reason.RATE_LIMIT, http_status=429), 4),
        (failure(Reason.START_TIMEOUT), 4),
        (failure(Reason.CONTENT_FILTER), 1),
    ],
)
async def test_a_call_whose_answer_had_begun_or_that_broke_on_a_defect_is_made_twice_at_most(
    error: BaseException, calls: int
) -> None:
    replica = Replica(replace(RUNNER, limits=replace(RUNNER.limits, max_attempts=4)))
    async with replica.running():
        replica.model.error = error
        _, turn = await replica.turn()
    assert (turn.state, replica.model.calls) == (TurnState.FAILED, calls)


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_a_source_of_tools_raises_fails_its_call_alone(error: type[BaseException]) -> None:
    replica = Replica()
    async with replica.running() as worker:
        replica.model.tool, replica.tools.error = "act", error
        key, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        (returned,) = [payload for payload in replica.payloads(key) if isinstance(payload, ToolReturned)]
        assert returned.outcome is ToolOutcome.FAILED
        assert not worker.done()


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_a_callers_request_raises_in_the_worker_is_the_callers_alone(
    error: type[BaseException],
) -> None:
    async def work() -> None:
        raise error

    replica = Replica()
    async with replica.running() as worker:
        await asyncio.sleep(0)
        with pytest.raises((error, RuntimeError)):
            await replica.worker.shield(work())
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        assert not worker.done()


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_breaks_a_run_ends_that_run_alone(error: type[BaseException]) -> None:
    replica = Replica()
    async with replica.running() as worker:
        replica.model.goes_on.clear()
        broken = asyncio.create_task(replica.turn())
        async with asyncio.timeout(TIMEOUT):
            await replica.model.wrote.wait()
            replica.breaks = error
            replica.model.goes_on.set()
            await replica.broke.wait()
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        assert not worker.done()
        broken.cancel()
        await asyncio.wait([broken])
