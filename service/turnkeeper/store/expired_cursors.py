"""Cursors that a log no longer serves: it was trimmed, or it is not the log that their reader was given."""

from turnkeeper.domain.cursor import StreamPosition, history_of
from turnkeeper.errors import CursorExpired
from turnkeeper.store.changeset import Head

_LOST = (
    "the database was restored to an older state, or the session was deleted and another one has its session_id now. "
    "Start at a sequence or cursor that the metadata names, and read ListMessages."
)


def check_not_trimmed(sequence: int, head: Head) -> None:
    """Raises CursorExpired if events after `sequence` may have been trimmed."""
    if sequence < head.compacted_to:
        raise cursor_expired(head.session_id, oldest=head.compacted_to + 1, head=head.last_seq)


def check_not_ahead(sequence: int, head: Head) -> None:
    """Raises CursorExpired if the log has no event of this number, which a cursor names.

    Only events that a majority has are delivered. So the log was longer once, unless this reading of its head lags.
    """
    if sequence > head.last_seq:
        raise CursorExpired(
            f"The cursor is beyond the session's last event, {head.last_seq}: {_LOST}",
            session_id=head.session_id,
            metadata=_bounds(oldest=head.compacted_to + 1, head=head.last_seq),
        )


def check_history(position: StreamPosition, head: Head) -> None:
    """Raises CursorExpired if the log's last event, at this position, is of another history than the reader's."""
    known = {position.history, history_of(head.last_changeset)} - {""}
    if position.sequence == head.last_seq and len(known) > 1:
        raise log_restored(head)


def log_restored(head: Head) -> CursorExpired:
    """Returns the error of a reader who was given events that the log no longer has."""
    return CursorExpired(
        f"The log no longer has the events that this cursor has seen: {_LOST}",
        session_id=head.session_id,
        metadata=_bounds(oldest=head.compacted_to + 1, head=head.last_seq),
    )


def cursor_expired(session_id: str, *, oldest: int, head: int) -> CursorExpired:
    """Returns the error, with the number of the oldest event that can be read and that of the last one."""
    return CursorExpired(session_id=session_id, metadata=_bounds(oldest=oldest, head=head))


def _bounds(*, oldest: int, head: int) -> dict[str, str]:
    return {"oldest_sequence": str(oldest), "head_sequence": str(head)}
