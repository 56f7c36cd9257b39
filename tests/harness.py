"""Starts a real server, in this process or in its own, and makes the calls that most tests need."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from tests.guarded_database import LEAST_RIGHTS, SERVICE
from turnkeeper import app
from turnkeeper.identity.credential import Authenticator
from turnkeeper.model.playback import Chooser
from turnkeeper.model.script import Script
from turnkeeper.model.script_file import parse_script
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import (
    agent_pb2_grpc,
    approval_pb2,
    approval_pb2_grpc,
    audit_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    event_pb2,
    message_pb2,
    operator_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from turnkeeper.settings import Settings
from turnkeeper.store.mongo.store import MongoStore

START_TIME = 40.0


TENANT: Final = "default"
"""That of the tests' caller."""


class SecondTenant(Protocol):
    """A tenant beside that of the tests' caller, which then has a token."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Returns the settings by which a server knows the callers of both."""

    @property
    def token(self) -> str:
        """Returns the token of the tests' caller."""

    def served(self, address: str, mongo_uri: str, database: str) -> contextlib.AbstractContextManager[None]:
        """Takes note, for the block, of a server with these settings, and of its database."""

    def channels(self, channel: Any, address: str) -> "tuple[Any, Any] | None":
        """Returns the channel with the token of the tests' caller, and with that of the second tenant's caller.

        Returns None if no server with the settings has this address.
        """


second_tenant: SecondTenant | None = None
"""Set by tests/e2e/conftest.py."""


def token() -> str:
    """Returns the token of the tests' caller."""
    assert second_tenant is not None, "without a second tenant there are no credentials"
    return second_tenant.token


class Stubs:
    """The services on one channel."""

    second: "Stubs | None" = None
    """Those of the second tenant's caller, until it has changed the twin of the first test session."""

    def __init__(self, channel: Any) -> None:
        self.channel: aio.Channel = channel
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.chat = chat_pb2_grpc.ChatServiceStub(channel)
        self.approvals = approval_pb2_grpc.ApprovalServiceStub(channel)
        self.agents = agent_pb2_grpc.AgentServiceStub(channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(channel)
        self.operator = operator_pb2_grpc.OperatorServiceStub(channel)


@contextlib.asynccontextmanager
async def connect(address: str) -> AsyncIterator[Stubs]:
    """Opens a channel, and yields its stubs."""
    async with aio.insecure_channel(address) as channel:
        yield stubs_on(channel, address)


def caller_channel(channel: Any, address: str) -> Any:
    """Returns the channel to the server at this address with the credential of the tests' caller, if it has one."""
    channels = second_tenant.channels(channel, address) if second_tenant else None
    return channels[0] if channels else channel


def stubs_on(channel: aio.Channel, address: str) -> Stubs:
    """Returns the services of the server at this address for the tests' caller."""
    channels = second_tenant.channels(channel, address) if second_tenant else None
    if channels is None:
        return Stubs(channel)
    stubs, stubs_of_second = map(Stubs, channels)
    stubs.second = stubs_of_second
    return stubs


@contextlib.asynccontextmanager
async def scripted(script: str | Script | Chooser) -> AsyncIterator[ScriptedModel]:
    """Starts a model that plays this script (TOML), or that answers as the chooser does."""
    script = parse_script(script) if isinstance(script, str) else script
    async with ScriptedModel(script) if isinstance(script, Script) else ScriptedModel(chooser=script) as model:
        yield model


def environment(model: ScriptedModel | str, **more: str) -> dict[str, str]:
    """Returns the variables that send a server to this model, without the tester's own."""
    url = model if isinstance(model, str) else model.base_url
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "unused", **more}


