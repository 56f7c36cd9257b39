"""A place in a session's stream."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPosition:
    """After the durable event `sequence` and, inside a message, after `offset` UTF-8 bytes of its text.

    `live`: the stream had caught up once, so that the deltas it delivered are complete from there on.
    """

    sequence: int = 0
    message_id: str = ""
    attempt: int = 0
    offset: int = 0
    live: bool = False
