"""One replica: the real parts of the engine, on a store that its calls reach when the test lets them."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from tests.memory_store.store import MemoryStore
from tests.unit.engine.simulation.ledger import Ledger, LedgerServer
from tests.unit.engine.simulation.observed import Observed
from tests.unit.engine.simulation.outside import AGENT, Defect, ModelCall, ObservedCaller, SimulatedTools, ToolRun
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import RetryPolicy
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.approvals import Approvals, ArgumentEdits
from turnkeeper.engine.client_tools import CallMeasures, ClientTools
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.writer import LogWriter
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.freezes import Freezes
from turnkeeper.engine.replica.expirer import Expirer
from turnkeeper.engine.replica.heartbeat import Heartbeat
from turnkeeper.engine.replica.schedule import JitteredInterval
from turnkeeper.engine.replica.sweeper import Sweeper
from turnkeeper.engine.rules.messages import LeaseOffer
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.sessions import Sessions
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.turns import Turns
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.policy.policies import Policies
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import NONE_BUSY, Busy, Changeset, Claim, CommitResult, LeaseChange, Snapshot
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.toolbox import Toolbox

LEASE = timedelta(seconds=30)
POLL = timedelta(seconds=1)
OUTCOME_PATIENCE = timedelta(seconds=8)
"""For the results of lost owners' calls."""
PACED = ("claim", "renew", "cancelled_among", "outcome")
"""What a replica does by itself, or learns late: the test decides when."""


@dataclass(slots=True, eq=False)
class Hold:
    """A caller's call is under way: it waits before its first call of a method of the store, or before its n-th call.

    Everything else goes on meanwhile, until the test lets it arrive.
    """

    before: str | int
    _calls: int = 0
    _arrived: "asyncio.Future[None] | None" = None

    async def wait(self, method: str) -> None:
        """Waits here if this is the place."""
        self._calls += 1
        if self._arrived is None and self.before in (method, self._calls):
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived

    def arrive(self) -> None:
        """Lets the call go on, for good: also if it is not there yet, because it stands in its session's line."""
        self.before = 0
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


HOLD: ContextVar[Hold | None] = ContextVar("the hold of the call that the current task serves", default=None)


@dataclass(slots=True, eq=False)
class Gate:
    """Where a replica's calls wait before they reach the store."""

    observed: Observed
    is_closed: bool = False
    """The replica is frozen, or gone: nothing of it reaches the store."""
    is_slow: bool = False
    """The answers to a claim, and to a commit that takes a lease, do not come in time."""
    has_defect: bool = False
    """The next call fails by a defect of the service."""
    _waiting: "dict[str, list[asyncio.Future[None]]]" = field(default_factory=dict)

    async def enter(self, method: str) -> None:
        """Waits until the call may reach the store. Raises Defect if the test wants one."""
        if method in PACED:
            await self._wait(method)
        hold = HOLD.get()
        if hold is not None:
            await hold.wait(method)
        while self.is_closed:
            await self._wait("open")
        if self.has_defect and method == "snapshot":
            self.has_defect = False
            raise Defect
        if method == "requeue_lapsed":
            self.observed.swept()

    def let(self, method: str) -> None:
        """Lets the calls of this method pass that wait now."""
        for waiting in self._waiting.pop(method, []):
            if not waiting.done():
                waiting.set_result(None)

    def open(self) -> None:
        """Lets everything pass again."""
        self.is_closed = False
        self.let("open")

    async def _wait(self, name: str) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, []).append(waiting)
        await waiting


class ObservedStore(MemoryStore):
    """A replica's store; what it returns is observed."""

    def __init__(self, observed: Observed, gate: Gate, *, random: Random, replica: str) -> None:
        super().__init__(observed.database, codec=WireCodec(), enter=gate.enter, random=random, replica=replica)
        self._observed = observed
        self._gate = gate
        self.late: dict[str, tuple[SessionKey, CommitResult]] = {}
        """Results of commits that their callers did not learn in time, by changeset."""

    async def snapshot(self, *args: Any, **kwargs: Any) -> Snapshot | None:
        snapshot = await super().snapshot(*args, **kwargs)
        self._observed.read(snapshot)
        return snapshot

    async def claim(self, owner: str, *, lease: timedelta, without: Busy = NONE_BUSY) -> Claim | None:
        claim = await super().claim(owner, lease=lease, without=without)
        if claim is not None and self._gate.is_slow:
            await super().give_back(claim.session_key, owner=owner, fence=claim.fence)
            raise ServiceUnavailable
        self._observed.claimed(claim)
        return claim

    async def give_back(self, key: SessionKey, *, owner: str, fence: int, broken: bool = False) -> bool:
        is_done = await super().give_back(key, owner=owner, fence=fence, broken=broken)
        if is_done:
            self._observed.given_back(key, broken=broken)
        return is_done

    async def commit(self, changeset: Changeset) -> CommitResult:
        result = await super().commit(changeset)
        self._observed.committed(changeset, result)
        if self._gate.is_slow and changeset.head.lease is LeaseChange.TAKE:
            self.late[changeset.changeset_id] = (changeset.session_key, result)
            raise ServiceUnavailable
        return result

    async def outcome(self, changeset: Changeset) -> CommitResult | None:
        await self._gate.enter("outcome")
        return self.late.pop(changeset.changeset_id)[1]


