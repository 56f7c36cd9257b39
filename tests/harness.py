"""Starts a real server, in this process or in its own, and makes the calls that most tests need."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from grpc import aio

from tests.guarded_database import LEAST_RIGHTS, SERVICE
from tests.metadata_channel import MetadataChannel
from turnkeeper import app
from turnkeeper.identity.credential import Authenticator
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTenants:
    """With it the tests' caller is the principal `default`, and its sessions have twins in another tenant."""

    settings: Mapping[str, Any]
    """By which a server knows both callers."""
    metadata: Sequence[tuple[str, str]]
    """The credential of the tests' caller."""
    twin: Sequence[tuple[str, str]]
    """The credential of the caller in the other tenant."""


two_tenants: TwoTenants | None = None
"""Set by tests/e2e/conftest.py."""


class Stubs:
    """The services on one channel."""

    twin: "Stubs | None" = None
    """Those of a caller of another tenant, in which each session of `create_test_session` has a twin of the same id."""

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
        if two_tenants is None:
            yield Stubs(channel)
            return
        stubs = Stubs(MetadataChannel(channel, two_tenants.metadata))
        stubs.twin = Stubs(MetadataChannel(channel, two_tenants.twin))
        yield stubs


@contextlib.asynccontextmanager
async def scripted(script: str | Script) -> AsyncIterator[ScriptedModel]:
    """Starts a model that plays this script (TOML)."""
    async with ScriptedModel(parse_script(script) if isinstance(script, str) else script) as model:
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
    if two_tenants is not None and "identity" not in overrides and authenticator is None:
        chosen |= two_tenants.settings
    variables = environment(model, **(more or {}))
    settings = Settings(openai_base_url=variables["OPENAI_BASE_URL"], **{**chosen, **overrides})
    async with app.serving(
        settings, variables, new_store=new_store, authenticator=authenticator, recheck=recheck
    ) as running:
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
    if two_tenants is not None and "--identity" not in flags:
        named = two_tenants.settings.items()
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
        yield ServerProcess(process, await address_of(process))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - no public way to close the pipe


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
    """Creates a session. Returns its id."""
    response = await stubs.sessions.CreateSession(
        session_pb2.CreateSessionRequest(session_id=session_id, request_id=new_request_id(), agent=agent)
    )
    if stubs.twin is not None:
        await stubs.twin.sessions.CreateSession(
            session_pb2.CreateSessionRequest(session_id=response.session.session_id, agent=agent)
        )
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
                    fetched = await stubs.approvals.GetApproval(
                        approval_pb2.GetApprovalRequest(approval_id=event.approval_requested.approval_id)
                    )
                    if fetched.approval.state == approval_pb2.APPROVAL_STATE_PENDING:
                        return fetched.approval
        finally:
            watch.cancel()
    raise AssertionError("the stream ended without a pending approval")


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
