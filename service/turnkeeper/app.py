"""Assembles a server, starts it and drains it. The only module that names concrete adapters."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from turnkeeper import agents_file
from turnkeeper.admission.gate import Gate, resting
from turnkeeper.admission.memory import MemoryBudget
from turnkeeper.audit.signing import Signer
from turnkeeper.bootstrap import Database, background, open_database
from turnkeeper.database_state import NotifyState
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.turn import RetryPolicy
from turnkeeper.draining import drain
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.approvals import Approvals, ArgumentEdits
from turnkeeper.engine.checkpoints import Checkpoints
from turnkeeper.engine.client_tools import CallMeasures, ClientTools
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
from turnkeeper.engine.replica.auditing import Auditing
from turnkeeper.engine.replica.change_listener import ChangeListener
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
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watcher import Watchers
from turnkeeper.engine.turns import Turns
from turnkeeper.identity.checks import checks_of
from turnkeeper.identity.credential import Authenticator
from turnkeeper.identity.principals import Principals
from turnkeeper.identity.server_certificate import ServerCertificate
from turnkeeper.limits.limiter import Limiter
from turnkeeper.limits.limits_file import LimitsFile
from turnkeeper.model.by_agent import Models, provider_of
from turnkeeper.rpc.access import AccessRules
from turnkeeper.rpc.agents import AgentService
from turnkeeper.rpc.approvals import ApprovalService
from turnkeeper.rpc.audit import AuditService
from turnkeeper.rpc.chat import ChatService
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.rpc.identity import RECHECK_S, CallerCheck
from turnkeeper.rpc.interceptor import Boundary
from turnkeeper.rpc.limits import LimitCheck
from turnkeeper.rpc.operations import OperatorService
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.rpc.refusals import CertainRefusals
from turnkeeper.rpc.refused_calls import RefusedCalls
from turnkeeper.rpc.server import OUR_FILES, OUR_METHODS, Server
from turnkeeper.rpc.sessions import SessionService
from turnkeeper.rpc.visible import VisibleSessions
from turnkeeper.settings import Settings
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.start_errors import SettingError
from turnkeeper.store.mongo import next_schema
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.setup import Options, Telemetry
from turnkeeper.telemetry.setup import start as start_telemetry
from turnkeeper.tools.python import PythonTools, installed
from turnkeeper.tools.toolbox import Toolbox

logger = logging.getLogger("turnkeeper")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that accepts calls."""

    address: str
    """`host:port`, with the port that the server listens on; or `unix:PATH`."""
    port: int
    mongodb_uri: str
    model_url: str
    """The address of the default model's server; empty if each agent has a base_url of its own."""
    set_database: NotifyState
    """Sets the private database's state. Called at each report of the supervisor, if that runs the database."""


