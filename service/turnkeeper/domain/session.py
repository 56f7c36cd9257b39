"""A session: a conversation between a principal and an agent."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from turnkeeper.domain.message import Usage
from turnkeeper.errors import (
    RequestIdReused,
    SessionAlreadyExists,
    SessionExpired,
    SessionNotActive,
    SessionSuspended,
)


class SessionState(StrEnum):
    CREATED = "CREATED"
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    ENDED = "ENDED"
    EXPIRED = "EXPIRED"

    @property
    def over(self) -> bool:
        return self in (SessionState.ENDED, SessionState.EXPIRED)


UNKNOWN_PER_TOOL = 32
"""A session remembers so many calls of one tool whose outcome is unknown: the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownCall:
    """A call that may have taken effect; nobody knows."""

    tool: str
    tool_call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """Where a session was taken back to: the turn that was not complete there, or none ("").

    `retried`: RetryTurn has taken that turn up since.
    """

    turn_id: str
    retried: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session as it is stored. `fingerprint` is of the request that created it; `metadata_json` is JSON text.

    `unknown`: the calls whose outcome is unknown, newest first, also those that were given up.
    `restored` is set from a restoration to the next message.
    `resumes_as`: the state that ResumeSession gives it back. `delete_time` is for people; the head has the one that
    decides.
    """

    id: str
    tenant: str
    owner: str
    agent: str
    agent_version: str
    state: SessionState
    fingerprint: str
    create_time: datetime
    update_time: datetime
    title: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata_json: str = ""
    etag: str = ""
    usage: Usage = field(default_factory=Usage)
    end_time: datetime | None = None
    unknown: tuple[UnknownCall, ...] = ()
    restored: Restored | None = None
    resumes_as: SessionState = SessionState.ACTIVE
    delete_time: datetime | None = None

    def check_takes_messages(self) -> None:
        """Raises the error that says why it takes none."""
        match self.state:
            case SessionState.CREATED | SessionState.ACTIVE:
                return
            case SessionState.SUSPENDED:
                raise SessionSuspended(session_id=self.id)
            case SessionState.EXPIRED:
                raise SessionExpired(session_id=self.id)
            case SessionState.ENDED:
                raise SessionNotActive(session_id=self.id)

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
        """The first message came: it is active, and titled by the text's beginning (at most 80 characters)."""
        title = self.title or " ".join(first_text.split())[:80]
        return replace(self, state=SessionState.ACTIVE, title=title, etag=etag, update_time=at)

    def unknown_calls(self, tool: str, *, but: str = "") -> tuple[str, ...]:
        """Calls of this tool that may have been done already, newest first; `but` names one that does not count."""
        return tuple(each.tool_call_id for each in self.unknown if each.tool == tool and each.tool_call_id != but)

    def with_unknown(self, tool: str, tool_call_id: str) -> "Session":
        known = self.without_unknown(tool_call_id).unknown
        kept = set(self.unknown_calls(tool, but=tool_call_id)[: UNKNOWN_PER_TOOL - 1])
        rest = tuple(each for each in known if each.tool != tool or each.tool_call_id in kept)
        return replace(self, unknown=(UnknownCall(tool=tool, tool_call_id=tool_call_id), *rest))

    def without_unknown(self, tool_call_id: str) -> "Session":
        """A person said what became of it."""
        return replace(self, unknown=tuple(each for each in self.unknown if each.tool_call_id != tool_call_id))

    def can_retry(self, turn_id: str, *, last: str, stopped: bool) -> bool:
        """`last` is the newest turn; `stopped`: this one has failed or was cancelled.

        Taken back into a turn, it is that one which goes on, also when it had completed later.
        """
        if self.restored is None:
            return turn_id == last and stopped
        return turn_id == self.restored.turn_id and (stopped or not self.restored.retried)

    def ended(self, *, etag: str, at: datetime) -> "Session":
        return replace(self, state=SessionState.ENDED, etag=etag, update_time=at, end_time=at)

    def suspended(self, *, etag: str, at: datetime) -> "Session":
        """Raises the error that says why it cannot be: it is over."""
        if self.state is not SessionState.SUSPENDED:
            self.check_takes_messages()
        return replace(self, state=SessionState.SUSPENDED, resumes_as=self.state, etag=etag, update_time=at)

    def resumed(self, *, etag: str, at: datetime) -> "Session":
        return replace(self, state=self.resumes_as, etag=etag, update_time=at)

    def deleted(self, *, etag: str, at: datetime) -> "Session":
        return replace(self, delete_time=at, etag=etag, update_time=at)

    def undeleted(self, *, etag: str, at: datetime) -> "Session":
        return replace(self, delete_time=None, etag=etag, update_time=at)


SessionKey = tuple[str, str]
"""(tenant, session)."""
