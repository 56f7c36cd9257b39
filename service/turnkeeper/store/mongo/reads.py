"""Reads. Every read has read concern majority, and its filter names the tenant.

A list passes over documents that only a newer version can read. A decision rests on none of them: see `snapshots`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias, TypeVar

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.changeset import Head, RequestKey, RequestRecord, StoredEvent
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.approval_matches import matching_approvals
from turnkeeper.store.mongo.client import Collection as Documents
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.consistent_reads import Read
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.events import events_of
from turnkeeper.store.mongo.measured_reads import MeasuredReads
from turnkeeper.store.mongo.shared_reads import SharedReads
from turnkeeper.store.mongo.transactions.outcomes import record_of
from turnkeeper.store.mongo.unreadable import UnreadableDocument

T = TypeVar("T")
Cursor: TypeAlias = Any
"""A cursor of the driver."""


class Reads(MeasuredReads):
    """Implements the reading methods of `SessionLog` and `ApprovalStore`."""

    _shared_sessions: SharedReads[tuple[Session, Head] | None]

    async def find_request(self, key: RequestKey) -> RequestRecord | None:
        with self._reading("find_request") as read:
            document = await read(self._connection.requests).find_one(keys.where(keys.of_request(key)))
            if document is None or not await self._is_visible(read, key.session_key):
                return None
            return record_of(document)

    async def events(
        self,
        key: SessionKey,
        *,
        after: int,
        limit: int,
        kinds: frozenset[str] = frozenset(),
        turn_id: str = "",
        until: int = 0,
    ) -> Sequence[StoredEvent]:
        if limit <= 0:
            return []
        match: Document = {"tenant": key.tenant, "session_id": key.session_id, "seq": {"$gt": after}}
        if until:
            match["seq"]["$lte"] = until
        if kinds:
            match["kind"] = {"$in": sorted(kinds)}
        if turn_id:
            match["turn_id"] = turn_id
        fields = {"_id": 0, "seq": 1, "kind": 1, "turn_id": 1, "payload": 1, "step_id": 1}
        with self._reading("events") as read:
            return events_of(await read(self._connection.events).list_of(match, fields, by="seq", limit=limit))

    async def last_seqs(self, sessions: Sequence[SessionKey]) -> Mapping[SessionKey, int]:
        with self._reading("last_seqs") as read:
            match = {**keys.where_sessions(sessions), "forking": {"$exists": False}}
            documents = await read(self._connection.heads).find(match, {"last_seq": 1}).to_list(None)
        return {keys.session_of(head["_id"]): head["last_seq"] for head in documents}

    async def session(self, key: SessionKey, *, deleted: bool = False) -> tuple[Session, Head] | None:
        fetch = partial(self._session, key, deleted=deleted)
        if self._consistent_reads.is_linearizable:
            return await fetch()
        with self._connection.in_time():  # the wait for what others read is a part of it
            return await self._shared_sessions.read((key, deleted), fetch)

    async def _session(self, key: SessionKey, *, deleted: bool) -> tuple[Session, Head] | None:
        where = keys.where(keys.of_session(key))
        pipeline: list[Document] = [
            {"$match": {**where, **heads.findable(deleted=deleted)}},
            {"$set": {"now": heads.NOW}},
            {"$lookup": {"from": "sessions", "pipeline": [{"$match": where}], "as": "session"}},
        ]
        with self._reading("session") as read:
            document = await read(self._connection.heads).first_of(pipeline)
            if document is None or not document["session"]:
                return None
            return _with_head(document["session"][0], document)

    async def sessions(
        self, tenant: str, where: SessionFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[tuple[Session, Head]]:
        direction = -1 if where.newest_first else 1
        now: list[Document] = [{"$match": {"tenant": tenant}}, {"$set": {"now": heads.NOW}}]
        match = {"tenant": tenant, "$and": [_matching(where), _beyond(after, ascending=direction > 0)]}

        def find(read: Read, limit: int) -> Cursor:
            pipeline: list[Document] = [
                {"$match": match},
                {"$sort": {"create_time": direction, "id": direction}},
                *_at_most(limit),
                {
                    "$lookup": {
                        "from": "heads",
                        "localField": "_id",
                        "foreignField": "_id",
                        "pipeline": now,
                        "as": "head",
                    }
                },
            ]
            return read(self._connection.sessions).aggregate(pipeline)

        def decoded(session: Document) -> tuple[Session, Head]:
            (head,) = session["head"] or [{}]
            return _with_head(session, head)

        return await self._page("sessions", find, decoded, limit)

    async def turn(self, key: SessionKey, turn_id: str) -> Turn | None:
        return await self._one(Turn, self._connection.turns, keys.of_member(key, turn_id))

    async def turns(
        self,
        key: SessionKey,
        *,
        states: tuple[TurnState, ...],
        limit: int,
        before: int | None,
    ) -> Sequence[Turn]:
        match: Document = {"tenant": key.tenant, "session_id": key.session_id}
        if states:
            match["state"] = {"$in": [state.value for state in states]}
        if before is not None:
            match["first_sequence"] = {"$lt": before}
        order = [("first_sequence", -1)]
        return await self._page(
            "turns",
            lambda read, limit: read(self._connection.turns).find(match).sort(order).limit(limit),
            lambda document: decode(Turn, document),
            limit,
        )

    async def call(self, key: SessionKey, call_id: str) -> Call | None:
        return await self._one(Call, self._connection.calls, keys.of_member(key, call_id), strict=True)

    async def approval(self, tenant: str, approval_id: str) -> Approval | None:
        approval = await self._one(Approval, self._connection.approvals, keys.of_approval(tenant, approval_id))
        with self._reading("approval") as read:
            visible = approval is not None and await self._is_visible(read, approval.session_key)
        return approval if visible else None

    async def approvals(
        self, tenant: str, where: ApprovalFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[Approval]:
        direction = -1 if where.newest_first else 1
        match = {"$and": [matching_approvals(tenant, where), _beyond(after, ascending=direction > 0)], "tenant": tenant}

        def find(read: Read, limit: int) -> Cursor:
            pipeline: list[Document] = [
                {"$match": match},
                {"$sort": {"create_time": direction, "id": direction}},
                *_of_visible_sessions(tenant, where),
                *_at_most(limit),
            ]
            return read(self._connection.approvals).aggregate(pipeline)

        return await self._page("approvals", find, lambda document: decode(Approval, document), limit)

    async def count_approvals(self, tenant: str, where: ApprovalFilter, *, most: int) -> int:
        match: Document = {"$match": matching_approvals(tenant, where)}
        with self._reading("count_approvals") as read:
            pipeline = [match, *_of_visible_sessions(tenant, where), {"$limit": most}, {"$count": "count"}]
            counted = await read(self._connection.approvals).first_of(pipeline)
        return 0 if counted is None else int(counted["count"])

    async def approvals_by_id(self, tenant: str, approval_ids: Collection[str]) -> Sequence[Approval]:
        match = {
            "tenant": tenant,
            "_id": {"$in": [keys.of_approval(tenant, approval_id) for approval_id in approval_ids]},
        }
        with self._reading("approvals_by_id") as read:
            documents = await read(self._connection.approvals).find(match).to_list(None)
        return self._connection.unreadable.passed_over(documents, lambda document: decode(Approval, document))

    async def agent(self, tenant: str, name: str, version: str) -> Agent | None:
        return await self._one(Agent, self._connection.agents, keys.of_agent(tenant, name, version), strict=True)

    async def _is_visible(self, read: Read, key: SessionKey) -> bool:
        match = {**keys.where(keys.of_session(key)), **heads.findable(deleted=False)}
        return await read(self._connection.heads).find_one(match, {"_id": 1}) is not None

    async def _one(self, kind: type[T], collection: Documents, key: Document, *, strict: bool = False) -> T | None:
        with self._reading("read_one") as read:
            document = await read(collection).find_one(keys.where(key))
            return None if document is None else decode(kind, document, strict=strict)

    async def _page(
        self, operation: str, find: Callable[[Read, int], Cursor], decoded: Callable[[Document], T], limit: int
    ) -> Sequence[T]:
        """Returns `limit` values at most. Where some cannot be read, the documents behind them fill the page.

        `find` returns a cursor with so many documents at most; 0: with all.
        """
        if limit <= 0:
            return []
        with self._reading(operation) as read:
            documents = await find(read, limit).to_list(limit)
            try:
                return [decoded(document) for document in documents]
            except UnreadableDocument:
                pass
            values: list[T] = []
            cursor = find(read, 0)
            try:
                while len(values) < limit and (documents := await cursor.to_list(limit)):
                    values += self._connection.unreadable.passed_over(documents, decoded)
            finally:
                await cursor.close()
            return values[:limit]


def _with_head(session: Document, head: Document) -> tuple[Session, Head]:
    """Returns a session with its head. Raises UnreadableDocument if this version cannot read one of them."""
    return heads.session_of(session, head), heads.read(head)


def _at_most(limit: int) -> list[Document]:
    """Returns the stage that limits a pipeline's documents; none for 0."""
    return [{"$limit": limit}] if limit else []


