"""Assembles the parts of a server: worker, streams, verbs, background jobs, services. Names the concrete adapters."""

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnkeeper.admission.gate import Gate
from turnkeeper.admission.memory import MemoryBudget, MemoryPart
from turnkeeper.audit.signing import Signer
from turnkeeper.bootstrap import Database, background
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.turn import RetryPolicy
from turnkeeper.draining import drain
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.approvals import Approvals, ArgumentEdits
from turnkeeper.engine.checkpoints import Checkpoints
from turnkeeper.engine.client_tools import CallMeasures, ClientTools
from turnkeeper.engine.delegations import Delegations
from turnkeeper.engine.denials import Denials
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.writer import LogWriter
from turnkeeper.engine.execution.lease_keepalive import LeaseKeepAlive
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.forks import Forks
from turnkeeper.engine.freezes import Freezes
from turnkeeper.engine.operations import Operations
from turnkeeper.engine.remembered import RememberedDecisions
from turnkeeper.engine.replica.auditing import Auditing
from turnkeeper.engine.replica.change_listener import ChangeListener
from turnkeeper.engine.replica.database_probe import DatabaseProbe
from turnkeeper.engine.replica.expirer import Expirer
from turnkeeper.engine.replica.heartbeat import Heartbeat
from turnkeeper.engine.replica.janitor import Janitor
from turnkeeper.engine.replica.loop_lag import LoopLag
from turnkeeper.engine.replica.memory_report import MemoryReport
from turnkeeper.engine.replica.memory_trim import MemoryTrim
from turnkeeper.engine.replica.preview_publisher import PreviewPublisher
from turnkeeper.engine.replica.preview_receiver import PreviewReceiver
from turnkeeper.engine.replica.schedule import JitteredInterval
from turnkeeper.engine.replica.sweeper import Sweeper
from turnkeeper.engine.rules.messages import LeaseOffer
from turnkeeper.engine.rules.next_schema import additions
from turnkeeper.engine.sessions import Sessions
from turnkeeper.engine.streaming.feed_memory import FeedMemory
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.inbox import Inbox
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.engine.turns import Turns
from turnkeeper.identity.server_certificate import ServerCertificate
from turnkeeper.limits.limiter import Limiter
from turnkeeper.limits.limits_file import LimitsFile
from turnkeeper.model.by_agent import Models
from turnkeeper.policy.policies import Policies
from turnkeeper.rpc.access import AccessRules
from turnkeeper.rpc.agents import AgentService
from turnkeeper.rpc.approvals import ApprovalService
from turnkeeper.rpc.audit import AuditService
from turnkeeper.rpc.chat import ChatService
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.rpc.health import Health
from turnkeeper.rpc.identity import CallerCheck
from turnkeeper.rpc.interceptor import Boundary
from turnkeeper.rpc.items import Items
from turnkeeper.rpc.limits import LimitCheck
from turnkeeper.rpc.operations import OperatorService
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.rpc.refusals import CertainRefusals
from turnkeeper.rpc.refused_calls import RefusedCalls
from turnkeeper.rpc.server import OUR_FILES, Server
from turnkeeper.rpc.sessions import SessionService
from turnkeeper.rpc.views import encoded_for_watchers
from turnkeeper.rpc.visible import VisibleSessions
from turnkeeper.settings import Settings
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.store.changeset import Changeset, Committed
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.setup import Telemetry
from turnkeeper.tools.toolbox import Toolbox


@dataclass(frozen=True, slots=True)
class Configured:
    """The agents of the file, the models and the tools that they use, who may call, how often, and the certificate."""

    agents: Mapping[str, Agent]
    models: Models
    toolbox: Toolbox
    callers: CallerCheck
    limits: LimitsFile
    certificate: ServerCertificate | None
    signer: Signer | None
    observe: Callable[[Changeset, Committed], None] | None = None
    """Called with each changeset that is stored; must not raise."""


