"""How long an approval can be decided: the warning before the end, the pause of a suspension, more time."""

import contextlib
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOON, a_session_key, an_approval
from turnkeeper.domain.approval import NEVER, Approval
from turnkeeper.domain.approval_times import warning_before
from turnkeeper.errors import InvalidRequest

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def approval_for(ttl: timedelta) -> Approval:
    """Returns an approval of noon with so much time."""
    return an_approval(a_session_key(), ttl=ttl, expire_time=NOON + ttl).with_warning()


@pytest.mark.parametrize(
    ("ttl", "lead"),
    [
        (2 * MINUTE, MINUTE),
        (10 * MINUTE, MINUTE),
        (20 * MINUTE, 2 * MINUTE),
        (10 * HOUR, HOUR),
        (2 * MINUTE - timedelta(milliseconds=1), None),
        (timedelta(), None),
    ],
)
def test_the_warning_comes_when_a_tenth_is_left_but_at_least_a_minute(ttl: timedelta, lead: timedelta | None) -> None:
    expected = None if lead is None else NOON + ttl - lead
    assert warning_before(NOON + ttl, ttl=ttl) == approval_for(ttl).expiring_time == expected


def test_the_warning_waits_while_the_session_is_suspended() -> None:
    paused = approval_for(HOUR).paused(now=NOON + 20 * MINUTE)
    assert (paused.expire_time, paused.expiring_time) == (NEVER, None)
    resumed = paused.unpaused(now=NOON + 5 * HOUR)
    assert resumed.expire_time == NOON + 5 * HOUR + 40 * MINUTE
    assert resumed.expiring_time == resumed.expire_time - 6 * MINUTE


def test_a_warning_that_was_sent_comes_no_more() -> None:
    warned = replace(approval_for(HOUR), is_expiring=True, expiring_time=None)
    again = warned.paused(now=NOON).unpaused(now=NOON + HOUR).extended_to(2 * HOUR)
    assert again.expiring_time is None


def test_more_time_moves_the_end_and_the_warning() -> None:
    longer = approval_for(HOUR).extended_to(90 * MINUTE)
    assert (longer.expire_time, longer.expiring_time) == (NOON + 90 * MINUTE, NOON + 84 * MINUTE)
    assert longer.extended_to(90 * MINUTE) is longer
    assert longer.extended_to(2 * HOUR).expire_time == NOON + 2 * HOUR


def test_more_time_of_a_suspended_session_counts_when_it_goes_on() -> None:
    longer = approval_for(HOUR).paused(now=NOON + 30 * MINUTE).extended_to(2 * HOUR)
    assert (longer.expire_time, longer.time_left) == (NEVER, 90 * MINUTE)
    assert longer.unpaused(now=NOON + 9 * HOUR).expire_time == NOON + 9 * HOUR + 90 * MINUTE


@pytest.mark.parametrize("ttl", [HOUR - timedelta(seconds=1), 2 * HOUR + timedelta(seconds=1), timedelta(), -HOUR])
def test_less_time_or_more_than_twice_the_first_is_refused(ttl: timedelta) -> None:
    with pytest.raises(InvalidRequest) as refused:
        approval_for(HOUR).extended_to(ttl)
    assert refused.value.fields == {"ttl": "must be from 3600 to 7200 s"}


def test_an_approval_of_an_older_version_has_no_more_time() -> None:
    with pytest.raises(InvalidRequest):
        an_approval(a_session_key()).extended_to(HOUR)


@given(ttls=st.lists(st.integers(0, 400), max_size=6), pauses=st.lists(st.integers(1, 50), max_size=6))
def test_however_often_it_is_extended_it_has_at_most_twice_its_time(ttls: list[int], pauses: list[int]) -> None:
    approval, suspended = approval_for(timedelta(seconds=200)), timedelta()
    now: datetime = NOON
    for seconds, pause in zip(ttls, [*pauses, *[1] * 6], strict=False):
        with contextlib.suppress(InvalidRequest):
            approval = approval.extended_to(timedelta(seconds=seconds))
        if approval.expire_time > now:
            approval = approval.paused(now=now).unpaused(now=now + timedelta(seconds=pause))
            now, suspended = now + timedelta(seconds=pause), suspended + timedelta(seconds=pause)
        assert approval.expire_time - NOON - suspended == approval.ttl + approval.extended <= approval.longest_ttl
