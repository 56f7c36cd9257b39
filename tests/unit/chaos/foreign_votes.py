"""Votes that should not be, or should be on record; each made in a clean run."""

from collections.abc import Callable
from typing import Final

from tests.chaos import tenants
from tests.unit.chaos.runs import Run


def _vote(run: Run, person: str, authority: str) -> None:
    """Makes the first vote another person's, also on record."""
    voted = run.find("approval_voted").approval_voted
    voted.person, voted.authority = person, authority
    run.audit["a-2"][0]["details"] |= {"decided_by": person, "authority": authority}
    run.chains.clear()


def the_requester_votes(run: Run) -> None:
    _vote(run, tenants.USER, tenants.USER)


def the_requesters_authority_is_lent(run: Run) -> None:
    _vote(run, tenants.DEPUTY, tenants.USER)


def one_votes_whom_the_rule_does_not_name(run: Run) -> None:
    _vote(run, tenants.SPY, tenants.SPY)


def one_votes_in_the_place_of_another_who_votes(run: Run) -> None:
    _vote(run, tenants.DEPUTY, tenants.OTHERS[0])


def one_votes_twice(run: Run) -> None:
    _vote(run, tenants.OTHERS[0], tenants.OTHERS[0])


def a_vote_is_not_on_record(run: Run) -> None:
    run.audit["a-2"].pop()


def a_vote_comes_after_the_expiry(run: Run) -> None:
    run.approvals["a-4"] |= {"sequence": 3, "votes": [{"person": tenants.APPROVER, "sequence": 4}]}


FOREIGN_VOTES: Final[tuple[Callable[[Run], None], ...]] = (
    the_requester_votes,
    the_requesters_authority_is_lent,
    one_votes_whom_the_rule_does_not_name,
    one_votes_in_the_place_of_another_who_votes,
    one_votes_twice,
    a_vote_is_not_on_record,
    a_vote_comes_after_the_expiry,
)
