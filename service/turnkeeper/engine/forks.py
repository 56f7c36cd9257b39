"""The verb ForkSession: copies a session's conversation, up to a position, into a new session."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from turnkeeper import ids
from turnkeeper.domain.event import NewEvent, SessionActivated, SessionForked
from turnkeeper.domain.fork import COPIED, Copy
from turnkeeper.domain.newer_version import newer_version_needed
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.tool_events import ToolCalled
from turnkeeper.domain.turn import TurnOptions
from turnkeeper.engine.checkpoints import Checkpoints, LogPosition
from turnkeeper.engine.eventlog.conversation import LARGE
from turnkeeper.engine.eventlog.writer import LogWriter
from turnkeeper.engine.freezes import Freezes
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.sessions import check_not_deleted
from turnkeeper.errors import SessionNotFound
from turnkeeper.event_loop import off_loop
from turnkeeper.limits.charge import repeated
from turnkeeper.store.changeset import Fork, Head, RequestKey, RequestRecord
from turnkeeper.store.contract import ForkStore, SessionStore

OPENING_EVENTS = 3
"""A fork's own events before the copied ones. If no turn is copied, the third one, `session_activated`, is left out."""
TURNS_PER_READ = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """A caller's request for a fork."""

    key: RequestKey
    """Identifies the request; its session is the source."""
    fingerprint: str
    """A hash of the request's content. A request with the same id and another fingerprint is refused."""
    new_session_id: str
    """Empty if the caller names none."""
    position: LogPosition
    """Where the copy of the source's log ends."""
    through: str = ""
    """The delegate through which the principal forks; empty without one."""

    @property
    def fork_key(self) -> SessionKey:
        """Returns the key of the new session. Its id is the caller's, or derived: the same for every repeat."""
        key = self.key
        derived = ids.derived(key.tenant, key.principal, key.family, key.session_id, key.request_id)
        return SessionKey(key.tenant, self.new_session_id or derived)

    def check_same(self, session: Session) -> None:
        """Raises SessionAlreadyExists or RequestIdReused if another request created the session with the fork's id."""
        derived_from = "" if self.new_session_id else self.key.request_id
        session.check_created_by(self.key.principal, fingerprint=self.fingerprint, derived_from=derived_from)