class ObservedWriter(LogWriter):
    """A log writer; what is decided on is observed."""

    observed: Observed

    def unit_of_work(self, snapshot: Snapshot) -> UnitOfWork:
        self.observed.decides_on(snapshot)
        return super().unit_of_work(snapshot)


class ObservedCache(SessionCache):
    """A session cache; what is cached is observed."""

    observed: Observed

    def put(self, cached: CachedSnapshot) -> None:
        if not cached.snapshot.head.active_turn:  # otherwise it is not cached
            self.observed.knows(cached.snapshot)
        super().put(cached)


class Replica:
    """One replica, put together as `app` does it, without RPCs and streams."""

    def __init__(
        self,
        name: str,
        observed: Observed,
        *,
        sources: Sources,
        random: Random,
        schema: str,
        concurrency: int,
        ledger: LedgerServer,
    ) -> None:
        """`schema` is that of its tools."""
        self.name = name
        self.gate = Gate(observed)
        self.store = store = ObservedStore(observed, self.gate, random=random, replica=name)
        metrics, spans = Metrics(NoOpMeterProvider()), Spans(NoOpTracerProvider())
        decode = WireCodec().decode
        feeds = Feeds(store, poll=POLL.total_seconds())
        self.held_leases = HeldLeases()
        session_cache = ObservedCache(store, decode=decode, clock=observed.clock.monotonic)
        log_writer = ObservedWriter(
            store, feeds, metrics, session_cache=session_cache, held_leases=self.held_leases, sources=sources
        )
        log_writer.observed = session_cache.observed = observed
        agents = AgentVersions({AGENT.name: AGENT}, store)
        policies = Policies({AGENT.name: AGENT})
        self._tools = SimulatedTools(schema, observed)
        toolbox = Toolbox([self._tools, Ledger(schema, observed, ledger)])
        self._model = ObservedCaller(name, observed, toolbox=toolbox, spans=spans, metrics=metrics)
        services = RunServices(
            store=store,
            leases=store,
            log_writer=log_writer,
            session_cache=session_cache,
            feeds=feeds,
            agents=agents,
            toolbox=toolbox,
            policies=policies,
            model_caller=self._model,
            metrics=metrics,
            spans=spans,
            retries=RetryPolicy(),
            jitter=sources.jitter,
            outcome_patience=OUTCOME_PATIENCE,
        )
        self.worker = Worker(
            services,
            self.held_leases,
            offer=LeaseOffer(owner=name, lease=LEASE, schema=1),
            concurrency=concurrency,
            poll=POLL,
        )
        edits = ArgumentEdits(store, agents=agents, toolbox=toolbox, policies=policies)
        self.approvals = Approvals(store, log_writer, feeds, edits=edits)
        freezes = Freezes()
        self.sessions = Sessions(store, log_writer, session_cache=session_cache, agents=agents, freezes=freezes)
        measures = CallMeasures(store, spans=spans, metrics=metrics, decode=decode)
        client_tools = ClientTools(store, log_writer, toolbox=toolbox, measures=measures, agents=agents)
        self.turns = Turns(
            store,
            log_writer,
            feeds,
            sessions=self.sessions,
            worker=self.worker,
            client_tools=client_tools,
            metrics=metrics,
            freezes=freezes,
        )
        self.heartbeat = Heartbeat(store, lease=LEASE)
        self.sweeper = Sweeper(
            store,
            metrics=metrics,
            notify_worker=self.worker.notify,
            interval=JitteredInterval(POLL.total_seconds(), sources.jitter),
            lapsed_by=observed.clock.time,
        )
        self.expirer = Expirer(
            store,
            expire=self.approvals.expire,
            announce=self.approvals.announce_expiring,
            interval=JitteredInterval(POLL.total_seconds(), sources.jitter),
        )

    @property
    def is_idle(self) -> bool:
        """True if it runs no turn and no tool."""
        return not len(self.held_leases) and not self._tools.runs

    @property
    def model_calls(self) -> list[ModelCall]:
        """The calls of the model that are not answered yet."""
        return self._model.calls

    @property
    def tool_runs(self) -> list[ToolRun]:
        """The tools that run, also those of turns whose lease is lost."""
        return self._tools.runs
