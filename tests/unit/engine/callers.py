"""What callers do: each verb decides on what it read, is under way, and is stored when it arrives, or decided again.

As `journal.append` does it, and the verbs of `turns`, `approvals` and `sessions` around it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.unit.engine.replicas import LEASE, Environment, Run
from turnkeeper.domain.approval import ANSWERS, Answer, ApprovalDecision, ApprovalState
from turnkeeper.domain.message import Part
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import CancelReason, Turn, TurnOptions
from turnkeeper.engine.rules import approvals as approval_rules
from turnkeeper.engine.rules import messages as message_rules
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, RetryRequest
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ApprovalAlreadyProcessed, SessionError
from turnkeeper.store.changeset import (
    Cancel,
    Changeset,
    Committed,
    Conflict,
    Duplicate,
    HeadChange,
    LeaseChange,
    RequestKey,
    RequestRecord,
)

Key = SessionKey


@dataclass(slots=True)
class Verb:
    """One call under way. `step` is what it has decided, None when there was nothing to store or it was refused."""

    environment: Environment
    key: Key
    turn_id: str
    decide: Callable[[UnitOfWork], Any]
    stored: Callable[[Any, UnitOfWork, Committed], None]
    otherwise: Callable[[SessionError | RequestRecord | None], None]
    step: Changeset | None = None
    _unit_of_work: UnitOfWork | None = None
    _value: Any = None

    def set_out(self) -> None:
        uow = self.environment.uow(self.environment.read(self.key, self.turn_id))
        self.step = None
        try:
            value = self.decide(uow)
        except SessionError as refused:
            self.otherwise(refused)
            return
        if not uow.events and uow.head == HeadChange():
            self.otherwise(None)
            return
        self._unit_of_work, self._value = uow, value
        self.step = uow.changeset(changeset_id=self.environment.new_id(), fence=None)

    def arrive(self) -> None:
        for _ in range(2):
            if self.step is None or self._unit_of_work is None:
                return
            verdict = self.environment.log.commit(self.step)
            if isinstance(verdict, Committed):
                self.stored(self._value, self._unit_of_work, verdict)
                return
            if isinstance(verdict, Duplicate):
                self.otherwise(verdict.record)
                return
            assert isinstance(verdict, Conflict), verdict
            self.set_out()
        assert self.step is None, "a step on what was read just now is stale"


@dataclass(slots=True)
class Callers:
    """Their verbs, and what they were told: the same for the same request, once and for all."""

    environment: Environment
    adopt: Callable[[Run], None]
    told: dict[RequestKey, RequestRecord] = field(default_factory=dict)
    decided: dict[str, ApprovalState] = field(default_factory=dict)

    def send(self, key: Key, request_id: str, text: str, if_busy: str, *, room: bool) -> Verb | None:
        request = self._request(key, "message", request_id)
        if self._known(request, text):
            return None
        message = NewMessage(
            key=request, fingerprint=text, content=(Part(text=text),), if_busy=if_busy, options=TurnOptions()
        )
        return self._effect(key, "", request, text, lambda uow: message_rules.accept(uow, message, offer=_offer(room)))

    def retry(self, key: Key, turn_id: str, request_id: str, *, room: bool) -> Verb | None:
        request = self._request(key, "retry_turn", request_id)
        if self._known(request, turn_id):
            return None

        retry = RetryRequest(key=request, fingerprint=turn_id, turn_id=turn_id)

        def decide(uow: UnitOfWork) -> tuple[Turn, RequestRecord]:
            last = list(self.environment.kept(key).turns.values())[-1]
            return message_rules.retry(uow, retry, last=last, offer=_offer(room))

        return self._effect(key, turn_id, request, turn_id, decide)

    def decide(self, key: Key, approval_id: str, choice: int, by: str, *, seen: bool) -> Verb | None:
        """`choice` is of the answers that its kind takes."""
        asked = self.environment.kept(key).approvals[approval_id]
        answers = list(ANSWERS[asked.kind])
        decision = answers[choice % len(answers)]
        arguments_hash = asked.arguments_hash if seen else "another"
        answer = Answer(decision=decision, by=by, arguments_hash=arguments_hash, result_json=_result(decision))
        if asked.state is not ApprovalState.PENDING:
            self._repeat_answer(key, approval_id, answer)
            return None

        def stored(value: Any, _: UnitOfWork, __: Committed) -> None:
            assert approval_id not in self.decided, "I6: two were told that they decided it"
            self.decided[approval_id] = value.state

        def otherwise(refused: SessionError | RequestRecord | None) -> None:
            if refused is None:
                self._repeat_answer(key, approval_id, answer)

        return self._verb(
            key,
            asked.turn_id,
            lambda uow: approval_rules.decide(uow, approval_id, answer),
            stored,
            otherwise,
        )

    def expire(self, key: Key, approval_id: str) -> Verb:
        turn_id = self.environment.kept(key).approvals[approval_id].turn_id

        def stored(_: Any, __: UnitOfWork, ___: Committed) -> None:
            assert approval_id not in self.decided, "I7: it was decided, and it expired"
            self.decided[approval_id] = ApprovalState.EXPIRED

        return self._verb(key, turn_id, lambda uow: approval_rules.expire(uow, approval_id), stored)

    def cancel(self, key: Key, turn_id: str) -> Verb:
        wish = Cancel(turn_id=turn_id, by="ada", reason=CancelReason.REQUESTED.value)

        def otherwise(_: Any) -> None:
            self.environment.log.request_cancel(key, wish)

        return self._verb(
            key, turn_id, lambda uow: message_rules.cancel_unowned(uow, by="ada"), lambda *_: None, otherwise
        )

    def end(self, key: Key) -> Verb:
        def decide(uow: UnitOfWork) -> int:
            queued = {turn_id: self.environment.kept(key).turns[turn_id] for turn_id in uow.snapshot.head.queue}
            return session_rules.end(uow, queued, by="ada", reason="")

        return self._verb(key, "", decide, lambda *_: None)

    def _effect(
        self, key: Key, turn_id: str, request: RequestKey, fingerprint: str, decide: Callable[[UnitOfWork], Any]
    ) -> Verb:
        def stored(value: tuple[Turn, RequestRecord], uow: UnitOfWork, committed: Committed) -> None:
            turn, record = value
            self._answer(record)
            self.environment.lost_in_a_row[turn.id] = 0
            if uow.head.lease is LeaseChange.TAKE:
                self.adopt(_adopted(self.environment, key, uow, committed))

        def otherwise(instead: SessionError | RequestRecord | None) -> None:
            if isinstance(instead, RequestRecord):
                self._repeat(instead, fingerprint)
            else:
                self._known(request, fingerprint)

        return self._verb(key, turn_id, decide, stored, otherwise)

    def _verb(
        self,
        key: Key,
        turn_id: str,
        decide: Callable[[UnitOfWork], Any],
        stored: Callable[[Any, UnitOfWork, Committed], None],
        otherwise: Callable[[SessionError | RequestRecord | None], None] = lambda _: None,
    ) -> Verb:
        return Verb(self.environment, key, turn_id, decide, stored, otherwise)

    def _request(self, key: Key, family: str, request_id: str) -> RequestKey:
        return RequestKey(
            tenant=key.tenant, session_id=key.session_id, principal="ada", family=family, request_id=request_id
        )

    def _known(self, request: RequestKey, fingerprint: str) -> bool:
        record = self.environment.log.find_request(request)
        if record is not None:
            self._repeat(record, fingerprint)
        return record is not None

    def _repeat(self, record: RequestRecord, fingerprint: str) -> None:
        if record.fingerprint == fingerprint:
            self._answer(record)

    def _answer(self, record: RequestRecord) -> None:
        """I8: all that ask with the same words are told the same, and it is in the log."""
        assert self.told.setdefault(record.key, record) == record, "I8: one request has two effects"
        kept = self.environment.kept(record.key.session_key)
        said = kept.log[record.sequence - 1].event
        assert said.turn_id == record.turn_id, "I8: the record names another event"

    def _repeat_answer(self, key: Key, approval_id: str, answer: Answer) -> None:
        """Of one that is decided: its decider is told the same again, anybody else that it is decided."""
        approval = self.environment.kept(key).approvals[approval_id]
        if approval.state is ApprovalState.EXPIRED:
            return
        try:
            same = approval.decide(answer, at=self.environment.now)
        except ApprovalAlreadyProcessed:
            return
        assert (same.decision, same.decided_by) == (answer.decision, answer.by), "I6: a decision that no caller made"


def _result(decision: ApprovalDecision) -> str:
    return '"it was done"' if decision is ApprovalDecision.MARK_DONE else ""


def _offer(room: bool) -> LeaseOffer | None:
    return LeaseOffer(owner="first", lease=LEASE, schema=1) if room else None


def _adopted(environment: Environment, key: Key, uow: UnitOfWork, committed: Committed) -> Run:
    """A turn whose lease was taken in the step that stored it: as `turns` hands it to the worker."""
    snapshot = environment.after(uow, committed, by_owner=False)
    active = snapshot.head.active_turn
    step = uow.changeset(changeset_id="", fence=None)
    made = {turn.id: turn for turn in (*step.new_turns, *step.turns)}
    snapshot = replace(snapshot, turn=made[active], calls=(), approvals=())
    return Run(environment, key, active, owner="first", fence=committed.fence, snapshot=snapshot, begun=True)
