"""A small run as it is read from its records: every promise can be checked, and none is broken."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import effects, messages, tenants
from tests.chaos.history import Chain, Effect, Fault, History, Prompt, Try
from tests.chaos.reading import logs_of
from tests.chaos.streams import item
from turnkeeper.pb.v1 import event_pb2, message_pb2

TENANT, OTHER = tenants.TENANTS
SESSION_ID = "s1"
SESSION = tenants.key(TENANT, SESSION_ID)
MESSAGES = {"t1": "tell u-1: naïve 🦆", "t2": "pay u-2: ok", "t3": "say u-3: storm", "t4": "pledge u-4: lo"}
PAID = '{"amount":7,"label":"u-2"}'
TOOL_REQUESTS = message_pb2.FINISH_REASON_TOOL_CALLS
STOP = message_pb2.FINISH_REASON_STOP
INTERRUPTED = message_pb2.FINISH_REASON_INTERRUPTED
APPROVE, REJECT = event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_REJECT


ASKED: dict[str, Any] = {"requester": tenants.USER, "approvers": {"groups": [tenants.GROUP], "k": 2}}
"""What each approval has of its request."""


@dataclass
class Run:
    """A run that a test may change before it is checked. `events` are (event, fence)."""

    events: list[tuple[event_pb2.Event, int]] = field(default_factory=list)
    head: dict[str, Any] = field(default_factory=dict)
    turns: dict[str, dict[str, Any]] = field(default_factory=dict)
    ledger: dict[str, dict[str, Any]] = field(default_factory=dict)
    approvals: dict[str, dict[str, Any]] = field(default_factory=dict)
    audit: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tries: list[Try] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    next_messages: list[dict[str, Any]] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    first_seen: dict[tuple[str, int], float] = field(default_factory=dict)

    def history(self) -> History:
        stored = [
            {
                "tenant": TENANT,
                "session_id": event.session_id,
                "seq": event.sequence,
                "fence": fence,
                "payload": event.SerializeToString(),
            }
            for event, fence in self.events
        ]
        return History(
            logs=logs_of(stored),
            heads={SESSION: self.head},
            turns=self.turns,
            ledger=self.ledger,
            approvals=self.approvals,
            audit=self.audit,
            tries=self.tries,
            left=self.left,
            chains=self.chains,
            effects=self.effects,
            prompts=self.prompts,
            faults=self.faults,
            next_messages=self.next_messages,
            unfit=self.unfit,
            first_seen=self.first_seen,
        )

    def log(self, kind: str, turn: str = "", *, attempt: int = 1, fence: int = 1, **fields: Any) -> None:
        """Appends the next event."""
        event = event_pb2.Event(session_id=SESSION_ID, sequence=len(self.events) + 1, turn_id=turn)
        event.attempt = attempt if turn else 0
        payload = getattr(event, kind)
        payload.SetInParent()
        payload.MergeFrom(type(payload)(**fields))
        self.events.append((event, fence))

    def find(self, kind: str, turn: str = "") -> event_pb2.Event:
        """Returns the first event of this kind, of this turn if it is given."""
        return next(
            event
            for event, _ in self.events
            if event.WhichOneof("payload") == kind and (not turn or event.turn_id == turn)
        )

    def add_after(self, kind: str, copy: event_pb2.Event) -> None:
        """Inserts another event after the last one of this kind, and numbers all anew."""
        place = max(place for place, (event, _) in enumerate(self.events) if event.WhichOneof("payload") == kind)
        added = event_pb2.Event()
        added.CopyFrom(copy)
        self.events.insert(place + 1, (added, self.events[place][1]))
        self.chains.clear()
        self.tries = [call for call in self.tries if not call.answer.get("sequence")]
        for number, (event, _) in enumerate(self.events, 1):
            event.sequence = number
        self.head["last_seq"] = len(self.events)

    def tried(self, rpc: str, request: dict[str, Any], **answer: Any) -> Try:
        call = Try(
            number=len(self.tries) + 1,
            rpc=rpc,
            request={"tenant": TENANT, "session": SESSION, "body": str(sorted(request.items())), **request},
            answer={"status": "OK", "reason": "", **answer},
        )
        self.tries.append(call)
        return call


def clean() -> Run:
    """Returns four turns: one streamed and taken over, one that pays after an approval, one cancelled in mid-message,
    one whose approval expires. The client left the last one.
    """
    run = Run(left=["t4"])
    run.log("session_created", agent="chaos")
    _streamed(run)
    _paid(run)
    _cancelled(run)
    _expired(run)
    run.head = {"session_id": SESSION, "last_seq": len(run.events), "fence": 6, "active_turn": "", "queue": []}
    run.turns = {turn: _turn(turn, "CANCELLED" if turn == "t3" else "COMPLETED") for turn in MESSAGES}
    run.turns["t1"]["answer"] = [{"text": messages.answer(MESSAGES["t1"], [])}]
    answered = {"turn": "t1", "session": SESSION, "state": "COMPLETED", "answer": messages.answer(MESSAGES["t1"], [])}
    run.tried("GetTurn", {"request_turn": "t1"}, **answered)
    run.tried("CreateSession", {"request": "c1"}, session=SESSION, sequence=1)
    run.chains.append(_chain(1, [event for event, _ in run.events], run))
    run.next_messages.append({"session": SESSION, "turn": "t1", "state": "COMPLETED"})
    run.prompts.append(
        Prompt(
            messages=[
                {"role": "user", "content": MESSAGES["t2"]},
                {
                    "role": "assistant",
                    "content": messages.text_with_calls(MESSAGES["t2"]),
                    "tool_calls": [{"id": "call-2"}],
                },
                {"role": "tool", "content": effects.result_of("pay", "u-2"), "tool_call_id": "call-2"},
            ]
        )
    )
    run.first_seen = {(SESSION, event.sequence): 100.0 + event.sequence for event, _ in run.events}
    return run


def _streamed(run: Run) -> None:
    _message(run, "t1", fence=1)
    run.log("turn_started", "t1", message_id="m1")
    run.log("attempt_superseded", "t1", attempt=2, fence=2, superseded_attempt=1, message_id="m2")
    _answer(run, "t1", "m2", attempt=2, fence=2)


def _paid(run: Run) -> None:
    _message(run, "t2", fence=3)
    run.log("turn_started", "t2", fence=3, message_id="m3")
    _call(run, "t2", "pay", PAID, fence=3)
    _decision(run, APPROVE)
    run.log("tool_started", "t2", fence=4, tool_call_id="call-2", tool="pay", key="key-2")
    run.log("tool_returned", "t2", fence=4, tool_call_id="call-2", outcome="TOOL_OUTCOME_OK", result_json=_result())
    _answer(run, "t2", "m4", fence=4, results=[effects.result_of("pay", "u-2")])
    run.effects.append(
        Effect(
            tool="pay",
            key="key-2",
            session=SESSION,
            turn="t2",
            call="call-2",
            arguments=effects.hash_of({"label": "u-2", "amount": 7}),
            wall=0.0,
        )
    )


def _cancelled(run: Run) -> None:
    _message(run, "t3", fence=5)
    run.log("turn_started", "t3", fence=5, message_id="m5")
    content = [message_pb2.Part(text=messages.answer(MESSAGES["t3"], [])[:7])]
    run.log("message_completed", "t3", fence=5, message_id="m5", content=content, finish_reason=INTERRUPTED)
    run.log("turn_cancelled", "t3", fence=5)
    run.tried("CancelTurn", {"request_turn": "t3"}, turn="t3", sequence=len(run.events), state="CANCELLED")


def _expired(run: Run) -> None:
    _message(run, "t4", fence=6)
    run.log("turn_started", "t4", fence=6, message_id="m6")
    _call(run, "t4", "pledge", '{"label":"u-4"}', fence=6)
    run.log("approval_expired", "t4", fence=6, approval_id="a-4", tool_call_id="call-4")
    late = '"This call was not approved in time."'
    run.log("tool_returned", "t4", fence=6, tool_call_id="call-4", outcome="TOOL_OUTCOME_EXPIRED", result_json=late)
    run.approvals["a-4"]["state"] = "EXPIRED"
    run.tried("DecideApproval", {"approval": "a-4", "decision": APPROVE}, status="FAILED", reason="APPROVAL_EXPIRED")
    _answer(run, "t4", "m7", fence=6, results=["This call was not approved in time."])


def _message(run: Run, turn: str, *, fence: int) -> None:
    content = [message_pb2.Part(text=MESSAGES[turn])]
    run.log("message_received", turn, attempt=0, fence=fence, message_id=f"u-{turn}", content=content)
    sequence = len(run.events)
    request = {"request": f"r-{turn}", "text": MESSAGES[turn]}
    for _ in range(2):
        run.tried("SendMessage", request, turn=turn, session=SESSION, sequence=sequence)


def _call(run: Run, turn: str, tool: str, arguments: str, *, fence: int) -> None:
    """Logs a message with one tool call, and its approval's request."""
    number = turn[1:]
    call, approval = f"call-{number}", f"a-{number}"
    request = message_pb2.ToolRequest(tool_call_id=call, tool=tool, arguments_json=arguments)
    run.log(
        "message_completed",
        turn,
        fence=fence,
        message_id=f"q-{turn}",
        content=[message_pb2.Part(text=messages.text_with_calls(MESSAGES[turn]))],
        tool_requests=[request],
        finish_reason=TOOL_REQUESTS,
    )
    about: dict[str, Any] = {"tool_call_id": call, "tool": tool, "arguments_json": arguments}
    about["arguments_hash"] = f"hash-{number}"
    run.log("tool_called", turn, fence=fence, **about)
    run.log("approval_requested", turn, fence=fence, approval_id=approval, round=1, **about)
    run.ledger[call] = {"key": f"key-{number}", **about}
    run.approvals[approval] = {"id": approval, "session_id": SESSION, "state": "PENDING", **ASKED}


