"""Events as they are stored: numbered wire bytes, and what selects them."""

from datetime import datetime
from typing import Final

from turnkeeper.domain.event import NewEvent, name_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import StoredEvent
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.documents import SCHEMA

LARGEST_PAYLOAD: Final = (256 + 8) * 1024
"""A message's text of 256 KiB, and what is around it."""


def numbered(codec: EventCodec, session_id: str, event: NewEvent, sequence: int) -> StoredEvent:
    """The event with its number. Raises ValueError when it is too large."""
    payload = codec.number(codec.encode(session_id, event), sequence)
    if len(payload) > LARGEST_PAYLOAD:
        raise ValueError(f"an event of {len(payload)} bytes; {LARGEST_PAYLOAD} is the most")
    return StoredEvent(sequence=sequence, kind=name_of(event.payload), turn_id=event.turn_id, payload=payload)


def event_document(stored: StoredEvent, *, of: SessionKey, changeset_id: str, fence: int, at: datetime) -> Document:
    """`of`: the tenant and the session. `fence` is the head's once this is stored."""
    tenant, session_id = of
    return {
        "tenant": tenant,
        "session_id": session_id,
        "seq": stored.sequence,
        "turn_id": stored.turn_id,
        "fence": fence,
        "step_id": changeset_id,
        "kind": stored.kind,
        "payload": stored.payload,
        "at": at,
        "schema": SCHEMA,
    }


def event_of(document: Document) -> StoredEvent:
    return StoredEvent(document["seq"], document["kind"], document["turn_id"], document["payload"])
