"""What streams are made of: responses with some events each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from turnkeeper_client.pb.v1.event_pb2 import Event


class Response(Protocol):
    """What WatchEventsResponse and StreamMessageResponse have in common."""

    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def cursor(self) -> str: ...
    @property
    def through_sequence(self) -> int: ...
    @property
    def caught_up(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The events of one response. A batch without events is a keep-alive."""

    events: tuple[Event, ...]
    # Points after these events: pass it as `after` to go on.
    cursor: str
    # Every durable event up to this number was delivered or filtered out.
    through_sequence: int
    # True once in each connection: what follows is live.
    caught_up: bool
