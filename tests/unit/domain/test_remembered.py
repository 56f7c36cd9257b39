"""Remembered decisions as values: what votes agree on, what a decision covers, how many there are."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from turnkeeper.domain.remembered import (
    PER_SESSION,
    Remember,
    RememberedDecision,
    RememberScope,
    binding_for,
    remembered_from_votes,
    with_one_use_less,
    with_remembered,
    without,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOOL, ARGUMENTS = RememberScope.TOOL, RememberScope.ARGUMENTS
WIDE = Remember(scope=TOOL, expire_time=NOW + 2 * HOUR, uses=10)


def decision(scope: RememberScope = ARGUMENTS, *, arguments: str = "{}", uses: int = 2) -> RememberedDecision:
    return RememberedDecision(
        approval_id="a1",
        tool_call_id="c1",
        tool="act",
        scope=scope,
        binding=binding_for(scope, "bound", arguments),
        expire_time=NOW + HOUR,
        uses_left=uses,
        decided_by=("bob",),
    )


class TestVotes:
    def test_one_vote_is_what_it_asks_for(self) -> None:
        assert remembered_from_votes([WIDE]) == WIDE

    @pytest.mark.parametrize("votes", [[], [None], [WIDE, None], [None, WIDE]])
    def test_a_vote_that_does_not_ask_is_enough_to_forget(self, votes: list[Remember | None]) -> None:
        assert remembered_from_votes(votes) is None

    def test_the_narrowest_of_each_counts(self) -> None:
        exact = Remember(scope=ARGUMENTS, expire_time=NOW + 5 * HOUR, uses=7)
        soon = Remember(scope=TOOL, expire_time=NOW + HOUR, uses=9)
        expected = Remember(scope=ARGUMENTS, expire_time=NOW + HOUR, uses=7)
        assert remembered_from_votes([WIDE, exact, soon]) == expected
        assert remembered_from_votes([soon, exact, WIDE]) == expected


class TestCovers:
    def test_exactly_the_same_arguments(self) -> None:
        assert decision(arguments='{"a":1}').covers("bound", '{"a":1}', at=NOW)
        assert not decision(arguments='{"a":1}').covers("bound", '{"a":2}', at=NOW)

    def test_an_empty_object_is_no_wildcard(self) -> None:
        assert decision().covers("bound", "{}", at=NOW)
        assert not decision().covers("bound", '{"a":1}', at=NOW)

    def test_by_tool_any_arguments(self) -> None:
        assert decision(TOOL).covers("bound", '{"a":1}', at=NOW)

    @pytest.mark.parametrize("scope", RememberScope)
    @pytest.mark.parametrize("binding", ["", "other"])
    def test_nothing_with_another_binding(self, scope: RememberScope, binding: str) -> None:
        assert not decision(scope).covers(binding, "{}", at=NOW)

    @pytest.mark.parametrize("scope", RememberScope)
    def test_nothing_for_a_call_without_a_binding(self, scope: RememberScope) -> None:
        unbound = replace(decision(scope), binding=binding_for(scope, "", "{}"))
        assert not unbound.covers("", "{}", at=NOW)

    def test_until_its_time(self) -> None:
        assert decision().covers("bound", "{}", at=NOW + HOUR - timedelta(milliseconds=1))
        assert not decision().covers("bound", "{}", at=NOW + HOUR)


class TestKnown:
    def test_a_use_less_and_gone_after_the_last(self) -> None:
        once = with_one_use_less((decision(uses=2),), "a1")
        assert [known.uses_left for known in once] == [1]
        assert with_one_use_less(once, "a1") == ()
        assert with_one_use_less(once, "another") == once

    def test_the_newest_are_kept(self) -> None:
        known: tuple[RememberedDecision, ...] = ()
        for number in range(PER_SESSION + 2):
            known = with_remembered(known, replace(decision(), approval_id=f"a{number}"))
        assert [kept.approval_id for kept in known] == [f"a{number}" for number in range(PER_SESSION + 1, 1, -1)]

    def test_without_one(self) -> None:
        assert without((decision(), replace(decision(), approval_id="a2")), "a1")[0].approval_id == "a2"
