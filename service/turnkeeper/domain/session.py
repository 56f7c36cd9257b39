"""A session: a conversation between a principal and an agent."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from turnkeeper.copies import replace
from turnkeeper.domain.message import Usage
from turnkeeper.domain.remembered import RememberedDecision
from turnkeeper.errors import (
    RequestIdReused,
    SessionAlreadyExists,
    SessionExpired,
    SessionIsSuspended,
    SessionNotActive,
)


class SessionKey(NamedTuple):
    """Names one session. Session ids are unique within a tenant only."""

    tenant: str
    session_id: str


class BelongsToSession:
    """A value with the fields `tenant` and `session_id`."""

    __slots__ = ()
    tenant: str
    session_id: str

    @property
    def session_key(self) -> SessionKey:
        """Returns the session's key."""
        return SessionKey(self.tenant, self.session_id)


class SessionState(StrEnum):
    """Where a session is. CREATED has no message yet; ENDED and EXPIRED are final."""

    CREATED = "CREATED"
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    ENDED = "ENDED"
    EXPIRED = "EXPIRED"

    @property
    def over(self) -> bool:
        """Returns True in a final state: the session takes no more messages."""
        return self in (SessionState.ENDED, SessionState.EXPIRED)


UNKNOWN_PER_TOOL = 32
"""How many calls of one tool with an unknown outcome a session records: the latest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownCall:
    """A call of which it is unknown whether it took effect."""

    tool: str
    tool_call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The turn that was in the middle at the checkpoint to which a session was restored."""

    turn_id: str
    """Empty if every turn was complete there."""
    retried: bool = False
    """RetryTurn has started that turn again since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session as it is stored."""

    id: str
    tenant: str
    owner: str
    """The principal that created it."""
    agent: str
    agent_version: str
    """Pinned when the session is created."""
    state: SessionState
    fingerprint: str
    """Of the request that created it, to recognise a repeat."""
    create_time: datetime
    update_time: datetime
    title: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata_json: str = ""
    """JSON text of the caller's."""
    etag: str = ""
    """Changes with every change of the session's fields."""
    usage: Usage = field(default_factory=Usage)
    """Of all its turns."""
    end_time: datetime | None = None
    """Set in a final state."""
    unknown: tuple[UnknownCall, ...] = ()
    """Calls whose outcome is unknown, newest first, those given up included."""
    remembered: tuple[RememberedDecision, ...] = ()
    """Decisions that approve later calls, newest first; some may have expired. They end with the session, or its
    restoration."""
    restored: Restored | None = None
    """Set from a restoration to the next message."""
    resumes_as: SessionState = SessionState.ACTIVE
    """While suspended: the state after ResumeSession."""
    created_through: str = ""
    """The delegate through which the owner created it; empty without one."""
    delete_time: datetime | None = None
    """For people; the purge counts from the time that the store recorded by its own clock."""

    @property
    def first_revision(self) -> int:
        """Returns a number of the session's own: a decision on a purged session never fits a new one of the same id."""
        return int.from_bytes(hashlib.sha256(self.etag.encode()).digest()[:6])

    @property
    def key(self) -> SessionKey:
        """Returns the session's key."""
        return SessionKey(self.tenant, self.id)

    def check_takes_messages(self) -> None:
        """Raises SessionIsSuspended, SessionExpired or SessionNotActive if it takes no messages."""
        match self.state:
            case SessionState.CREATED | SessionState.ACTIVE:
                return
            case SessionState.SUSPENDED:
                raise SessionIsSuspended(session_id=self.id)
            case SessionState.EXPIRED:
                raise SessionExpired(session_id=self.id)
            case SessionState.ENDED:
                raise SessionNotActive(session_id=self.id)

    def check_owned_by(self, principal: str) -> None:
        """Raises SessionAlreadyExists if another principal has taken this id, and tells nothing else of its session."""
        if self.owner != principal:
            raise SessionAlreadyExists(session_id=self.id)

    def check_created_by(self, principal: str, *, fingerprint: str, derived_from: str = "") -> None:
        """Raises if another principal, or another request, created this session.

        The error is SessionAlreadyExists if the caller named the session, or RequestIdReused if its id was derived from
        the request id `derived_from`.
        """
        if (self.owner, self.fingerprint) == (principal, fingerprint):
            return
        if derived_from:
            raise RequestIdReused(metadata={"request_id": derived_from})
        raise SessionAlreadyExists(session_id=self.id)

    def activated(self, *, first_text: str, etag: str, at: datetime) -> "Session":
        """Returns the session after its first message: ACTIVE, titled by the text's first 80 characters at most."""
        title = self.title or " ".join(first_text.split())[:80]
        return replace(self, state=SessionState.ACTIVE, title=title, etag=etag, update_time=at)

    def unknown_calls(self, tool: str, *, but: str = "") -> tuple[str, ...]:
        """Returns the ids of this tool's calls with an unknown outcome, newest first, without the call `but`."""
        return tuple(call.tool_call_id for call in self.unknown if call.tool == tool and call.tool_call_id != but)

    def with_unknown(self, tool: str, tool_call_id: str) -> "Session":
        """Returns the session with this call recorded as unknown, and at most UNKNOWN_PER_TOOL of its tool."""
        others = self.without_unknown(tool_call_id).unknown
        latest = set(self.unknown_calls(tool, but=tool_call_id)[: UNKNOWN_PER_TOOL - 1])
        rest = tuple(call for call in others if call.tool != tool or call.tool_call_id in latest)
        return replace(self, unknown=(UnknownCall(tool=tool, tool_call_id=tool_call_id), *rest))

    def without_unknown(self, tool_call_id: str) -> "Session":
        """Returns the session after a person decided what became of this call."""
        return replace(self, unknown=tuple(call for call in self.unknown if call.tool_call_id != tool_call_id))

    def can_retry(self, turn_id: str, *, last: str, stopped: bool) -> bool:
        """Returns True if RetryTurn may start this turn again.

        `last` is the newest turn; `stopped`: this turn has failed or was cancelled. After a restoration into the middle
        of a turn, that turn is the one to retry, even if it had completed later.
        """
        if self.restored is None:
            return turn_id == last and stopped
        return turn_id == self.restored.turn_id and (stopped or not self.restored.retried)

    def ended(self, *, etag: str, at: datetime) -> "Session":
        """Returns the session after EndSession."""
        return replace(self, state=SessionState.ENDED, etag=etag, update_time=at, end_time=at, remembered=())

    def suspended(self, *, etag: str, at: datetime) -> "Session":
        """Returns the session after SuspendSession. Raises SessionExpired or SessionNotActive if it is over."""
        if self.state is not SessionState.SUSPENDED:
            self.check_takes_messages()
        return replace(self, state=SessionState.SUSPENDED, resumes_as=self.state, etag=etag, update_time=at)

    def resumed(self, *, etag: str, at: datetime) -> "Session":
        """Returns the session after ResumeSession, in the state that it had before it was suspended."""
        return replace(self, state=self.resumes_as, etag=etag, update_time=at)

    def deleted(self, *, etag: str, at: datetime) -> "Session":
        """Returns the session after DeleteSession."""
        return replace(self, delete_time=at, etag=etag, update_time=at, remembered=())

    def undeleted(self, *, etag: str, at: datetime) -> "Session":
        """Returns the session after UndeleteSession."""
        return replace(self, delete_time=None, etag=etag, update_time=at)
