"""Sessions in any order of events: callers, owners that crash, freeze and come back, approvers, time.

Hypothesis makes up the orders and shrinks one that breaks a law; `laws.py` has the laws. The engine's decisions are the
real ones, its store is one in memory that keeps the store's contract. In `make test` the orders are the same each time;
`TURNKEEPER_MODEL_EXAMPLES=5000 pytest tests/unit/engine/test_turn_machine.py` tries as many new ones.
"""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.engine.callers import Callers, Key, Verb
from tests.unit.engine.invariants import broken, texts
from tests.unit.engine.memory_log import Kept
from tests.unit.engine.replicas import CHANGED, LEASE, PLAIN, TOOLS, Environment, Run, Shelf
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.message import FinishReason, ToolRequest
from turnkeeper.domain.tool import ToolOutcome
from turnkeeper.domain.turn import AwaitResults, CallModel
from turnkeeper.tools.toolbox import Toolbox

EXAMPLES = int(os.environ.get("TURNKEEPER_MODEL_EXAMPLES", "0"))
"""How many orders to try instead of the fixed ones."""
TIMEOUT = ErrorDetail(code=Code.LLM_TIMEOUT, message="The model did not answer.")

pick = st.integers(0, 5)
tools = st.lists(st.sampled_from(TOOLS), min_size=1, max_size=3)
held = st.sampled_from((False, False, True))
outcomes = st.sampled_from((ToolOutcome.OK, ToolOutcome.FAILED, ToolOutcome.TIMED_OUT))
SAYINGS = st.sampled_from(("asks", "asks", "asks", "answer", "is cut", "fails", "fails for long", "fails for good"))
usually = st.sampled_from((True, True, True, False))


Events = Mapping[str, tuple[int, Callable[["Conversation"], bool], Mapping[str, st.SearchStrategy[Any]]]]
"""What may happen: a method, its weight, when it is possible, its arguments."""


