"""Users open sessions one after another; in each they send, stream, cancel, retry and abandon messages."""

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration

from tests.chaos import messages, tenants
from tests.chaos.calls import AGAIN_REASONS, Answer, Caller, turn_fields
from tests.chaos.record import Recorder
from tests.chaos.streams import Chain, Watcher, read
from turnkeeper.pb.v1 import chat_pb2, message_pb2, session_pb2

AGENT = "chaos"
PATIENCE = 25.0
"""Seconds that a user waits for a turn before cancelling or abandoning it."""
_LAST_PATIENCE = 6.0
"""The same, once the load is over."""
_WAIT = 4.0
_WAITING = ("AWAITING_APPROVAL", "AWAITING_TOOL", "AWAITING_BUDGET", "AWAITING_OUTCOME")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Term:
    """The end of the load. `over`: nothing new is begun; `until`: nothing is tried again. Monotonic seconds."""

    over: float
    until: float

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.over


class User:
    """One user with one session at a time."""

    def __init__(self, caller: Caller, *, calls: Recorder, streams: Recorder, term: Term) -> None:
        self._caller = caller
        self._rng = caller.rng
        self._calls = calls
        self._streams = streams
        self._term = term
        self._count = Counter[str]()

    async def live(self) -> None:
        """Opens session after session until the load is over."""
        while not self._term.is_over:
            await self._session()

    async def _session(self) -> None:
        session_id, first = await self._open()
        if not session_id:
            return
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for previews in self._rng.choices([[True], [True, False], []], [7, 2, 1])[0]:
                watcher = Watcher(
                    self._streams,
                    self._caller.replicas,
                    session_id=session_id,
                    rng=random.Random(self._rng.random()),
                    previews=previews,
                )
                group.create_task(watcher.run(done))
            try:
                if first:
                    await self._settle(session_id, first)
                for _ in range(self._rng.randint(4, 10)):
                    if self._term.is_over:
                        break
                    await self._message(session_id)
                if self._rng.random() < 0.35:
                    await self._end(session_id)
            finally:
                done.set()

    async def _open(self) -> tuple[str, str]:
        """Opens a session. Returns its id, and its first turn's if one message created both."""
        match self._rng.choices(["request", "id", "message"], [3, 3, 4])[0]:
            case "request":
                creation = session_pb2.CreateSessionRequest(request_id=self._fresh("creation"), agent=AGENT)
                answer = await self._caller.copies("CreateSession", creation)
            case "id":
                creation = session_pb2.CreateSessionRequest(session_id=f"s-{self._fresh('session')}", agent=AGENT)
                answer = await self._caller.copies("CreateSession", creation)
            case _:
                request = self._new_message("" if self._rng.random() < 0.3 else f"s-{self._fresh('session')}", wait=0)
                request.create_session.agent = AGENT
                answer = await self._caller.copies("SendMessage", request)
                return (answer.response.turn.session_id, answer.response.turn.turn_id) if answer.ok else ("", "")
        return (answer.response.session.session_id if answer.ok else ""), ""

    async def _message(self, session_id: str) -> None:
        """Sends one message and handles its turn."""
        turn_id = await self._rng.choices([self._send, self._stream, self._drop], [6, 4, 1])[0](session_id)
        if not turn_id:
            await asyncio.sleep(0.3)
            return
        if self._rng.random() < 0.17:
            await asyncio.sleep(self._rng.choice([0.0, 0.2, 0.6, 1.2, 2.5]))
            await self._cancel(session_id, turn_id)
        if self._rng.random() < 0.05:
            self._calls.line("left", session=session_id, turn=turn_id)
            return
        state = await self._settle(session_id, turn_id)
        for _ in range(2):
            if state not in ("FAILED", "CANCELLED") or self._rng.random() < 0.4:
                break
            state = await self._retry(session_id, turn_id)
        if self._rng.random() < 0.04:
            await self._cancel(session_id, turn_id)

    async def _send(self, session_id: str) -> str:
        request = self._new_message(session_id, wait=self._rng.choice([0, 0, 0, 2]))
        answer = await self._caller.copies("SendMessage", request, wait=request.wait.seconds)
        if answer.turn_id or answer.ok:
            if self._rng.random() < 0.12:
                await self._same_id_another_body(request)
            return answer.turn_id or str(answer.response.turn.turn_id)
        return ""

    async def _same_id_another_body(self, request: chat_pb2.SendMessageRequest) -> None:
        other = chat_pb2.SendMessageRequest()
        other.CopyFrom(request)
        other.content[0].text = f"{other.content[0].text} and something else"
        await self._caller.call("SendMessage", other, wait=request.wait.seconds, refuse=True)

    async def _stream(self, session_id: str) -> str:
        """Streams a message, cut now and then; the same request with the last cursor goes on, on any replica."""
        request = self._new_stream(session_id)
        chain = Chain(self._streams, session_id=session_id, request_id=request.request_id, previews=True)
        until = min(time.monotonic() + PATIENCE, self._term.until)
        while time.monotonic() < until:
            how = await self._attach(request, chain, seconds=self._rng.choice([0.5, 2, 6]))
            if how == "OK" or _is_final(how):
                break
            await asyncio.sleep(0.0 if how == "CUT" else 0.3)
        return chain.turn_id

    async def _drop(self, session_id: str) -> str:
        """Streams a message as a client that leaves after the first response, and does not come back."""
        request = self._new_stream(session_id)
        chain = Chain(self._streams, session_id=session_id, request_id=request.request_id, previews=True)
        for _ in range(5):
            how = await self._attach(request, chain, seconds=0.3)
            if chain.turn_id or _is_final(how):
                break
        if chain.turn_id:
            self._calls.line("left", session=session_id, turn=chain.turn_id)
            await asyncio.sleep(1.0)
        return ""

    async def _attach(self, request: chat_pb2.StreamMessageRequest, chain: Chain, *, seconds: float) -> str:
        """Reads one stream. Returns how it ended. Its first events are its acknowledgement."""
        replica, acknowledged = self._caller.any_replica(), False
        number = self._caller.sent("StreamMessage", request, replica)
        chain.opened(replica)

        def take(response: chat_pb2.StreamMessageResponse) -> None:
            nonlocal acknowledged
            first = not request.after and bool(response.events) and not acknowledged
            chain.take(response)
            if first:
                self._caller.answered(number, Answer("OK", turn_id=chain.turn_id), sequence=response.events[0].sequence)
                acknowledged = True
            if response.HasField("turn"):
                self._calls.line("turn", **turn_fields(response.turn))

        call = self._caller.replicas.method(replica, "StreamMessage")(request, timeout=seconds + 5)
        errors = list[Answer]()
        how = await read(call, take, seconds=seconds if request.after else seconds + 3, errors=errors)
        chain.closed(how, errors)
        if not acknowledged:
            status, _, reason = how.partition(" ")
            retry, message = (errors[0].retry, errors[0].message) if errors else (None, "")
            not_acknowledged = "ATTACHED" if request.after else f"NOT_{status}"
            self._caller.answered(number, Answer(not_acknowledged, reason=reason, retry=retry, message=message))
        request.after = chain.cursor
        return how

    async def _settle(self, session_id: str, turn_id: str) -> str:
        """Waits for the turn's end, and cancels one that waits too long. Returns its state."""
        request = chat_pb2.GetTurnRequest(session_id=session_id, turn_id=turn_id, wait=_seconds(_WAIT))
        began, state = time.monotonic(), ""
        while time.monotonic() - began < self._patience() and time.monotonic() < self._term.until:
            answer = await self._caller.call("GetTurn", request, wait=_WAIT)
            if not answer.ok:
                return ""
            state = chat_pb2.TurnState.Name(answer.response.turn.state)[11:]
            if state in _ENDED:
                return state
            if state in _WAITING:
                if self._rng.random() < 0.03:
                    break
                await asyncio.sleep(0.4)
        return await self._cancel(session_id, turn_id)

    def _patience(self) -> float:
        return _LAST_PATIENCE if self._term.is_over else PATIENCE

    async def _cancel(self, session_id: str, turn_id: str) -> str:
        request = chat_pb2.CancelTurnRequest(session_id=session_id, turn_id=turn_id)
        answer = await self._caller.copies("CancelTurn", request, most=3, wait=5.0)
        return chat_pb2.TurnState.Name(answer.response.turn.state)[11:] if answer.ok else ""

    async def _retry(self, session_id: str, turn_id: str) -> str:
        request = chat_pb2.RetryTurnRequest(session_id=session_id, turn_id=turn_id, request_id=self._fresh("retry"))
        answer = await self._caller.copies("RetryTurn", request)
        return await self._settle(session_id, turn_id) if answer.ok else ""

    async def _end(self, session_id: str) -> None:
        if self._rng.random() < 0.5:
            await self._caller.copies("SendMessage", self._new_message(session_id, wait=0))
        request = session_pb2.EndSessionRequest(session_id=session_id, reason="enough")
        await self._caller.copies("EndSession", request, wait=5.0)

    def _new_message(self, session_id: str, *, wait: float) -> chat_pb2.SendMessageRequest:
        return chat_pb2.SendMessageRequest(
            session_id=session_id,
            request_id=self._fresh("message"),
            content=self._content(),
            wait=_seconds(wait),
            if_busy=self._busy(),
        )

    def _new_stream(self, session_id: str) -> chat_pb2.StreamMessageRequest:
        return chat_pb2.StreamMessageRequest(
            session_id=session_id,
            request_id=self._fresh("message"),
            content=self._content(),
            if_busy=self._busy(),
            previews=True,
        )

    def _busy(self) -> chat_pb2.IfBusy.ValueType:
        """Returns what the service is to do if a turn is active: an abandoned one may still run."""
        return self._rng.choices(_BUSY, [2, 7, 1, 1])[0]

    def _fresh(self, kind: str) -> str:
        """Returns an id of this user's own. The user of the same name in another tenant has the same ids."""
        self._count[kind] += 1
        return hashlib.sha256(f"{self._caller.name} {kind} {self._count[kind]}".encode()).hexdigest()[:20]

    def _content(self) -> list[message_pb2.Part]:
        self._count["text"] += 1
        label = tenants.label(self._caller.tenant, f"{self._caller.name}-{self._count['text']}")
        return [message_pb2.Part(text=messages.random_message(self._rng, label))]


