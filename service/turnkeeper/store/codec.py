"""What a store asks of whoever turns events into bytes."""

from typing import Protocol

from turnkeeper.domain.event import NewEvent


class EventCodec(Protocol):
    """How events become bytes; the store never looks inside."""

    def encode(self, session_id: str, event: NewEvent) -> bytes:
        """The wire form without its number."""
        ...

    def number(self, payload: bytes, sequence: int) -> bytes:
        """The wire form with its number, made by appending: nothing is parsed."""
        ...