class Replica:
    """Assembles the parts of one server: the worker, the streams, the verbs, the background jobs."""

    def __init__(
        self,
        settings: Settings,
        store: MongoStore,
        configured: Configured,
        telemetry: Telemetry,
        *,
        schema: int,
    ) -> None:
        """`settings.replica` is this replica's name; `schema` is the newest that it supports."""
        self._settings = settings
        self._store = store
        self._callers, self._certificate = configured.callers, configured.certificate
        self._telemetry = telemetry
        self._rng = random.Random()
        memory, metrics = MemoryBudget(settings.memory), telemetry.metrics
        self._memory_report = MemoryReport(memory, metrics)
        self._held_leases = HeldLeases()
        self._session_cache = SessionCache(store, decode=WireCodec().decode, memory=memory)
        self._feeds = Feeds(
            store,
            poll=settings.poll.total_seconds(),
            delta_interval=settings.delta_interval,
            memory=FeedMemory(memory),
        )
        self._sources = sources = Sources.of_machine(jitter=self._rng.random)
        self._log_writer = LogWriter(
            store,
            self._feeds,
            metrics,
            session_cache=self._session_cache,
            held_leases=self._held_leases,
            sources=sources,
        )
        sign = configured.signer.sign if configured.signer else None
        self.auditing = Auditing(store, sign=sign, replica=settings.replica, sources=sources)
        if configured.observe is not None:
            self._log_writer.observe = configured.observe
        load = self._log_writer.load
        load.limit.set_most(settings.calls_at_work)
        self._gate = Gate(load, settings.accept_wait, jitter=self._rng.random, recorder=metrics, memory=memory)
        self._agent_versions = AgentVersions(configured.agents, store)
        self._denials = Denials()
        self._policies = Policies(
            configured.agents, groups_of=configured.callers.principals.groups_of, denial_of=self._denials.ruling_on
        )
        self._toolbox = configured.toolbox
        self._worker = self._execution(configured.models, schema, memory.part("turns"))
        self._limiter = Limiter(configured.limits.table, turns=load.backlog, recorder=metrics)
        self._worker.rooms.tenants.most = self._limiter.most_running
        self._watchers, self._inbox = self._streaming(memory)
        self._add_verbs(schema)
        self._jobs = self._background_jobs()

    def _execution(self, models: Models, schema: int, memory: MemoryPart) -> Worker:
        """Returns the worker, which runs turns."""
        settings, metrics, spans = self._settings, self._telemetry.metrics, self._telemetry.spans
        services = RunServices(
            store=self._store,
            leases=self._store,
            log_writer=self._log_writer,
            session_cache=self._session_cache,
            feeds=self._feeds,
            agents=self._agent_versions,
            toolbox=self._toolbox,
            policies=self._policies,
            model_caller=ModelCaller(models.of, toolbox=self._toolbox, spans=spans, metrics=metrics),
            metrics=metrics,
            spans=spans,
            retries=RetryPolicy(),
            jitter=self._rng.random,
            answer_time=settings.answer_time,
            memory=memory,
            outcome_patience=settings.outcome_patience,
            add_to_changes=additions(schema) if schema > SCHEMA else lambda _: None,
        )
        return Worker(
            services,
            self._held_leases,
            offer=LeaseOffer(owner=settings.replica, lease=settings.lease, schema=schema),
            concurrency=settings.concurrency,
            poll=settings.poll,
        )

    def _streaming(self, memory: MemoryBudget) -> tuple[Watchers, Inbox]:
        """Returns what opens a watcher for each stream: of events, and of approvals."""
        heartbeat, rotation = self._settings.heartbeat.total_seconds(), self._settings.rotation.total_seconds()
        shared: dict[str, Any] = {
            "metrics": self._telemetry.metrics,
            "times": StreamTimes(keep_alive=heartbeat, rotation=rotation),
            "rng": self._rng,
        }
        watchers = Watchers(self._store, self._feeds, WireCodec(), **shared)
        return watchers, Inbox(self._store, encoded_for_watchers, memory=memory, **shared)

    def _add_verbs(self, schema: int) -> None:
        """Assembles the verbs on sessions, approvals, client tools, turns, checkpoints and forks."""
        store, log_writer, metrics, decode = self._store, self._log_writer, self._telemetry.metrics, WireCodec().decode
        versions, freezes = self._agent_versions, Freezes()
        self._sessions = Sessions(
            store, log_writer, session_cache=self._session_cache, agents=versions, freezes=freezes
        )
        edits = ArgumentEdits(store, agents=self._agent_versions, toolbox=self._toolbox, policies=self._policies)
        self._approvals = Approvals(store, log_writer, self._feeds, edits=edits)
        self._delegations = Delegations(store, self._callers.principals, sources=self._sources)
        self._client_tools = ClientTools(
            store,
            log_writer,
            toolbox=self._toolbox,
            measures=CallMeasures(store, spans=self._telemetry.spans, metrics=metrics, decode=decode),
            agents=self._agent_versions,
        )
        parts: dict[str, Any] = {"worker": self._worker, "client_tools": self._client_tools, "metrics": metrics}
        self._turns = Turns(store, log_writer, self._feeds, sessions=self._sessions, freezes=freezes, **parts)
        self._operations = Operations(store, self._turns, freezes, self._denials, sources=self._sources)
        self._checkpoints = Checkpoints(store, log_writer, decode=decode)
        self._forks = Forks(store, store, log_writer, self._checkpoints, freezes=freezes, schema=schema)

    def _background_jobs(self) -> Sequence[Callable[[], Coroutine[None, None, None]]]:
        """Returns the background jobs, which run until the drain has ended."""
        settings, store, metrics, jitter = self._settings, self._store, self._telemetry.metrics, self._rng.random
        keep_alive = LeaseKeepAlive(
            store.renewer, self._held_leases, lease=settings.lease, patience=settings.patience_of_loop
        )
        heartbeat = Heartbeat(store, lease=settings.lease)
        sweeper = Sweeper(
            store,
            metrics=metrics,
            notify_worker=self._worker.notify,
            interval=JitteredInterval(settings.sweep.total_seconds(), jitter),
            lapsed_by=heartbeat.judge.lapsed_by,
        )
        interval = JitteredInterval(settings.sweep.total_seconds(), jitter)
        expire, announce = self._approvals.expire, self._approvals.announce_expiring
        expirer = Expirer(store, expire=expire, announce=announce, interval=interval)
        janitor = Janitor(
            store,
            keep_events=settings.keep_events,
            purge_after=settings.purge_after,
            interval=JitteredInterval(settings.sweep.total_seconds(), jitter),
        )
        publisher = PreviewPublisher(store, self._feeds, held_leases=self._held_leases, heartbeat=heartbeat)
        receiver = PreviewReceiver(store, store, self._feeds, held_leases=self._held_leases)
        readers: dict[str, Any] = {"feeds": self._feeds, "inbox": self._inbox, "previews": receiver}
        listener = ChangeListener(store, **readers, worker=self._worker, metrics=metrics, jitter=jitter)
        jobs = (
            self._worker,
            self._feeds,
            self._inbox,
            heartbeat,
            keep_alive,
            sweeper,
            expirer,
            janitor,
            listener,
            publisher,
            receiver,
            self._gate,
            self._memory_report,
            MemoryTrim(),
            LoopLag(metrics),
            self.auditing,
            self._operations,
        )
        return [job.run for job in jobs]

    @contextlib.asynccontextmanager
    async def serving(
        self,
        page_tokens: PageTokens,
        database: Database,
        shutdown: ShutdownRequest,
        *,
        health: Health,
        share_port: bool,
    ) -> AsyncIterator[tuple[Server, int]]:
        """Accepts calls, and yields the server and its port. Drains at the end of the block."""
        settings, store = self._settings, self._store
        checks: dict[str, Any] = {
            "refused_calls": RefusedCalls(self.auditing.refusals),
            "certain_refusals": CertainRefusals(store),
            "limits": LimitCheck(self._limiter),
            "metrics": self._telemetry.metrics,
        }
        boundary = Boundary(
            callers=self._callers,
            access=AccessRules(OUR_FILES),
            spans=self._telemetry.spans,
            gate=self._gate,
            **checks,
            write_timeout=settings.write_time.total_seconds(),
        )
        server = Server(boundary, settings, health, share_port=share_port)
        streams: dict[str, Any] = {"watchers": self._watchers, "page_tokens": page_tokens}
        visible = VisibleSessions(self._sessions, store)
        logs: dict[str, Any] = {"audit": store, "checkpoints": self._checkpoints, "forks": self._forks}
        server.add(SessionService(self._sessions, store, visible, **logs, **streams))
        server.add(ChatService(self._turns, visible, self._client_tools, store, **streams))
        decisions = (self._approvals, self._delegations, RememberedDecisions(self._sessions, self._log_writer))
        approvals: dict[str, Any] = {"items": Items(**checks), "page_tokens": page_tokens}
        server.add(ApprovalService(*decisions, store, self._inbox, **approvals))
        server.add(AgentService(self._policies, store, toolbox=self._toolbox, page_tokens=page_tokens))
        server.add(AuditService(store))
        server.add(OperatorService(self._operations, store, page_tokens=page_tokens))
        port = server.listen(settings.address(settings.port), self._certificate)
        await self._operations.load()
        probe = DatabaseProbe(store, patience=settings.unready_after, report=server.set_database_answers)
        async with background(*self._jobs, probe.run), database.kept_running(server.set_database):
            await server.start()
            await server.set_serving(True)
            try:
                yield server, port
            finally:
                await drain(
                    server,
                    boundary,
                    worker=self._worker,
                    feeds=self._feeds,
                    inbox=self._inbox,
                    settings=settings,
                    interrupted=shutdown.interrupted,
                )
