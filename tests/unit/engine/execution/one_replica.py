"""A replica's worker on the store in memory, with a model and a tool that a test controls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from tests.builders import AGENT, a_session, a_session_key, an_event, new_id
from tests.contracts.stores import a_changeset, committed, head_of
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.audit import NO_ORIGIN, Origin
from turnkeeper.domain.message import FinishReason, Part, ToolRequest, Usage
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.domain.turn import RetryPolicy, Turn, TurnOptions
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, accept
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.model.contract import ModelAnswer, ModelRequest
from turnkeeper.policy.policies import Policies
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import RequestKey
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.toolbox import Toolbox

TIMEOUT = 10
RUNNER = replace(
    AGENT,
    tools=("*",),
    policy=(PolicyRule(tool="*", action=PolicyAction.AUTO),),
    limits=replace(AGENT.limits, max_attempts=1),
)


class Model:
    """Raises `error` after one word, in the stream; without one it answers, after a call of each `tool` that is set.

    Between the word and that it waits for `goes_on`: if it is `stubborn`, also when it is cancelled.
    """

    server = ("127.0.0.1", 80)

    def __init__(self) -> None:
        self.error: type[BaseException] | BaseException | None = None
        self.tool = ""
        """Names with spaces between them."""
        self.stubborn = False
        self.calls = 0
        self.cancels = 0
        self.wrote = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def stream(self, request: ModelRequest) -> AsyncIterator[str | ModelAnswer]:
        self.calls += 1
        yield "Once"
        self.wrote.set()
        while not self.goes_on.is_set():
            try:
                await self.goes_on.wait()
            except asyncio.CancelledError:
                self.cancels += 1
                if not self.stubborn:
                    raise
        if self.stubborn and self.error is None:
            yield " upon"
        if self.error is not None:
            raise self.error
        tools, self.tool = self.tool.split(), ""
        requests = tuple(ToolRequest(tool_call_id="", tool=tool, arguments_json="{}") for tool in tools)
        yield ModelAnswer(
            text="Once",
            tool_requests=requests,
            finish_reason=FinishReason.TOOL_CALLS if tools else FinishReason.STOP,
            usage=Usage(model_calls=1),
            model="small",
        )

    async def close(self) -> None:
        pass


class Tools:
    """A source whose one tool raises `error`; without one it waits until it is released, also when it is cancelled."""

    listing = 1

    def __init__(self) -> None:
        self.error: type[BaseException] | None = RuntimeError
        self.started = asyncio.Event()
        self.released = asyncio.Event()
        self.contexts: list[ToolContext] = []

    def specs(self) -> Sequence[ToolSpec]:
        return [
            ToolSpec(name="act", description="", schema_json="{}", tool_class=ToolClass.IRREVERSIBLE, source="python")
        ]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        self.contexts.append(context)
        if self.error is not None:
            raise self.error
        self.started.set()
        while not self.released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.released.wait()
        return '"acted"'


class Replica:
    """A worker on the store in memory."""

    def __init__(
        self,
        runner: Agent = RUNNER,
        *,
        answer_time: timedelta = timedelta(minutes=10),
        lease: timedelta = timedelta(seconds=30),
        jitter: float = 0.0,
    ) -> None:
        self.runner = runner
        self.text = "Tell a tale."
        """What each message has."""
        self.meters = Meters()
        self.database = MemoryDatabase(now=lambda: datetime.now(UTC))
        self.model, self.tools = Model(), Tools()
        self.breaks: type[BaseException] | None = None
        """What the owner's next commit raises, once."""
        self.others_write = 0
        """Before how many of the owner's next commits another writer changes the session."""
        self.broke = asyncio.Event()
        self.gives_back = asyncio.Event()
        """Set when the worker gives a lease back, which fails."""
        self.store = MemoryStore(self.database, codec=WireCodec(), enter=self._enter, random=Random(1), replica="one")
        metrics, toolbox, spans = self.meters.metrics, Toolbox([self.tools]), Traces().spans
        feeds = self.feeds = Feeds(self.store, poll=1)
        held_leases = self.held_leases = HeldLeases()
        session_cache = SessionCache(self.store, decode=WireCodec().decode)
        self.log_writer = LogWriter(
            self.store,
            feeds,
            metrics,
            session_cache=session_cache,
            held_leases=held_leases,
            sources=Sources(now=lambda: datetime.now(UTC), new_id=new_id, jitter=lambda: jitter),
        )
        services = self.services = RunServices(
            store=self.store,
            leases=self.store,
            log_writer=self.log_writer,
            session_cache=session_cache,
            feeds=feeds,
            agents=AgentVersions({runner.name: runner}, self.store),
            toolbox=toolbox,
            policies=Policies({runner.name: runner}),
            model_caller=ModelCaller(lambda _: self.model, toolbox=toolbox, spans=spans, metrics=metrics),
            metrics=metrics,
            spans=spans,
            retries=RetryPolicy(base=timedelta(milliseconds=1)),
            jitter=lambda: 0.0,
            answer_time=answer_time,
        )
        self.worker = Worker(
            services,
            held_leases,
            offer=LeaseOffer(owner="one", lease=lease, schema=1),
            concurrency=4,
            poll=timedelta(milliseconds=50),
        )

    async def _enter(self, method: str) -> None:
        await asyncio.sleep(0)
        if method == "commit" and self.breaks is not None:
            error, self.breaks = self.breaks, None
            self.broke.set()
            raise error
        if method == "commit" and self.others_write:
            others, self.others_write = self.others_write, 0
            for key in self.database.sessions:
                await committed(self.store.commit(a_changeset(await head_of(self.store, key), an_event("beside"))))
            self.others_write = others - 1
        if method == "give_back":
            self.gives_back.set()
            raise ServiceUnavailable

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
        key, turn_id = await self.accepted()
        return key, await self.ended(key, turn_id)

    async def accepted(self, *, origin: Origin = NO_ORIGIN) -> tuple[SessionKey, str]:
        """Returns the session and the turn of a new session's first message, which the worker claims."""
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
            content=(Part(text=self.text),),
            if_busy="REJECT",
            options=TurnOptions(),
            origin=origin,
        )
        stored = await self.log_writer.append(key, lambda uow: accept(uow, message, offer=None))
        assert isinstance(stored, Stored)
        self.worker.notify()
        return key, stored.value[0].id

    async def ended(self, key: SessionKey, turn_id: str) -> Turn:
        """Returns the turn as it is at its end."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                turn = await self.store.turn(key, turn_id)
                assert turn is not None
                if turn.state.ended:
                    return turn
                await asyncio.sleep(0.005)

    def payloads(self, key: SessionKey) -> list[Any]:
        return [logged.event.payload for logged in self.database.sessions[key].log]
