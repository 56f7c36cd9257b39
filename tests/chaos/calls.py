"""Makes calls to any replica by the client contract. Each try is recorded before and after."""

import asyncio
import functools
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio

from tests.chaos.record import Recorder
from tests.chaos.tenants import Identity, is_foreign
from tests.harness import Stubs
from turnkeeper.pb.v1 import chat_pb2, error_pb2

UNARY = 4.0
"""Seconds that a call may take, beside its own wait."""
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
)
"""gRPC's options with which a replica that comes back is found within a second."""

_SERVICES = ("sessions", "chat", "approvals")
_AGAIN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED"})
"""Statuses after which the same call is made again: nothing was accepted, or the outcome is unknown."""
AGAIN_REASONS = frozenset(
    {"SERVICE_UNAVAILABLE", "SERVER_DRAINING", "RATE_LIMIT_EXCEEDED", "SESSION_CONTENDED", "OVERLOADED"}
)
DEFECTS = frozenset({"INTERNAL", "UNKNOWN"})
"""Statuses of a server that met a defect of its own; a connection that breaks may end calls with them, too."""
_OUTSIDE_FINGERPRINT = ("wait", "after", "previews")
"""What the fingerprint of a request leaves out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended. `status` is gRPC's, GAVE_UP when no try was answered; `reason` the service's code, or empty.

    `retry`: the milliseconds of RetryInfo, if there is one. `message`: the status's own, if it is one of DEFECTS.
    `details`: the bytes beside an error.
    """

    status: str
    reason: str = ""
    turn_id: str = ""
    response: Any = None
    retry: int | None = None
    message: str = ""
    details: bytes = b""

    @property
    def content(self) -> bytes:
        """The bytes that the caller was given."""
        content: bytes = self.details if self.response is None else self.response.SerializeToString()
        return content

    @property
    def ok(self) -> bool:
        return self.status == "OK"

    @property
    def final(self) -> bool:
        """True if the same call again would have the same answer."""
        if self.reason:
            return self.reason not in AGAIN_REASONS
        return self.status not in _AGAIN


