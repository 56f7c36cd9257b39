"""A draft: everything one decision changes, gathered on a snapshot and stored as one step."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval, ApprovalKind, ApprovalState
from turnkeeper.domain.event import (
    ApprovalRequested,
    ApprovalWithdrawn,
    ClientToolRequested,
    Event,
    NewEvent,
    Payload,
    ToolReturned,
    TurnCancelled,
    TurnFailed,
    UnknownPayload,
)
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call, CallState, PolicyAction, ToolOutcome, ToolResult
from turnkeeper.domain.turn import CancelReason, PendingItem, Turn, TurnState
from turnkeeper.store.changeset import (
    ApprovalChange,
    Cancel,
    Changeset,
    Committed,
    HeadChange,
    LeaseChange,
    RequestRecord,
    Snapshot,
)

SYNTHETIC_RESULTS = {
    ToolOutcome.CANCELLED: '"The call was cancelled before its result was known."',
    ToolOutcome.REJECTED: '"A person rejected this call."',
    ToolOutcome.EXPIRED: '"Nobody approved this call in time."',
    ToolOutcome.UNKNOWN: '"The server was lost while the tool ran; it may or may not have taken effect."',
}
"""What the model is told of calls that nobody will answer (promise I16)."""


NEVER_RAN_RESULT = '"The call was cancelled; it did not run."'


class UnitOfWork:
    """Changes on a snapshot. The values read are never touched; `step()` gives what is to be stored."""

    def __init__(self, snapshot: Snapshot, *, at: datetime, new_id: Callable[[], str]) -> None:
        """`at` is for people; what must be compared is computed from the snapshot's own clock."""
        self.snapshot = snapshot
        self.at = at
        self.new_id = new_id
        self.events: list[NewEvent] = []
        self.session: Session = snapshot.session
        self.head = HeadChange()
        self.request: RequestRecord | None = None
        self._turns: dict[str, Turn] = {}
        self._new_turns: dict[str, Turn] = {}
        self._calls: dict[str, Call] = {call.id: call for call in snapshot.calls}
        self._pending: dict[str, Approval] = {approval.id: approval for approval in snapshot.approvals}
        self._new_calls: set[str] = set()
        self._changed_calls: set[str] = set()
        self._new_approvals: dict[str, Approval] = {}
        self._changed_approvals: dict[str, ApprovalChange] = {}

    @property
    def turn(self) -> Turn:
        """The snapshot's turn as this draft leaves it."""
        if self.snapshot.turn is None:
            raise LookupError("the snapshot has no turn")
        return self._turns.get(self.snapshot.turn.id, self.snapshot.turn)

    @property
    def next_sequence(self) -> int:
        """The number that the next event will have."""
        return self.snapshot.head.last_seq + len(self.events) + 1

    @property
    def has_changes(self) -> bool:
        """There is something to store."""
        return bool(self.events) or self.head != HeadChange()

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(self._calls.values())

    @property
    def approvals(self) -> tuple[Approval, ...]:
        """The turn's pending approvals as this draft leaves them."""
        return tuple(self._pending.values())

    def append(self, payload: Payload | UnknownPayload, *, turn: Turn | None = None) -> None:
        """Append an event; without a turn it is the session's own."""
        turn_id, attempt = (turn.id, turn.attempt) if turn else ("", 0)
        self.events.append(NewEvent(payload=payload, at=self.at, turn_id=turn_id, attempt=attempt))

    def put_turn(self, turn: Turn, *, new: bool = False) -> None:
        if new or turn.id in self._new_turns:
            self._new_turns[turn.id] = turn
        else:
            self._turns[turn.id] = turn

    def put_call(self, call: Call, *, new: bool = False) -> None:
        self._calls[call.id] = call
        if new:
            self._new_calls.add(call.id)
        elif call.id not in self._new_calls:
            self._changed_calls.add(call.id)

    def close_approval(self, approval: Approval, *, lapsed: bool | None) -> None:
        """An approval leaves PENDING. Whether it had lapsed is checked again as it is written."""
        self._pending.pop(approval.id, None)
        if approval.id in self._new_approvals:
            self._new_approvals[approval.id] = approval
        else:
            self._changed_approvals[approval.id] = ApprovalChange(approval=approval, lapsed=lapsed)

    def put_approval(self, approval: Approval) -> None:
        """It changes, and stays PENDING."""
        self._pending[approval.id] = approval
        self._changed_approvals[approval.id] = ApprovalChange(approval=approval, lapsed=None)

    def change_head(self, **changes: object) -> None:
        self.head = replace(self.head, **changes)  # type: ignore[arg-type]

    def mark_unknown(self, call: Call) -> Call:
        """Nobody knows what became of a call that must not start again by itself; the session remembers it."""
        lost = call.lost()
        self.put_call(lost)
        self.session = self.session.with_unknown(call.tool, call.id)
        return lost

    def request_approval(self, call: Call, *, agent: Agent, approval_id: str = "") -> Approval:
        """Open a round: the call waits for a person from here on. About a lost one it asks for the outcome.

        `approval_id`: the new approval's, where it is known already.
        """
        is_lost = call.state is CallState.UNKNOWN
        asked = replace(
            call,
            state=CallState.UNKNOWN if is_lost else CallState.AWAITING,
            action=PolicyAction.APPROVE,
            round=call.round + 1,
            shown=self.session.unknown_calls(call.tool, but=call.id),
        )
        rule = agent.rule_named(call.tool, call.tool_class)
        approval = Approval(
            id=approval_id or self.new_id(),
            tenant=call.tenant,
            session_id=call.session_id,
            turn_id=call.turn_id,
            tool_call_id=call.id,
            kind=ApprovalKind.OUTCOME if is_lost else ApprovalKind.TOOL_CALL,
            state=ApprovalState.PENDING,
            round=asked.round,
            tool=call.tool,
            tool_class=call.tool_class,
            arguments_json=call.arguments_json,
            arguments_hash=call.arguments_hash,
            requester=self.turn.principal,
            agent=agent.name,
            create_time=self.at,
            expire_time=self.snapshot.head.now + rule.ttl,
            unknown_tool_call_ids=asked.shown,
            late_result_json=call.late_result_json if is_lost and call.late_attempt == call.attempt else "",
        )
        expires = approval.expire_time
        if self.snapshot.head.suspended:
            approval = approval.paused(now=self.snapshot.head.now)
        self._pending[approval.id] = approval
        self._new_approvals[approval.id] = approval
        self.put_call(asked, new=call.id in self._new_calls or call.id not in self._calls)
        self.append(
            ApprovalRequested(
                approval_id=approval.id,
                kind=approval.kind,
                tool_call_id=call.id,
                tool=call.tool,
                arguments_json=approval.arguments_json,
                arguments_hash=approval.arguments_hash,
                round=approval.round,
                expire_time=expires,
            ),
            turn=self.turn,
        )
        return approval

    def request_client_tool(self, call: Call) -> None:
        """Ask the client to run it: from here on the call waits for a result that is handed in."""
        self.put_call(call.requested(), new=call.id in self._new_calls or call.id not in self._calls)
        self.append(
            ClientToolRequested(tool_call_id=call.id, tool=call.tool, arguments_json=call.arguments_json),
            turn=self.turn,
        )

    def close_call(self, call: Call, result: ToolResult, *, duration: timedelta | None = None) -> None:
        """Record a call's result, from the tool or in its place."""
        self.put_call(call.returned(result.outcome))
        self.append(
            ToolReturned(
                tool_call_id=call.id,
                tool=call.tool,
                outcome=result.outcome,
                result_json=result.result_json,
                started=call.started,
                duration=duration,
            ),
            turn=self.turn,
        )

    def close_call_as(self, call: Call, outcome: ToolOutcome, *, reason: str = "") -> None:
        """A synthetic result (I16): the call will get no other."""
        never_ran = outcome is ToolOutcome.CANCELLED and not call.started
        told = NEVER_RAN_RESULT if never_ran else SYNTHETIC_RESULTS[outcome]
        told = _with_reason(told, reason) if reason else told
        self.close_call(call, ToolResult(outcome=outcome, result_json=told))

    def cancel_turn(self, turn: Turn, *, reason: CancelReason, by: str) -> None:
        self._close_open_work(turn)
        turn = self._current(turn).ended_as(TurnState.CANCELLED, at=self.at)
        self.put_turn(turn)
        self.append(TurnCancelled(reason=reason, principal=by, usage=turn.usage), turn=turn)

    def fail_turn(self, error: ErrorDetail) -> None:
        self._close_open_work(self.turn)
        turn = replace(self.turn.ended_as(TurnState.FAILED, at=self.at), error=error)
        self.put_turn(turn)
        self.append(TurnFailed(error=error, usage=turn.usage), turn=turn)

    def activate_next_turn(self) -> None:
        """The active turn has ended: its usage is the session's, and the first queued turn becomes active."""
        self.add_usage(self.turn)
        queue = self.head.queue if self.head.queue is not None else self.snapshot.head.queue
        self.change_head(
            lease=LeaseChange.RELEASE,
            active_turn=queue[0] if queue else "",
            queue=queue[1:],
            wake=timedelta() if queue else None,
            cancel=Cancel(),
        )

    def add_usage(self, turn: Turn) -> None:
        """A turn has ended: the session has its usage, and was changed just now."""
        self.session = replace(self.session, usage=self.session.usage + turn.usage, update_time=self.at)

    def await_answers(self, calls: tuple[Call, ...]) -> None:
        """The turn waits for people, or for its client: no owner, no lease, no wake-up."""
        self._set_waiting(calls)
        self.change_head(lease=LeaseChange.RELEASE)

    def resume_if_answered(self) -> None:
        """An answer came that the turn may have waited for. The last one, and one that lets a call start, wakes it."""
        if not self.turn.state.awaits_answers:
            return
        open_calls = tuple(call for call in self.calls if call.state is not CallState.RETURNED)
        waiting = tuple(call for call in open_calls if call.state is not CallState.READY)
        if waiting and waiting == open_calls:
            self._set_waiting(waiting)
            return
        self.put_turn(replace(self.turn, state=TurnState.RUNNING, pending=(), update_time=self.at))
        self.change_head(wake=timedelta())

    def _set_waiting(self, calls: tuple[Call, ...]) -> None:
        """The state names what most concerns people: an unknown outcome, then an approval, then a client's result."""
        by_call = {approval.tool_call_id: approval.id for approval in self.approvals}
        pending = tuple(
            PendingItem(approval_id=by_call.get(call.id, ""), tool_call_id=call.id, tool=call.tool) for call in calls
        )
        self.put_turn(replace(self.turn, state=_awaited(calls), pending=pending, update_time=self.at))

    def changeset(self, *, changeset_id: str, fence: int | None, lease_for: timedelta = timedelta()) -> Changeset:
        """What is to be stored. `fence` is the owner's, None for anybody else."""
        head = self.snapshot.head
        keeps = fence is not None and self.head.lease is LeaseChange.KEEP
        return Changeset(
            changeset_id=changeset_id,
            tenant=head.tenant,
            session_id=head.session_id,
            last_seq=head.last_seq,
            fence=fence,
            head_fence=head.fence if fence is None else fence,
            cancel=head.cancel.turn_id,
            events=tuple(self.events),
            head=replace(self.head, lease_for=lease_for) if keeps else self.head,
            session=self.session if self.session is not self.snapshot.session else None,
            new_turns=tuple(self._new_turns.values()),
            turns=tuple(self._turns.values()),
            new_calls=tuple(self._calls[key] for key in self._calls if key in self._new_calls),
            calls=tuple(self._calls[key] for key in self._calls if key in self._changed_calls),
            new_approvals=tuple(self._new_approvals.values()),
            approvals=tuple(self._changed_approvals.values()),
            request=self.request,
            revision=head.revision if fence is None else None,
            leased=head.owned and fence is None,
        )

    def snapshot_after(self, committed: Committed, *, by_owner: bool) -> Snapshot:
        """The snapshot as it is once this draft was stored, if nobody else wrote: then its `revision` is behind."""
        before = self.snapshot
        change = self.head
        given = ("active_turn", "queue", "cancel", "suspended", "deleted")
        changed = {name: value for name in given if (value := getattr(change, name)) is not None}
        ends_need = change.active_turn is not None
        head = replace(
            before.head,
            **changed,
            last_seq=committed.last_seq,
            fence=committed.fence,
            revision=before.head.revision + 1,
            owner=_owner(before.head.owner, change),
            owned=change.lease in (LeaseChange.KEEP, LeaseChange.TAKE)
            and (before.head.owned or change.lease is LeaseChange.TAKE),
            lapses=0 if change.active_turn is not None or by_owner else before.head.lapses,
            needs=(change.needs or 0) if ends_need else max(before.head.needs, change.needs or 0),
            log_needs=max(before.head.log_needs, change.log_needs or 0),
        )
        session = self.session
        if session is before.session and self.events:
            session = replace(session, update_time=max(session.update_time, self.events[-1].at))
        return replace(
            before,
            head=head,
            session=session,
            turn=self.turn if before.turn else None,
            calls=self.calls,
            approvals=self.approvals,
        )

    def stored_events(self, committed: Committed) -> list[Event]:
        """Its events, as they are in the log once it was stored."""
        return [
            Event(
                sequence=stored.sequence,
                turn_id=new.turn_id,
                attempt=new.attempt,
                create_time=new.at,
                payload=new.payload,
            )
            for new, stored in zip(self.events, committed.events, strict=True)
        ]

    def _close_open_work(self, turn: Turn) -> None:
        """Every end of a turn closes its calls and withdraws its approvals, in the same step."""
        for approval in self.approvals:
            if approval.turn_id == turn.id:
                self.close_approval(approval.closed(ApprovalState.WITHDRAWN, at=self.at), lapsed=None)
                said = ApprovalWithdrawn(approval_id=approval.id, tool_call_id=approval.tool_call_id)
                self.append(said, turn=turn)
        for call in self.calls:
            if call.turn_id == turn.id and call.state is not CallState.RETURNED:
                lost = call.state is CallState.UNKNOWN
                if call.state is CallState.STARTED and not call.tool_class.may_start_again:
                    self.session = self.session.with_unknown(call.tool, call.id)
                self.close_call_as(call, ToolOutcome.UNKNOWN if lost else ToolOutcome.CANCELLED)

    def _current(self, turn: Turn) -> Turn:
        return self._turns.get(turn.id, turn)


def _owner(before: str, change: HeadChange) -> str:
    match change.lease:
        case LeaseChange.KEEP:
            return before
        case LeaseChange.TAKE:
            return change.owner
        case LeaseChange.RELEASE | LeaseChange.BREAK:
            return ""


def _awaited(calls: tuple[Call, ...]) -> TurnState:
    states = {call.state for call in calls}
    if CallState.UNKNOWN in states:
        return TurnState.AWAITING_OUTCOME
    return TurnState.AWAITING_APPROVAL if CallState.AWAITING in states else TurnState.AWAITING_TOOL


def _with_reason(told: str, reason: str) -> str:
    return json.dumps({"error": json.loads(told), "reason": reason}, ensure_ascii=False)
