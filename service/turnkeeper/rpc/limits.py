"""The limits of principals and tenants, at a call's headers.

A call beyond its rate is refused there as well, but its small body is read first. It may repeat a call that this
replica has admitted, or its time may have come. A call is known by its request id, or else by its bytes.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from turnkeeper.admission.gate import CURRENT as ADMITTED
from turnkeeper.errors import ResourceExhausted
from turnkeeper.limits.charge import CURRENT, Charge
from turnkeeper.limits.limiter import Beyond, Limiter, Method, Person
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.kinds import adds_turn, group_of, may_wait

SMALL: Final = 64 * 1024
"""The request id of a longer body is not looked for before the call is admitted: the call is known by its bytes."""
FAMILIES: Final = {"SendMessage": "message", "StreamMessage": "message"}
"""Methods that share their request ids."""

Parse = Callable[[bytes], Any]
Read = Callable[[], Awaitable[bytes]]


def limited_method(name: str, *, is_stream: bool) -> Method:
    """Returns a method of ours as the limits know it."""
    return Method(
        name,
        group_of(name, is_stream=is_stream),
        is_stream=is_stream,
        may_wait=may_wait(name),
        adds_turn=adds_turn(name),
    )


class _LimitedCall:
    """A call that was charged. Its stream, or its wait, counts until it ends."""

    __slots__ = ("_is_stream", "_limiter", "_person")

    def __init__(self, limiter: Limiter, person: Person, *, is_stream: bool) -> None:
        self._limiter, self._person, self._is_stream = limiter, person, is_stream
        if is_stream:
            limiter.streams[person] += 1

    def rests(self, change: int) -> None:
        """Takes that the call begins to wait, or no longer does."""
        if not self._is_stream:
            _add(self._limiter.waits, self._person, change)

    def ended(self) -> None:
        """Counts the call off."""
        if self._is_stream:
            _add(self._limiter.streams, self._person, -1)


class LimitCheck:
    """Charges calls, and refuses those beyond the limits."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def enter(self, context: Context, method: Method, *, read: Read, parse: Parse) -> bytes:
        """Charges a call whose caller was checked. Returns its body, which `read` reads.

        Raises RateLimitExceeded or QuotaExceeded, and what `read` raises.
        """
        admitted, limiter = ADMITTED.get(), self._limiter
        if admitted is None or not limiter.is_on:
            return await read()
        person = _person(context)
        body: bytes | None = None
        try:
            try:
                charge = limiter.charge(person, method)
            except Beyond as beyond:
                charge, body = await self._known(beyond, person, method, read=read, parse=parse)
        except ResourceExhausted:
            admitted.withdraw()
            raise
        CURRENT.set(charge)
        admitted.watcher = _LimitedCall(limiter, person, is_stream=method.is_stream)
        return await read() if body is None else body

    def admitted(self, context: Context, method: Method, request: Any, body: bytes) -> None:
        """Remembers an admitted call, so that its repeats are recognised."""
        request_id: str = getattr(request, "request_id", "")
        if request_id and self._limiter.is_on:
            self._limiter.remember(_key(_person(context), method, request, body))

    def charge_item(self, context: Context, method: Method) -> None:
        """Charges one item of the current call as a call of `method`. Raises RateLimitExceeded or QuotaExceeded."""
        if ADMITTED.get() is None or not self._limiter.is_on:
            return
        try:
            CURRENT.set(self._limiter.charge(_person(context), method))
        except Beyond as beyond:
            raise self._limiter.refused(beyond, None) from None

    async def _known(
        self, beyond: Beyond, person: Person, method: Method, *, read: Read, parse: Parse
    ) -> tuple[Charge, bytes]:
        """Returns what a call beyond its rate has paid if it may go on, and its body. Raises RateLimitExceeded."""
        limiter = self._limiter
        if not limiter.may_look(person):
            raise limiter.refused(beyond, None)
        body = await read()
        request = _parsed(body, parse)
        key = _key(person, method, request, body)
        if (charge := limiter.admit_known(key)) is not None:
            return charge, body
        limiter.looked(person, len(body))
        raise limiter.refused(beyond, key, is_unique=bool(getattr(request, "request_id", "")))


def _person(context: Context) -> Person:
    caller = caller_of(context)
    return Person(caller.tenant, caller.principal)


def _parsed(body: bytes, parse: Parse) -> Any:
    """Returns the request of a small body; None of a large one, or of bytes that are none."""
    try:
        return parse(body) if len(body) <= SMALL else None
    except DecodeError:
        return None


def _key(person: Person, method: Method, request: Any, body: bytes) -> int:
    """Returns a number by which repeats of a call are recognised."""
    family = FAMILIES.get(method.name, method.name)
    if len(body) <= SMALL and (request_id := getattr(request, "request_id", "")):
        return hash((person, family, getattr(request, "session_id", ""), request_id))
    return hash((person, family, body))


def _add(counts: dict[Person, int], person: Person, change: int) -> None:
    counts[person] = counts.get(person, 0) + change
    if not counts[person]:
        del counts[person]
