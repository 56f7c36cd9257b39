"""The command `turnkeeper doctor`: does what a start of the server does, part by part, and names each fault.

Its flags are those of `serve`. It writes nothing to a database, and leaves a server that runs alone.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from turnkeeper import interrupts, settings_sources
from turnkeeper.audit.signing import Signer
from turnkeeper.bootstrap import background, open_database
from turnkeeper.cannot_start import ERRORS
from turnkeeper.configured_files import ConfiguredFiles
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.message import Message, Role
from turnkeeper.domain.tool import ToolSpec
from turnkeeper.health_command import SERVING, status_of
from turnkeeper.identity.checks import checks_of
from turnkeeper.identity.principals import Principals
from turnkeeper.limits.limits_file import LimitsFile
from turnkeeper.model.by_agent import Models, check_provider, provider_of
from turnkeeper.model.contract import Model, ModelFailure, ModelRequest
from turnkeeper.model.failure import Reason
from turnkeeper.rpc.server import OUR_METHODS
from turnkeeper.settings import Settings
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.start_errors import PortTaken
from turnkeeper.store.mongo.examination import Examined, examine
from turnkeeper.supervision.supervisor import hold_port
from turnkeeper.terminal.console import Output, standard_output
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.tools.contract import ServerSource, SourceUnreachable

EPILOG: Final = """\
examples:
  what a laptop needs:
    turnkeeper doctor --embedded --local-model
  what a deployed server has, from its own file and variables:
    turnkeeper doctor --config turnkeeper.toml

