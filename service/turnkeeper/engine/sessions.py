"""Create sessions, and change them in one step with all their turns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from turnkeeper import ids
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.history import HistoryEntry
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import (
    AgentNotFound,
    InternalError,
    SessionAlreadyExists,
    SessionNotFound,
)
from turnkeeper.store.changeset import Head, RequestKey, Snapshot
from turnkeeper.store.contract import SessionStore


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """What a caller asks for. Without `session_id` the id is derived from `family` and `request_id`.

    So a repeat finds it; `family` groups the RPCs that share their ids.
    """

    tenant: str
    principal: str
    session_id: str
    family: str
    request_id: str
    agent: str
    title: str
    labels: dict[str, str]
    metadata_json: str
    fingerprint: str

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


Decide = Callable[[UnitOfWork, Mapping[str, Turn]], int]
"""On a draft and the turns of the queue; gives the number of its first event, 0 when there is nothing to store."""


class Sessions:
    """The verbs of SessionService that decide something."""

    def __init__(
        self,
        store: SessionStore,
        log_writer: LogWriter,
        *,
        session_cache: SessionCache,
        agents: Callable[[str], Agent | None],
        woken: Callable[[SessionKey], None],
    ) -> None:
        """`agents` gives the newest version of a name; `woken` is told of sessions whose turn's owner must look."""
        self._store = store
        self._log_writer = log_writer
        self._session_cache = session_cache
        self._agents = agents
        self._woken = woken

    async def create(self, new: NewSession) -> tuple[Session, Head]:
        """The session, made now or by the same request before.

        Raises AgentNotFound, SessionAlreadyExists, RequestIdReused.
        """
        agent = self._agents(new.agent)
        if agent is None:
            return await self._made_before(new)
        now = self._log_writer.now()
        session = Session(
            id=new.id,
            tenant=new.tenant,
            owner=new.principal,
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
        there = await self._store.create_session(session, agent, event=session_rules.created_event(session))
        if there is not None:
            _check_same(there, new)
        return await self._get_to_keep(session.key)

    async def ensure(self, new: NewSession) -> str:
        """Returns the id of the session that a message is for; creates the session if there is none.

        An existing session stays as it is, its title and labels included. The repeat of a message that was accepted
        is not refused here, because it is answered from the message's record.

        Raises AgentNotFound, RequestIdReused, and SessionAlreadyExists if the session has another agent or is deleted.
        """
        try:
            session = await self._existing_or_new(new)
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
        return new.id

    async def messages(self, key: SessionKey) -> Sequence[HistoryEntry]:
        """Returns the session's conversation, oldest message first. Raises SessionNotFound, ServiceUnavailable."""
        session, head = await self.get(key)
        return await self._session_cache.entries(session, until=head.last_seq)

    async def get(self, key: SessionKey, *, deleted: bool = False) -> tuple[Session, Head]:
        """Raises SessionNotFound, also for a deleted one unless `deleted`."""
        found = await self._store.session(key, deleted=deleted)
        if found is None:
            raise SessionNotFound(session_id=key.session_id)
        return found

    async def _get_to_keep(self, key: SessionKey) -> tuple[Session, Head]:
        """Its first message comes next."""
        session, head = await self.get(key)
        snapshot = Snapshot(head=head, session=session, turn=None, calls=(), approvals=())
        self._session_cache.put(CachedSnapshot.fresh(snapshot))
        return session, head

    async def change(self, key: SessionKey, decide: Decide, *, deleted: bool = False) -> int:
        """Store what `decide` says of the session and the turns of its queue; the number that it gives.

        Whoever owns a turn that it ends is fenced: nothing that owner still does is stored. `deleted`: also of a
        deleted session. Raises SessionNotFound, and what `decide` raises.
        """

        async def read_queue() -> Callable[[UnitOfWork], int]:
            _, head = await self.get(key, deleted=deleted)
            turns = [await self._store.turn(key, turn_id) for turn_id in head.queue]
            queued = {turn.id: turn for turn in turns if turn is not None}
            return lambda uow: decide(uow, queued)

        stored = await self._log_writer.append_prepared(key, read_queue, deleted=deleted)
        if not isinstance(stored, Stored):
            raise InternalError
        self._woken(key)
        return stored.value

    async def _existing_or_new(self, new: NewSession) -> Session:
        session = await self._existing(new)
        if session is not None:
            return session
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
        found = await self._store.session(new.key)
        return found[0] if found is not None else None

    async def _made_before(self, new: NewSession) -> tuple[Session, Head]:
        """There is no such agent now; a repeat still finds the session that was made when there was."""
        found = await self._store.session(new.key)
        if found is None:
            raise AgentNotFound(f"There is no agent named {new.agent!r}; ListAgents names those that exist.")
        _check_same(found[0], new)
        return found


def _check_same(session: Session, new: NewSession) -> None:
    check_shown(session)
    session.check_created_by(
        new.principal, fingerprint=new.fingerprint, derived_from="" if new.session_id else new.request_id
    )


def check_shown(there: Session) -> None:
    """Raises SessionAlreadyExists for a deleted session, whose id is not free yet."""
    if there.delete_time is not None:
        raise SessionAlreadyExists(
            "This session was deleted; UndeleteSession shows it again, another id makes a new one.",
            session_id=there.id,
        )
