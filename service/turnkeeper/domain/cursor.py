"""The position of a reader in a session's stream."""

from typing import Final, NamedTuple

HISTORY: Final = 8
"""Characters at the end of a changeset's id that name a log's history in a position: they are random."""


def history_of(changeset_id: str) -> str:
    """Returns the name of the history that ends with this changeset, as positions have it; empty for an empty id."""
    return changeset_id[-HISTORY:]


class StreamPosition(NamedTuple):
    """A position in a session's stream: after a durable event, perhaps inside the message that follows it.

    Each delta makes one, and a tuple is made faster than any other value.
    """

    sequence: int = 0
    """The last durable event that the reader has, 0 before the first."""
    history: str = ""
    """The name of the log's history up to that event (`history_of`); empty if it is not known.

    A log that was restored to an older state, and has grown again, has other events under the same numbers.
    """
    message_id: str = ""
    """The message whose text the reader has in part; empty for none.

    The message stays here after its attempt has failed or was superseded, until another one is written. The first delta
    of that one has `restarts` set, so that the reader drops the text.
    """
    attempt: int = 0
    """The attempt that wrote that text."""
    offset: int = 0
    """How many UTF-8 bytes of that text the reader has."""
    live: bool = False
    """The stream had caught up once, so that the deltas after it are complete from there on."""

    def at(self, message_id: str, *, attempt: int, offset: int) -> "StreamPosition":
        """Returns this position inside a message."""
        return StreamPosition(self.sequence, self.history, message_id, attempt, offset, self.live)