@contextlib.asynccontextmanager
async def serving(  # noqa: PLR0913 - what tests replace
    settings: Settings,
    environ: Mapping[str, str],
    *,
    share_port: bool = False,
    shutdown: ShutdownRequest | None = None,
    new_store: Callable[..., MongoStore] = MongoStore,
    authenticator: Authenticator | None = None,
    recheck: float = RECHECK_S,
) -> AsyncIterator[Running]:
    """Starts a server, and yields once it accepts calls. Drains and closes it at the end of the block.

    `share_port`: other processes of the same supervisor listen on the port, too. `shutdown`: the drain skips its delay
    if that is interrupted by then. `new_store` is called with the arguments of MongoStore, and returns the store that
    the server uses. `authenticator` checks credentials in place of the one that the settings choose, every
    `recheck` seconds of a stream again. Raises one of `cannot_start.ERRORS`.
    """
    principals, checks, schema = Principals(settings.principals), checks_of(settings), next_schema.schema_of(environ)
    limits = LimitsFile(settings.limits, methods=OUR_METHODS)
    signer = Signer.from_file(settings.audit_key) if settings.audit_key else None
    shutdown = shutdown or ShutdownRequest()
    async with AsyncExitStack() as stack:
        database = await open_database(
            settings.mongodb_uri, shutdown, embedded=settings.embedded, data_dir=settings.data_dir, stack=stack
        )
        provider, default_model = await provider_of(settings, environ, stack)
        toolbox = Toolbox([tools := PythonTools(installed())], record_content=settings.record_content)
        agents = agents_file.load(
            settings.agents or agents_file.SAMPLES, default_model=settings.model or default_model, toolbox=toolbox
        )
        if provider is None and any(not agent.base_url for agent in agents.values()):
            ways = "set OPENAI_API_KEY or OPENAI_BASE_URL, pass --local-model, or give each agent a base_url"
            raise SettingError(f"no model is set: {ways}")
        settings = settings.with_replica_name().with_memory()
        telemetry = start_telemetry(
            settings.exporter,
            service_instance_id=settings.replica,
            service_version=version("turnkeeper"),
            otlp_endpoint=settings.otlp_endpoint,
            prometheus_port=settings.prometheus_port,
            options=Options(record_content=settings.record_content),
        )
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
        for watched in (checks, principals, limits):
            watched.report_to(telemetry.metrics.reloaded)
        checks.rest_in(resting)
        await stack.enter_async_context(background(principals.run, limits.run, *checks.jobs))
        tools.threads.record = telemetry.metrics.tool_threads
        if telemetry.prometheus_address:
            logger.info("metrics are served on http://%s/metrics", telemetry.prometheus_address)
        models = Models(provider, settings, environ)
        stack.push_async_callback(models.close)
        models.check(agents.values())
        store = new_store(
            database.uri,
            database=settings.database,
            codec=WireCodec(),
            operation=settings.operation_time,
            replica=settings.replica,
            schema=schema,
            record_call=telemetry.metrics.database_finished if telemetry.metrics.counting else None,
            record_unreadable=telemetry.metrics.document_unreadable,
        )
        stack.push_async_callback(store.close)
        await store.open()
        callers = CallerCheck(authenticator or checks.authenticator, principals, recheck=recheck)
        configured = _Configured(agents, models, toolbox, callers, limits, checks.certificate, signer)
        replica = _Replica(settings, store, configured, telemetry, schema=schema)
        await replica.auditing.record_agents(agents.values())
        server, port = await stack.enter_async_context(
            replica.serving(PageTokens(await store.secret("page_tokens")), database, shutdown, share_port=share_port)
        )
        url, at = provider.base_url if provider else "", settings.address(port)
        yield Running(at, port, database.uri, url, server.set_database)


@dataclass(frozen=True, slots=True)
class _Configured:
    """The agents of the file, the models and the tools that they use, who may call, how often, and the certificate."""

    agents: Mapping[str, Agent]
    models: Models
    toolbox: Toolbox
    callers: CallerCheck
    limits: LimitsFile
    certificate: ServerCertificate | None
    signer: Signer | None