@dataclass(slots=True)
class Replicas:
    """All servers, each on a channel of its own; connected inside `async with`. Calls are made as `identity`.

    `credentials`: those of the channels; None is plain text.
    """

    addresses: Sequence[str]
    identity: Identity | None = None
    stubs: list[Stubs] = field(default_factory=list)
    credentials: grpc.ChannelCredentials | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        for address in self.addresses:
            channel = self._channel(address)
            self.stubs.append(Stubs(await self._stack.enter_async_context(channel)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _channel(self, address: str) -> aio.Channel:
        if self.credentials is None:
            return aio.insecure_channel(address, options=OPTIONS)
        return aio.secure_channel(address, self.credentials, options=OPTIONS)

    def of(self, identity: Identity) -> "Replicas":
        """Returns the same channels for another caller."""
        return Replicas(self.addresses, identity, self.stubs)

    def method(self, replica: int, rpc: str) -> Callable[..., Any]:
        """Returns the method, which is called with the caller's token."""
        services = (getattr(self.stubs[replica], name) for name in _SERVICES)
        method = next(getattr(service, rpc) for service in services if hasattr(service, rpc))
        return functools.partial(method, metadata=self.identity.metadata if self.identity else ())


class Caller:
    """One client's calls. `group` owns the detached ones; `until`: the monotonic time of the last try."""

    def __init__(
        self,
        name: str,
        replicas: Replicas,
        record: Recorder,
        *,
        rng: random.Random,
        group: asyncio.TaskGroup,
        until: float,
    ) -> None:
        self.name = name
        self.tenant = record.tenant
        self.rng = rng
        self.replicas = replicas
        self._record = record
        self._group = group
        self._until = until

    def any_replica(self) -> int:
        return self.rng.randrange(len(self.replicas.stubs))

    async def call(self, rpc: str, request: Any, *, wait: float = 0.0, first: int | None = None, **more: Any) -> Answer:
        """Calls until there is a final answer, each try on the next replica. Returns GAVE_UP when time is over."""
        replica = (self.any_replica() if first is None else first) % len(self.replicas.stubs)
        intent, pause = self._record.number(), 0.1
        while True:
            answer = await self.try_once(rpc, request, replica, timeout=UNARY + wait, intent=intent, **more)
            if answer.final:
                return answer
            if time.monotonic() > self._until:
                return Answer("GAVE_UP")
            await asyncio.sleep(pause * (0.5 + self.rng.random()))
            pause = min(pause * 2, 1.0)
            replica = (replica + 1) % len(self.replicas.stubs)

    async def copies(self, rpc: str, request: Any, *, most: int = 5, **more: Any) -> Answer:
        """Sends the same request to 1 to `most` replicas at once. Returns the first OK or the last answer.

        The other copies go on meanwhile, and are still tried again.
        """
        count = min(most, self.rng.choices(range(1, 6), [10, 4, 3, 1, 1])[0])
        start = self.any_replica()
        copies = [self._group.create_task(self.call(rpc, request, first=start + n, **more)) for n in range(count)]
        answer = Answer("GAVE_UP")
        for next_answer in asyncio.as_completed(copies):
            answer = await next_answer
            if answer.ok:
                break
        return answer

    async def try_once(
        self, rpc: str, request: Any, replica: int, *, timeout: float = UNARY, intent: int = 0, **more: Any
    ) -> Answer:
        """Makes the call once, on this replica."""
        number = self.sent(rpc, request, replica, intent=intent, **more)
        try:
            answer = Answer("OK", response=await self.replicas.method(replica, rpc)(request, timeout=timeout))
        except aio.AioRpcError as error:
            answer = answer_of(error)
        self.answered(number, answer)
        return answer

    def sent(self, rpc: str, request: Any, replica: int, *, intent: int = 0, **more: Any) -> int:
        """Records that the call is about to be made. Returns its number."""
        number = self._record.number()
        self._record.line(
            "sent",
            call=number,
            intent=intent or number,
            client=self.name,
            rpc=rpc,
            replica=replica,
            body=fingerprint(request),
            **request_fields(request),
            **more,
        )
        return number

    def answered(self, number: int, answer: Answer, **more: Any) -> None:
        """Records how the call ended."""
        fields: dict[str, Any] = {"turn": answer.turn_id} if answer.turn_id else {}
        fields |= response_fields(answer.response) if answer.response is not None else {}
        fields |= {"retry": answer.retry} if answer.retry is not None else {}
        fields |= {"message": answer.message} if answer.message else {}
        fields |= {"leaked": True} if self.tenant and is_foreign(answer.content, self.tenant) else {}
        self._record.line("answered", call=number, status=answer.status, reason=answer.reason, **{**fields, **more})


def answer_of(error: aio.AioRpcError) -> Answer:
    """Returns the answer of a failed call, with the service's details if it has them."""
    trailing = error.trailing_metadata()
    raw = trailing.get("grpc-status-details-bin") if trailing is not None else None
    detail, info, retry = error_pb2.SessionErrorDetail(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    after = None
    raw = raw if isinstance(raw, bytes) else b""
    if raw:
        for packed in status_pb2.Status.FromString(raw).details:
            _ = packed.Unpack(detail) or packed.Unpack(info)
            after = retry.retry_delay.ToMilliseconds() if packed.Unpack(retry) else after
    status = _name(error.code())
    message = (error.details() or "") if status in DEFECTS else ""
    return Answer(status, reason=info.reason, turn_id=detail.turn_id, retry=after, message=message, details=raw)


def request_fields(request: Any) -> dict[str, Any]:
    """Returns the fields of a request that are checked, by short names."""
    names = {"session_id": "session", "request_id": "request", "turn_id": "request_turn", "approval_id": "approval"}
    fields = {short: getattr(request, name) for name, short in names.items() if getattr(request, name, "")}
    if text := "".join(part.text for part in getattr(request, "content", ())):
        fields["text"] = text
    if decision := getattr(request, "decision", 0):
        fields["decision"] = decision
        fields["hash"] = request.arguments_hash
        fields["edited"] = bool(request.edited_arguments_json)
    return fields


def fingerprint(request: Any) -> str:
    """Returns a hash of the request's body: two requests with the same hash are the same request."""
    bare_request = type(request)()
    bare_request.CopyFrom(request)
    fields = type(request).DESCRIPTOR.fields_by_name
    for name in _OUTSIDE_FINGERPRINT:
        if name in fields:
            bare_request.ClearField(name)
    return hashlib.sha256(bare_request.SerializeToString(deterministic=True)).hexdigest()[:16]


def response_fields(response: Any) -> dict[str, Any]:
    """Returns the fields of a response that are checked, by short names."""
    known: dict[str, Any] = {}
    fields = type(response).DESCRIPTOR.fields_by_name
    if "sequence" in fields:
        known["sequence"] = response.sequence
    if "turn" in fields:
        known |= turn_fields(response.turn)
    if "session" in fields:
        known["session"] = response.session.session_id
    if "approval" in fields:
        known |= {"approval": response.approval.approval_id, "approval_state": response.approval.state}
    return known


def turn_fields(turn: chat_pb2.Turn) -> dict[str, Any]:
    """Returns the fields of a turn that are checked, as a response has it."""
    fields = {"turn": turn.turn_id, "session": turn.session_id, "state": chat_pb2.TurnState.Name(turn.state)[11:]}
    if turn.state == chat_pb2.TURN_STATE_COMPLETED:
        fields["answer"] = "".join(part.text for part in turn.answer)
    return fields


def _name(code: grpc.StatusCode) -> str:
    return str(code.name)
