"""The caller of an RPC: checked once at its headers, before its body is read, and kept for as long as it runs."""

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from turnkeeper.errors import InvalidRequest, PermissionDenied, ServiceUnavailable, SessionError
from turnkeeper.identity.caller import Caller
from turnkeeper.identity.credential import Authenticator, Credential, Refusal, refused
from turnkeeper.identity.principals import Principals
from turnkeeper.rpc.access import Access
from turnkeeper.rpc.context import Context, Run
from turnkeeper.rpc.request_ids import request_id_of
from turnkeeper.settings import RECHECK
from turnkeeper.telemetry.logs import name_caller

ON_BEHALF_OF: Final = "turnkeeper-on-behalf-of"
"""The metadata by which a delegate names the person for whom it makes a call."""
RECHECK_S: Final = RECHECK.total_seconds()
"""Seconds after which a call's credential is checked again, at its next response: of a stream, keep-alives included, or
of a wait."""


@dataclass(frozen=True, slots=True)
class CheckedCall:
    """A call whose credential was checked."""

    caller: Caller
    """With those of its roles that the method admits."""
    credential: Credential
    access: Access
    on_behalf_of: str


@dataclass(frozen=True, slots=True)
class KnownCaller:
    """What is known of who made a call, also of one that is refused."""

    credential_id: str = ""
    caller: Caller | None = None
    """With all its roles."""


_ALSO: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("what a call's check does also", default=None)
_CHECKED: ContextVar[CheckedCall] = ContextVar("turnkeeper-checked-call")
_NOTHING: Final = KnownCaller()
_KNOWN: ContextVar[KnownCaller] = ContextVar("turnkeeper-known-caller")


def caller_of(context: Context) -> Caller:  # noqa: ARG001 - gRPC's context cannot carry it
    """Returns the caller of the RPC that `context` belongs to. Raises LookupError outside of a checked call."""
    return _CHECKED.get().caller


def known_caller() -> KnownCaller:
    """Returns what is known of who makes the call of the current task."""
    return _KNOWN.get(_NOTHING)


def check_also(look: Callable[[], Awaitable[None]]) -> None:
    """Lets the later checks of the current task's call make this `look`, too, which raises SessionError to end it."""
    _ALSO.set(look)


class CallerCheck:
    """Checks who makes a call, and whether the method admits it."""

    def __init__(
        self,
        authenticator: Authenticator,
        principals: Principals,
        *,
        recheck: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`recheck`: see RECHECK_S. `clock` returns the seconds since the epoch."""
        self._authenticator = authenticator
        self.principals = principals
        """Who belongs to a credential, by the file as it is now."""
        self._recheck = recheck
        self._clock = clock

    async def check(self, context: Context, access: Access) -> None:
        """Checks a call at its headers. From then on `caller_of` returns its caller.

        Raises Unauthenticated without a valid credential; PrincipalUnknown for one without a principal;
        PermissionDenied if no role of the caller is one of the method's.
        """
        if not access.needs_credential:
            return
        credential = await self._authenticator.credential(context)
        _KNOWN.set(KnownCaller(credential.id))
        if not access.roles:
            return
        person = _on_behalf_of(context.invocation_metadata() or ())
        caller = self._admitted(credential, access, person)
        _CHECKED.set(CheckedCall(caller, credential, access, person))
        name_caller(caller.tenant, caller.principal, request_id=request_id_of(context))

    def of_call(self, context: Context) -> "LaterChecks":
        """Returns what checks the call of the current task again, which lasts."""
        return LaterChecks(self, context, _CHECKED.get(None), every=self._recheck)

    def checked_at_its_end(self, method: Run) -> Run:
        """Returns a unary call's method: one that has waited for long has no result for a caller that may not call."""

        async def run(request: Any, context: Context) -> Any:
            check = self.of_call(context)
            try:
                response = await method(request, context)
            except SessionError:
                await check.again()
                raise
            await check.again()
            return response

        return run

    async def check_again(self, context: Context, call: CheckedCall) -> None:
        """Checks the call's credential as at its headers: its key may have been withdrawn, its carrier's certificate
        may have ended.

        Raises Unauthenticated if it is no longer valid, or the principals file has another caller or none for it by
        now. What cannot be checked at present stays as it is.
        """
        expires_at = call.credential.expires_at
        if expires_at is not None and expires_at <= self._clock():
            raise refused(Refusal.EXPIRED)
        try:
            credential = await self._authenticator.credential(context)
        except ServiceUnavailable:
            credential = call.credential
        try:
            caller = self._admitted(credential, call.access, call.on_behalf_of)
        except SessionError:
            raise refused(Refusal.REVOKED) from None
        if caller != call.caller:
            raise refused(Refusal.REVOKED)

    def _admitted(self, credential: Credential, access: Access, person: str) -> Caller:
        known = self.principals.caller(credential, on_behalf_of=person)
        _KNOWN.set(KnownCaller(credential.id, known))
        caller = known.within(access.roles)
        if not caller.roles:
            raise PermissionDenied
        return caller


class LaterChecks:
    """Checks the caller of one call again and again."""

    __slots__ = ("_call", "_callers", "_context", "_every", "due")

    def __init__(self, callers: CallerCheck, context: Context, call: CheckedCall | None, *, every: float) -> None:
        """`every`: seconds between two checks. `call`: None if the method needs no credential."""
        self._callers, self._context, self._call, self._every = callers, context, call, every
        self.due = time.monotonic() + every if call is not None else math.inf
        """From this time on, in monotonic seconds, the caller is to be checked again."""

    async def again(self) -> None:
        """Checks the caller if that is due.

        Raises Unauthenticated if it may not make the call any more, and what `check_also` was given.
        """
        now = time.monotonic()
        if self._call is None or now < self.due:
            return
        self.due = now + self._every
        await self._callers.check_again(self._context, self._call)
        if (look := _ALSO.get()) is not None:
            await look()


def _on_behalf_of(metadata: Iterable[tuple[str, object]]) -> str:
    """Returns the person that the metadata names; empty for none. Raises InvalidRequest for more than one."""
    names = [value for key, value in metadata if key == ON_BEHALF_OF]
    if not names:
        return ""
    if len(names) > 1 or not names[0]:
        problem = "must name one person"
        raise InvalidRequest(f"The metadata {ON_BEHALF_OF} {problem}.", fields={ON_BEHALF_OF: problem})
    return str(names[0])
