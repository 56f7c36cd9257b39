"""Create sessions, and change them in one step with all their turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from turnkeeper import ids
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import NewEvent, SessionCreated
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import (
    AgentNotFound,
    InternalError,
    SessionAlreadyExists,
    SessionNotFound,
)
from turnkeeper.store.changeset import Head, Snapshot
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
        session_id = new.session_id or ids.derived(new.tenant, new.principal, new.family, new.request_id)
        agent = self._agents(new.agent)
        if agent is None:
            return await self._made_before(new, session_id)
        now = self._log_writer.now()
        session = Session(
            id=session_id,
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
        said = SessionCreated(
            agent=agent.name,
            agent_version=agent.version,
            owner=session.owner,
            title=session.title,
            labels=session.labels,
            metadata_json=session.metadata_json,
        )
        there = await self._store.create_session(session, agent, event=NewEvent(payload=said, at=now))
        if there is not None:
            _check_same(there, new)
        return await self._get_to_keep(session.key)

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
        self._session_cache.keep(CachedSnapshot.now(snapshot))
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

    async def _made_before(self, new: NewSession, session_id: str) -> tuple[Session, Head]:
        """There is no such agent now; a repeat still finds the session that was made when there was."""
        found = await self._store.session(SessionKey(new.tenant, session_id))
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