Asks each model for one token. Exit status: 0 in order, 1 a fault was found.
"""
CLOCKS_APART: Final = timedelta(seconds=5)
"""How far the database's clock and this machine's may be apart."""
LEAST_FREE: Final = 500_000_000
"""Free bytes of a disk below which it counts as nearly full."""
_MARKS: Final = {True: ("ok", "green"), False: ("FAULT", "bold red"), None: ("-", "yellow")}
"""What stands before a finding, and its style."""
_ADVICE: Final[Mapping[Reason, str]] = {
    Reason.UNAUTHORIZED: "it refuses the key: check {key}",
    Reason.NOT_FOUND: "it has no such model or address: check the model's name, and that the address ends as /v1",
    Reason.NO_CONNECTION: "nothing answers there: start the model's server, or check OPENAI_BASE_URL or base_url",
    Reason.CONNECT_TIMEOUT: "it does not answer in time: check its address, the network and the proxy",
}


class FaultFound(Exception):
    """A part cannot work. The message is one sentence that tells what to do."""


class NotChecked(Exception):
    """A part cannot be checked before a fault of another one is mended. The message names that one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: why the part is in order, or why not."""

    part: str
    ok: bool | None
    """None if the part was not checked, because of a fault of another one."""
    message: str


@dataclass(slots=True, kw_only=True)
class Examination:
    """The checks of one server's settings, in the order of its start."""

    settings: Settings
    environ: Mapping[str, str]
    stack: AsyncExitStack
    agents: Sequence[Agent] = field(default=())
    files: ConfiguredFiles | None = None
    models: Models | None = None

    @property
    def checks(self) -> Sequence[tuple[str, Callable[[], Awaitable[str]]]]:
        """The parts, each with its check. A check returns why all is in order. Raises NotChecked, or one of FAULTS."""
        return (
            ("callers", self._callers),
            ("ports", self._ports),
            ("agents", self._agents),
            ("tools", self._tools),
            ("model", self._model),
            ("disks", self._disks),
            ("database", self._database),
        )

    async def _callers(self) -> str:
        settings = self.settings
        Principals(settings.principals)
        LimitsFile(settings.limits, methods=OUR_METHODS)
        if settings.audit_key:
            Signer.from_file(settings.audit_key)
        checks_of(settings)
        tls = "with TLS" if settings.has_tls else "without TLS"
        return f"identity {settings.identity}, {tls}"

    async def _ports(self) -> str:
        settings = self.settings
        at = [f"{settings.host}:{settings.port}"]
        if settings.health_port is not None:
            with hold_port(settings.health_host or settings.host, settings.health_port, kind="health-"):
                at.append(f"health {settings.health_port}")
        if settings.jwks_port is not None:
            with hold_port(settings.health_at, settings.jwks_port, kind="jwks-"):
                at.append(f"keys {settings.jwks_port}")
        if settings.exporter == "prometheus":
            with hold_port(settings.prometheus_host, settings.prometheus_port, kind="prometheus-"):
                at.append(f"metrics {settings.prometheus_port}")
        if settings.host.startswith("unix:"):
            return settings.host
        try:
            with hold_port(settings.host, settings.port):
                return f"{', '.join(at)}: free"
        except PortTaken:
            if await asyncio.to_thread(status_of, at[0]) == SERVING:
                return f"a server of ours serves on {at[0]} already"
            raise

    async def _agents(self) -> str:
        settings = self.settings
        files = ConfiguredFiles(settings)
        provider, default_model = await provider_of(settings, self.environ, self.stack)
        await self.stack.enter_async_context(background(files.servers.run))
        await files.servers.listed.wait()
        files.read_agents(default_model=default_model)
        agents = files.agents
        check_provider(provider, agents.values())
        models = Models(provider, settings, self.environ)
        self.stack.push_async_callback(models.close)
        self.files = files
        models.check(agents.values())
        self.agents, self.models = tuple(agents.values()), models
        return f"{', '.join(agents)}, with {len(files.toolbox.names)} tools installed"

    async def _tools(self) -> str:
        """Lists the tools of each tool server once more, and compares the lists."""
        if self.files is None:
            raise NotChecked("not looked at: mend the fault of the agents first")
        servers, toolbox = self.files.servers, self.files.toolbox
        before = {source.name: listed(source) for source in servers.sources}
        await servers.refresh()
        faults = [fault for source in servers.sources if (fault := fault_of(source, before[source.name]))]
        faults += [f"{reason}: rename one" for reason in toolbox.listing.refused.values()]
        if faults:
            raise FaultFound("; ".join(faults))
        counts = [f"{name} with {len(specs or ())} tools" for name, specs in before.items()]
        return ", ".join(counts) or "no tool servers"

    async def _model(self) -> str:
        """Asks each model that an agent has for one token."""
        if self.models is None:
            raise NotChecked("not asked: mend the fault of the agents first")
        requests: dict[tuple[Model, str], Agent] = {}
        for agent in self.agents:
            requests.setdefault((self.models.of(agent), agent.model), agent)
        for (model, name), agent in requests.items():
            request = ModelRequest(model=name, messages=(Message(role=Role.USER, text="Hi"),), max_output_tokens=1)
            try:
                async with aclosing(model.stream(request)) as answer:  # type: ignore[type-var]  # a generator
                    async for _ in answer:
                        pass
            except ModelFailure as failed:
                raise FaultFound(_sentence_of(failed, agent, "{}:{}".format(*model.server))) from None
        return ", ".join(f"{name} answers" for _, name in requests)

    async def _disks(self) -> str:
        """Looks at the folders that the server writes to."""
        settings, folders = self.settings, []
        if settings.embedded and not settings.mongodb_uri:
            folders.append((f"--data-dir {settings.data_dir}", settings.data_dir.absolute(), "choose a folder"))
        if settings.local_model:
            temporary = Path(tempfile.gettempdir())
            folders.append((f"temporary files in {temporary}", temporary, "set TMPDIR to a folder"))
        for what, folder, other in folders:
            there = next(parent for parent in (folder, *folder.parents) if parent.exists())
            check_free(shutil.disk_usage(there).free, what, f"free some space, or {other} on another disk")
        return ", ".join(f"{what}: enough room" for what, *_ in folders) or "the server writes to none of its own"

    async def _database(self) -> str:
        settings = self.settings
        database = await open_database(
            settings.mongodb_uri,
            ShutdownRequest(),
            embedded=settings.embedded,
            data_dir=settings.data_dir,
            stack=self.stack,
        )
        examined = await examine(database.uri, database=settings.database, operation=settings.operation_time)
        check_clock(examined)
        if examined.free is not None and settings.mongodb_uri:  # that of a private one is looked at before
            check_free(examined.free, "the database's primary", "enlarge it: MongoDB ends once it is full")
        return f"MongoDB {examined.version} on {examined.hosts}: a majority acknowledges, all rights are there"


