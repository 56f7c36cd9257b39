"""A real gRPC server on a real socket that plays scripts."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from turnkeeper_client import Client, Credentials, ResumePolicy
from turnkeeper_client.channel import Config
from turnkeeper_client.pb.v1 import agent_pb2, approval_pb2, chat_pb2, error_pb2, session_pb2
from turnkeeper_client.pb.v1.agent_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from turnkeeper_client.pb.v1.approval_pb2_grpc import ApprovalServiceServicer, add_ApprovalServiceServicer_to_server
from turnkeeper_client.pb.v1.chat_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server
from turnkeeper_client.pb.v1.error_pb2 import SessionErrorCode, SessionErrorDetail
from turnkeeper_client.pb.v1.session_pb2_grpc import SessionServiceServicer, add_SessionServiceServicer_to_server
from turnkeeper_client.status import CODE_PREFIX, DETAILS_KEY, DOMAIN
from turnkeeper_client_testing.relay import Relay

# Quick, so that a test of a rule about time takes little of it.
QUICK = ResumePolicy(
    silence=timedelta(seconds=5),
    patience=timedelta(seconds=5),
    start_patience=timedelta(seconds=2),
    first_pause=timedelta(milliseconds=20),
    longest_pause=timedelta(milliseconds=100),
)


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """Ends a call with a status, with or without details. `pushback` is for gRPC's own retries."""

    status: grpc.StatusCode
    details: tuple[Message, ...] = ()
    pushback: str = ""


@dataclass(frozen=True)
class Pause:
    """Sends nothing for this many seconds."""

    seconds: float


# Sends nothing until the caller leaves.
STAY = Pause(3600)

Step = Message | Refuse | Pause
Servicer = TypeVar("Servicer")


def refuse(
    code: SessionErrorCode.ValueType,
    *,
    cursor: str = "",
    retry_after: timedelta | None = None,
    on_stream: bool = False,
) -> Refuse:
    """Returns the status of one of the service's errors, as it is sent after a unary call or at a stream's end."""
    value = SessionErrorCode.DESCRIPTOR.values_by_number[code]
    options = value.GetOptions().Extensions[error_pb2.error_code]
    status = next(status for status in grpc.StatusCode if status.value[0] == options.grpc_code)
    reason = value.name.removeprefix(CODE_PREFIX)
    retry = (on_stream and options.retry_on_stream) or options.retry
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"from": "script"}),
        SessionErrorDetail(code=code, session_id="s1", turn_id="t1", cursor=cursor, retry=retry),
    ]
    if on_stream and retry_after is None and options.HasField("stream_retry_after"):
        retry_after = options.stream_retry_after.ToTimedelta()
    if retry_after is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromTimedelta(retry_after)
        details.append(info)
    return Refuse(status=status, details=tuple(details))


def cut_off(code: SessionErrorCode.ValueType, *, cursor: str = "", retry_after: timedelta | None = None) -> Refuse:
    """Returns the end of a stream with one of the service's errors."""
    return refuse(code, cursor=cursor, retry_after=retry_after, on_stream=True)


@dataclass
class Script:
    """The steps that the server plays, and the requests that it received."""

    # One for each stream that is opened, in order.
    streams: deque[Sequence[Step]] = field(default_factory=deque)
    # One for each unary call, in order.
    answers: deque[Step] = field(default_factory=deque)
    requests: list[Any] = field(default_factory=list)
    # What each call carried beside its request.
    metadata: list[dict[str, str]] = field(default_factory=list)
    # Seconds that each call had left when it arrived.
    deadlines: list[float] = field(default_factory=list)
    _call_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _caller_left: asyncio.Event = field(default_factory=asyncio.Event)

    async def call_arrived(self) -> None:
        """Waits, for 2 s at most, until a call has arrived."""
        await asyncio.wait_for(self._call_arrived.wait(), 2)

    async def caller_left(self) -> None:
        """Waits, for 2 s at most, until a caller has left its stream."""
        await asyncio.wait_for(self._caller_left.wait(), 2)

    async def play(self, request: Message, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        self._note(request, context)
        if not self.streams:
            await context.abort(grpc.StatusCode.DATA_LOSS, "the script has no more streams")
        try:
            for step in self.streams.popleft():
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Refuse):
                    await end(step, context)
                else:
                    yield step
        except asyncio.CancelledError:
            self._caller_left.set()
            raise

    async def answer(self, request: Message, context: aio.ServicerContext[Any, Any]) -> Any:
        self._note(request, context)
        step = self.answers.popleft()
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        if isinstance(step, Refuse):
            await end(step, context)
        return step

    def _note(self, request: Message, context: aio.ServicerContext[Any, Any]) -> None:
        self._call_arrived.set()
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        self.deadlines.append(context.time_remaining())


async def end(refusal: Refuse, context: aio.ServicerContext[Any, Any]) -> None:
    """Ends the call with this status."""
    status = status_pb2.Status(code=refusal.status.value[0], message="by the script")
    for detail in refusal.details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    trailing: list[tuple[str, str | bytes]] = []
    if refusal.details:
        trailing.append((DETAILS_KEY, status.SerializeToString()))
    if refusal.pushback:
        trailing.append(("grpc-retry-pushback-ms", refusal.pushback))
    await context.abort(refusal.status, "by the script", tuple(trailing))


def scripted(servicer: Servicer, file: FileDescriptor, script: Script) -> Servicer:
    """Replaces every method of the file's services by the script's, and returns the servicer."""
    for service in file.services_by_name.values():
        for method in service.methods:
            setattr(servicer, method.name, script.play if method.server_streaming else script.answer)
    return servicer


@dataclass(frozen=True)
class Stage:
    """A client connected to a scripted server, over a network that can be cut."""

    client: Client
    script: Script
    relay: Relay
    server: aio.Server


@asynccontextmanager
async def stage(
    *streams: Sequence[Step],
    policy: ResumePolicy = QUICK,
    config: Config = "direct",
    health: health_aio.HealthServicer | None = None,
    credentials: Credentials | None = None,
) -> AsyncIterator[Stage]:
    """Plays `streams` to a client, one for each stream that it opens."""
    script = Script(streams=deque(streams))
    server = aio.server()
    add_SessionServiceServicer_to_server(scripted(SessionServiceServicer(), session_pb2.DESCRIPTOR, script), server)
    add_ChatServiceServicer_to_server(scripted(ChatServiceServicer(), chat_pb2.DESCRIPTOR, script), server)
    add_ApprovalServiceServicer_to_server(scripted(ApprovalServiceServicer(), approval_pb2.DESCRIPTOR, script), server)
    add_AgentServiceServicer_to_server(scripted(AgentServiceServicer(), agent_pb2.DESCRIPTOR, script), server)
    if health is not None:
        add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            Relay(port) as relay,
            Client(f"127.0.0.1:{relay.port}", config=config, credentials=credentials, resume=policy) as client,
        ):
            yield Stage(client, script, relay, server)
    finally:
        await server.stop(None)