@contextlib.asynccontextmanager
async def serving(
    mongo_uri: str,
    database: str,
    model: ScriptedModel | str,
    *,
    agents: Path | None = None,
    more: Mapping[str, str] | None = None,
    new_store: Callable[..., MongoStore] = MongoStore,
    authenticator: Authenticator | None = None,
    recheck: float = 60.0,
    **overrides: Any,
) -> AsyncIterator[app.Running]:
    """Starts a server in this process, on a real socket and a real database, with short times and no wait at drain.

    `more`: variables on top. `new_store` returns the server's store: a test may pass a subclass that fails or waits.
    `authenticator` checks credentials in place of identity `none`, every `recheck` seconds of a stream again.
    """
    chosen: dict[str, Any] = {
        "port": 0,
        "mongodb_uri": _of_service(mongo_uri),
        "database": database,
        "agents": agents,
        "lease": timedelta(seconds=2),
        "sweep": timedelta(milliseconds=200),
        "poll": timedelta(milliseconds=100),
        "outcome_patience": timedelta(),
        "drain_delay": timedelta(),
        "drain_grace": timedelta(seconds=2),
    }
    tenants = None if "identity" in overrides or authenticator else second_tenant
    if tenants is not None:
        chosen |= tenants.settings
    variables = environment(model, **(more or {}))
    settings = Settings(openai_base_url=variables["OPENAI_BASE_URL"], **{**chosen, **overrides})
    async with app.serving(
        settings, variables, new_store=new_store, authenticator=authenticator, recheck=recheck
    ) as running:
        with _noted(tenants, running.address, mongo_uri, database):
            yield running


