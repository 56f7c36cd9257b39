"""An approval leaves PENDING once; a session that is over takes no message."""

from datetime import timedelta
from typing import Any

import pytest

from tests.builders import NOON, a_lone_decider, a_session, a_session_key, an_approval
from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.newer_version import unspecified
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.votes import cast
from turnkeeper.errors import (
    ApprovalAlreadyProcessed,
    ArgumentsHashMismatch,
    ServiceUnavailable,
    SessionError,
    SessionExpired,
    SessionIsSuspended,
    SessionNotActive,
)

PLACE = a_session_key(session_id="session")
APPROVE, REJECT = ApprovalDecision.APPROVE, ApprovalDecision.REJECT


def decide(
    approval: Approval, decision: ApprovalDecision, *, by: str = "ada", shown: str = "hash-1", reason: str = "fine"
) -> Approval:
    answer = Answer(decision=decision, decider=a_lone_decider(by), arguments_hash=shown, reason=reason)
    return cast(approval, answer, at=NOON + timedelta(seconds=5), sequence=7)


@pytest.mark.parametrize(("decision", "state"), [(APPROVE, ApprovalState.APPROVED), (REJECT, ApprovalState.REJECTED)])
def test_a_decision(decision: ApprovalDecision, state: ApprovalState) -> None:
    decided = decide(an_approval(PLACE), decision)
    assert (decided.state, decided.decided_by, decided.reason) == (state, "ada", "fine")
    assert decided.decide_time == NOON + timedelta(seconds=5)


def test_the_same_decision_by_the_same_person_again_changes_nothing() -> None:
    decided = decide(an_approval(PLACE), APPROVE)
    assert decide(decided, APPROVE, reason="other words") is decided


@pytest.mark.parametrize(
    ("decision", "by", "shown"),
    [(REJECT, "ada", "hash-1"), (APPROVE, "bob", "hash-1"), (APPROVE, "ada", "hash-2")],
)
def test_any_other_decision_is_refused_with_the_first_one(decision: ApprovalDecision, by: str, shown: str) -> None:
    decided = decide(an_approval(PLACE), APPROVE)
    with pytest.raises(ApprovalAlreadyProcessed) as raised:
        decide(decided, decision, by=by, shown=shown)
    assert raised.value.metadata["state"] == "APPROVED"
    assert raised.value.metadata["decided_by"] == "ada"


def test_a_decision_on_other_arguments_is_refused() -> None:
    with pytest.raises(ArgumentsHashMismatch) as raised:
        decide(an_approval(PLACE), APPROVE, shown="hash-2")
    assert raised.value.metadata["arguments_hash"] == "hash-1"


@pytest.mark.parametrize("state", [ApprovalState.EXPIRED, ApprovalState.WITHDRAWN])
def test_what_was_closed_cannot_be_decided(state: ApprovalState) -> None:
    closed = an_approval(PLACE).closed(state, at=NOON)
    assert (closed.state, closed.decided_by) == (state, "")
    for decision in (ApprovalDecision.APPROVE, ApprovalDecision.REJECT):
        with pytest.raises(ApprovalAlreadyProcessed):
            decide(closed, decision)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (SessionState.CREATED, None),
        (SessionState.ACTIVE, None),
        (SessionState.SUSPENDED, SessionIsSuspended),
        (SessionState.EXPIRED, SessionExpired),
        (SessionState.ENDED, SessionNotActive),
    ],
)
def test_which_sessions_take_messages(state: SessionState, error: type[SessionError] | None) -> None:
    session = a_session(PLACE, state=state)
    if error is None:
        session.check_takes_messages()
        return
    with pytest.raises(error) as raised:
        session.check_takes_messages()
    assert raised.value.session_id == "session"


def test_a_session_is_titled_by_its_first_message() -> None:
    session = a_session(PLACE, title="")
    active = session.activated(first_text="  What\n is   this?" + "x" * 100, etag="2", at=NOON)
    assert (active.state, active.etag, len(active.title)) == (SessionState.ACTIVE, "2", 80)
    assert active.title.startswith("What is this?xxx")


def test_a_title_of_its_own_stays() -> None:
    assert a_session(PLACE, title="Mine").activated(first_text="Hello", etag="2", at=NOON).title == "Mine"


@pytest.mark.parametrize("newer", [{"kind": unspecified(ApprovalKind)}, {"state": unspecified(ApprovalState)}])
def test_i17_an_approval_that_only_a_newer_version_understands_is_left_to_it(newer: dict[str, Any]) -> None:
    with pytest.raises(ServiceUnavailable, match="newer version"):
        decide(an_approval(PLACE, **newer), APPROVE)
