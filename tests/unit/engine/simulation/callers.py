"""What callers do, by the real verbs, and what they learn: the same for the same request, once and for all."""

from dataclasses import dataclass, field
from datetime import timedelta

from tests.builders import a_lone_decider
from tests.unit.engine.simulation.environment import Environment
from tests.unit.engine.simulation.replica import Hold, Replica
from turnkeeper.domain.approval import ANSWERS, Answer, ApprovalDecision, ApprovalState
from turnkeeper.domain.message import Part
from turnkeeper.domain.remembered import RememberRequest, RememberScope
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnOptions, TurnState
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.messages import NewMessage, RetryRequest
from turnkeeper.errors import ApprovalHasExpired, RequestIdReused, SessionError, TurnInProgress
from turnkeeper.store.changeset import RequestKey, RequestRecord


@dataclass(slots=True)
class Callers:
    """Their calls, and the answers that they got."""

    environment: Environment
    records: dict[RequestKey, RequestRecord] = field(default_factory=dict)
    decided: dict[str, ApprovalState] = field(default_factory=dict)
    """How each approval left PENDING, as its decider learned."""

    def send(
        self,
        key: SessionKey,
        request_id: str,
        text: str,
        if_busy: str,
        *,
        room: bool,
        is_slow: bool = False,
        hold: Hold | None = None,
    ) -> None:
        """Sends a message. `room`: to a replica that has room for its turn. `is_slow`: its answer comes too late."""
        message = NewMessage(
            key=_request_key(key, "message", request_id),
            fingerprint=text,
            content=(Part(text=text),),
            if_busy=if_busy,
            options=TurnOptions(),
        )
        replica = self._replica(room=room)
        replica.gate.is_slow = is_slow
        self.environment.start(self._send(replica, message, is_held=hold is not None), hold=hold)
        replica.gate.is_slow = False

    async def _send(self, replica: Replica, message: NewMessage, *, is_held: bool) -> None:
        try:
            record = await replica.turns.start(message)
        except RequestIdReused:
            self._check_other(message)
        except TurnInProgress:
            stored = self.environment.stored(message.key.session_key)
            assert is_held or stored.active_turn, "a message is refused though no turn is active"
        except SessionError:
            pass
        else:
            self._check_record(message, record)

    def retry(self, key: SessionKey, turn_id: str, request_id: str, *, room: bool, hold: Hold | None = None) -> None:
        """Retries a turn."""
        request = RetryRequest(key=_request_key(key, "retry_turn", request_id), fingerprint=turn_id, turn_id=turn_id)
        self.environment.start(self._retry(self._replica(room=room), request), hold=hold)

    async def _retry(self, replica: Replica, request: RetryRequest) -> None:
        try:
            record = await replica.turns.retry(request)
        except RequestIdReused:
            self._check_other(request)
        except SessionError:
            pass
        else:
            self._check_record(request, record)

    def decide(
        self,
        key: SessionKey,
        approval_id: str,
        choice: int,
        by: str,
        *,
        as_read: bool,
        near: bool,
        hold: Hold | None = None,
    ) -> None:
        """Decides an approval.

        `choice` is of the decisions that its kind takes. `as_read`: with the hash of its arguments. `near`: on the
        replica that runs the turn, as in the other calls. Every other MARK_DONE has no result: the late one counts.
        Most APPROVEs ask to be remembered: for the same arguments, or the whole tool, which some tools refuse.
        """
        approval = self.environment.stored(key).approvals[approval_id]
        decisions = list(ANSWERS[approval.kind])
        decision = decisions[choice % len(decisions)]
        scope = RememberScope.ARGUMENTS if choice < 2 * len(decisions) else RememberScope.TOOL
        remembers = decision is ApprovalDecision.APPROVE and choice >= len(decisions)
        answer = Answer(
            decision=decision,
            decider=a_lone_decider(by),
            arguments_hash=approval.arguments_hash if as_read else "another",
            remember=RememberRequest(scope=scope, time=timedelta(minutes=10), uses=2) if remembers else None,
            result_json='"it was done"' if decision is ApprovalDecision.MARK_DONE and choice < len(decisions) else "",
        )
        self.environment.start(self._decide(self._near(key, near=near), key, approval_id, answer), hold=hold)

    async def _decide(self, replica: Replica, key: SessionKey, approval_id: str, answer: Answer) -> None:
        try:
            approval, sequence = await replica.approvals.decide(approval_id, answer, tenant=key.tenant)
        except ApprovalHasExpired:
            self._check_decided(approval_id, ApprovalState.EXPIRED)
        except SessionError:
            pass
        else:
            stored = self.environment.stored(key).approvals[approval_id]
            for known in (approval, stored):
                assert (known.decision, known.decided_by) == (answer.decision, answer.by), (
                    "I6: it was decided otherwise"
                )
            self._check_decided(approval_id, approval.state)
            event = self.environment.stored(key).log[sequence - 1].stored
            assert event.kind == "approval_decided", f"the decision names {event.kind}"

    def expire(self, key: SessionKey, approval_id: str, *, hold: Hold | None = None) -> None:
        """Expires an approval if its time is over, as a sweeper does."""
        approval = self.environment.stored(key).approvals[approval_id]
        self.environment.start(self.environment.full.approvals.expire(approval), hold=hold)

    def cancel(self, key: SessionKey, turn_id: str, *, near: bool, hold: Hold | None = None) -> None:
        """Cancels a turn."""
        self.environment.start(self._cancel(self._near(key, near=near), key, turn_id), hold=hold)

    async def _cancel(self, replica: Replica, key: SessionKey, turn_id: str) -> None:
        turn, sequence = await replica.turns.cancel(key, turn_id, by="ada")
        if sequence:
            event = self.environment.stored(key).log[sequence - 1].stored
            assert (event.kind, event.turn_id) == ("turn_cancelled", turn_id)
            assert turn.state is TurnState.CANCELLED

    def end(self, key: SessionKey, *, hold: Hold | None = None) -> None:
        """Ends a session."""
        self.environment.start(self._end(key), hold=hold)

    async def _end(self, key: SessionKey) -> None:
        await self.environment.full.sessions.change(
            key, lambda uow, queued: session_rules.end(uow, queued, by="ada", reason="")
        )

    def _near(self, key: SessionKey, *, near: bool) -> Replica:
        return (self.environment.owner_of(key) if near else None) or self.environment.full

    def _replica(self, *, room: bool) -> Replica:
        return self.environment.replica_with_room() if room else self.environment.full

    def _check_record(self, request: NewMessage | RetryRequest, record: RequestRecord) -> None:
        """I8: the same request always gets the same answer, and what it names is in the log."""
        assert record.fingerprint == request.fingerprint, "I8: another request's record"
        assert self.records.setdefault(record.key, record) == record, "I8: one request has two effects"
        event = self.environment.stored(record.key.session_key).log[record.sequence - 1].event
        assert event.turn_id == record.turn_id, "I8: the record names another event"

    def _check_other(self, request: NewMessage | RetryRequest) -> None:
        record = self.environment.stored(request.key.session_key).requests.get(request.key)
        assert record is not None, "I8: there is no such request"
        assert record.fingerprint != request.fingerprint, "I8: a repeat is refused"

    def _check_decided(self, approval_id: str, state: ApprovalState) -> None:
        assert self.decided.setdefault(approval_id, state) is state, f"I6, I7: {approval_id} was decided twice"


def _request_key(key: SessionKey, family: str, request_id: str) -> RequestKey:
    return RequestKey(
        tenant=key.tenant, session_id=key.session_id, principal="ada", family=family, request_id=request_id
    )
