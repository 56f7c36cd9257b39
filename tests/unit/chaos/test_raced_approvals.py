"""The judgement of `make chaos-approvals` can fail: each of its own promises is broken in a small run."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.chaos import checker, tenants
from tests.chaos.approvals.judgement import PROMISES, figures
from tests.chaos.approvals.plan import ROUND, races
from tests.chaos.approvals.racers import MAY, MAY_NOT
from tests.chaos.history import Effect, History, Try
from tests.chaos.reading import logs_of
from tests.unit.chaos import runs
from turnkeeper.pb.v1 import event_pb2

OWN = ("expiry", "refusals", "unapproved")
EXPIRY = 1_000.0
"""Seconds since 1970: when each approval of the run expires."""
SESSION = tenants.key("amber", "s1")


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


@dataclass
class Run:
    """One approval that two people decided in time, one that expired, and all the tries. A test may change it."""

    approvals: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, tuple[str, float]] = field(default_factory=dict)
    tries: list[Try] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    def history(self) -> History:
        events = []
        for number, (name, (kind, wall)) in enumerate(self.ends.items(), 1):
            event = event_pb2.Event(session_id="s1", sequence=number)
            event.create_time.FromNanoseconds(round(wall * 1e9))
            getattr(event, kind).approval_id = name
            stored = {"tenant": "amber", "session_id": "s1", "seq": number, "fence": 1}
            events.append({**stored, "payload": event.SerializeToString()})
        logs, approvals = logs_of(events), self.approvals
        return History(logs=logs, approvals=approvals, tries=self.tries, effects=self.effects)

    def change_try(self, approval: str, person: str, **answer: Any) -> None:
        """Changes the answer to this person's try; `sent` is when it was sent."""
        sent = {"wall": answer.pop("sent")} if "sent" in answer else {}
        self.tries = [
            replace(call, request={**call.request, **sent}, answer={**call.answer, **answer})
            if (call.request["approval"], call.request["client"]) == (approval, person)
            else call
            for call in self.tries
        ]


def clean() -> Run:
    run = Run()
    for name, state, people in (("a-1", "APPROVED", MAY[:2]), ("a-2", "EXPIRED", MAY[:1])):
        votes = [{"person": person, "authority": person, "at": _time(EXPIRY - 1)} for person in people]
        about = {"session_id": SESSION, "tool_call_id": f"call-{name}", "approvers": {"k": 2}}
        run.approvals[name] = {**about, "state": state, "expire_time": _time(EXPIRY), "votes": votes}
        for person in (*MAY, *MAY_NOT):
            voted = {"status": "OK", "reason": ""} if person in people else {"reason": "PERMISSION_DENIED"}
            request = {"approval": name, "client": person, "wall": EXPIRY - 2}
            answer = {"status": "PERMISSION_DENIED", "wall": EXPIRY - 1.5, **voted}
            run.tries.append(Try(number=len(run.tries), rpc="DecideApproval", request=request, answer=answer))
    run.ends = {"a-1": ("approval_decided", EXPIRY - 0.5), "a-2": ("approval_expired", EXPIRY + 0.5)}
    run.change_try("a-2", MAY[1], status="FAILED_PRECONDITION", reason="APPROVAL_EXPIRED", wall=EXPIRY + 1)
    run.effects.append(
        Effect(tool="pay", key="k", session=SESSION, turn="t1", call="call-a-1", arguments="hash", wall=0.0)
    )
    return run


def broken(run: Run) -> list[str]:
    history = run.history()
    return [name for name in OWN if PROMISES[name](history).violations]


def test_a_clean_run_breaks_nothing_and_is_looked_at() -> None:
    history = clean().history()
    assert broken(clean()) == []
    assert all(PROMISES[name](history).checked for name in OWN)


def test_what_came_out_is_counted() -> None:
    counted = figures(clean().history())
    assert counted["raced"] == 2
    assert counted["outcomes"] == {"APPROVED": 1, "EXPIRED": 1}
    assert counted["decided_by_two_of_three"] == 1
    assert counted["decided_within_a_second_of_the_expiry"] == 1
    assert counted["expired_within_a_second_of_the_expiry"] == 1
    assert counted["refused"][tenants.FRIEND] == {"PERMISSION_DENIED": 2}


def a_vote_is_stored_after_the_expiry(run: Run) -> None:
    run.approvals["a-1"]["votes"][1]["at"] = _time(EXPIRY)


def it_was_decided_after_the_expiry(run: Run) -> None:
    run.ends["a-1"] = ("approval_decided", EXPIRY + 0.1)


def it_expired_too_early(run: Run) -> None:
    run.ends["a-2"] = ("approval_expired", EXPIRY - 0.1)


def a_vote_that_was_sent_too_late_is_acknowledged(run: Run) -> None:
    run.change_try("a-1", MAY[1], sent=EXPIRY + 0.1)


def one_is_told_too_early_that_it_expired(run: Run) -> None:
    run.change_try("a-2", MAY[1], wall=EXPIRY - 0.1)


@pytest.mark.parametrize(
    "break_it",
    [
        a_vote_is_stored_after_the_expiry,
        it_was_decided_after_the_expiry,
        it_expired_too_early,
        a_vote_that_was_sent_too_late_is_acknowledged,
        one_is_told_too_early_that_it_expired,
    ],
)
def test_what_is_on_the_wrong_side_of_the_expiry_is_found(break_it: Callable[[Run], None]) -> None:
    run = clean()
    break_it(run)
    assert broken(run) == ["expiry"]


def test_who_edits_in_time_may_repeat_that_vote_later() -> None:
    run = clean()
    run.change_try("a-1", MAY[1], sent=EXPIRY + 0.1)
    request = {"approval": "a-0", "client": MAY[1], "wall": EXPIRY - 3, "edited": True}
    answer = {"status": "OK", "approval": "a-1", "wall": EXPIRY - 2.5}
    run.tries.append(Try(number=99, rpc="DecideApproval", request=request, answer=answer))
    assert broken(run) == []


@pytest.mark.parametrize("person", MAY_NOT)
def test_an_acknowledged_vote_of_who_may_not_is_found(person: str) -> None:
    run = clean()
    run.change_try("a-1", person, status="OK", reason="")
    assert broken(run) == ["refusals"]


def test_a_call_that_ran_though_its_approval_expired_is_found() -> None:
    run = clean()
    run.effects[0] = replace(run.effects[0], call="call-a-2")
    assert broken(run) == ["unapproved"]


def test_the_same_seed_plans_the_same_races() -> None:
    planned = [(race.kind, race.rejects, race.spread, race.rng.random()) for race in races(100, seed=3)]
    assert planned == [(race.kind, race.rejects, race.spread, race.rng.random()) for race in races(100, seed=3)]
    assert planned != [(race.kind, race.rejects, race.spread, race.rng.random()) for race in races(100, seed=4)]
    assert {kind for kind, *_ in planned} == set(ROUND)


@pytest.mark.parametrize("edited", [True, False])
def test_an_acknowledged_edit_is_the_vote_on_the_next_round(edited: bool) -> None:
    run = runs.clean()
    sequence = run.approvals["a-2"]["sequence"]
    run.approvals["a-1"] = {**run.approvals["a-2"], "id": "a-1", "state": "WITHDRAWN", "replaced_by": "a-2"}
    request = {"approval": "a-1", "decision": runs.APPROVE, "edited": edited}
    run.tried("DecideApproval", request, approval="a-2", sequence=sequence)
    assert bool(checker.PROMISES["I3"](run.history()).violations) is not edited
