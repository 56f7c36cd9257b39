"""Commits changesets, and keeps late results."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from tests.memory_store.part import Part
from tests.memory_store.state import LoggedEvent, StoredSession
from turnkeeper.domain.approval import Approval, ApprovalKind, ApprovalState, hash_with_late_result
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call, CallState, ToolOutcome, ToolResult
from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import (
    ApprovalChange,
    Changeset,
    CommitResult,
    Committed,
    Conflict,
    Creation,
    Duplicate,
    Fenced,
    HeadChange,
    LeaseChange,
)

T = TypeVar("T", Turn, Call, Approval)
_NO_RESULT = (ToolOutcome.UNKNOWN, ToolOutcome.CANCELLED)


class Changesets(Part):
    """Implements `EventLog.commit` and `SessionStore.keep_late_result`."""

    async def commit(self, changeset: Changeset) -> CommitResult:
        """Raises ValueError for an event that is too large, and for a document of another session."""
        await self._enter("commit")
        if any(key != changeset.session_key for key in _sessions_of(changeset)):
            raise ValueError("a changeset holds documents of another session")
        events = self._logged(changeset)
        stored = self._database.sessions.get(changeset.session_key)
        if changeset.creates is not None and stored is None:
            stored = self._created(changeset.creates)
        if stored is None:
            return Conflict()
        if not (_is_as_read(stored, changeset) and self._fits(stored, changeset)):
            return _result(stored, changeset)
        by_owner = changeset.fence is not None
        with self._changing(stored, own=by_owner or changeset.head.lease is LeaseChange.TAKE):
            self._change_lease(stored, changeset.head, by_owner=by_owner)
            self._change_wake(stored, changeset.head, by_owner=by_owner)
            _change_head(stored, changeset.head, by_owner=by_owner)
            if by_owner or changeset.head.lease is LeaseChange.TAKE:
                stored.writer = (changeset.next_fence, self._process)
            _change_documents(stored, changeset)
            self._database.put_records(*changeset.audit)
            self._database.announce_approvals(
                *changeset.new_approvals, *(change.approval for change in changeset.approvals)
            )
            if not events:
                stored.eventless[changeset.changeset_id] = stored.fence
            stored.log.extend(events)
        return Committed(last_seq=stored.last_seq, fence=stored.fence, events=tuple(logged.stored for logged in events))

    def _created(self, creation: Creation) -> StoredSession | None:
        """Returns a new session, which is stored from now on. Returns None if a fork has reserved its id."""
        database, session, agent = self._database, creation.session, creation.agent
        if session.key in database.forks:
            return None
        database.agents.setdefault((session.tenant, agent.name, agent.version), agent)
        revision = session.first_revision
        stored = StoredSession(session=session, log=[], update_time=session.update_time, revision=revision)
        database.sessions[session.key] = stored
        return stored

    async def outcome(self, changeset: Changeset) -> CommitResult | None:
        """Each commit has its result at once."""
        return None

    async def keep_late_result(
        self,
        key: SessionKey,
        tool_call_id: str,
        *,
        attempt: int,
        fence: int,
        result: ToolResult,
    ) -> bool:
        await self._enter("keep_late_result")
        stored = self._database.sessions.get(key)
        call = stored.calls.get(tool_call_id) if stored is not None else None
        if stored is None or call is None or (call.attempt, call.fence) != (attempt, fence):
            return False
        with_result = replace(
            call, late_attempt=attempt, late_outcome=result.outcome, late_result_json=result.result_json
        )
        if call.late_attempt == attempt or not _lacks_result(call):
            return call == with_result
        stored.calls[call.id] = with_result
        for approval in list(stored.approvals.values()):
            if (approval.tool_call_id, approval.kind) != (call.id, ApprovalKind.OUTCOME):
                continue
            if approval.state is ApprovalState.PENDING:
                new_hash = hash_with_late_result(approval.arguments_hash, result.result_json)
                shown = replace(approval, late_result_json=result.result_json, arguments_hash=new_hash)
                stored.approvals[approval.id] = shown
                self._database.announce_approvals(shown)
        return True

    def _logged(self, changeset: Changeset) -> list[LoggedEvent]:
        return [
            LoggedEvent.of(
                event,
                codec=self._codec,
                session_id=changeset.session_id,
                sequence=sequence,
                changeset_id=changeset.changeset_id,
                fence=changeset.next_fence,
            )
            for sequence, event in enumerate(changeset.events, changeset.last_seq + 1)
        ]

    def _fits(self, stored: StoredSession, changeset: Changeset) -> bool:
        """Returns True if what is new does not exist, what changes does, and each approval is as it was read."""
        rounds = {(approval.tool_call_id, approval.round) for approval in stored.approvals.values()}
        return (
            _are_absent(stored.turns, changeset.new_turns)
            and _are_absent(stored.calls, changeset.new_calls)
            and _are_absent(stored.approvals, changeset.new_approvals)
            and not any((approval.tool_call_id, approval.round) in rounds for approval in changeset.new_approvals)
            and _by_id(changeset.turns).keys() <= stored.turns.keys()
            and all(_has_late_result_as_read(stored, call) for call in changeset.calls)
            and all(self._is_as_read(stored, change) for change in changeset.approvals)
            and (changeset.request is None or changeset.request.key not in stored.requests)
        )

    def _is_as_read(self, stored: StoredSession, change: ApprovalChange) -> bool:
        approval = stored.approvals.get(change.approval.id)
        return (
            approval is not None
            and approval.state is ApprovalState.PENDING
            and (approval.round, approval.arguments_hash) == (change.approval.round, change.approval.arguments_hash)
            and change.lapsed in (None, approval.expire_time <= self._database.now())
        )

    def _change_lease(self, stored: StoredSession, change: HeadChange, *, by_owner: bool) -> None:
        now = self._database.now()
        match change.lease:
            case LeaseChange.KEEP:
                if by_owner and change.lease_for:
                    stored.lease_until = now + change.lease_for
            case LeaseChange.TAKE:
                stored.fence, stored.owner, stored.lease_until = stored.fence + 1, change.owner, now + change.lease_for
            case LeaseChange.RELEASE:
                stored.owner, stored.lease_until = "", None
            case LeaseChange.BREAK:
                stored.fence, stored.owner, stored.lease_until = stored.fence + 1, "", None

    def _change_wake(self, stored: StoredSession, change: HeadChange, *, by_owner: bool) -> None:
        if change.lease is LeaseChange.TAKE or change.active_turn == "":
            stored.wake_at = None
        elif change.wake is not None:
            stored.wake_at = self._database.now() + change.wake
        elif change.lease is LeaseChange.RELEASE and by_owner:
            stored.wake_at = None


def _sessions_of(changeset: Changeset) -> Iterator[SessionKey]:
    """Yields the session of each document that the changeset stores."""
    changed = tuple(change.approval for change in changeset.approvals)
    for members in (changeset.new_turns, changeset.turns, changeset.new_calls, changeset.calls):
        yield from (member.session_key for member in members)
    yield from (approval.session_key for approval in (*changeset.new_approvals, *changed))
    if changeset.session is not None:
        yield changeset.session.key
    if changeset.request is not None:
        yield changeset.request.key.session_key
    if changeset.creates is not None:
        yield changeset.creates.session.key
    yield from (SessionKey(record.tenant, record.session_id) for record in changeset.audit)


def _is_as_read(stored: StoredSession, changeset: Changeset) -> bool:
    """Returns True if the decision still holds, and the changeset is not stored yet."""
    return (
        (stored.last_seq, stored.fence, stored.cancel.turn_id)
        == (changeset.last_seq, changeset.head_fence, changeset.cancel)
        and changeset.changeset_id not in stored.eventless
        and (not changeset.last_changeset or changeset.last_changeset == stored.log[-1].changeset_id)
        and changeset.revision in (None, stored.revision)
        and (changeset.fence is None or changeset.is_owned_by(stored.owner, fence=stored.fence))
    )


def _change_head(stored: StoredSession, change: HeadChange, *, by_owner: bool) -> None:
    for name in ("active_turn", "queue", "cancel", "suspended", "deleted"):
        if (value := getattr(change, name)) is not None:
            setattr(stored, name, value)
    if by_owner or change.active_turn is not None:
        stored.lapses = 0
    if change.progress or change.active_turn is not None:
        stored.lost = []
    if change.active_turn is not None:
        stored.broken = None
    needs = change.needs or 0
    stored.needs = needs if change.active_turn is not None else max(stored.needs, needs)
    stored.log_needs = max(stored.log_needs, change.log_needs or 0)


def _change_documents(stored: StoredSession, changeset: Changeset) -> None:
    if changeset.session is not None:
        stored.session = changeset.session
        stored.update_time = changeset.session.update_time
    elif changeset.events:
        stored.update_time = changeset.events[-1].at
    stored.turns |= _by_id((*changeset.new_turns, *changeset.turns))
    stored.calls |= _by_id((*changeset.new_calls, *changeset.calls))
    changed = (change.approval for change in changeset.approvals)
    stored.approvals |= _by_id((*changeset.new_approvals, *changed))
    if changeset.request is not None:
        stored.requests[changeset.request.key] = changeset.request


def _result(stored: StoredSession, changeset: Changeset) -> CommitResult:
    """Returns the result of a changeset that was not stored now: what it did before, or what is in its way."""
    if changeset.changeset_id in stored.eventless:
        fence = stored.eventless[changeset.changeset_id]
        return Committed(last_seq=changeset.last_seq, fence=fence, events=())
    first = changeset.last_seq
    same_numbers = stored.log[first : first + len(changeset.events)]
    if events := [logged for logged in same_numbers if logged.changeset_id == changeset.changeset_id]:
        stored_events = tuple(logged.stored for logged in events)
        return Committed(last_seq=stored_events[-1].sequence, fence=events[-1].fence, events=stored_events)
    if changeset.creates is not None and stored.deleted:
        return Conflict()
    if changeset.request is not None and changeset.request.key in stored.requests:
        return Duplicate(stored.requests[changeset.request.key])
    if changeset.fence is not None and not changeset.is_owned_by(stored.owner, fence=stored.fence):
        return Fenced()
    return Conflict()


def _has_late_result_as_read(stored: StoredSession, call: Call) -> bool:
    return call.id in stored.calls and stored.calls[call.id].late_attempt == call.late_attempt


def _lacks_result(call: Call) -> bool:
    """Returns True if the call has no result from its tool."""
    if call.state is CallState.RETURNED:
        return call.outcome in _NO_RESULT
    return call.state in (CallState.STARTED, CallState.UNKNOWN)


def _are_absent(stored: Mapping[str, T], new: Iterable[T]) -> bool:
    return not (_by_id(new).keys() & stored.keys())


def _by_id(members: Iterable[T]) -> dict[str, T]:
    return {member.id: member for member in members}
