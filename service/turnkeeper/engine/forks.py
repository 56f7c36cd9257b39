"""Fork a session: a new one with the conversation of another up to a place. The source is only read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from turnkeeper import ids
from turnkeeper.domain.event import Event, NewEvent, SessionActivated, SessionForked
from turnkeeper.domain.fork import COPIED, Copy
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.turn import TurnOptions
from turnkeeper.engine.checkpoints import Checkpoints, LogPosition
from turnkeeper.engine.eventlog.writer import LogWriter
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.sessions import check_shown
from turnkeeper.errors import ServiceUnavailable, SessionNotFound
from turnkeeper.store.changeset import Fork, Head, RequestKey, RequestRecord
from turnkeeper.store.contract import ForkStore, SessionStore

OPENING = 3
"""Events of a fork before the copied ones; without a turn it is not activated, and there are two."""
TURNS = 100
DECIDED = frozenset({"tool_called"})
NEWER_REPLICA = timedelta(seconds=1)
"""After which a caller may have come to another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFork:
    """`key` names the source; `fingerprint` is of the whole request. Without `new_session_id` the id is derived."""

    key: RequestKey
    fingerprint: str
    new_session_id: str
    at: LogPosition


class Forks:
    """The verb ForkSession."""

    def __init__(
        self, store: ForkStore, sessions: SessionStore, log_writer: LogWriter, checkpoints: Checkpoints, *, schema: int
    ) -> None:
        """`schema` is the newest that this replica supports."""
        self._store = store
        self._sessions = sessions
        self._schema = schema
        self._log_writer = log_writer
        self._checkpoints = checkpoints

    async def fork(self, wanted: WantedFork) -> tuple[Session, Head]:
        """The new session, made now or by the same request before.

        Raises SessionNotFound, CheckpointNotFound, InvalidRequest, CursorExpired, SessionAlreadyExists,
        RequestIdReused; ServiceUnavailable when only a newer replica understands all of the source's log.
        """
        known = await self._sessions.find_request(wanted.key)
        if known is not None:
            return await self._made(known, wanted)
        fork = await self._reserve(wanted)
        if fork is None:
            return await self._there(wanted)
        copy = await self._copy(fork)
        events = _with_opening(copy, fork)
        going: Fork | None = fork
        while going is not None and going.copied < len(events):
            going = await self._store.copy_events(going, events)
        if going is None:
            return await self._there(wanted)
        record = await self._store.finish_fork(
            going,
            copy.session,
            turns=tuple(copy.turns.values()),
            calls=tuple(copy.calls.values()),
            request=RequestRecord(
                key=wanted.key,
                fingerprint=wanted.fingerprint,
                turn_id="",
                sequence=1,
                made_session_id=fork.session.id,
            ),
        )
        return await self._made(record, wanted)

    async def _reserve(self, wanted: WantedFork) -> Fork | None:
        """The fork as its first try began it, also when that was cut short; None when its id is a session's."""
        key = wanted.key
        source, head = await self._session(key.session_key)
        if head.log_needs > self._schema:
            raise ServiceUnavailable(
                "Only a newer version of this server understands the session's log; send the same call again.",
                session_id=source.id,
                retry_after=NEWER_REPLICA,
            )
        now = self._log_writer.now()
        asked = Fork(
            session=Session(
                id=_new_id(wanted),
                tenant=key.tenant,
                owner=key.principal,
                agent=source.agent,
                agent_version=source.agent_version,
                state=SessionState.CREATED,
                fingerprint=wanted.fingerprint,
                create_time=now,
                update_time=now,
                title=source.title,
                labels=source.labels,
                metadata_json=source.metadata_json,
                etag=self._log_writer.new_id(),
            ),
            source_session_id=source.id,
            source_sequence=await self._checkpoints.place(head, wanted.at),
            log_needs=head.log_needs,
        )
        fork = await self._store.reserve_fork(asked)
        if fork is not None:
            _check_same(fork.session, wanted)
        return fork

    async def _copy(self, fork: Fork) -> Copy:
        source, head = await self._session(SessionKey(fork.session.tenant, fork.source_session_id))
        events = await self._checkpoints.until(head, fork.source_sequence, kinds=COPIED)
        beyond = await self._checkpoints.next(head, fork.source_sequence, kinds=DECIDED)
        copy = Copy(
            session=fork.session,
            opening=OPENING,
            options=await self._options(source),
            called={each.payload.tool_call_id: each for each in (*events, *beyond) if _is_called(each)},  # type: ignore[union-attr]
        )
        copy.take(events)
        if copy.turns:
            copy.session = replace(copy.session, state=SessionState.ACTIVE)
        return copy

    async def _options(self, source: Session) -> dict[str, TurnOptions]:
        """What callers asked of the turns is not in the log."""
        found: dict[str, TurnOptions] = {}
        before: int | None = None
        while True:
            page = await self._sessions.turns(source.key, states=(), limit=TURNS, before=before)
            found |= {turn.id: turn.options for turn in page}
            if len(page) < TURNS:
                return found
            before = page[-1].first_sequence

    async def _made(self, record: RequestRecord, wanted: WantedFork) -> tuple[Session, Head]:
        record.check_same(wanted.fingerprint)
        return await self._own(SessionKey(wanted.key.tenant, record.made_session_id))

    async def _there(self, wanted: WantedFork) -> tuple[Session, Head]:
        """A session has the id: the one that this request made, or it is refused."""
        found = await self._own(SessionKey(wanted.key.tenant, _new_id(wanted)))
        _check_same(found[0], wanted)
        return found

    async def _own(self, key: SessionKey) -> tuple[Session, Head]:
        """A session that has a fork's id. Raises SessionAlreadyExists when it is deleted."""
        found = await self._sessions.session(key, deleted=True)
        if found is None:
            raise SessionNotFound(session_id=key.session_id)
        check_shown(found[0])
        return found

    async def _session(self, key: SessionKey) -> tuple[Session, Head]:
        found = await self._sessions.session(key)
        if found is None:
            raise SessionNotFound(session_id=key.session_id)
        return found


def _new_id(wanted: WantedFork) -> str:
    key = wanted.key
    return wanted.new_session_id or ids.derived(key.tenant, key.principal, key.family, key.session_id, key.request_id)


def _check_same(session: Session, wanted: WantedFork) -> None:
    derived_from = "" if wanted.new_session_id else wanted.key.request_id
    session.check_created_by(wanted.key.principal, fingerprint=wanted.fingerprint, derived_from=derived_from)


def _is_called(event: Event) -> bool:
    return hasattr(event.payload, "tool_call_id") and hasattr(event.payload, "action")


def _with_opening(copy: Copy, fork: Fork) -> Sequence[NewEvent]:
    session, at = copy.session, fork.session.create_time
    opening: list[NewEvent] = [
        session_rules.created_event(session),
        NewEvent(
            payload=SessionForked(
                source_session_id=fork.source_session_id,
                source_sequence=fork.source_sequence,
                copied_through=OPENING + len(copy.events) if copy.turns else OPENING - 1,
            ),
            at=at,
        ),
    ]
    if copy.turns:
        opening.append(NewEvent(payload=SessionActivated(title=session.title), at=at))
    return [*opening, *copy.events]
