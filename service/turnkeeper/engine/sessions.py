"""The verbs on sessions: create, get, ensure, and change as a whole, together with all turns in one changeset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from turnkeeper import ids
from turnkeeper.domain.history import HistoryEntry
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.freezes import Freezes
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.audit import Operation, record_operation
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import (
    AgentNotFound,
    InternalError,
    SessionAlreadyExists,
    SessionNotFound,
)
from turnkeeper.limits.charge import repeated
from turnkeeper.store.changeset import Creation, Head, RequestKey, Snapshot
from turnkeeper.store.contract import SessionStore


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """A caller's request for a new session."""

    tenant: str
    principal: str
    """Who owns the session."""
    through: str = ""
    """The delegate through which the owner creates it; empty without one."""
    session_id: str
    """Empty if the caller names none: the id is then derived, the same for every repeat of the request."""
    family: str
    """Groups the RPCs that share their request ids."""
    request_id: str
    agent: str
    title: str
    labels: dict[str, str]
    metadata_json: str
    fingerprint: str
    """A hash of the request's content. A request with the same id and another fingerprint is refused."""

    @property
    def id(self) -> str:
        """Returns the caller's own id, or the one that every repeat of the request derives."""
        return self.session_id or ids.derived(self.tenant, self.principal, self.family, self.request_id)

    @property
    def key(self) -> SessionKey:
        """Returns the key of the session: it has `id`."""
        return SessionKey(self.tenant, self.id)

    @property
    def request_key(self) -> RequestKey:
        """Returns the key of the request, which is also a message's key if a message creates the session."""
        return RequestKey(
            tenant=self.tenant,
            session_id=self.id,
            principal=self.principal,
            family=self.family,
            request_id=self.request_id,
        )


NEW_IN_A_ROW: Final = 16
"""Looks for sessions that callers named, one after the other, none of which found its session: the next is left out."""

Decide = Callable[[UnitOfWork, Mapping[str, Turn]], int]
"""Decides on a unit of work and the queued turns by id. Returns the number of its first event, 0 if it has none."""


