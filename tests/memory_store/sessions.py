"""Creates and reads sessions, their logs, turns, calls, requests and approvals."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from tests.memory_store.part import Part
from tests.memory_store.state import LoggedEvent, StoredSession
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.changeset import Head, LogEnd, RequestKey, RequestRecord, Snapshot, StoredEvent
from turnkeeper.store.filters import ApprovalFilter, SessionFilter

T = TypeVar("T", Session, Approval)


class Sessions(Part):
    """Implements `ApprovalStore`, `SessionStore` but for its conditional writes, and the reads of `EventLog`."""

    async def create_session(self, session: Session, agent: Agent, *, event: NewEvent) -> Session | None:
        await self._enter("create_session")
        database, key = self._database, session.key
        database.agents.setdefault((session.tenant, agent.name, agent.version), agent)
        if key in database.forks:
            return database.forks[key].fork.session
        if key in database.sessions:
            return database.sessions[key].session_as_read()
        first = LoggedEvent.of(
            event, codec=self._codec, session_id=session.id, sequence=1, changeset_id=session.etag, fence=0
        )
        database.sessions[key] = StoredSession(session=session, log=[first], update_time=session.update_time)
        return None

    async def session(self, key: SessionKey, *, deleted: bool = False) -> tuple[Session, Head] | None:
        await self._enter("session")
        stored = self._database.visible(key, deleted=deleted)
        return None if stored is None else self._with_head(stored)

    async def sessions(
        self, tenant: str, where: SessionFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[tuple[Session, Head]]:
        await self._enter("sessions")
        of_tenant = (stored for key, stored in self._database.sessions.items() if key.tenant == tenant)
        matching = {stored.session.id: stored for stored in of_tenant if _matches(stored.session, where)}
        sessions = [stored.session for stored in matching.values()]
        page = _page(sessions, after=after, limit=limit, newest_first=where.newest_first)
        return [self._with_head(matching[session.id]) for session in page]

    async def snapshot(
        self, key: SessionKey, *, turn_id: str = "", deleted: bool = False, request: RequestKey | None = None
    ) -> Snapshot | None:
        await self._enter("snapshot")
        stored = self._database.visible(key, deleted=deleted)
        if stored is None:
            return None
        return stored.snapshot(
            self._database.now(), turn_id=turn_id, request=stored.requests.get(request) if request is not None else None
        )

    async def turn(self, key: SessionKey, turn_id: str) -> Turn | None:
        await self._enter("turn")
        stored = self._database.sessions.get(key)
        return None if stored is None else stored.turns.get(turn_id)

    async def turns(
        self, key: SessionKey, *, states: tuple[TurnState, ...], limit: int, before: int | None
    ) -> Sequence[Turn]:
        await self._enter("turns")
        stored = self._database.sessions.get(key)
        turns = stored.turns.values() if stored is not None else ()
        matching = [turn for turn in turns if not states or turn.state in states]
        matching = [turn for turn in matching if before is None or turn.first_sequence < before]
        return sorted(matching, key=lambda turn: turn.first_sequence, reverse=True)[:limit]

    async def call(self, key: SessionKey, call_id: str) -> Call | None:
        await self._enter("call")
        stored = self._database.sessions.get(key)
        return None if stored is None else stored.calls.get(call_id)

    async def find_request(self, key: RequestKey) -> RequestRecord | None:
        await self._enter("find_request")
        stored = self._database.visible(key.session_key)
        return None if stored is None else stored.requests.get(key)

    async def agent(self, tenant: str, name: str, version: str) -> Agent | None:
        await self._enter("agent")
        return self._database.agents.get((tenant, name, version))

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
        await self._enter("events")
        stored = self._database.sessions.get(key)
        log = stored.log[after : until or None] if stored is not None else ()
        matching = (logged.stored for logged in log)
        matching = (event for event in matching if not kinds or event.kind in kinds)
        return [event for event in matching if not turn_id or event.turn_id == turn_id][:limit]

    async def ends(self, sessions: Sequence[SessionKey]) -> Mapping[SessionKey, LogEnd]:
        await self._enter("ends")
        stored = self._database.sessions
        return {key: stored[key].head(self._database.now()).end for key in sessions if key in stored}

    async def holds(self, key: SessionKey, *ends: LogEnd) -> bool:
        await self._enter("holds")
        stored = self._database.sessions.get(key)
        return stored is not None and all(
            end.sequence <= stored.last_seq and stored.log[end.sequence - 1].changeset_id.endswith(end.changeset_id)
            for end in ends
        )

    async def last_seqs(self, sessions: Sequence[SessionKey]) -> Mapping[SessionKey, int]:
        await self._enter("last_seqs")
        stored = self._database.sessions
        return {key: stored[key].last_seq for key in sessions if key in stored}

    async def approval(self, tenant: str, approval_id: str) -> Approval | None:
        await self._enter("approval")
        return next((approval for approval in self._approvals(tenant) if approval.id == approval_id), None)

    async def approvals(
        self, tenant: str, where: ApprovalFilter, *, limit: int, after: tuple[datetime, str] | None
    ) -> Sequence[Approval]:
        await self._enter("approvals")
        matching = [approval for approval in self._approvals(tenant) if where.matches(approval)]
        return _page(matching, after=after, limit=limit, newest_first=where.newest_first)

    async def count_approvals(self, tenant: str, where: ApprovalFilter, *, most: int) -> int:
        await self._enter("count_approvals")
        return min(most, sum(where.matches(approval) for approval in self._approvals(tenant)))

    async def approvals_by_id(self, tenant: str, approval_ids: Collection[str]) -> Sequence[Approval]:
        await self._enter("approvals_by_id")
        sessions = (stored for key, stored in self._database.sessions.items() if key.tenant == tenant)
        return [
            approval for stored in sessions for approval in stored.approvals.values() if approval.id in approval_ids
        ]

    def _approvals(self, tenant: str) -> Iterable[Approval]:
        """Returns the tenant's approvals, without those of deleted sessions."""
        sessions = (stored for key, stored in self._database.sessions.items() if key.tenant == tenant)
        return (approval for stored in sessions if not stored.deleted for approval in stored.approvals.values())

    def _with_head(self, stored: StoredSession) -> tuple[Session, Head]:
        return stored.session_as_read(), stored.head(self._database.now())


def _matches(session: Session, where: SessionFilter) -> bool:
    return (
        session.delete_time is None
        and (not where.states or session.state in where.states)
        and where.agent in ("", session.agent)
        and where.owner in ("", session.owner)
        and all(session.labels.get(name) == value for name, value in where.labels)
        and (where.created_after is None or where.created_after <= session.create_time)
        and (where.created_before is None or session.create_time < where.created_before)
    )


def _page(documents: Iterable[T], *, after: tuple[datetime, str] | None, limit: int, newest_first: bool) -> Sequence[T]:
    """Returns a page ordered by (create_time, id), beginning beyond `after`."""

    def place(document: T) -> tuple[datetime, str]:
        return document.create_time, document.id

    ordered = sorted(documents, key=place, reverse=newest_first)
    if after is not None:
        ordered = [
            document for document in ordered if (place(document) < after if newest_first else place(document) > after)
        ]
    return ordered[:limit]
