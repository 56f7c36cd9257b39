"""Which approvals wait for a person: the store selects what `votes.has_to_decide` does."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from tests.builders import NOON, an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of
from turnkeeper.domain.approval import Approval, ApprovalDecision, ApprovalState, Vote
from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.domain.decider import Decider, Mandate
from turnkeeper.domain.votes import has_to_decide
from turnkeeper.store.changeset import ApprovalChange
from turnkeeper.store.contract import Store
from turnkeeper.store.filters import ApprovalFilter

WHO = (
    ANYBODY,
    Approvers(groups=frozenset({"finance"})),
    Approvers(principals=frozenset({"bert", "carl"})),
    Approvers(groups=frozenset({"legal"}), principals=frozenset({"bert"}), exclude_requester=False),
    Approvers(groups=frozenset({"finance"}), direct=True),
)
OF_BERT = Mandate(person="bert", groups=frozenset({"finance"}))
OF_CARL = Mandate(person="carl", groups=frozenset({"legal"}))
DECIDERS = (
    Decider(person="bert", mandates=(OF_BERT,)),
    Decider(person="bert", mandates=(replace(OF_BERT, groups=frozenset()),)),
    Decider(person="bert", mandates=(OF_BERT,), through="portal"),
    Decider(person="dora", mandates=(Mandate(person="dora"), OF_CARL)),
    Decider(person="dora", mandates=(Mandate(person="dora"), OF_CARL, OF_BERT), through="portal"),
    Decider(person="unknown"),
    Decider(person="one", identified=False),
    Decider(person="dora", mandates=(Mandate(person="dora"), replace(OF_BERT, through="portal"))),
)


def _vote(person: str, **given: Any) -> Vote:
    vote = Vote(
        person=person,
        authority=person,
        decision=ApprovalDecision.APPROVE,
        arguments_hash="hash-1",
        at=NOON,
        sequence=2,
    )
    return replace(vote, **given)


async def _stored(store: Store) -> Sequence[Approval]:
    key = await begin(store)
    given: Sequence[dict[str, Any]] = (
        {},
        {"requester": "bert"},
        {"causers": ("carl", "dora")},
        {"votes": (_vote("bert"),)},
        {"votes": (_vote("dora", authority="bert"), _vote("carl", arguments_hash="an earlier one"))},
        {"state": ApprovalState.EXPIRED},
    )
    approvals = tuple(an_approval(key, approvers=who, **fields) for who, fields in product(WHO, given))
    new = a_changeset(await head_of(store, key), an_event(), new_approvals=approvals)
    await committed(store.commit(new))
    return approvals


async def test_the_store_selects_what_waits_for_a_person(store: Store) -> None:
    stored = await _stored(store)
    for decider in DECIDERS:
        for more in ({}, {"states": (ApprovalState.PENDING,)}, {"states": (ApprovalState.EXPIRED,)}):
            where = ApprovalFilter(decidable_by=decider, **more)  # type: ignore[arg-type]
            expected = [approval for approval in stored if where.matches(approval)]
            page = await store.approvals("default", where, limit=99, after=None)
            assert sorted(page, key=stored.index) == expected, decider
            assert await store.count_approvals("default", where, most=99) == len(expected)
            assert all(where.concerns(approval) for approval in expected)
    assert len([approval for approval in stored if has_to_decide(approval, DECIDERS[0])]) == 11
    assert not [approval for approval in stored if has_to_decide(approval, DECIDERS[5])]
    waiting = [approval for approval in stored if has_to_decide(approval, DECIDERS[7])]
    assert WHO[1] in {approval.approvers for approval in waiting}
    assert WHO[4] not in {approval.approvers for approval in waiting}, "a delegate lent it, and the rule is direct"


async def test_an_approval_stays_found_by_its_deciders_when_it_changes(store: Store) -> None:
    key = await begin(store)
    approval = an_approval(key, approvers=WHO[1])
    new = a_changeset(await head_of(store, key), an_event(), new_approvals=(approval,))
    await committed(store.commit(new))
    where = ApprovalFilter(decidable_by=DECIDERS[0])
    assert await store.approvals("default", where, limit=9, after=None) == [approval]
    voted = replace(approval, votes=(_vote("carl"),))
    change = ApprovalChange(approval=voted, lapsed=None)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,))))
    assert await store.approvals("default", where, limit=9, after=None) == [voted]
    voted = replace(approval, votes=(_vote("carl"), _vote("bert")))
    change = ApprovalChange(approval=voted, lapsed=None)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,))))
    assert await store.approvals("default", where, limit=9, after=None) == []
