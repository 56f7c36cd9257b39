"""Starts a server in order, and closes it. What it is made of is in `assembly.py`."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version

from turnkeeper.admission.gate import resting
from turnkeeper.assembly import Configured, Replica
from turnkeeper.audit.signing import Signer
from turnkeeper.bootstrap import background, open_database
from turnkeeper.configured_files import ConfiguredFiles, model_named_by
from turnkeeper.database_state import NotifyState
from turnkeeper.domain.agent import Agent
from turnkeeper.identity.checks import checks_of
from turnkeeper.identity.credential import Authenticator
from turnkeeper.identity.principals import Principals
from turnkeeper.limits.limits_file import LimitsFile
from turnkeeper.model.by_agent import Models, check_provider, provider_of
from turnkeeper.model.openai_client import Provider
from turnkeeper.rpc import health_port
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.rpc.health import Health
from turnkeeper.rpc.identity import RECHECK_S, CallerCheck
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.rpc.server import OUR_METHODS, SERVICES
from turnkeeper.settings import Settings
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.store.changeset import Changeset, Committed
from turnkeeper.store.mongo import next_schema
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.setup import Options
from turnkeeper.telemetry.setup import start as start_telemetry
from turnkeeper.tools.source_report import SourceReport
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
    health_address: str
    """`host:port` of the health port; empty without one."""
    set_database: NotifyState
    """Sets the private database's state. Called at each report of the supervisor, if that runs the database."""
    reload: Callable[[], Awaitable[None]]
    """Reads the files of agents and tools again, for new sessions and for calls that start from now on.

    Raises one of `cannot_start.ERRORS`, and then leaves everything as it is.
    """
    agents: Mapping[str, Agent]
    """The agents by name, as they are after the last reading."""
    toolbox: Toolbox


def _published_keys(
    files: ConfiguredFiles, settings: Settings, port: int, *, share_port: bool
) -> AbstractAsyncContextManager[str]:
    """Serves the keys that verify the calls of tool servers."""
    from turnkeeper.tools.remote import key_port, table  # noqa: PLC0415 - its libraries only where it is needed

    return key_port.serving(
        lambda: table.published(files.servers.sources), settings.health_at, port, share_port=share_port
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Development:
    """What `turnkeeper dev` adds to a server. The defaults are those of `turnkeeper serve`."""

    progress: Callable[[str], None] = lambda _: None
    """Called with `database`, `model` and `server` before each of them starts."""
    provider: Callable[[Settings, Mapping[str, str], AsyncExitStack], Awaitable[tuple[Provider | None, str]]] = (
        provider_of
    )
    """Returns the provider of agents without a `base_url`, and the default model's name."""
    provider_of: Callable[[Agent], Provider | None] | None = None
    """Returns the provider of one such agent; None: all have the same."""
    answered_by: Callable[[Agent], str] = model_named_by
    """Returns the name of the model that answers for an agent."""
    observe: Callable[[Changeset, Committed], None] | None = None
    """Called with each changeset that is stored; must not raise."""


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
    development: Development | None = None,
) -> AsyncIterator[Running]:
    """Starts a server, and yields once it accepts calls. Drains and closes it at the end of the block.

    `share_port`: other processes of the same supervisor listen on the port, too. `shutdown`: the drain skips its delay
    if that is interrupted by then. `new_store` is called with the arguments of MongoStore, and returns the store that
    the server uses. `authenticator` checks credentials in place of the one that the settings choose, every
    `recheck` seconds of a stream again. `development` has what `turnkeeper dev` adds. Raises one of
    `cannot_start.ERRORS`.
    """
    principals, checks, schema = Principals(settings.principals), checks_of(settings), next_schema.schema_of(environ)
    limits = LimitsFile(settings.limits, methods=OUR_METHODS)
    signer = Signer.from_file(settings.audit_key) if settings.audit_key else None
    shutdown = shutdown or ShutdownRequest()
    health = Health(SERVICES)
    await health.set_serving(False)
    async with AsyncExitStack() as stack:
        # First, because liveness answers while the start waits for the database.
        health_address = await stack.enter_async_context(
            health_port.serving(health, settings.health_at, settings.health_port, share_port=share_port)
        )
        files, development = (
            ConfiguredFiles(settings, is_followed=development is None, share_port=share_port),
            development or Development(),
        )
        if settings.jwks_port is not None:
            await stack.enter_async_context(_published_keys(files, settings, settings.jwks_port, share_port=share_port))
        await stack.enter_async_context(background(files.servers.run))
        development.progress("database")
        database = await open_database(
            settings.mongodb_uri, shutdown, embedded=settings.embedded, data_dir=settings.data_dir, stack=stack
        )
        development.progress("model")
        provider, default_model = await development.provider(settings, environ, stack)
        await files.servers.listed.wait()
        files.read_agents(default_model=default_model, answered_by=development.answered_by)
        agents, toolbox = files.agents, files.toolbox
        check_provider(provider, agents.values())
        settings = settings.with_replica_name().with_memory()
        telemetry = start_telemetry(
            settings.exporter,
            service_instance_id=settings.replica,
            service_version=version("turnkeeper"),
            otlp_endpoint=settings.otlp_endpoint,
            prometheus_port=settings.prometheus_port,
            options=Options(
                record_content=settings.record_content, prometheus_host=settings.prometheus_host.strip("[]")
            ),
        )
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)
        for watched in (checks, principals, limits, files):
            watched.report_to(telemetry.metrics.reloaded)
        checks.rest_in(resting)
        await stack.enter_async_context(background(principals.run, limits.run, files.follow, *checks.jobs))
        files.tools.threads.record = telemetry.metrics.tool_threads
        await stack.enter_async_context(background(SourceReport(toolbox, files.servers, telemetry.metrics).run))
        if telemetry.prometheus_address:
            logger.info("metrics are served on http://%s/metrics", telemetry.prometheus_address)
        models = Models(provider, settings, environ, default_of=development.provider_of)
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
        await store.open(wait=settings.database_wait)
        callers = CallerCheck(authenticator or checks.authenticator, principals, recheck=recheck)
        configured = Configured(
            agents, models, toolbox, callers, limits, checks.certificate, signer, observe=development.observe
        )
        development.progress("server")
        replica = Replica(settings, store, configured, telemetry, schema=schema)
        await replica.auditing.record_agents(agents.values())
        page_tokens = PageTokens(await store.secret("page_tokens"))
        server, port = await stack.enter_async_context(
            replica.serving(page_tokens, database, shutdown, health=health, share_port=share_port)
        )
        url, at = provider.base_url if provider else "", settings.address(port)
        logger.info(
            "turnkeeper %s serves on %s: identity %s, database %s on %s, replica %s, agents %s",
            *(version("turnkeeper"), at, settings.identity, settings.database, store.hosts, settings.replica),
            ", ".join(agents),
        )

        async def reload() -> None:
            await files.reload(models.check)
            await replica.auditing.record_agents(agents.values())

        yield Running(at, port, database.uri, url, health_address, server.set_database, reload, agents, toolbox)