class Conversation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.environment = Environment()
        self.runs: list[Run] = []
        self.under_way: list[Verb] = []
        self.callers = Callers(self.environment, self.runs.append)
        self.seen: dict[Key, tuple[int, int]] = {}
        self.wished: dict[str, int] = {}
        self.environment.new_session()
        self.send(number=0, request=99, body="hello", if_busy="REJECT", room=True, hold=False)

    # --- what may happen ---------------------------------------------------------------------------------------

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        """By weight: as rules of their own, chance hardly ever got as far as an approval."""
        names = [name for name, (weight, possible, _) in EVENTS.items() if possible(self) for _ in range(weight)]
        name = data.draw(st.sampled_from(names), label="what happens")
        getattr(self, name)(**{each: data.draw(given, label=each) for each, given in EVENTS[name][2].items()})

    # --- what there is -----------------------------------------------------------------------------------------

    @property
    def keys(self) -> list[Key]:
        return list(self.environment.log.sessions)

    def key(self, number: int) -> Key:
        """The newest session most of the time: the older ones have often ended."""
        return self.keys[-1 - number % 2] if len(self.keys) > 1 else self.keys[0]

    def go(self, verb: Verb | None, *, hold: bool) -> None:
        if verb is None:
            return
        verb.set_out()
        if hold and len(self.under_way) < 4:
            self.under_way.append(verb)
        else:
            verb.arrive()

    def at_work(self) -> list[Run]:
        return [run for run in self.runs if run.ours]

    # --- callers -----------------------------------------------------------------------------------------------

    def send(self, number: int, request: int, body: str, if_busy: str, room: bool, hold: bool) -> None:
        """Few request ids: many sends are repeats, some with another body."""
        verb = self.callers.send(self.key(number), f"request-{request}", body, if_busy, room=room)
        self.go(verb, hold=hold)

    def arrive(self, number: int) -> None:
        self.under_way.pop(number % len(self.under_way)).arrive()

    def decide(self, number: int, choice: int, by: str, seen: bool, hold: bool) -> None:
        found = self.pending()
        key, approval_id = found[number % len(found)]
        self.go(self.callers.decide(key, approval_id, choice, by, seen=seen), hold=hold)

    def decide_again(self, number: int, choice: int) -> None:
        approval_id = list(self.callers.decided)[number % len(self.callers.decided)]
        key = next(key for key in self.keys if approval_id in self.environment.kept(key).approvals)
        self.go(self.callers.decide(key, approval_id, choice, "bob", seen=True), hold=False)

    def expire(self, number: int, hold: bool) -> None:
        found = self.pending()
        self.go(self.callers.expire(*found[number % len(found)]), hold=hold)

    def cancel(self, number: int, hold: bool) -> None:
        found = self.turns()
        self.go(self.callers.cancel(*found[-1 - number % len(found)]), hold=hold)

    def retry(self, number: int, request: int, room: bool, hold: bool) -> None:
        found = self.turns(ended=True)
        key, turn_id = found[-1 - number % min(2, len(found))]
        self.go(self.callers.retry(key, turn_id, f"retry-{request}", room=room), hold=hold)

    def end_session(self, number: int, hold: bool) -> None:
        self.go(self.callers.end(self.key(number)), hold=hold)
        self.environment.new_session()

    # --- owners ------------------------------------------------------------------------------------------------

    def claim(self, begin: bool) -> None:
        """Another replica. Not begun: it may be lost, or late, before its first step."""
        owner = self.environment.new_id()
        claim = self.environment.log.claim(owner, lease=LEASE)
        assert claim is not None
        key = claim.session_key
        snapshot = self.environment.read(key, claim.turn_id)
        run = Run(self.environment, key, claim.turn_id, owner, claim.fence, snapshot, lapses=claim.lapses)
        self.runs.append(run)
        if begin:
            run.begin()

    def work(self, number: int, say: str, names: list[str], good: bool, most: int, outcome: ToolOutcome) -> None:
        """What the model says, or the tools return, to one of the owners."""
        at_work = self.at_work()
        run = at_work[number % len(at_work)]
        if not run.begun:
            run.begin()
        elif isinstance(run.due, AwaitResults):
            run.finish_tools(outcome, most)
        elif isinstance(run.due, CallModel):
            self.speak(run, say, names, good=good)

    def work_on(self, say: str, names: list[str], most: int) -> None:
        """Most of what happens is that the newest owner gets on."""
        self.work(number=len(self.at_work()) - 1, say=say, names=names, good=True, most=most, outcome=ToolOutcome.OK)

    def nudge(self, number: int, text: str) -> None:
        run = self.at_work()[number % len(self.at_work())]
        if run.begun:
            run.nudge(text)

    def renew(self, number: int) -> None:
        self.at_work()[number % len(self.at_work())].renew()

    def owner_goes(self, number: int, how: str) -> None:
        run = self.at_work()[number % len(self.at_work())]
        match how:
            case "crash":
                run.lost = True
            case "drain":
                run.releasing = True
            case "cut":
                run.hand_over(cut=True)
            case _:
                run.break_down()

    def speak(self, run: Run, say: str, names: list[str], *, good: bool) -> None:
        text = f"text {self.environment.new_id()}"
        match say:
            case "fails" | "fails for long" | "fails for good":
                seconds = {"fails": 1, "fails for long": 60}.get(say)
                run.fail_to_speak(TIMEOUT, None if seconds is None else timedelta(seconds=seconds))
            case "asks":
                arguments = '{"n": 1}' if good else '{"n": "one"}'
                ids = [f"call_{self.environment.new_id()}" for _ in names]
                asked = [
                    ToolRequest(tool_call_id=call_id, tool=name, arguments_json=arguments)
                    for call_id, name in zip(ids, names, strict=True)
                ]
                run.speak(text, asked, FinishReason.TOOL_CALLS)
            case _:
                run.speak(text, [], FinishReason.LENGTH if say == "is cut" else FinishReason.STOP)

    # --- time, and the operator --------------------------------------------------------------------------------

    def time_passes(self, seconds: int, sweep: bool) -> None:
        self.environment.now += timedelta(seconds=seconds)
        if sweep:
            self.environment.sweep()

    def deploy(self, changed: bool) -> None:
        """Owners from here on have these tools: with the old schema, or another."""
        self.environment.toolbox = Toolbox([Shelf(CHANGED if changed else PLAIN)])

    # --- laws --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Owners do at once what nobody outside has a part in; those that have nothing left are gone."""
        for run in self.runs:
            for _ in range(8):
                before = run.snapshot
                if run.ours and run.begun:
                    run.follow()
                if run.snapshot is before:
                    break
        self.runs = [run for run in self.runs if run.ours]

    @invariant()
    def laws(self) -> None:
        self.settle()
        for key, kept in self.environment.log.sessions.items():
            fence, _ = before = self.seen.get(key, (0, 0))
            now = (kept.fence, kept.revision)
            if now == before:
                continue
            assert kept.fence >= fence, "I4: the fence shrank"
            self.seen[key] = now
            self.check(kept)

    def check(self, kept: Kept) -> None:
        found = broken(kept)
        assert not found, "\n".join(found)
        for message_id, text, _ in texts(kept):
            assert text in self.environment.said.get(message_id, ()), f"I10: nobody said {text!r} as {message_id}"
        for approval_id, state in self.callers.decided.items():
            there = kept.approvals.get(approval_id)
            assert there is None or there.state is state, f"I6: {approval_id} was {state}, and is {there}"
        self.no_start_after_a_wish(kept)

    def no_start_after_a_wish(self, kept: Kept) -> None:
        """I12: from the wish on, not only from its fulfilment."""
        wish = kept.cancel.turn_id
        if wish and wish not in self.wished:
            self.wished[wish] = kept.last_seq
        since = self.wished.get(wish, kept.last_seq)
        late = [each.stored.sequence for each in kept.log[since:] if each.stored.kind == "tool_started"]
        assert not late, f"I12: {late} started after the wish to cancel"
        gone = kept.turns.keys() - {wish}
        self.wished = {turn_id: at for turn_id, at in self.wished.items() if turn_id not in gone}

    def teardown(self) -> None:
        """I9: whatever happened, what is left to itself ends: every owner is lost, time passes, others go on."""
        for verb in self.under_way:
            verb.arrive()
        self.runs.clear()
        for _ in range(60):
            if not any(kept.active_turn for kept in self.environment.log.sessions.values()):
                break
            self.environment.now += timedelta(minutes=10)
            self.environment.sweep()
            for approval in self.environment.log.lapsed_approvals(limit=100):
                self.go(self.callers.expire(approval.session_key, approval.id), hold=False)
            while self.claimable():
                self.claim(begin=True)
                self.to_the_end()
        self.laws()
        for kept in self.environment.log.sessions.values():
            left = {turn.id: turn.state for turn in kept.turns.values() if not turn.state.ended}
            assert not left, f"I9: {left} never ended"

    def to_the_end(self) -> None:
        for _ in range(40):
            self.settle()
            if not self.runs:
                return
            self.work(number=0, say="answer", names=[], good=True, most=2, outcome=ToolOutcome.OK)
        raise AssertionError("I9: a turn does not come to its end")

    # --- what to choose from -----------------------------------------------------------------------------------

    def claimable(self) -> bool:
        return any(
            kept.active_turn and not kept.lease_until and kept.wake_at and kept.wake_at <= self.environment.now
            for kept in self.environment.log.sessions.values()
        )

    def pending(self) -> list[tuple[Key, str]]:
        return [
            (key, approval.id)
            for key in self.keys
            for approval in self.environment.kept(key).approvals.values()
            if approval.state is ApprovalState.PENDING
        ]

    def turns(self, *, ended: bool = False) -> list[tuple[Key, str]]:
        return [
            (key, turn.id)
            for key in self.keys
            for turn in self.environment.kept(key).turns.values()
            if turn.state.ended or not ended
        ]