def _of_visible_sessions(tenant: str, where: ApprovalFilter) -> list[Document]:
    """Returns the stages that leave out approvals of deleted sessions. Of those that are PENDING there are none."""
    return [] if where.only_pending else [_deleted_head(tenant), {"$match": {"deleted": []}}]


def _deleted_head(tenant: str) -> Document:
    """Returns the stage that joins, as `deleted`, the head of a document's session if the session is deleted."""
    its = {"$eq": ["$_id", {"tenant": "$$tenant", "session_id": "$$session_id"}]}
    return {
        "$lookup": {
            "from": "heads",
            "let": {"tenant": "$tenant", "session_id": "$session_id"},
            "pipeline": [{"$match": {"tenant": tenant, "deleted_at": heads.ANY_TIME, "$expr": its}}],
            "as": "deleted",
        }
    }


def _matching(where: SessionFilter) -> Document:
    match: dict[str, Any] = {name: getattr(where, name) for name in ("agent", "owner") if getattr(where, name)}
    match["delete_time"] = None
    if where.states:
        match["state"] = {"$in": [state.value for state in where.states]}
    if where.labels:
        match["labels"] = {"$all": [{"k": name, "v": value} for name, value in where.labels]}
    created = {"$gte": where.created_after, "$lt": where.created_before}
    if bounds := {operator: time for operator, time in created.items() if time is not None}:
        match["create_time"] = bounds
    return match


def _beyond(after: tuple[datetime, str] | None, *, ascending: bool) -> Document:
    """Returns the condition for documents beyond a place, for keyset paging by (create_time, id)."""
    if after is None:
        return {}
    created, last_id = after
    operator = "$gt" if ascending else "$lt"
    beyond = [{"create_time": {operator: created}}, {"create_time": created, "id": {operator: last_id}}]
    return {"create_time": {f"{operator}e": created}, "$or": beyond}  # the first is what an index begins with