class Writer(User):
    """One of several users that write to a shared session, whether a turn is active or not."""

    def __init__(self, caller: Caller, place: "Place", **parts: Any) -> None:
        super().__init__(caller, **parts)
        self._place = place

    async def live(self) -> None:
        while not self._term.is_over:
            session_id = self._place.session_id()
            turn_id = await self._send(session_id)
            if turn_id and self._rng.random() < 0.1:
                await self._cancel(session_id, turn_id)
            await asyncio.sleep(self._rng.expovariate(1 / 2))

    def _new_message(self, session_id: str, *, wait: float) -> chat_pb2.SendMessageRequest:
        request = super()._new_message(session_id, wait=wait)
        request.create_session.agent = AGENT
        return request

    def _busy(self) -> chat_pb2.IfBusy.ValueType:
        return self._rng.choices(_BUSY, [5, 3, 3, 2])[0]


class Place:
    """The session that several users share: another one after `most` messages."""

    def __init__(self, *, most: int, rng: random.Random, opened: Callable[[str], None]) -> None:
        self._most = most
        self._rng = rng
        self._opened = opened
        self._sent = 0
        self._session_id = ""

    def session_id(self) -> str:
        if self._sent % self._most == 0:
            self._session_id = f"hot-{self._rng.getrandbits(80):020x}"
            self._opened(self._session_id)
        self._sent += 1
        return self._session_id


_BUSY = [
    chat_pb2.IF_BUSY_REJECT,
    chat_pb2.IF_BUSY_ENQUEUE,
    chat_pb2.IF_BUSY_INTERRUPT,
    chat_pb2.IF_BUSY_WITHDRAW_PENDING,
]


def _seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=int(value % 1 * 1e9))


def _is_final(how: str) -> bool:
    """Returns True if the stream ended with an error that the same call would get again."""
    reason = how.partition(" ")[2]
    return bool(reason) and reason not in AGAIN_REASONS and reason not in ("STREAM_ROTATED", "SLOW_CONSUMER")