def always(_: Conversation) -> bool:
    return True


choices = st.integers(0, 5)
says = {"say": SAYINGS, "names": tools, "most": st.integers(1, 2)}
EVENTS: Events = {
    "work_on": (10, lambda machine: bool(machine.at_work()), says),
    "decide": (
        10,
        lambda machine: bool(machine.pending()),
        {"number": pick, "choice": choices, "by": st.sampled_from(("ada", "bob")), "seen": usually, "hold": held},
    ),
    "claim": (8, lambda machine: machine.claimable(), {"begin": usually}),
    "work": (
        4,
        lambda machine: bool(machine.at_work()),
        {"number": pick, "good": usually, "outcome": outcomes, **says},
    ),
    "arrive": (4, lambda machine: bool(machine.under_way), {"number": pick}),
    "send": (
        4,
        always,
        {
            "number": pick,
            "request": st.integers(0, 30),  # few: many sends are repeats, some with another body
            "body": st.sampled_from(("hello", "hello", "other")),
            "if_busy": st.sampled_from(("REJECT", "ENQUEUE", "INTERRUPT")),
            "room": st.booleans(),
            "hold": held,
        },
    ),
    "time_passes": (3, always, {"seconds": st.sampled_from((31, 400, 31, 400, 1, 12, 22)), "sweep": usually}),
    "owner_goes": (
        2,
        lambda machine: bool(machine.at_work()),
        {"number": pick, "how": st.sampled_from(("crash", "crash", "drain", "cut", "defect"))},
    ),
    "nudge": (3, lambda machine: bool(machine.at_work()), {"number": pick, "text": st.sampled_from(("", "partial"))}),
    "retry": (
        2,
        lambda machine: bool(machine.turns(ended=True)),
        {"number": pick, "request": st.integers(0, 10), "room": st.booleans(), "hold": held},
    ),
    "cancel": (2, lambda machine: bool(machine.turns()), {"number": pick, "hold": held}),
    "renew": (1, lambda machine: bool(machine.at_work()), {"number": pick}),
    "expire": (1, lambda machine: bool(machine.pending()), {"number": pick, "hold": held}),
    "decide_again": (1, lambda machine: bool(machine.callers.decided), {"number": pick, "choice": choices}),
    "deploy": (1, always, {"changed": st.booleans()}),
    "end_session": (1, lambda machine: len(machine.keys) < 4, {"number": pick, "hold": held}),
}

TestConversation = pytest.mark.timeout(180 + EXAMPLES)(Conversation.TestCase)
TestConversation.settings = settings(
    max_examples=EXAMPLES or 60,
    stateful_step_count=50,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