class _Replica:
    """Assembles the parts of one server: the worker, the streams, the verbs, the background jobs."""

    def __init__(
        self,
        settings: Settings,
        store: MongoStore,
        configured: _Configured,
        telemetry: Telemetry,
        *,
        schema: int,
    ) -> None:
        """`settings.replica` is this replica's name; `schema` is the newest that it supports."""
        self._settings = settings
        self._store = store
        self._agents, self._callers, self._certificate = configured.agents, configured.callers, configured.certificate
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
        load = self._log_writer.load
        load.limit.set_most(settings.calls_at_work)
        self._gate = Gate(load, settings.accept_wait, jitter=self._rng.random, recorder=metrics, memory=memory)
        self._agent_versions = AgentVersions(configured.agents, store)
        self._toolbox = configured.toolbox
        self._worker = self._execution(configured.models, schema)
        self._limiter = Limiter(configured.limits.table, turns=load.backlog, recorder=metrics)
        self._worker.rooms.tenants.most = self._limiter.most_running
        self._watchers = self._streaming()
        self._add_verbs(schema)
        self._jobs = self._background_jobs()

    def _execution(self, models: Models, schema: int) -> Worker:
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
            model_caller=ModelCaller(models.of, toolbox=self._toolbox, spans=spans, metrics=metrics),
            metrics=metrics,
            spans=spans,
            retries=RetryPolicy(),
            jitter=self._rng.random,
            answer_time=settings.answer_time,
            add_to_changes=additions(schema) if schema > SCHEMA else lambda _: None,
        )
        return Worker(
            services,
            self._held_leases,
            offer=LeaseOffer(owner=settings.replica, lease=settings.lease, schema=schema),
            concurrency=settings.concurrency,
            poll=settings.poll,
        )

    def _streaming(self) -> Watchers:
        """Returns the object that opens a watcher for each stream."""
        heartbeat, rotation = self._settings.heartbeat.total_seconds(), self._settings.rotation.total_seconds()
        return Watchers(
            self._store,
            self._feeds,
            WireCodec(),
            metrics=self._telemetry.metrics,
            times=StreamTimes(keep_alive=heartbeat, rotation=rotation),
            rng=self._rng,
        )

    def _add_verbs(self, schema: int) -> None:
        """Assembles the verbs on sessions, approvals, client tools, turns, checkpoints and forks."""
        store, log_writer, metrics, decode = self._store, self._log_writer, self._telemetry.metrics, WireCodec().decode
        versions, freezes = self._agent_versions, Freezes()
        self._sessions = Sessions(
            store, log_writer, session_cache=self._session_cache, agents=versions, freezes=freezes
        )
        edits = ArgumentEdits(store, agents=self._agent_versions, toolbox=self._toolbox)
        self._approvals = Approvals(store, log_writer, self._feeds, edits=edits, metrics=metrics)
        self._client_tools = ClientTools(
            store,
            log_writer,
            toolbox=self._toolbox,
            measures=CallMeasures(store, spans=self._telemetry.spans, metrics=metrics, decode=decode),
            agents=self._agent_versions,
        )
        parts: dict[str, Any] = {"worker": self._worker, "client_tools": self._client_tools, "metrics": metrics}
        self._turns = Turns(store, log_writer, self._feeds, sessions=self._sessions, freezes=freezes, **parts)
        self._operations = Operations(store, self._turns, freezes, sources=self._sources)
        self._checkpoints = Checkpoints(store, log_writer, decode=decode)
        self._forks = Forks(store, store, log_writer, self._checkpoints, schema=schema)

    def _background_jobs(self) -> Sequence[Callable[[], Coroutine[None, None, None]]]:
        """Returns the background jobs, which run until the drain has ended."""
        settings, store, metrics, jitter = self._settings, self._store, self._telemetry.metrics, self._rng.random
        keep_alive = LeaseKeepAlive(
            store.renewer, self._held_leases, lease=settings.lease, patience=settings.loop_patience
        )
        sweeper = Sweeper(
            store,
            metrics=metrics,
            notify_worker=self._worker.notify,
            interval=JitteredInterval(settings.sweep.total_seconds(), jitter),
            lease=settings.lease,
        )
        interval = JitteredInterval(settings.sweep.total_seconds(), jitter)
        expirer = Expirer(store, expire=self._approvals.expire, interval=interval)
        janitor = Janitor(
            store,
            keep_events=settings.keep_events,
            purge_after=settings.purge_after,
            interval=JitteredInterval(settings.sweep.total_seconds(), jitter),
        )
        heartbeat = Heartbeat(store, lease=settings.lease)
        publisher = PreviewPublisher(store, self._feeds, held_leases=self._held_leases, heartbeat=heartbeat)
        receiver = PreviewReceiver(store, store, self._feeds, held_leases=self._held_leases)
        listener = ChangeListener(
            store, feeds=self._feeds, previews=receiver, worker=self._worker, metrics=metrics, jitter=jitter
        )
        jobs = (
            self._worker,
            self._feeds,
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
        self, page_tokens: PageTokens, database: Database, shutdown: ShutdownRequest, *, share_port: bool
    ) -> AsyncIterator[tuple[Server, int]]:
        """Accepts calls, and yields the server and its port. Drains at the end of the block."""
        settings, store = self._settings, self._store
        boundary = Boundary(
            callers=self._callers,
            access=AccessRules(OUR_FILES),
            refused_calls=RefusedCalls(self.auditing.refusals),
            spans=self._telemetry.spans,
            metrics=self._telemetry.metrics,
            gate=self._gate,
            certain_refusals=CertainRefusals(store),
            limits=LimitCheck(self._limiter),
            write_timeout=settings.write_time.total_seconds(),
        )
        server = Server(boundary, settings, share_port=share_port)
        streams: dict[str, Any] = {"watchers": self._watchers, "page_tokens": page_tokens}
        visible = VisibleSessions(self._sessions, store)
        logs: dict[str, Any] = {"audit": store, "checkpoints": self._checkpoints, "forks": self._forks}
        server.add(SessionService(self._sessions, store, visible, **logs, **streams))
        server.add(ChatService(self._turns, visible, self._client_tools, store, **streams))
        server.add(ApprovalService(self._approvals, store, page_tokens=page_tokens))
        server.add(AgentService(self._agents, store, page_tokens=page_tokens))
        server.add(AuditService(store))
        server.add(OperatorService(self._operations, store, page_tokens=page_tokens))
        port = server.listen(settings.address(settings.port), self._certificate)
        await self._operations.load()
        async with background(*self._jobs), database.kept_running(server.set_database):
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
                    settings=settings,
                    interrupted=shutdown.interrupted,
                )
