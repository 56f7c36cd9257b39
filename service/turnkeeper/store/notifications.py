"""What a replica is told of other replicas' writes."""

from dataclasses import dataclass

from turnkeeper.domain.session import BelongsToSession


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeNotification(BelongsToSession):
    """Something moved in a session: look yourself. Hints come late, twice or never.

    `last_seq`: the log's new end, 0 when it did not grow. `claimable`: its turn was given a time to wake up.
    `by_owner`: the write also extended a lease, so that it was its owner's, or a claim. `owner` is the new one, empty
    when the session has none any more; None when that did not change.
    """

    tenant: str
    session_id: str
    last_seq: int = 0
    claimable: bool = False
    by_owner: bool = False
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewChunk(BelongsToSession):
    """A preview: whole characters of a message that is being written, from byte `offset` of its UTF-8 on.

    It is never history: nobody knows whether the message will ever be whole.
    """

    tenant: str
    session_id: str
    turn_id: str
    message_id: str
    attempt: int
    offset: int
    text: str
