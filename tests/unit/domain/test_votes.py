"""Whose vote counts, and when the votes on an approval are enough."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import NOON, a_session_key, an_approval
from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.decider import Decider, Mandate
from turnkeeper.domain.votes import cast, count, missing, sequence_of
from turnkeeper.errors import ApprovalAlreadyProcessed, ArgumentsHashMismatch, PermissionDenied

D, S = ApprovalDecision, ApprovalState
PLACE = a_session_key(session_id="session")
CAUSERS = frozenset({"ada", "portal"})
FINANCE = frozenset({"finance"})


def pending(**given: Any) -> Approval:
    """Returns an approval that takes two of the group finance, or ada, who caused the call."""
    of: dict[str, Any] = {"groups": FINANCE, "principals": frozenset({"ada"}), "k": 2} | given
    return an_approval(PLACE, approvers=Approvers(**of))


def outcome(**given: Any) -> Approval:
    return replace(pending(**given), kind=ApprovalKind.OUTCOME)


def vote(
    approval: Approval,
    by: str,
    decision: ApprovalDecision = D.APPROVE,
    *,
    groups: frozenset[str] = FINANCE,
    mandates: tuple[Mandate, ...] = (),
    through: str = "",
    identified: bool = True,
    causers: frozenset[str] = CAUSERS,
    **given: Any,
) -> Approval:
    answer = Answer(
        decision=decision,
        decider=Decider(
            person=by,
            mandates=(Mandate(person=by, groups=groups), *mandates),
            through=through,
            identified=identified,
        ),
        **({"arguments_hash": approval.arguments_hash, "reason": "so"} | given),
    )
    sequence = 10 + len(approval.votes)
    return cast(approval, answer, causers=causers, at=NOON + timedelta(seconds=5), sequence=sequence)


def people(approval: Approval) -> list[str]:
    return [f"{vote.person} {vote.decision}" for vote in approval.votes]


def test_two_persons_decide_where_two_are_needed() -> None:
    first = vote(pending(), "bob")
    assert (first.state, missing(first), first.decided_by) == (S.PENDING, 1, "")
    second = vote(first, "eve")
    assert (second.state, second.decision, missing(second)) == (S.APPROVED, D.APPROVE, 0)
    assert (second.decided_by, second.reason, people(second)) == ("eve", "so", ["bob APPROVE", "eve APPROVE"])


def test_a_person_counts_once_however_often_it_votes() -> None:
    first = vote(pending(), "bob")
    assert vote(first, "bob") is first
    through = vote(first, "bob", through="portal", mandates=(Mandate(person="eve", groups=FINANCE),))
    assert through is first
    twice = replace(first, votes=first.votes * 2)
    assert (count(twice, D.APPROVE), missing(twice)) == (1, 1)


@pytest.mark.parametrize("decision", [D.APPROVE, D.REJECT])
@pytest.mark.parametrize("people", [("eve", "eve"), ("eve", "sue"), ("sue", "eve")])
def test_a_vote_of_who_caused_the_call_after_it_counts_no_more(
    people: tuple[str, str], decision: ApprovalDecision
) -> None:
    voter, authority = people
    mandates = (Mandate(person=authority, groups=FINANCE),) if authority != voter else ()
    groups = FINANCE if authority == voter else frozenset[str]()
    first = vote(pending(veto=False), voter, decision, groups=groups, mandates=mandates)
    assert (count(first, decision), first.votes[0].people) == (1, frozenset(people))
    second = vote(first, "bob", decision, causers=CAUSERS | {"eve"})
    assert (second.state, [cast.person for cast in second.votes]) == (S.PENDING, ["bob"])
    lenient = replace(first, approvers=replace(first.approvers, exclude_requester=False))
    assert vote(lenient, "bob", decision, causers=CAUSERS | {"eve"}).state is not S.PENDING


def test_one_rejection_ends_it_unless_the_rule_has_no_veto() -> None:
    assert vote(vote(pending(), "bob"), "eve", D.REJECT).state is S.REJECTED
    lenient = pending(veto=False)
    once = vote(vote(lenient, "bob"), "eve", D.REJECT)
    assert (once.state, missing(once)) == (S.PENDING, 1)
    assert vote(once, "joe", D.REJECT).state is S.REJECTED, "without reject_at as many as k"
    assert vote(once, "joe").state is S.APPROVED
    assert vote(pending(veto=False, reject_at=1), "bob", D.REJECT).state is S.REJECTED
    assert vote(once, "joe", D.REJECT).decision is D.REJECT


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ({"by": "ada"}, "requester"),
        ({"by": "portal"}, "requester"),
        ({"by": "bob", "groups": frozenset({"sales"})}, "not_named"),
        ({"by": "bob", "groups": frozenset()}, "not_named"),
        ({"by": "bob", "groups": frozenset(), "mandates": (Mandate(person="ada"),)}, "not_named"),
        ({"by": "ada", "mandates": (Mandate(person="eve", groups=FINANCE),)}, "requester"),
        ({"by": "bob", "groups": frozenset(), "mandates": (Mandate(person="eve"),)}, "not_named"),
    ],
)
@pytest.mark.parametrize("decision", [D.APPROVE, D.REJECT])
def test_who_may_not_decide_is_refused_with_what_is_needed(
    who: dict[str, Any], why: str, decision: ApprovalDecision
) -> None:
    with pytest.raises(PermissionDenied) as raised:
        vote(pending(), decision=decision, **who)
    metadata = raised.value.metadata
    assert (metadata["why"], metadata["needed"], metadata["missing"]) == (why, "2", "2")
    assert (metadata["groups"], metadata["principals"]) == ("finance", "ada")
    assert "Needed: 2 of members of finance or ada, not who caused the call." in raised.value.message


def test_a_rule_may_let_the_requester_decide_and_ask_for_the_persons_own_call() -> None:
    assert vote(pending(exclude_requester=False, k=1), "ada").state is S.APPROVED
    assert vote(pending(k=1), "bob", through="portal").state is S.APPROVED
    with pytest.raises(PermissionDenied) as raised:
        vote(pending(direct=True), "bob", through="portal")
    assert raised.value.metadata["why"] == "delegate"
    assert vote(pending(direct=True, k=1), "bob").state is S.APPROVED


def test_authority_that_a_delegate_lent_is_not_a_persons_own_where_the_rule_asks_for_that() -> None:
    lent = Mandate(person="eve", groups=FINANCE, through="portal")
    assert vote(pending(k=1), "sue", groups=frozenset(), mandates=(lent,)).state is S.APPROVED
    direct = pending(k=1, direct=True)
    with pytest.raises(PermissionDenied) as raised:
        vote(direct, "sue", groups=frozenset(), mandates=(lent,))
    assert raised.value.metadata["why"] == "delegate"
    assert vote(direct, "sue", groups=frozenset(), mandates=(replace(lent, through=""),)).state is S.APPROVED
    assert vote(direct, "bob", mandates=(lent,)).votes[0].authority == "bob"


def test_without_names_anybody_else_decides() -> None:
    anybody = an_approval(PLACE)
    assert vote(anybody, "bob", groups=frozenset()).state is S.APPROVED
    with pytest.raises(PermissionDenied):
        vote(anybody, "ada")


def test_where_callers_are_not_told_apart_one_approver_decides() -> None:
    assert vote(pending(direct=True), "ada", groups=frozenset(), identified=False).state is S.APPROVED


def test_a_delegate_votes_with_the_authority_of_another_and_neither_counts_twice() -> None:
    eves = (Mandate(person="eve", groups=FINANCE),)
    first = vote(pending(), "sue", groups=frozenset(), mandates=eves)
    assert (first.votes[0].person, first.votes[0].authority) == ("sue", "eve")
    with pytest.raises(ApprovalAlreadyProcessed) as raised:
        vote(first, "eve")
    assert (raised.value.metadata["voted_by"], raised.value.metadata["authority"]) == ("sue", "eve")
    with pytest.raises(ApprovalAlreadyProcessed):
        vote(first, "joe", groups=frozenset(), mandates=eves)
    with pytest.raises(ApprovalAlreadyProcessed):  # sue counts already
        vote(first, "joe", groups=frozenset(), mandates=(Mandate(person="sue", groups=FINANCE),))
    assert vote(first, "bob").state is S.APPROVED


def test_ones_own_authority_goes_before_a_delegated_one_that_is_left_for_another_vote() -> None:
    both = (Mandate(person="eve", groups=FINANCE), Mandate(person="joe", groups=FINANCE))
    first = vote(pending(k=3), "bob", mandates=both)
    assert first.votes[0].authority == "bob"
    second = vote(first, "eve")
    third = vote(second, "sue", groups=frozenset(), mandates=both)
    assert (third.state, third.votes[2].authority) == (S.APPROVED, "joe"), "eve has voted: her authority is used"


def test_a_person_takes_back_what_its_delegate_approved() -> None:
    first = vote(pending(veto=False), "sue", groups=frozenset(), mandates=(Mandate(person="eve", groups=FINANCE),))
    assert people(vote(first, "eve", D.REJECT)) == ["eve REJECT"]
    with pytest.raises(ApprovalAlreadyProcessed):  # and not the other way round
        vote(
            vote(pending(veto=False), "eve"),
            "sue",
            D.REJECT,
            groups=frozenset(),
            mandates=(Mandate(person="eve", groups=FINANCE),),
        )


def test_an_approval_can_be_taken_back_and_a_rejection_cannot() -> None:
    lenient = pending(veto=False)
    back = vote(vote(lenient, "bob"), "bob", D.REJECT)
    assert (back.state, people(back)) == (S.PENDING, ["bob REJECT"])
    assert vote(back, "bob", D.REJECT) is back
    with pytest.raises(ApprovalAlreadyProcessed) as raised:
        vote(back, "bob")
    assert (raised.value.metadata["your_vote"], raised.value.metadata["your_vote_sequence"]) == ("REJECT", "11")
    assert raised.value.metadata["state"] == "PENDING"


def test_after_the_end_the_same_vote_is_answered_and_any_other_is_refused_with_ones_own() -> None:
    first = replace(vote(pending(), "bob"), sequence=0)
    decided = replace(vote(first, "eve"), sequence=12)
    assert (sequence_of(first, "bob"), sequence_of(decided, "bob"), sequence_of(decided, "eve")) == (10, 10, 12)
    for person in ("bob", "eve"):
        assert vote(decided, person) is decided
        with pytest.raises(ApprovalAlreadyProcessed) as raised:
            vote(decided, person, D.REJECT)
        assert (raised.value.metadata["your_vote"], raised.value.metadata["decided_by"]) == ("APPROVE", "eve")
    with pytest.raises(ApprovalAlreadyProcessed) as raised:
        vote(decided, "joe")
    assert "your_vote" not in raised.value.metadata


def test_a_vote_names_what_was_shown_and_counts_for_that_alone() -> None:
    with pytest.raises(ArgumentsHashMismatch):
        vote(pending(), "bob", arguments_hash="other")
    first = vote(outcome(), "bob", D.RETRY)
    late = replace(first, arguments_hash="with a late result")
    assert (missing(first), missing(late)) == (1, 2)
    again = vote(late, "bob", D.RETRY)
    assert (again.state, people(again)) == (S.PENDING, ["bob RETRY"])
    assert vote(again, "eve", D.RETRY).state is S.APPROVED


def test_of_a_lost_call_one_person_says_that_it_is_done_or_gives_up_and_a_retry_takes_the_rules_quorum() -> None:
    assert vote(outcome(), "bob", D.MARK_DONE, result_json="1").state is S.APPROVED
    assert vote(outcome(), "bob", D.GIVE_UP).state is S.REJECTED
    once = vote(outcome(), "bob", D.RETRY)
    assert (once.state, missing(once)) == (S.PENDING, 1)
    assert vote(once, "eve", D.RETRY).state is S.APPROVED
    assert vote(once, "bob", D.MARK_DONE, result_json="1").state is S.APPROVED
    for decision in (D.RETRY, D.GIVE_UP, D.MARK_DONE):
        with pytest.raises(PermissionDenied):
            vote(outcome(), "ada", decision, result_json="1" if decision is D.MARK_DONE else "")


def test_an_approval_of_a_former_version_has_no_votes_and_names_who_decided() -> None:
    decided = an_approval(PLACE, state=S.APPROVED, decision=D.APPROVE, decided_by="bob", sequence=9, decide_time=NOON)
    assert vote(decided, "bob") is decided
    assert (sequence_of(decided, "bob"), missing(decided)) == (9, 0)
    with pytest.raises(ApprovalAlreadyProcessed):
        vote(decided, "eve")


def test_what_is_needed_stays_short_however_many_are_named() -> None:
    many = pending(groups=frozenset(f"group-{number:04d}" for number in range(1000)))
    with pytest.raises(PermissionDenied) as raised:
        vote(many, "bob", groups=frozenset())
    assert len(raised.value.message) < 1000
    assert len(str(raised.value.metadata)) < 1500
