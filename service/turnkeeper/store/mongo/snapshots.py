"""Reads what decisions need: the head of a session first, and nothing that is older than it.

One decision needs one query, with joins. Many that are made together cost less as one query for each collection: the
database plans every join anew for every head.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call, CallState
from turnkeeper.domain.turn import Turn, TurnKey
from turnkeeper.event_loop import off_loop
from turnkeeper.store.changeset import RequestKey, Snapshot
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.consistent_reads import Read
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.measured_reads import MeasuredReads
from turnkeeper.store.mongo.transactions.outcomes import record_of
from turnkeeper.store.mongo.transactions.transaction import LARGE
from turnkeeper.store.mongo.unreadable import UnreadableDocument


class Snapshots(MeasuredReads):
    """Implements `SessionStore.snapshot` and `Maintenance.snapshots`."""

    async def snapshot(
        self,
        key: SessionKey,
        *,
        turn_id: str = "",
        deleted: bool = False,
        request: RequestKey | None = None,
    ) -> Snapshot | None:
        """Sends one query. The database reads the head first, and nothing that is older than it."""
        of_session = keys.of_session(key)
        pipeline = [
            {"$match": {**keys.where(of_session), **heads.findable(deleted=deleted)}},
            {"$set": {"now": heads.NOW, "chosen": heads.literal(turn_id) if turn_id else "$active_turn"}},
            _join("sessions", [{"$match": keys.where(of_session)}], into="session"),
            _join("turns", [{"$match": {**of_session, **_is_turn(of_session)}}], into="turn"),
            _join("tool_calls", [{"$match": {**of_session, **_OF_TURN, **_OPEN}}], into="calls"),
            _join(
                "approvals",
                [{"$match": {**of_session, **_PENDING, **_OF_TURN}}],
                into="approvals",
            ),
        ]
        if request is not None:
            pipeline.append(_join("requests", [{"$match": keys.where(keys.of_request(request))}], into="request"))
        with self._reading("snapshot") as read:
            document = await read(self._connection.heads).first_of(pipeline)
            if document is None or not document["session"]:
                return None
            return await off_loop(partial(_snapshot_of, document), large=len(document["calls"]) > LARGE)

    async def snapshots(self, turns: Collection[TurnKey]) -> Mapping[TurnKey, Snapshot]:
        """Sends a query for each collection, that of the heads first; the session makes the others no older."""
        with self._reading("snapshots") as read:
            documents = await self._documents(read, turns)
        size = sum(3 + len(document["calls"]) + len(document["approvals"]) for document in documents.values())
        return await off_loop(partial(_readable, documents), large=size > LARGE)

    async def _documents(self, read: Read, turns: Collection[TurnKey]) -> Mapping[TurnKey, Document]:
        """Returns a document for each turn whose session is found, as the query of `snapshot` returns it."""
        connection = self._connection
        documents = await self._heads(read, turns)
        if not documents:
            return {}
        sessions: dict[SessionKey, Document] = {
            keys.session_of(session["_id"]): session
            async for session in read(connection.sessions).find(keys.where_sessions([turn.session for turn in turns]))
        }
        for turn, document in documents.items():
            document["session"] += [sessions[turn.session]] if turn.session in sessions else []
        async for stored in read(connection.turns).find(keys.where_turns(documents)):
            documents[keys.turn_of(stored["_id"])]["turn"].append(stored)
        members = keys.where_of_turns(documents)
        for name, cursor in (
            ("calls", read(connection.calls).find({**members, **_OPEN})),
            ("approvals", read(connection.approvals).find({**members, **_PENDING})),
        ):
            async for member in cursor:
                turn = TurnKey(keys.session_of(member), member["turn_id"])
                if turn in documents:
                    documents[turn][name].append(member)
        return documents

    async def _heads(self, read: Read, turns: Collection[TurnKey]) -> dict[TurnKey, Document]:
        """Returns the head of each turn's session, if it is found, with empty lists for what is joined to it."""
        match = {**keys.where_sessions([turn.session for turn in turns]), **heads.findable(deleted=False)}
        cursor = read(self._connection.heads).aggregate([{"$match": match}, {"$set": {"now": heads.NOW}}])
        by_session = {keys.session_of(head["_id"]): head async for head in cursor}
        return {
            turn: {**by_session[turn.session], "session": [], "turn": [], "calls": [], "approvals": []}
            for turn in turns
            if turn.session in by_session
        }


def _readable(documents: Mapping[TurnKey, Document]) -> Mapping[TurnKey, Snapshot]:
    """Returns the snapshots of complete documents that this version can read."""
    snapshots: dict[TurnKey, Snapshot] = {}
    for turn, document in documents.items():
        with suppress(UnreadableDocument):
            if document["session"]:
                snapshots[turn] = _snapshot_of(document)
    return snapshots


def _snapshot_of(document: Document) -> Snapshot:
    """Returns the snapshot that the query found.

    Raises UnreadableDocument if a part of it needs a newer version, or has a value that only a newer one knows: what a
    decision would do with it, this version cannot tell.
    """
    calls = (decode(Call, call, strict=True) for call in document["calls"])
    records = document.get("request", ())
    return Snapshot(
        head=heads.read(document),
        session=heads.session_of(document["session"][0], document, strict=True),
        turn=decode(Turn, document["turn"][0], strict=True) if document["turn"] else None,
        calls=tuple(sorted(calls, key=lambda call: (call.message_id, call.position))),
        approvals=tuple(decode(Approval, approval, strict=True) for approval in document["approvals"]),
        request=record_of(records[0]) if records else None,
    )


_OF_TURN = {"$expr": {"$eq": ["$turn_id", "$$chosen"]}}
_PENDING = {"state": ApprovalState.PENDING.value}
_OPEN = {"$or": [{"state": {"$ne": CallState.RETURNED.value}}, {"unsettled": True}]}
"""The condition of `Call.is_open`."""


def _join(collection: str, pipeline: Sequence[Document], *, into: str) -> Document:
    """Returns the stage that joins documents of another collection to a head. `$$chosen` is the turn's id."""
    return {"$lookup": {"from": collection, "let": {"chosen": "$chosen"}, "pipeline": pipeline, "as": into}}


def _is_turn(key: Document) -> Document:
    """Returns the condition that a document is the snapshot's turn."""
    id_ = {**{name: heads.literal(value) for name, value in key.items()}, "id": "$$chosen"}
    return {"$expr": {"$eq": ["$_id", id_]}}
