"""The head of a session: the update that a changeset makes, and the value that a document becomes.

Times are set and compared by the database (`$$NOW`); values of callers are passed as `$literal`. Every changeset writes
the head, so two changesets on one head always conflict.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pymongo
from pymongo.errors import PyMongoError

from turnkeeper.domain.session import Session
from turnkeeper.store.changeset import Cancel, Changeset, Head, HeadChange, LeaseChange, LogEnd
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import ClientSession, Collection, Document
from turnkeeper.store.mongo.documents import SCHEMA, decode, encode
from turnkeeper.store.mongo.signatures import signatures
from turnkeeper.store.mongo.unreadable import UnreadableDocument

NOW: Final = "$$NOW"
"""The database's clock, in a pipeline."""
NEXT_FENCE: Final[Document] = {"$add": ["$fence", 1]}
"""The fence of a new owner, in a pipeline."""
NEXT_REVISION: Final[Document] = {"$add": ["$revision", 1]}
"""The revision after a write, in a pipeline."""
LOCKED_S: Final = 1.0
"""Seconds that a sweep or a claim waits for a head that a transaction has locked."""
SILENT_STEPS: Final = 8
"""Changesets without events whose ids are kept on the head, because no event holds them: the latest ones."""
RUNNABLE: Final = {"active_turn": {"$gt": ""}}
"""The session has an active turn."""
ANY_TIME: Final = {"$gt": datetime.fromtimestamp(0, UTC)}
"""A time is set. (An aggregation treats an unset one as earlier than all others.)"""
AWAKE: Final[Document] = {"suspended": {"$in": [False, None]}}
"""Not suspended. Values, not a negation, so that an index keeps its order behind them; older heads have none."""


def new(session: Session, *, changeset_id: str) -> Document:
    """Returns the head of a new session, with its first event, which this changeset stores."""
    key = keys.of_session(session.key)
    return {
        "_id": key,
        **key,
        "agent": session.agent,
        "last_seq": 1,
        "end": end(1, changeset_id),
        "revision": session.first_revision,
        "silent_steps": [],
        "fence": 0,
        "owner": "",
        "lease_until": None,
        "active_turn": "",
        "queue": [],
        "cancel": encode(Cancel()),
        "wake_at": None,
        "lapses": 0,
        "writer": None,
        "lost": [],
        "broken": None,
        "claim": None,
        "update_time": session.update_time,
        "compacted_to": 0,
        "needs": 0,
        "log_needs": 0,
        "trimmed_to": 0,
        "trim_at": session.create_time,
        "suspended": False,
        "deleted_at": None,
        "schema": SCHEMA,
    }


def end(sequence: int, changeset_id: str) -> Document:
    """Returns the value of the field that names the log's end.

    It holds the number as well: a replica of an older version appends events, and leaves the field as it is.
    """
    return {"seq": sequence, "step_id": changeset_id}


def end_of(document: Document) -> LogEnd:
    """Returns the end of the log that a head describes."""
    last_seq, named = document["last_seq"], document.get("end")
    return LogEnd(last_seq, named["step_id"] if named and named["seq"] == last_seq else "")


def read(document: Document) -> Head:
    """Returns the head that a document holds. It must have a field `now`, the database's clock at the reading.

    Raises UnreadableDocument if a field is missing, or has a form that this version does not know.
    """
    try:
        return _head(document)
    except (KeyError, TypeError) as error:
        raise UnreadableDocument("Head", schema=document.get("schema")) from error


def _head(document: Document) -> Head:
    now, lease_until = document["now"], document["lease_until"]
    return Head(
        session_id=document["session_id"],
        tenant=document["tenant"],
        last_seq=document["last_seq"],
        fence=document["fence"],
        owner=document["owner"],
        owned=lease_until is not None and lease_until > now,
        active_turn=document["active_turn"],
        queue=tuple(document["queue"]),
        cancel=decode(Cancel, document["cancel"]),
        lapses=document["lapses"],
        now=now,
        revision=document["revision"],
        needs=document.get("needs", 0),
        log_needs=document.get("log_needs", 0),
        compacted_to=document.get("compacted_to", 0),
        suspended=document.get("suspended", False),
        deleted=document.get("deleted_at") is not None,
        last_changeset=end_of(document).changeset_id,
    )


def session_of(document: Document, head: Document, *, strict: bool = False) -> Session:
    """Returns the session, with `update_time` from the head, which every changeset writes. Raises as `decode`."""
    session = decode(Session, document, strict=strict)
    return replace(session, update_time=max(session.update_time, head.get("update_time", session.update_time)))


def findable(*, deleted: bool) -> Document:
    """Returns the condition for heads that a reader finds: none that is being purged; deleted ones only if wanted."""
    hidden: Document = {} if deleted else {"deleted_at": None}
    return {"purging": {"$ne": True}, **hidden}


def is_hidden(document: Document) -> bool:
    """Returns True for a head that no reader finds: of a deleted session, one that is being purged, or of a fork that
    is being made."""
    return document.get("deleted_at") is not None or bool(document.get("purging")) or "forking" in document


def unmoved(changeset: Changeset) -> Document:
    """Returns the filter under which a changeset's decision still holds. A stored changeset does not match again.

    An owner that lost its lease to the sweeper is not the owner any more, although the fence is still its own.
    """
    match: Document = {
        **keys.where(keys.of_session(changeset.session_key)),
        "last_seq": changeset.last_seq,
        "fence": changeset.head_fence,
        "cancel.turn_id": changeset.cancel,
    }
    if changeset.last_changeset:
        match["end.step_id"] = changeset.last_changeset
    if not changeset.events:
        match["silent_steps.step_id"] = {"$ne": changeset.changeset_id}
    if changeset.revision is not None:
        match["revision"] = changeset.revision
    if changeset.fence is not None:
        match["owner"] = changeset.owner or {"$gt": ""}
    return match


