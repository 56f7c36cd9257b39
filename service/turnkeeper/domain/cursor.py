"""The position of a reader in a session's stream."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPosition:
    """A position in a session's stream: after a durable event, perhaps inside the message that follows it."""

    sequence: int = 0
    """The last durable event that the reader has, 0 before the first."""
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