def _decision(run: Run, decision: event_pb2.ApprovalDecision.ValueType) -> None:
    decision_fields: dict[str, Any] = {
        "approval_id": "a-2",
        "tool_call_id": "call-2",
        "arguments_hash": "hash-2",
        "round": 1,
    }
    for person in (tenants.APPROVER, tenants.OTHERS[0]):
        vote: dict[str, Any] = {"person": person, "authority": person, "decision": decision}
        run.log("approval_voted", "t2", fence=3, **vote, **decision_fields)
        run.audit.setdefault("a-2", []).append({"details": {"decided_by": person, "votes": "of 2"}})
    run.log("approval_decided", "t2", fence=3, decision=decision, **decision_fields)
    run.approvals["a-2"] |= {"state": "APPROVED", "decision": "APPROVE", "sequence": len(run.events)}
    run.tried("DecideApproval", {"approval": "a-2", "decision": decision}, approval="a-2", sequence=len(run.events))
    refused = {"status": "FAILED_PRECONDITION", "reason": "APPROVAL_ALREADY_PROCESSED"}
    run.tried("DecideApproval", {"approval": "a-2", "decision": REJECT}, **refused)


def _answer(run: Run, turn: str, message: str, *, attempt: int = 1, fence: int, results: Sequence[str] = ()) -> None:
    content = [message_pb2.Part(text=messages.answer(MESSAGES[turn], results))]
    about: dict[str, Any] = {"message_id": message, "content": content, "finish_reason": STOP}
    run.log("message_completed", turn, attempt=attempt, fence=fence, **about)
    run.log("turn_completed", turn, attempt=attempt, fence=fence, message_id=message)


def _chain(number: int, events: Sequence[event_pb2.Event], run: Run) -> Chain:
    """Returns a reader of all events: the first message in two deltas, and a delta of the lost attempt."""
    items: list[Any] = []
    whole = messages.answer(MESSAGES["t1"], [])
    cut = len(whole) - 1
    for event in events:
        if event.WhichOneof("payload") == "attempt_superseded":
            items.append([0, "m1", 1, 0, whole[:5], "t1"])
        if event.WhichOneof("payload") == "message_completed" and event.turn_id == "t1":
            items.append([0, "m2", 2, 0, whole[:cut], "t1"])
            items.append([0, "m2", 2, len(whole[:cut].encode()), whole[cut:], "t1"])
        items.append(item(event))
    return Chain(number=number, session=SESSION, after=0, request="", previews=True, through=len(events), items=items)


def _result() -> str:
    return f'"{effects.result_of("pay", "u-2")}"'


def _turn(turn: str, state: str) -> dict[str, Any]:
    return {"id": turn, "session_id": SESSION, "state": state, "answer": []}