@dataclass(slots=True)
class ServerProcess:
    """`turnkeeper serve` in a process of its own."""

    process: asyncio.subprocess.Process
    address: str

    @property
    def pid(self) -> int:
        return self.process.pid

    async def kill(self) -> None:
        """Kills the process with SIGKILL, and waits until it is gone."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Drains the server with SIGTERM. Returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@contextlib.asynccontextmanager
async def server_process(
    mongo_uri: str,
    database: str,
    model: ScriptedModel | str,
    *,
    flags: tuple[str, ...] = (),
    variables: Mapping[str, str] | None = None,
    program: tuple[str, ...] = ("turnkeeper",),
    python: str = sys.executable,
    stderr: int | None = None,
    short_times: bool = True,
) -> AsyncIterator[ServerProcess]:
    """Starts a server process on a free port, and kills it at the end of the block if it still runs.

    `short_times`: its leases and other times are a test's, not the defaults.

    `program`: the module that is run, with its first arguments, by the interpreter `python`.

    `stderr`: a file's number; None: the test's own.
    """
    command = [python, "-m", *program, "serve", "--port", "0", "--database", database]
    times = ["--lease", "2s", "--sweep", "200ms", "--poll", "100ms", "--drain-delay", "0s", "--drain-grace", "5s"]
    times = times if short_times else []
    patience = {"TURNKEEPER_OUTCOME_PATIENCE": "0s"} if short_times else {}
    tenants = None if "--identity" in flags else second_tenant
    if tenants is not None:
        named = tenants.settings.items()
        flags = (*(part for name, value in named for part in (f"--{name.replace('_', '-')}", str(value))), *flags)
    process = await asyncio.create_subprocess_exec(
        *command,
        *times,
        *flags,
        env=environment(model, TURNKEEPER_MONGODB_URI=_of_service(mongo_uri), **patience, **(variables or {})),
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )
    try:
        address = await address_of(process)
        with _noted(tenants, address, mongo_uri, database):
            yield ServerProcess(process, address)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - no public way to close the pipe


def _noted(
    tenants: SecondTenant | None, address: str, mongo_uri: str, database: str
) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if tenants is None else tenants.served(address, mongo_uri, database)


def _of_service(mongo_uri: str) -> str:
    """Returns the address with the login of servers, if they have one of their own."""
    return re.sub("(?<=//)[^@/]*(?=@)", SERVICE, mongo_uri) if os.environ.get(LEAST_RIGHTS) else mongo_uri


async def address_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(START_TIME):
        while line := (await process.stdout.readline()).decode():
            if "serving on" in line:
                return line.rsplit(" ", 1)[1].strip()
    raise RuntimeError("the server ended before it served; its reason is on standard error")


def new_request_id() -> str:
    return uuid.uuid4().hex


def text_parts(text: str) -> list[message_pb2.Part]:
    return [message_pb2.Part(text=text)]


def answer_of(turn: chat_pb2.Turn) -> str:
    return "".join(part.text for part in turn.answer)


async def create_test_session(stubs: Stubs, *, agent: str = "clerk", session_id: str = "") -> str:
    """Creates a session. Returns its id.

    The twin of the first one is then changed by its own caller: the server caches both, and notifies of both.
    """
    response = await stubs.sessions.CreateSession(
        session_pb2.CreateSessionRequest(session_id=session_id, request_id=new_request_id(), agent=agent)
    )
    if stubs.second is not None:
        second, stubs.second = stubs.second, None
        twin = session_pb2.Session(session_id=response.session.session_id, title="A foreign title")
        change = session_pb2.UpdateSessionRequest(session=twin, update_mask=FieldMask(paths=["title"]))
        await second.sessions.UpdateSession(change)
    return response.session.session_id


async def send_message_to_session(
    stubs: Stubs, session_id: str, text: str, *, wait: float | None = None, request_id: str = "", **fields: Any
) -> chat_pb2.Turn:
    """Sends a message. Returns its turn as it is after `wait` seconds (None: the server's default)."""
    response = await stubs.chat.SendMessage(
        chat_pb2.SendMessageRequest(
            session_id=session_id,
            request_id=request_id or new_request_id(),
            content=text_parts(text),
            wait=None if wait is None else Duration(nanos=int(wait * 1e9) % 10**9, seconds=int(wait)),
            **fields,
        )
    )
    return response.turn


async def wait_for_approval(stubs: Stubs, session_id: str, *, timeout: float = 10) -> approval_pb2.Approval:
    """Waits for the session's next pending approval, by its event stream, and returns it."""
    async with asyncio.timeout(timeout):
        watch = stubs.sessions.WatchEvents(
            session_pb2.WatchEventsRequest(session_id=session_id, follow=True, types=["approval_requested"])
        )
        try:
            async for response in watch:
                for event in response.events:
                    approval = await get_approval(stubs, event.approval_requested.approval_id)
                    if approval.state == approval_pb2.APPROVAL_STATE_PENDING:
                        return approval
        finally:
            watch.cancel()
    raise AssertionError("the stream ended without a pending approval")


async def get_approval(stubs: Stubs, approval_id: str) -> approval_pb2.Approval:
    """Returns the approval as it is now."""
    request = approval_pb2.GetApprovalRequest(approval_id=approval_id)
    return (await stubs.approvals.GetApproval(request)).approval


async def retry(stubs: Stubs, session_id: str, turn_id: str) -> chat_pb2.RetryTurnResponse:
    """Retries a turn, with a request id of its own."""
    request = chat_pb2.RetryTurnRequest(session_id=session_id, turn_id=turn_id, request_id=new_request_id())
    return await stubs.chat.RetryTurn(request)


async def answer(
    stubs: Stubs, approval: approval_pb2.Approval, decision: event_pb2.ApprovalDecision.ValueType, **fields: Any
) -> approval_pb2.DecideApprovalResponse:
    """Decides an approval, with the arguments that it shows."""
    return await stubs.approvals.DecideApproval(
        approval_pb2.DecideApprovalRequest(
            approval_id=approval.approval_id, decision=decision, arguments_hash=approval.arguments_hash, **fields
        )
    )


async def decide(
    stubs: Stubs, approval: approval_pb2.Approval, *, approve: bool = True, reason: str = ""
) -> approval_pb2.DecideApprovalResponse:
    """Approves or rejects an approval, with the arguments that it shows."""
    decision = event_pb2.APPROVAL_DECISION_APPROVE if approve else event_pb2.APPROVAL_DECISION_REJECT
    return await answer(stubs, approval, decision, reason=reason)


async def wait_for_turn(stubs: Stubs, session_id: str, turn_id: str, *, seconds: int = 20) -> chat_pb2.Turn:
    """Waits until the turn has ended or waits for a person or client, and returns it."""
    response = await stubs.chat.GetTurn(
        chat_pb2.GetTurnRequest(session_id=session_id, turn_id=turn_id, wait=Duration(seconds=seconds))
    )
    return response.turn


async def all_events(stubs: Stubs, session_id: str) -> list[event_pb2.Event]:
    """Returns every durable event so far, read page by page."""
    events: list[event_pb2.Event] = []
    after = 0
    while True:
        page = await stubs.sessions.ListEvents(
            session_pb2.ListEventsRequest(session_id=session_id, after_sequence=after, page_size=100)
        )
        events.extend(page.events)
        after = page.through_sequence
        if not page.more:
            return events


def kinds(events: list[event_pb2.Event]) -> list[str]:
    """Returns the names of the events' payloads, in order."""
    return [str(event.WhichOneof("payload")) for event in events]
