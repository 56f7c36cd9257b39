"""What one replica learns of the writes of others: change notifications and preview chunks."""

from dataclasses import dataclass
from typing import TypeAlias

from turnkeeper.domain.session import BelongsToSession


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeNotification(BelongsToSession):
    """A session has changed, and its state should be read. Notifications may come late, twice or never."""

    tenant: str
    session_id: str
    last_seq: int = 0
    """The log's new end; 0 if no event was appended."""
    claimable: bool = False
    """The session's turn was given a time to wake up."""
    by_owner: bool = False
    """The write also set a lease: it is a changeset of the turn's owner, or a claim."""
    owner: str | None = None
    """The new owner; empty if the session no longer has one; None if the owner did not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewChunk(BelongsToSession):
    """Whole characters of a message that is being written. Never part of the history: the message may not complete."""

    tenant: str
    session_id: str
    turn_id: str
    message_id: str
    attempt: int
    offset: int
    """Where the text begins, in bytes of the message's UTF-8."""
    text: str
    tool_call_id: str = ""
    """Not empty: the text is how far this call is, and no part of a message. `offset` is the line's number then."""
    after: int = 0
    """Of such a line: the number of the log's last event."""


@dataclass(frozen=True, slots=True)
class ApprovalNotification:
    """An approval was requested, or has changed, and should be read."""

    tenant: str
    approval_id: str


Notification: TypeAlias = ChangeNotification | PreviewChunk | ApprovalNotification
