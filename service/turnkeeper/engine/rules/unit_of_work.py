"""A unit of work: everything that one decision changes, collected on a snapshot and stored as one changeset."""

from collections.abc import Callable
from datetime import datetime, timedelta

from turnkeeper.codes import ErrorDetail
from turnkeeper.copies import replace
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.approval_events import ApprovalRequested, ApprovalWithdrawn
from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.event import (
    Event,
    NewEvent,
    Payload,
    TurnCancelled,
    TurnFailed,
    UnknownPayload,
)
from turnkeeper.domain.policy import Ruling, with_ruling
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call, CallState, PolicyAction, ToolOutcome, ToolResult, decision_hash
from turnkeeper.domain.tool_events import ClientToolRequested, ToolReturned
from turnkeeper.domain.turn import CancelReason, PendingItem, Turn, TurnState
from turnkeeper.engine.rules.new_approvals import new_approval
from turnkeeper.engine.rules.synthetic_results import synthetic_result
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


class UnitOfWork:
    """The changes that a decision makes to a snapshot, which itself stays as it was read.

    `changeset()` returns them in the form in which they are stored. Its properties give each value with the changes
    collected so far.
    """

    def __init__(self, snapshot: Snapshot, *, at: datetime, new_id: Callable[[], str]) -> None:
        """`at` is the replica's time, for people. Expiries are compared with the snapshot's clock, the database's."""
        self.snapshot = snapshot
        self.at = at
        self.new_id = new_id
        self.events: list[NewEvent] = []
        """The events to append, in the order of the log."""
        self.session: Session = snapshot.session
        """Set it to change the session."""
        self.head = HeadChange()
        self.request: RequestRecord | None = None
        """Set it to the record from which repeats of the request are answered."""
        self.audit: list[AuditRecord] = []
        """Goes on record with these changes; `changeset` completes the ids."""
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
        """Returns the snapshot's turn. Raises LookupError if the snapshot has none."""
        if self.snapshot.turn is None:
            raise LookupError("the snapshot has no turn")
        return self._turns.get(self.snapshot.turn.id, self.snapshot.turn)

    @property
    def next_sequence(self) -> int:
        """Returns the number that the next event will have in the log."""
        return self.snapshot.head.last_seq + len(self.events) + 1

    @property
    def has_changes(self) -> bool:
        """Returns True if there is something to store."""
        return bool(self.events) or self.head != HeadChange()

    @property
    def calls(self) -> tuple[Call, ...]:
        """Returns the turn's tool calls."""
        return tuple(self._calls.values())

    @property
    def approvals(self) -> tuple[Approval, ...]:
        """Returns the turn's PENDING approvals."""
        return tuple(self._pending.values())

    # --- single changes ----------------------------------------------------------------------------------------

    def append(self, payload: Payload | UnknownPayload, *, turn: Turn | None = None) -> None:
        """Appends an event of `turn`, or of the session alone if no turn is given."""
        turn_id, attempt = (turn.id, turn.attempt) if turn else ("", 0)
        self.events.append(NewEvent(payload=payload, at=self.at, turn_id=turn_id, attempt=attempt))

    def put_turn(self, turn: Turn, *, new: bool = False) -> None:
        """Stores the turn as it is given. `new`: it must not exist yet."""
        if new or turn.id in self._new_turns:
            self._new_turns[turn.id] = turn
        else:
            self._turns[turn.id] = turn

    def put_call(self, call: Call, *, new: bool = False) -> None:
        """Stores the tool call as it is given. `new`: it must not exist yet."""
        self._calls[call.id] = call
        if new:
            self._new_calls.add(call.id)
        elif call.id not in self._new_calls:
            self._changed_calls.add(call.id)

    def put_approval(self, approval: Approval, *, lapsed: bool | None = None) -> None:
        """Stores a change of an approval that stays PENDING. `lapsed`: as in `close_approval`."""
        self._pending[approval.id] = approval
        self._store_approval(approval, lapsed=lapsed)

    def close_approval(self, approval: Approval, *, lapsed: bool | None) -> None:
        """Stores an approval that leaves PENDING.

        The store refuses the changeset unless `lapsed` is true of the approval by its own clock; None: either way.
        """
        self._pending.pop(approval.id, None)
        self._store_approval(approval, lapsed=lapsed)

    def _store_approval(self, approval: Approval, *, lapsed: bool | None) -> None:
        if approval.id in self._new_approvals:
            self._new_approvals[approval.id] = approval
        else:
            self._changed_approvals[approval.id] = ApprovalChange(approval=approval, lapsed=lapsed)

    def withdraw(self, approval: Approval, *, turn: Turn) -> Approval:
        """Withdraws a PENDING approval of `turn`, whether its time is over or not. Returns it as WITHDRAWN."""
        withdrawn = approval.closed(ApprovalState.WITHDRAWN, at=self.at)
        self.close_approval(withdrawn, lapsed=None)
        self.append(ApprovalWithdrawn(approval_id=approval.id, tool_call_id=approval.tool_call_id), turn=turn)
        return withdrawn

    def change_head(self, **changes: object) -> None:
        """Sets fields of the HeadChange; those that are not named stay as they are."""
        self.head = replace(self.head, **changes)  # type: ignore[arg-type]

    # --- tool calls and their approvals ------------------------------------------------------------------------

    def mark_unknown(self, call: Call) -> Call:
        """Returns the lost call as UNKNOWN: it must not start again by itself, and the session records it."""
        lost = call.lost()
        self.put_call(lost)
        self.session = self.session.with_unknown(call.tool, call.id)
        return lost

    def request_approval(
        self, call: Call, *, ruling: Ruling, approval_id: str = "", changed: tuple[str, ...] = ()
    ) -> Approval:
        """Opens the call's next round: the call waits until a person decides, or until the approval expires.

        Returns the approval: of an UNKNOWN call it asks for the outcome, of any other for the permission to run it. It
        has the id `approval_id`, or a fresh one if that is empty. `ruling` is what the policy decides on the call: it
        names who may decide, and for how long. `changed`: what is other than in the round before.
        """
        requested = replace(
            with_ruling(call, ruling),
            state=CallState.UNKNOWN if call.state is CallState.UNKNOWN else CallState.AWAITING,
            action=PolicyAction.APPROVE,
            round=call.round + 1,
            shown=self.session.unknown_calls(call.tool, but=call.id),
            approval_id=approval_id or self.new_id(),
        )
        requested = replace(requested, arguments_hash=decision_hash(requested))
        approval_id = requested.approval_id
        approval = new_approval(requested, self.turn, approval_id=approval_id, at=self.at, now=self.snapshot.head.now)
        approval = replace(approval, changed=changed)
        expire_time = approval.expire_time
        if self.snapshot.head.suspended:
            approval = approval.paused(now=self.snapshot.head.now)
        self._pending[approval.id] = approval
        self._new_approvals[approval.id] = approval
        self._put_new_or_changed(requested)
        self.append(
            ApprovalRequested(
                approval_id=approval.id,
                kind=approval.kind,
                tool_call_id=call.id,
                tool=call.tool,
                arguments_json=approval.arguments_json,
                arguments_hash=approval.arguments_hash,
                round=approval.round,
                expire_time=expire_time,
                approvers=approval.approvers,
                rule=approval.rule,
                rule_text=approval.rule_text,
                changed=changed,
            ),
            turn=self.turn,
        )
        return approval

    def request_client_tool(self, call: Call) -> None:
        """Requests that the client runs the call's tool: the call waits until a result is submitted."""
        self._put_new_or_changed(call.requested())
        self.append(
            ClientToolRequested(tool_call_id=call.id, tool=call.tool, arguments_json=call.arguments_json),
            turn=self.turn,
        )

    def close_call(self, call: Call, result: ToolResult, *, duration: timedelta | None = None) -> None:
        """Closes a call with a result. `duration` is the time that its tool ran, None if it did not run here."""
        self.put_call(call.returned(result.outcome))
        self.append(
            ToolReturned(
                tool_call_id=call.id,
                tool=call.tool,
                outcome=result.outcome,
                result_json=result.result_json,
                started=call.started,
                duration=duration,
                submitted_by=call.submitted_by,
                submitted_through=call.submitted_through,
                trusted=call.trusted_output or result.outcome not in (ToolOutcome.OK, ToolOutcome.FAILED),
            ),
            turn=self.turn,
        )

    def close_call_as(self, call: Call, outcome: ToolOutcome, *, reason: str = "") -> None:
        """Closes a call that will get no result of its own, with a synthetic one (I16)."""
        self.close_call(call, synthetic_result(call, outcome, reason=reason))

    # --- the turn ----------------------------------------------------------------------------------------------

    def cancel_turn(self, turn: Turn, *, reason: CancelReason, by: str) -> None:
        """Ends a turn as CANCELLED, closes its calls and withdraws its approvals. `by` is the principal."""
        self._close_open_work(turn)
        turn = self._turns.get(turn.id, turn).ended_as(TurnState.CANCELLED, at=self.at)
        self.put_turn(turn)
        self.append(TurnCancelled(reason=reason, principal=by, usage=turn.usage), turn=turn)

    def fail_turn(self, error: ErrorDetail) -> None:
        """Ends the snapshot's turn as FAILED, closes its calls and withdraws its approvals."""
        self._close_open_work(self.turn)
        turn = replace(self.turn.ended_as(TurnState.FAILED, at=self.at), error=error)
        self.put_turn(turn)
        self.append(TurnFailed(error=error, usage=turn.usage), turn=turn)

    def activate_next_turn(self) -> None:
        """Makes the first queued turn the active one, claimable at once, after the active turn has ended.

        Releases the lease, and adds the ended turn's usage to the session's.
        """
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
        """Adds an ended turn's usage to the session's."""
        self.session = replace(self.session, usage=self.session.usage + turn.usage, update_time=self.at)

    def await_answers(self, calls: tuple[Call, ...]) -> None:
        """Lets the turn wait for these calls' approvals or client results, without an owner and without a wake-up."""
        self._set_waiting(calls)
        self.change_head(lease=LeaseChange.RELEASE)

    def resume_if_answered(self, *, wake: timedelta = timedelta()) -> None:
        """Makes the waiting turn claimable, after `wake`, if its last open call was answered or one may start now.

        Otherwise the turn goes on waiting for the calls that are left. Changes nothing of a turn that does not wait.
        """
        if not self.turn.state.awaits_answers:
            return
        open_calls = tuple(call for call in self.calls if call.state is not CallState.RETURNED)
        waiting = tuple(call for call in open_calls if call.state is not CallState.READY)
        if waiting and waiting == open_calls:
            self._set_waiting(waiting)
            return
        self.put_turn(replace(self.turn, state=TurnState.RUNNING, pending=(), update_time=self.at))
        self.change_head(wake=wake)

    # --- what is stored, and what is known then ----------------------------------------------------------------

    def changeset(self, *, changeset_id: str, fence: int | None, lease_for: timedelta = timedelta()) -> Changeset:
        """Returns what is to be stored.

        `fence` is the owner's; None for a writer that is not the turn's owner. An owner that keeps its lease extends it
        by `lease_for`.
        """
        head = self.snapshot.head
        keeps = fence is not None and self.head.lease is LeaseChange.KEEP
        return Changeset(
            changeset_id=changeset_id,
            tenant=head.tenant,
            session_id=head.session_id,
            last_seq=head.last_seq,
            last_changeset=head.last_changeset,
            fence=fence,
            head_fence=head.fence if fence is None else fence,
            cancel=head.cancel.turn_id,
            events=tuple(self.events),
            head=replace(self.head, lease_for=lease_for) if keeps else self.head,
            session=self.session if self.session is not self.snapshot.session else None,
            new_turns=tuple(self._new_turns.values()),
            turns=tuple(self._turns.values()),
            turn_as_read=self.snapshot.turn,
            session_as_read=self.snapshot.session,
            new_calls=tuple(self._calls[key] for key in self._calls if key in self._new_calls),
            calls=tuple(self._calls[key] for key in self._calls if key in self._changed_calls),
            new_approvals=tuple(self._new_approvals.values()),
            approvals=tuple(self._changed_approvals.values()),
            request=self.request,
            audit=tuple(record.of_changeset(changeset_id) for record in self.audit),
            revision=head.revision if fence is None else None,
            leased=head.owned and fence is None,
        )

    def snapshot_after(self, committed: Committed, *, by_owner: bool) -> Snapshot:
        """Returns the snapshot as a reader finds it once this unit of work is stored, if there was no other writer.

        After another writer its `revision` is behind the head's, so a decision on it is refused as a Conflict.
        """
        before = self.snapshot
        change = self.head
        settable = ("active_turn", "queue", "cancel", "suspended", "deleted")
        changed = {name: value for name in settable if (value := getattr(change, name)) is not None}
        turn_changes = change.active_turn is not None
        head = replace(
            before.head,
            **changed,
            last_seq=committed.last_seq,
            last_changeset=committed.events[-1].changeset_id if committed.events else before.head.last_changeset,
            fence=committed.fence,
            revision=before.head.revision + 1,
            owner=change.owner_after(before.head.owner),
            owned=change.lease in (LeaseChange.KEEP, LeaseChange.TAKE)
            and (before.head.owned or change.lease is LeaseChange.TAKE),
            lapses=0 if turn_changes or by_owner else before.head.lapses,
            needs=(change.needs or 0) if turn_changes else max(before.head.needs, change.needs or 0),
            log_needs=max(before.head.log_needs, change.log_needs or 0),
        )
        session = self.session
        if session is before.session and self.events:
            session = replace(session, update_time=max(session.update_time, self.events[-1].at))
        turn, calls = self.turn if before.turn else None, tuple(call for call in self.calls if call.is_open)
        return replace(before, head=head, session=session, turn=turn, calls=calls, approvals=self.approvals)

    def stored_events(self, committed: Committed) -> list[Event]:
        """Returns the events as a reader of the log finds them once this unit of work is stored."""
        return [
            Event(
                sequence=stored.sequence,
                turn_id=event.turn_id,
                attempt=event.attempt,
                create_time=event.at,
                payload=event.payload,
            )
            for event, stored in zip(self.events, committed.events, strict=True)
        ]

    def _put_new_or_changed(self, call: Call) -> None:
        self.put_call(call, new=call.id in self._new_calls or call.id not in self._calls)

    def _set_waiting(self, calls: tuple[Call, ...]) -> None:
        """Sets the turn's state and `pending` to what these calls wait for."""
        by_call = {approval.tool_call_id: approval.id for approval in self.approvals}
        pending = tuple(
            PendingItem(approval_id=by_call.get(call.id, ""), tool_call_id=call.id, tool=call.tool) for call in calls
        )
        self.put_turn(replace(self.turn, state=_waiting_state(calls), pending=pending, update_time=self.at))

    def _close_open_work(self, turn: Turn) -> None:
        """Withdraws the turn's approvals and closes its calls: every end of a turn does, in the same changeset."""
        for approval in self.approvals:
            if approval.turn_id == turn.id:
                self.withdraw(approval, turn=turn)
        for call in self.calls:
            if call.turn_id == turn.id and call.state is not CallState.RETURNED:
                is_lost = call.state is CallState.UNKNOWN
                if call.state is CallState.STARTED and not call.tool_class.may_start_again:
                    self.session = self.session.with_unknown(call.tool, call.id)
                self.close_call_as(call, ToolOutcome.UNKNOWN if is_lost else ToolOutcome.CANCELLED)


def _waiting_state(calls: tuple[Call, ...]) -> TurnState:
    """Returns the state that matters most to people: an unknown outcome, then an approval, then a client's result."""
    states = {call.state for call in calls}
    if CallState.UNKNOWN in states:
        return TurnState.AWAITING_OUTCOME
    return TurnState.AWAITING_APPROVAL if CallState.AWAITING in states else TurnState.AWAITING_TOOL
