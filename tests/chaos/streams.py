"""Reads streams in chains: each stream goes on where the last one ended."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from grpc import aio

from tests.chaos.calls import Answer, Replicas, answer_of
from tests.chaos.record import Recorder
from tests.chaos.tenants import is_foreign
from turnkeeper.pb.v1 import event_pb2, session_pb2

_LONGEST = 5.0
"""Seconds after which a stream is cut in any case, long before a missing keep-alive would end it."""


class Chain:
    """One reader's position in one session, over any number of streams.

    `after` is the number of the event after which it begins. With `request_id` it is of StreamMessage, and gets the
    events of that request's turn alone.
    """

    def __init__(
        self, record: Recorder, *, session_id: str, after: int = 0, request_id: str = "", previews: bool
    ) -> None:
        self.session_id = session_id
        self.turn_id = ""
        self.cursor = ""
        self.through = after
        self.previews = previews
        self._number = record.number()
        self._record = record
        record.line("chain", chain=self._number, session=session_id, after=after, request=request_id, previews=previews)

    def opened(self, replica: int) -> None:
        self._record.line("open", chain=self._number, replica=replica, at=self.through, resumed=bool(self.cursor))

    def take(self, response: Any) -> None:
        """Records one response, then keeps its cursor."""
        tenant = self._record.tenant
        leaked = {"leaked": True} if tenant and is_foreign(response.SerializeToString(), tenant) else {}
        self._record.line(
            "got",
            chain=self._number,
            items=[item(event) for event in response.events],
            through=response.through_sequence,
            caught_up=response.caught_up,
            **leaked,
        )
        self.cursor = response.cursor
        self.through = response.through_sequence
        if response.events:
            self.turn_id = response.events[0].turn_id

    def closed(self, how: str, errors: Sequence[Answer] = ()) -> None:
        """Records how the stream ended: OK, CUT by the reader, or the status and the service's reason."""
        message = errors[0].message if errors else ""
        self._record.line("closed", chain=self._number, how=how, **({"message": message} if message else {}))


def item(event: event_pb2.Event) -> list[Any]:
    """Returns a durable event as `[number, kind, hash, turn, attempt]`, a delta as `[0, message, attempt, offset, text,
    turn]`.
    """
    if event.sequence:
        return [event.sequence, event.WhichOneof("payload"), hash_of(event), event.turn_id, event.attempt]
    delta = event.content_delta
    return [0, delta.message_id, delta.attempt, delta.offset, delta.text, event.turn_id]


def hash_of(event: event_pb2.Event) -> str:
    """Returns the hash of the whole event, unknown fields included."""
    return hashlib.sha256(event.SerializeToString(deterministic=True)).hexdigest()[:20]


class Watcher:
    """Follows one session over random replicas, cut off at random, until `done` is set."""

    def __init__(
        self, record: Recorder, replicas: Replicas, *, session_id: str, rng: random.Random, previews: bool
    ) -> None:
        self._record = record
        self._replicas = replicas
        self._rng = rng
        self._chain = Chain(record, session_id=session_id, previews=previews)

    async def run(self, done: asyncio.Event) -> None:
        """Follows until done; at the end one stream without `follow` fetches the rest."""
        while not done.is_set():
            await self._stream(follow=True, seconds=min(self._rng.expovariate(1 / 3) + 0.3, _LONGEST), done=done)
            if self._rng.random() < 0.1:
                self._begin_again()
        for _ in range(20):
            if await self._stream(follow=False, seconds=_LONGEST, done=None):
                return

    def _begin_again(self) -> None:
        """Begins again after an older event, as another reader would."""
        session_id, previews = self._chain.session_id, self._chain.previews
        after = self._rng.randint(0, self._chain.through)
        self._chain = Chain(self._record, session_id=session_id, after=after, previews=previews)

    async def _stream(self, *, follow: bool, seconds: float, done: asyncio.Event | None) -> bool:
        """Reads one stream. Returns True if it ended by itself without an error."""
        chain, replica = self._chain, self._rng.randrange(len(self._replicas.stubs))
        start = {"after": chain.cursor} if chain.cursor else {"after_sequence": chain.through}
        request = session_pb2.WatchEventsRequest(
            session_id=chain.session_id,
            follow=follow,
            previews=chain.previews,
            **start,
        )
        chain.opened(replica)
        call = self._replicas.method(replica, "WatchEvents")(request, timeout=seconds + 1)
        errors = list[Answer]()
        how = await read(call, chain.take, seconds=seconds, done=done, errors=errors)
        chain.closed(how, errors)
        if how not in ("OK", "CUT"):
            await asyncio.sleep(0.2 * (0.5 + self._rng.random()))
        return how == "OK"


async def read(
    call: Any,
    take: Callable[[Any], None],
    *,
    seconds: float,
    done: asyncio.Event | None = None,
    errors: list[Answer] | None = None,
) -> str:
    """Passes responses to `take`. Returns OK, CUT after `seconds` or when done, or the error's status and reason.

    An error is added to `errors`.
    """
    try:
        async with asyncio.timeout(seconds):
            async for response in _until(call, done):
                take(response)
    except TimeoutError:
        return "CUT"
    except aio.AioRpcError as error:
        answer = answer_of(error)
        if errors is not None:
            errors.append(answer)
        return f"{answer.status} {answer.reason}".strip()
    finally:
        call.cancel()
    return "CUT" if done is not None and done.is_set() else "OK"


async def _until(call: Any, done: asyncio.Event | None) -> AsyncIterator[Any]:
    async for response in call:
        yield response
        if done is not None and done.is_set():
            return
