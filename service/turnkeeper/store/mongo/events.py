"""Events as they are stored: numbered wire bytes, beside the fields that queries select by."""

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import Any, Final

from turnkeeper.domain.event import NewEvent, name_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import StoredEvent
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.documents import SCHEMA

LARGEST_PAYLOAD: Final = (256 + 8) * 1024
"""A message's text of 256 KiB, and 8 KiB for the fields around it."""


def numbered(
    codec: EventCodec, session_id: str, event: NewEvent, sequence: int, *, changeset_id: str = ""
) -> StoredEvent:
    """Returns the event with its number, as this changeset stores it.

    Raises ValueError if it is larger than LARGEST_PAYLOAD.
    """
    payload = codec.number(codec.encode(session_id, event), sequence)
    if len(payload) > LARGEST_PAYLOAD:
        raise ValueError(f"the event has {len(payload)} bytes; at most {LARGEST_PAYLOAD} are allowed")
    return StoredEvent(sequence, name_of(event.payload), event.turn_id, payload, changeset_id)


def event_document(stored: StoredEvent, *, key: SessionKey, changeset_id: str, fence: int, at: datetime) -> Document:
    """Returns the document to insert. `fence` is the head's once this is stored."""
    return {
        "tenant": key.tenant,
        "session_id": key.session_id,
        "seq": stored.sequence,
        "turn_id": stored.turn_id,
        "fence": fence,
        "step_id": changeset_id,
        "kind": stored.kind,
        "payload": stored.payload,
        "at": at,
        "schema": SCHEMA,
    }


def events_of(documents: Iterable[Document]) -> list[StoredEvent]:
    """Returns the events that these documents hold. Logs are read by the thousand: none costs a call of a function."""
    return list(map(_EVENT, map(_FIELDS, documents)))


_FIELDS: Final = itemgetter("seq", "kind", "turn_id", "payload", "step_id")
_EVENT: Final[Callable[[tuple[Any, ...]], StoredEvent]] = partial(tuple.__new__, StoredEvent)
