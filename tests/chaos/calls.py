"""Calls to any replica, as the client contract has them made. Each try is written down before and after."""

import asyncio
import hashlib
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio

from tests.chaos.record import Recorder
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
"""A replica that comes back is found within a second."""

_SERVICES = ("sessions", "chat", "approvals")
_AGAIN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED"})
"""About the call alone: nothing was accepted, or nobody knows. The same call again finds out."""
AGAIN_REASONS = frozenset({"SERVICE_UNAVAILABLE", "SERVER_DRAINING", "RATE_LIMIT_EXCEEDED"})
_UNSAID = ("wait", "after", "previews")
"""What the fingerprint of a request leaves out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended. `status` is gRPC's, GAVE_UP when no try was answered; `reason` our code, or empty."""

    status: str
    reason: str = ""
    turn_id: str = ""
    response: Any = None

    @property
    def ok(self) -> bool:
        return self.status == "OK"

    @property
    def final(self) -> bool:
        """Whether the same call again would only say the same."""
        if self.reason:
            return self.reason not in AGAIN_REASONS
        return self.status not in _AGAIN


@dataclass(slots=True)
class Replicas:
    """Every server, each on a channel of its own; connected inside `async with`."""

    addresses: Sequence[str]
    stubs: list[Stubs] = field(default_factory=list)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        for address in self.addresses:
            channel = aio.insecure_channel(address, options=OPTIONS)
            self.stubs.append(Stubs(await self._stack.enter_async_context(channel)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def method(self, replica: int, rpc: str) -> Any:
        stubs = self.stubs[replica]
        return next(getattr(getattr(stubs, name), rpc) for name in _SERVICES if hasattr(getattr(stubs, name), rpc))


class Caller:
    """One client's calls. `group` owns those that nobody waits for; `until`: the monotonic time of the last try."""

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
        self.rng = rng
        self.replicas = replicas
        self._record = record
        self._group = group
        self._until = until

    def any_replica(self) -> int:
        return self.rng.randrange(len(self.replicas.stubs))

    async def call(self, rpc: str, request: Any, *, wait: float = 0.0, first: int | None = None, **more: Any) -> Answer:
        """The answer, after as many tries as it takes, each on the next replica; GAVE_UP when time is over."""
        replica = (self.any_replica() if first is None else first) % len(self.replicas.stubs)
        intent, pause = self._record.number(), 0.1
        while True:
            answer = await self._try(rpc, request, replica, timeout=UNARY + wait, intent=intent, more=more)
            if answer.final:
                return answer
            if time.monotonic() > self._until:
                return Answer("GAVE_UP")
            await asyncio.sleep(pause * (0.5 + self.rng.random()))
            pause = min(pause * 2, 1.0)
            replica = (replica + 1) % len(self.replicas.stubs)

    async def copies(self, rpc: str, request: Any, *, most: int = 5, **more: Any) -> Answer:
        """The same request 1 to `most` times at once, to different replicas: the first good answer, or the last one.

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

    async def _try(
        self, rpc: str, request: Any, replica: int, *, timeout: float, intent: int, more: dict[str, Any]
    ) -> Answer:
        number = self.sent(rpc, request, replica, intent=intent, **more)
        try:
            answer = Answer("OK", response=await self.replicas.method(replica, rpc)(request, timeout=timeout))
        except aio.AioRpcError as error:
            answer = answer_of(error)
        self.answered(number, answer)
        return answer

    def sent(self, rpc: str, request: Any, replica: int, *, intent: int = 0, **more: Any) -> int:
        """Write down that the call is about to be made; its number."""
        number = self._record.number()
        self._record.line(
            "sent",
            call=number,
            intent=intent or number,
            client=self.name,
            rpc=rpc,
            replica=replica,
            body=fingerprint(request),
            **asked(request),
            **more,
        )
        return number

    def answered(self, number: int, answer: Answer, **more: Any) -> None:
        """Write down how the call ended."""
        told = {"turn": answer.turn_id} if answer.turn_id else {}
        told |= _told(answer.response) if answer.response is not None else {}
        self._record.line("answered", call=number, status=answer.status, reason=answer.reason, **{**told, **more})


def answer_of(error: aio.AioRpcError) -> Answer:
    """What a failed call says."""
    trailing = error.trailing_metadata()
    raw = trailing.get("grpc-status-details-bin") if trailing is not None else None
    detail, info = error_pb2.SessionErrorDetail(), error_details_pb2.ErrorInfo()
    if isinstance(raw, bytes):
        for packed in status_pb2.Status.FromString(raw).details:
            _ = packed.Unpack(detail) or packed.Unpack(info)
    return Answer(_name(error.code()), reason=info.reason, turn_id=detail.turn_id)


def asked(request: Any) -> dict[str, Any]:
    """What matters of a request, by short names."""
    names = {"session_id": "session", "request_id": "request", "turn_id": "asked_turn", "approval_id": "approval"}
    found = {short: getattr(request, name) for name, short in names.items() if getattr(request, name, "")}
    if text := "".join(part.text for part in getattr(request, "content", ())):
        found["text"] = text
    if decision := getattr(request, "decision", 0):
        found["decision"] = decision
        found["hash"] = request.arguments_hash
    return found


def fingerprint(request: Any) -> str:
    """Two requests with the same are the same request."""
    said = type(request)()
    said.CopyFrom(request)
    fields = type(request).DESCRIPTOR.fields_by_name
    for name in _UNSAID:
        if name in fields:
            said.ClearField(name)
    return hashlib.sha256(said.SerializeToString(deterministic=True)).hexdigest()[:16]


def _told(response: Any) -> dict[str, Any]:
    """What matters of a response, by short names."""
    found: dict[str, Any] = {}
    fields = type(response).DESCRIPTOR.fields_by_name
    if "sequence" in fields:
        found["sequence"] = response.sequence
    if "turn" in fields:
        found |= told_of_turn(response.turn)
    if "session" in fields:
        found["session"] = response.session.session_id
    if "approval" in fields:
        found |= {"approval": response.approval.approval_id, "approval_state": response.approval.state}
    return found


def told_of_turn(turn: chat_pb2.Turn) -> dict[str, Any]:
    """A turn as a client was told of it."""
    found = {"turn": turn.turn_id, "session": turn.session_id, "state": chat_pb2.TurnState.Name(turn.state)[11:]}
    if turn.state == chat_pb2.TURN_STATE_COMPLETED:
        found["answer"] = "".join(part.text for part in turn.answer)
    return found


def _name(code: grpc.StatusCode) -> str:
    return str(code.name)