class Sessions:
    """The verbs on sessions."""

    def __init__(
        self,
        store: SessionStore,
        log_writer: LogWriter,
        *,
        session_cache: SessionCache,
        agents: AgentVersions,
        freezes: Freezes,
    ) -> None:
        self._store = store
        self._log_writer = log_writer
        self._session_cache = session_cache
        self._agents = agents
        self._freezes = freezes
        self._new_in_a_row = 0
        """How many of the last looks for a session that its caller had named found none."""

    async def create(self, new: NewSession) -> tuple[Session, Head]:
        """Returns the session: created now, or by the same request before.

        Raises AgentNotFound if there is no such agent, SessionAlreadyExists if another request created a session with
        this id, RequestIdReused if the `request_id` belongs to another request, AdmissionFrozen while the operator
        takes no new work.
        """
        creation = self._creation(new)
        if creation is None:
            return await self._created_before(new)
        session, agent = creation.session, creation.agent
        if self._freezes.is_frozen(session.tenant, agent.name):
            return await self._created_while_frozen(new)
        existing = await self._store.create_session(session, agent, event=session_rules.created_event(session))
        if existing is not None:
            _check_same(existing, new)
            repeated()
        return await self._get_and_cache(session.key)

    async def ensure_or_create_later(self, new: NewSession) -> Creation | None:
        """Returns the creation that a message may carry if there seems to be no such session; otherwise as `ensure`.

        Reads only if the caller named the session: a derived id is new unless the request is repeated. Where all
        sessions that callers named lately were new, this one is taken for new as well, unless it is known here.
        """
        seems_new = self._new_in_a_row >= NEW_IN_A_ROW and not self._session_cache.knows(new.key)
        existing = None if seems_new else await self._existing(new)
        creation = self._creation(new) if existing is None else None
        if creation is None:
            await self._ensure(new, existing)
        return creation

    async def ensure(self, new: NewSession) -> None:
        """Creates the session that a message is for if there is none.

        An existing session stays as it is, its title and labels included. The repeat of a message that was accepted
        is not refused here, because it is answered from the message's record.

        Raises AgentNotFound, RequestIdReused, and SessionAlreadyExists if the session has another agent or is deleted.
        """
        await self._ensure(new, await self._existing(new))

    async def _ensure(self, new: NewSession, existing: Session | None) -> None:
        try:
            session = existing or await self._new_or_existing(new)
            session.check_owned_by(new.principal)
            if session.agent != new.agent:
                raise SessionAlreadyExists(
                    f"This session exists, and its agent is {session.agent}: name that agent in create_session, "
                    "or choose another session_id.",
                    session_id=session.id,
                    metadata={"agent": session.agent},
                )
        except (AgentNotFound, SessionAlreadyExists):
            if await self._store.find_request(new.request_key) is None:
                raise

    async def messages(self, session: Session, head: Head) -> Sequence[HistoryEntry]:
        """Returns the session's conversation up to its head, or further, oldest message first."""
        return await self._session_cache.entries(session, until=head.end)

    async def get(self, key: SessionKey, *, deleted: bool = False, through: int = 0) -> tuple[Session, Head]:
        """Returns a session and its head. Raises SessionNotFound, also for a deleted session unless `deleted`.

        They are as they were after event `through`, or later: a reading that lags behind it is made once more.
        """
        stored = await self._store.session(key, deleted=deleted)
        if through and (stored is None or stored[1].last_seq < through):
            async with self._store.linearizable():
                stored = await self._store.session(key, deleted=deleted)
        if stored is None:
            raise SessionNotFound(session_id=key.session_id)
        return stored

    async def _get_and_cache(self, key: SessionKey) -> tuple[Session, Head]:
        """Returns a new session and its head. Caches them for the session's first message, which comes next."""
        session, head = await self.get(key)
        snapshot = Snapshot(head=head, session=session, turn=None, calls=(), approvals=())
        self._session_cache.put(CachedSnapshot.fresh(snapshot))
        return session, head

    async def change(
        self, key: SessionKey, decide: Decide, *, operation: Operation | None = None, deleted: bool = False
    ) -> tuple[int, tuple[Session, Head]]:
        """Stores what `decide` changes. Returns the number that it returns, and the session and its head after that.

        An `operation` goes on record with the change.

        The owner of a turn that it ends is fenced: nothing that this owner writes afterwards is stored. `deleted`: the
        session may be a deleted one. Raises SessionNotFound, and what `decide` raises.
        """

        needs_queue = False  # a change that cancels queued turns raises DecideAgain without them; most change none

        async def read_queue() -> Callable[[UnitOfWork], int]:
            nonlocal needs_queue
            queued: dict[str, Turn] = {}
            if needs_queue:
                _, head = await self.get(key, deleted=deleted)
                turns = [await self._store.turn(key, turn_id) for turn_id in head.queue]
                queued = {turn.id: turn for turn in turns if turn is not None}
            needs_queue = True
            return lambda uow: on_record(uow, queued)

        def on_record(uow: UnitOfWork, queued: Mapping[str, Turn]) -> int:
            sequence = decide(uow, queued)
            record_operation(uow, operation, sequence=sequence)
            return sequence

        stored = await self._log_writer.append_prepared(key, read_queue, deleted=deleted)
        if not isinstance(stored, Stored):
            raise InternalError
        self._log_writer.notify_owner(key)
        last = stored.committed.last_seq if stored.committed else stored.uow.snapshot.head.last_seq
        return stored.value, await self.get(key, deleted=deleted, through=last)

    def _creation(self, new: NewSession) -> Creation | None:
        """Returns the session to create, with its agent. Returns None if there is no such agent."""
        agent = self._agents.newest(new.agent)
        if agent is None:
            return None
        now = self._log_writer.now()
        session = Session(
            id=new.id,
            tenant=new.tenant,
            owner=new.principal,
            created_through=new.through,
            agent=agent.name,
            agent_version=agent.version,
            state=SessionState.CREATED,
            fingerprint=new.fingerprint,
            create_time=now,
            update_time=now,
            title=new.title,
            labels=new.labels,
            metadata_json=new.metadata_json,
            etag=self._log_writer.new_id(),
        )
        return Creation(session=session, agent=agent)

    async def _new_or_existing(self, new: NewSession) -> Session:
        try:
            return (await self.create(new))[0]
        except SessionAlreadyExists:
            session = await self._existing(new)  # another call may have created it in the meantime
            if session is None:
                raise  # it is deleted
            return session

    async def _existing(self, new: NewSession) -> Session | None:
        """Returns the session with the caller's id, or None if there is none, or if the id is not the caller's."""
        if not new.session_id:
            return None
        stored = await self._store.session(new.key)
        self._new_in_a_row = self._new_in_a_row + 1 if stored is None else 0
        return stored[0] if stored is not None else None

    async def _created_while_frozen(self, new: NewSession) -> tuple[Session, Head]:
        """Returns the session that the same request created before. Raises AdmissionFrozen if there is none."""
        stored = await self._store.session(new.key)
        if stored is None:
            self._freezes.check(new.tenant, new.agent)
            return await self.create(new)  # the freeze has just ended
        _check_same(stored[0], new)
        return stored

    async def _created_before(self, new: NewSession) -> tuple[Session, Head]:
        """Returns the session that the same request created, when its agent still existed. Otherwise as `create`."""
        stored = await self._store.session(new.key)
        if stored is None:
            raise AgentNotFound(f"There is no agent named {new.agent!r}; ListAgents lists those that exist.")
        _check_same(stored[0], new)
        repeated()
        return stored


def _check_same(session: Session, new: NewSession) -> None:
    """Raises SessionAlreadyExists or RequestIdReused if another request created the session, or if it is deleted."""
    session.check_owned_by(new.principal)
    check_not_deleted(session)
    session.check_created_by(
        new.principal, fingerprint=new.fingerprint, derived_from="" if new.session_id else new.request_id
    )


def check_not_deleted(session: Session) -> None:
    """Raises SessionAlreadyExists for a deleted session: its id is not free before the session is purged."""
    if session.delete_time is not None:
        raise SessionAlreadyExists(
            "This session is deleted; call UndeleteSession to show it again, or choose another session_id.",
            session_id=session.id,
        )