FAULTS: Final = (*ERRORS, FaultFound)


def listed(source: ServerSource) -> Sequence[ToolSpec] | None:
    """Returns the tools of a server as last listed; None if it has no list yet."""
    try:
        return source.specs()
    except SourceUnreachable:
        return None


def fault_of(source: ServerSource, before: Sequence[ToolSpec] | None) -> str:
    """Returns what is wrong with a tool server; empty if nothing is. `before`: the list before its last one."""
    now = listed(source)
    if source.problem or now is None:
        return f"the server {source.name} does not answer: {source.problem or 'it has listed no tools'}"
    if before is not None and list(now) != list(before):
        return f"the server {source.name} lists other tools each time: what a person approves there changes meanwhile"
    return ""


def check_clock(database: Examined) -> None:
    """Raises FaultFound if the database's clock and this machine's are too far apart."""
    if abs(database.ahead) <= CLOCKS_APART:
        return
    way = "ahead of" if database.ahead > timedelta() else "behind"
    raise FaultFound(
        f"the clock of the database is {abs(database.ahead).total_seconds():.0f} s {way} this machine's: let both "
        "follow a time server (NTP), because times to decide and tokens end by these clocks"
    )


def check_free(free: int, what: str, advice: str) -> None:
    """Raises FaultFound if so many free bytes are too few on the disk of `what`."""
    if free < LEAST_FREE:
        raise FaultFound(f"the disk of {what} has {free / 1e6:.0f} MB left, less than {LEAST_FREE / 1e6:.0f}: {advice}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that `serve` does not have."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Examines what the flags and variables describe, prints each finding, and returns the exit status."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # it reports failures past us
    output = standard_output()
    try:
        settings = settings_sources.load(args)
    except FAULTS as error:
        findings = [Finding(part="settings", ok=False, message=str(error))]
        _show(output, findings[0], as_json=args.json)
    else:
        interrupts.raise_again()
        findings = asyncio.run(_examine(settings, output, as_json=args.json))
    if args.json:
        output.show(json.dumps([asdict(finding) for finding in findings], indent=2))
    return ExitCode.OK if all(finding.ok for finding in findings) else ExitCode.FAILED


async def _examine(settings: Settings, output: Output, *, as_json: bool) -> list[Finding]:
    notes = _Notes()
    logger = logging.getLogger("turnkeeper")
    logger.addHandler(notes)
    findings = []
    async with AsyncExitStack() as stack:
        examination = Examination(settings=settings, environ=os.environ, stack=stack)
        for part, check in examination.checks:
            with output.console.status(f"checking the {part}") if output.is_terminal else nullcontext():
                try:
                    finding = Finding(part=part, ok=True, message=await check())
                except (NotChecked, *FAULTS) as error:
                    ok = None if isinstance(error, NotChecked) else False
                    finding = Finding(part=part, ok=ok, message=str(error))
            findings.append(finding)
            _show(output, finding, as_json=as_json)
    logger.removeHandler(notes)
    if not as_json:
        for note in notes.messages:
            output.show_beside((f"{'note':>9}", "yellow"), note)
    return findings


def _show(output: Output, finding: Finding, *, as_json: bool) -> None:
    if not as_json:
        mark, style = _MARKS[finding.ok]
        output.show_beside((f"{mark:>5}  {finding.part:<8}", style), finding.message)


def _sentence_of(failed: ModelFailure, agent: Agent, server: str) -> str:
    """Returns what is wrong with a model, and what to do."""
    advice = failed.detail.message
    with suppress(ValueError, KeyError):
        reason = Reason(failed.detail.metadata["reason"])
        advice = _ADVICE.get(reason, advice).format(key=agent.api_key_env or "OPENAI_API_KEY")
    return f"the model {agent.model} of the agent {agent.name}, at {server}: {advice}"


class _Notes(logging.Handler):
    """Collects the warnings of the checks."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