def moved(changeset: Changeset, *, replica: str = "", process: str = "") -> list[Document]:
    """Returns the update, as a pipeline. Writes of the replica's own worker are signed, and name its process."""
    changed = _changed(changeset) | _needed(changeset.head)
    if changeset.fence is not None or changeset.head.lease is LeaseChange.TAKE:
        # Under which fence an owner wrote last, and from which process: see `lost_owners`.
        changed |= {"writer": literal({"fence": changeset.next_fence, "process": process}), **signed(replica)}
    return [{"$set": changed}]


def signed(replica: str) -> Document:
    """Returns the field that names the writing replica. Its value changes with each write; see `signatures`."""
    if not replica:
        return {}
    one, other = signatures(replica)
    return {"by": {"$cond": [{"$eq": ["$by", literal(one)]}, literal(other), literal(one)]}}


def _changed(changeset: Changeset) -> Document:
    by_owner = changeset.fence is not None
    last_seq = changeset.last_seq + len(changeset.events)
    changed: Document = {
        "last_seq": last_seq,
        "revision": NEXT_REVISION,
        **_lease(changeset.head, by_owner=by_owner),
        **_wake(changeset.head, by_owner=by_owner),
    }
    if changeset.events:
        changed["end"] = literal(end(last_seq, changeset.changeset_id))
    else:
        stored = {"step_id": literal(changeset.changeset_id), "fence": changed.get("fence", "$fence")}
        changed["silent_steps"] = {"$slice": [{"$concatArrays": ["$silent_steps", [stored]]}, -SILENT_STEPS]}
    changed |= _plain(changeset.head)
    if by_owner or changeset.head.active_turn is not None:
        changed["lapses"] = 0
    if changeset.head.progress or changeset.head.active_turn is not None:
        changed["lost"] = []
    if changeset.head.active_turn is not None:
        changed["broken"] = None
    if changeset.session is not None:
        changed["update_time"] = changeset.session.update_time
    elif changeset.events:
        changed["update_time"] = changeset.events[-1].at
    return changed


def _needed(change: HeadChange) -> Document:
    """Returns the schemas needed: a turn's need ends with the turn, a session's never does."""
    needed: Document = {}
    if change.active_turn is not None:
        needed["needs"] = change.needs or 0
    elif change.needs:
        needed["needs"] = {"$max": ["$needs", change.needs]}
    if change.log_needs:
        needed["log_needs"] = {"$max": ["$log_needs", change.log_needs]}
    return needed


def _plain(change: HeadChange) -> Document:
    """Returns the fields that are set to the given values."""
    given = {
        "active_turn": change.active_turn,
        "queue": None if change.queue is None else list(change.queue),
        "cancel": None if change.cancel is None else encode(change.cancel),
        "suspended": change.suspended,
    }
    changed: Document = {name: literal(value) for name, value in given.items() if value is not None}
    if change.deleted is not None:
        changed["deleted_at"] = NOW if change.deleted else None
    return changed


def _lease(change: HeadChange, *, by_owner: bool) -> Document:
    match change.lease:
        case LeaseChange.KEEP:
            return {"lease_until": later(change.lease_for)} if by_owner and change.lease_for else {}
        case LeaseChange.TAKE:
            return {
                "fence": NEXT_FENCE,
                "owner": literal(change.owner),
                "lease_until": later(change.lease_for),
            }
        case LeaseChange.RELEASE:
            return {"owner": "", "lease_until": None}
        case LeaseChange.BREAK:
            return {"fence": NEXT_FENCE, "owner": "", "lease_until": None}


def _wake(change: HeadChange, *, by_owner: bool) -> Document:
    if change.lease is LeaseChange.TAKE or change.active_turn == "":
        return {"wake_at": None}
    if change.wake is not None:
        return {"wake_at": later(change.wake)}
    if change.lease is LeaseChange.RELEASE and by_owner:
        return {"wake_at": None}
    return {}


def later(delay: timedelta) -> Document:
    """Returns the time `delay` from now, by the database's clock."""
    return {"$add": [NOW, round(delay / timedelta(milliseconds=1))]}


def within(schema: int) -> Document:
    """Returns the condition for heads whose active turn a replica of this schema can own.

    Values as in AWAKE. (They make 2 * (schema + 2)² ranges of the index; from 200 on the database would sort.)
    """
    fits = {"$in": [None, *range(schema + 1)]}
    return {"needs": fits, "log_needs": fits}


def literal(value: Any) -> Document:
    """Returns a caller's value as a constant, so that it is never read as an expression."""
    return {"$literal": value}


def reached(name: str, *, ago: timedelta = timedelta()) -> Document:
    """Returns the condition that a time is set and has passed by the database's clock, `ago` at the latest."""
    return {name: ANY_TIME, "$expr": {"$lte": [f"${name}", later(-ago) if ago else NOW]}}


async def change_as_read(
    collection: Collection, head: Document, changed: Document, *, session: ClientSession | None = None
) -> bool | None:
    """Changes a head unless it changed since it was read, its lease included. Returns True if it was changed.

    Returns None if that is unknown after LOCKED_S. A killed server's transaction may keep the head locked, and other
    heads must not wait for it. Or the head is changed, and a majority does not have it yet.
    """
    match = {**keys.where(head["_id"]), "revision": head["revision"], "lease_until": head["lease_until"]}
    update = [{"$set": changed | {"revision": NEXT_REVISION}}]
    try:
        with pymongo.timeout(LOCKED_S):
            result = await collection.update_one(match, update, session=session)
    except PyMongoError as error:
        if error.timeout:
            return None
        raise
    return result.matched_count == 1
