"""Creates sessions: the document, the head and the first event, with the version of the agent that they pin."""

import secrets
from dataclasses import dataclass

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import Session
from turnkeeper.store.contract import EventCodec
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.agent_documents import AgentDocuments
from turnkeeper.store.mongo.client import ClientSession, Connection
from turnkeeper.store.mongo.documents import SCHEMA, decode, encode
from turnkeeper.store.mongo.events import event_document, numbered
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes


@dataclass(frozen=True, slots=True)
class _Created:
    """The result of a creation: None, or the session that has the id already."""

    existing: Session | None


class SessionCreation:
    """Implements `SessionStore.create_session`."""

    _connection: Connection
    _transactions: Transactions
    _agent_documents: AgentDocuments
    _codec: EventCodec

    async def create_session(self, session: Session, agent: Agent, *, event: NewEvent) -> Session | None:
        """Creates as the contract specifies. Raises ValueError if the event is larger than LARGEST_PAYLOAD."""
        changeset_id = secrets.token_hex(13)
        first = numbered(self._codec, session.id, event, 1, changeset_id=changeset_id)

        def write(writes: Writes) -> None:
            key = session.key
            writes.insert("heads", heads.new(session, changeset_id=changeset_id))
            writes.insert("events", event_document(first, key=key, changeset_id=changeset_id, fence=0, at=event.at))
            writes.insert("sessions", {"_id": keys.of_session(key), **encode(session), "schema": SCHEMA})

        async def look(client_session: ClientSession, _: Obstacle) -> _Created | None:
            return await self._found(session, changeset_id, client_session)

        with self._connection.transaction_call("create_session"):
            await self._agent_documents.store(agent, tenant=session.tenant)
            created = Transaction(write, result=_Created(existing=None), look=look)
            return (await self._transactions.run(created)).existing

    async def _found(self, session: Session, changeset_id: str, client_session: ClientSession) -> _Created | None:
        """Returns the session that has this id now, unless this very call created it."""
        key = keys.of_session(session.key)
        head = await self._connection.heads.find_one(keys.where(key), session=client_session)
        document = await self._connection.sessions.find_one(keys.where(key), session=client_session)
        first = await self._connection.events.find_one({**key, "seq": 1}, {"step_id": 1}, session=client_session)
        if head is not None and "forking" in head:
            return _Created(existing=decode(Session, head["forking"]["session"]))
        if head is None or document is None:
            return None
        ours = first is not None and first["step_id"] == changeset_id
        return _Created(existing=None if ours else heads.session_of(document, head))