class Forks:
    """The verb ForkSession."""

    def __init__(
        self,
        store: ForkStore,
        sessions: SessionStore,
        log_writer: LogWriter,
        checkpoints: Checkpoints,
        *,
        freezes: Freezes,
        schema: int,
    ) -> None:
        """`schema` is the newest that this replica supports."""
        self._store = store
        self._sessions = sessions
        self._schema = schema
        self._log_writer = log_writer
        self._checkpoints = checkpoints
        self._freezes = freezes

    async def fork(self, request: ForkRequest) -> tuple[Session, Head]:
        """Creates the fork, unless the same request created it before. Returns the new session and its head.

        Raises SessionNotFound, SessionAlreadyExists, RequestIdReused, and what `Checkpoints.resolve` raises; raises
        ServiceUnavailable if only a newer replica understands all of the source's log, AdmissionFrozen while the
        operator takes no new work.
        """
        record = await self._sessions.find_request(request.key)
        if record is not None:
            return await self._recorded(record, request)
        fork = await self._reserve(request)
        if fork is None:
            return await self._existing(request)
        copy = await self._copy(fork)
        events = _with_opening(copy, fork)
        progress: Fork | None = fork
        while progress is not None and progress.copied < len(events):
            progress = await self._store.copy_events(progress, events)
        if progress is None:  # another attempt has finished the fork, or it was removed
            return await self._existing(request)
        record = await self._store.finish_fork(
            progress,
            copy.session,
            turns=tuple(copy.turns.values()),
            calls=tuple(copy.calls.values()),
            request=RequestRecord(
                key=request.key,
                fingerprint=request.fingerprint,
                turn_id="",
                sequence=1,
                made_session_id=fork.session.id,
            ),
        )
        return await self._recorded(record, request)

    async def _reserve(self, request: ForkRequest) -> Fork | None:
        """Reserves the fork's id. Returns the fork as the request's first attempt reserved it.

        Returns None if there is a session with this id. Raises as `fork`.
        """
        key = request.key
        source, head = await self._source(key.session_key, owner=key.principal)
        if head.log_needs > self._schema:
            raise newer_version_needed(session_id=source.id)
        now = self._log_writer.now()
        session = Session(
            id=request.fork_key.session_id,
            tenant=key.tenant,
            owner=key.principal,
            agent=source.agent,
            agent_version=source.agent_version,
            state=SessionState.CREATED,
            fingerprint=request.fingerprint,
            create_time=now,
            update_time=now,
            title=source.title,
            labels=source.labels,
            metadata_json=source.metadata_json,
            etag=self._log_writer.new_id(),
            created_through=request.through,
        )
        sequence = await self._checkpoints.resolve(head, request.position)
        is_frozen = self._freezes.is_frozen(key.tenant, source.agent)
        if is_frozen and await self._sessions.session(request.fork_key, deleted=True) is None:
            self._freezes.check(key.tenant, source.agent)
        fork = await self._store.reserve_fork(
            Fork(session=session, source_session_id=source.id, source_sequence=sequence, log_needs=head.log_needs)
        )
        if fork is not None:
            request.check_same(fork.session)
        return fork

    async def _copy(self, fork: Fork) -> Copy:
        """Returns the events, turns and calls of the fork: the same ones for every attempt at it."""
        source, head = await self._source(
            SessionKey(fork.session.tenant, fork.source_session_id), owner=fork.session.owner
        )
        events = await self._checkpoints.events_until(head, fork.source_sequence, kinds=COPIED)
        # The position may be between a message and its calls, which one changeset stored.
        later_calls = await self._checkpoints.calls_after(head, fork.source_sequence)
        copy = Copy(
            session=fork.session,
            opening=OPENING_EVENTS,
            options=await self._options(source),
            called={
                event.payload.tool_call_id: event
                for event in (*events, *later_calls)
                if isinstance(event.payload, ToolCalled)
            },
        )
        await off_loop(partial(copy.take, events), large=len(events) > LARGE)
        if copy.turns:
            copy.session = replace(copy.session, state=SessionState.ACTIVE)
        return copy

    async def _options(self, source: Session) -> dict[str, TurnOptions]:
        """Returns the options of all turns of the source, by the turn's id. The log does not have them."""
        options: dict[str, TurnOptions] = {}
        before: int | None = None
        while True:
            page = await self._sessions.turns(source.key, states=(), limit=TURNS_PER_READ, before=before)
            options |= {turn.id: turn.options for turn in page}
            if len(page) < TURNS_PER_READ:
                return options
            before = page[-1].first_sequence

    async def _recorded(self, record: RequestRecord, request: ForkRequest) -> tuple[Session, Head]:
        """Returns the session that the record names, and its head. Raises RequestIdReused if fingerprints differ."""
        record.check_same(request.fingerprint)
        repeated()
        return await self._fork_of(SessionKey(request.key.tenant, record.made_session_id), owner=request.key.principal)

    async def _existing(self, request: ForkRequest) -> tuple[Session, Head]:
        """Returns the session with the fork's id, and its head. Raises as `ForkRequest.check_same` and `_fork_of`."""
        session, head = await self._fork_of(request.fork_key, owner=request.key.principal)
        request.check_same(session)
        repeated()
        return session, head

    async def _fork_of(self, key: SessionKey, *, owner: str) -> tuple[Session, Head]:
        """Returns the session with this id, and its head.

        Raises SessionNotFound if there is none, and SessionAlreadyExists if it is deleted or another principal's.
        """
        stored = await self._sessions.session(key, deleted=True)
        if stored is None:
            raise SessionNotFound(session_id=key.session_id)
        stored[0].check_owned_by(owner)
        check_not_deleted(stored[0])
        return stored

    async def _source(self, key: SessionKey, *, owner: str) -> tuple[Session, Head]:
        """Returns the source and its head. Raises SessionNotFound, also if it is deleted or another principal's."""
        stored = await self._sessions.session(key)
        if stored is None or stored[0].owner != owner:
            raise SessionNotFound(session_id=key.session_id)
        return stored


def _with_opening(copy: Copy, fork: Fork) -> Sequence[NewEvent]:
    """Returns all events of the fork's log: its own, then the copied ones."""
    session, at = copy.session, fork.session.create_time
    forked = SessionForked(
        source_session_id=fork.source_session_id,
        source_sequence=fork.source_sequence,
        copied_through=OPENING_EVENTS + len(copy.events) if copy.turns else OPENING_EVENTS - 1,
    )
    opening = [session_rules.created_event(session), NewEvent(payload=forked, at=at)]
    if copy.turns:
        opening.append(NewEvent(payload=SessionActivated(title=session.title), at=at))
    return [*opening, *copy.events]
