"""Exports: lines of JSON in responses of a moderate size."""

from collections.abc import AsyncIterator
from typing import Final

from google.protobuf import json_format

from turnkeeper.audit.export import lines_of_session
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import event_pb2
from turnkeeper.store.audit import AuditStore
from turnkeeper.store.contract import EventLog

RESPONSE_BYTES: Final = 64 * 1024
"""Bytes of lines from which on a response is sent; one line may have more."""
EVENTS_AT_ONCE: Final = 64
"""Events of one read."""


async def grouped(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the lines, as many together as one response takes."""
    group = bytearray()
    async for line in lines:
        group += line
        if len(group) >= RESPONSE_BYTES:
            yield bytes(group)
            group.clear()
    if group:
        yield bytes(group)


async def lines_of_events(store: EventLog, key: SessionKey, *, until: int) -> AsyncIterator[bytes]:
    """Yields a session's durable events up to this number, each as `{"event": …}` in the JSON form of protobuf."""
    after = 0
    while events := await store.events(key, after=after, limit=EVENTS_AT_ONCE, until=until):
        for stored in events:
            event = event_pb2.Event.FromString(stored.payload)
            text = json_format.MessageToJson(event, indent=None, ensure_ascii=False)
            yield f'{{"event":{text}}}\n'.encode()
        after = events[-1].sequence


async def lines_of_export(log: EventLog, audit: AuditStore, key: SessionKey, *, until: int) -> AsyncIterator[bytes]:
    """Yields a session's events, then its records of the audit trail with their proofs."""
    async for line in lines_of_events(log, key, until=until):
        yield line
    async for line in lines_of_session(audit, key):
        yield line
