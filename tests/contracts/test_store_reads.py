"""Lists, pages and filters."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest

from tests.builders import AGENT, NOON, a_first_event, a_session, a_session_key, a_turn, an_approval, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import a_changeset, begin, committed, head_of, make_due
from tests.contracts.test_store_votes import a_vote
from turnkeeper.domain.approval import NEVER, Approval, ApprovalKind, ApprovalState
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import HeadChange
from turnkeeper.store.contract import Store
from turnkeeper.store.filters import ApprovalFilter, SessionFilter


async def _numbers(store: Store, key: SessionKey, **where: Any) -> list[int]:
    where = {"after": 0, "limit": 100, **where}
    return [event.sequence for event in await store.events(key, **where)]


async def test_events_are_selected_by_number_kind_and_turn(store: Store) -> None:
    key = await begin(store)
    events = [an_event(turn_id=f"turn-{number % 2}") for number in range(6)]
    await committed(store.commit(a_changeset(await head_of(store, key), *events)))
    assert await _numbers(store, key) == [1, 2, 3, 4, 5, 6, 7]
    assert await _numbers(store, key, after=3) == [4, 5, 6, 7]
    assert await _numbers(store, key, after=3, until=5) == [4, 5]
    assert await _numbers(store, key, after=2, limit=2) == [3, 4]
    assert await _numbers(store, key, limit=0) == []
    assert await _numbers(store, key, after=7) == []
    assert await _numbers(store, key, kinds=frozenset({"session_created"})) == [1]
    both = frozenset({"message_received", "session_created", "turn_started"})
    assert await _numbers(store, key, kinds=both, limit=3) == [1, 2, 3]
    assert await _numbers(store, key, turn_id="turn-1") == [3, 5, 7]
    assert await _numbers(store, key, turn_id="turn-1", kinds=both, after=3, until=6) == [5]


async def test_last_numbers_of_many_sessions(store: Store) -> None:
    one, two = await begin(store), await begin(store)
    await committed(store.commit(a_changeset(await head_of(store, two), an_event(), an_event())))
    keys = [one, two]
    assert await store.last_seqs([*keys, SessionKey("default", "absent")]) == {keys[0]: 1, keys[1]: 3}
    assert await store.last_seqs([]) == {}


async def _sessions(store: Store) -> list[Session]:
    """Five, two of them made in the same millisecond."""
    ages = [0, 1, 1, 2, 3]
    ids = ["a", "c", "b", "d", "e"]
    changes: list[dict[str, Any]] = [
        {"state": SessionState.ACTIVE, "labels": {"team": "blue", "$odd.key": "1"}},
        {"owner": "bob", "labels": {}},
        {"agent": "other", "labels": {"team": "red"}},
        {"state": SessionState.ENDED, "end_time": NOON},
        {"owner": "bob", "labels": {"blue": "team"}},
    ]
    stored: list[Session] = []
    for age, session_id, given in zip(ages, ids, changes, strict=True):
        key = a_session_key(session_id=session_id)
        time = NOON + timedelta(seconds=age)
        session = a_session(key, create_time=time, update_time=time, **given)
        assert await store.create_session(session, AGENT, event=a_first_event()) is None
        stored.append(session)
    return sorted(stored, key=lambda session: (session.create_time, session.id))


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5])
async def test_sessions_come_in_pages_without_gap_or_repeat(store: Store, newest_first: bool, size: int) -> None:
    expected = await _sessions(store)
    if newest_first:
        expected.reverse()
    listed: list[Session] = []
    after: tuple[datetime, str] | None = None
    while page := await store.sessions("default", SessionFilter(newest_first=newest_first), limit=size, after=after):
        assert len(page) <= size
        listed += [session for session, _ in page]
        after = (listed[-1].create_time, listed[-1].id)
        assert all(head.session_id == session.id and head.last_seq == 1 for session, head in page)
    assert listed == expected
    assert await store.sessions("default", SessionFilter(), limit=0, after=None) == []


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (SessionFilter(states=(SessionState.CREATED,)), "bce"),
        (SessionFilter(states=(SessionState.ACTIVE, SessionState.ENDED)), "ad"),
        (SessionFilter(agent="other"), "b"),
        (SessionFilter(owner="bob"), "ce"),
        (SessionFilter(labels=(("team", "blue"),)), "ad"),
        (SessionFilter(labels=(("team", "blue"), ("$odd.key", "1"))), "a"),
        (SessionFilter(labels=(("team", "1"),)), ""),
        (SessionFilter(created_after=NOON), "abcde"),
        (SessionFilter(created_after=NOON, created_before=NOON + timedelta(seconds=3)), "abcd"),
        (SessionFilter(owner="bob", agent="other"), ""),
        (SessionFilter(owner="ada", states=(SessionState.ENDED,)), "d"),
    ],
)
async def test_sessions_are_filtered(store: Store, where: SessionFilter, expected: str) -> None:
    await _sessions(store)
    page = await store.sessions("default", replace(where, newest_first=False), limit=9, after=None)
    assert "".join(session.id for session, _ in page) == expected


async def test_a_list_shows_the_last_change(store: Store) -> None:
    key = await begin(store)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(at=NOON + timedelta(hours=1)))))
    ((session, head),) = await store.sessions(key.tenant, SessionFilter(), limit=2, after=None)
    assert (session.update_time, head.last_seq) == (NOON + timedelta(hours=1), 2)


async def test_turns_come_newest_first(store: Store) -> None:
    key = await begin(store)
    states = [TurnState.COMPLETED, TurnState.FAILED, TurnState.COMPLETED, TurnState.RUNNING]
    turns = [a_turn(key, first_sequence=10 * number, state=state) for number, state in enumerate(states, 1)]
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_turns=tuple(turns))))

    async def page(**where: Any) -> Sequence[object]:
        where = {"states": (), "limit": 9, "before": None, **where}
        return [turns.index(turn) for turn in await store.turns(key, **where)]

    assert await page() == [3, 2, 1, 0]
    assert await page(limit=2) == [3, 2]
    assert await page(before=30) == [1, 0]
    assert await page(states=(TurnState.COMPLETED, TurnState.RUNNING), before=40) == [2, 0]
    assert await page(limit=0) == []
    assert await store.turn(key, turns[1].id) == turns[1]


async def _approvals(store: Store) -> list[Approval]:
    changes: list[dict[str, Any]] = [
        {"tool": "mail", "requester": "anna", "votes": (a_vote("bob"),)},
        {"kind": ApprovalKind.OUTCOME, "agent": "scout", "expire_time": NOON},
        {"state": ApprovalState.REJECTED, "tool": "mail", "decided_by": "bob"},
        {"state": ApprovalState.EXPIRED, "expire_time": NEVER},
    ]
    stored: list[Approval] = []
    for number, given in enumerate(changes):
        key = await begin(store)
        approval = an_approval(key, id="dbca"[number], create_time=NOON + timedelta(seconds=number // 2), **given)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_approvals=(approval,))))
        stored.append(approval)
    return stored


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("newest_first", [False, True])
async def test_approvals_come_in_pages_over_all_sessions(store: Store, size: int, newest_first: bool) -> None:
    stored = await _approvals(store)
    listed: list[Approval] = []
    after: tuple[datetime, str] | None = None
    ordered = ApprovalFilter(newest_first=newest_first)
    while page := await store.approvals("default", ordered, limit=size, after=after):
        listed += page
        after = (page[-1].create_time, page[-1].id)
    assert listed == sorted(stored, key=lambda approval: (approval.create_time, approval.id), reverse=newest_first)


async def test_approvals_are_filtered(store: Store) -> None:
    stored = await _approvals(store)

    async def ids(**where: Any) -> str:
        page = await store.approvals("default", ApprovalFilter(**where), limit=9, after=None)
        return "".join(approval.id for approval in page)

    assert await ids() == "bdac"
    assert await ids(states=(ApprovalState.PENDING,)) == "bd"
    assert await ids(states=(ApprovalState.REJECTED, ApprovalState.EXPIRED)) == "ac"
    assert await ids(kind="OUTCOME") == "b"
    assert await ids(tool="mail") == "dc"
    assert await ids(tool="mail", states=(ApprovalState.PENDING,)) == "d"
    assert await ids(session_id=stored[3].session_id) == "a"
    assert await ids(requester="anna") == "d"
    assert await ids(voter="bob") == "dc"
    assert await ids(agent="scout") == "b"
    assert await ids(seen_by="anna") == await ids(seen_by="anna", requester="anna") == "d"
    assert await ids(seen_by="anna", requester="ada") == ""
    soon = stored[1].expire_time
    assert await ids(expire_before=soon) == ""
    assert await ids(expire_before=soon + timedelta(milliseconds=1)) == "b"
    assert await ids(expire_before=datetime.max.replace(tzinfo=UTC)) == "bdc", "one is paused: it never expires"


async def test_a_filter_matches_in_memory_what_the_store_selects(store: Store) -> None:
    stored = await _approvals(store)
    values: dict[str, tuple[Any, ...]] = {
        "states": ((ApprovalState.PENDING,), (ApprovalState.REJECTED, ApprovalState.EXPIRED)),
        "kind": ("OUTCOME", "TOOL_CALL"),
        "session_id": (stored[3].session_id, "none"),
        "tool": ("mail", "none"),
        "agent": ("scout", AGENT.name),
        "requester": ("anna", "ada"),
        "seen_by": ("anna", "ada"),
        "voter": ("bob",),
        "expire_before": (stored[1].expire_time, stored[0].expire_time, datetime.max.replace(tzinfo=UTC)),
    }
    single = [{name: value} for name, given in values.items() for value in given]
    for where in (
        ApprovalFilter(**one, **other) for one, other in combinations(single, 2) if one.keys() != other.keys()
    ):
        page = await store.approvals("default", where, limit=9, after=None)
        assert sorted(page, key=stored.index) == [approval for approval in stored if where.matches(approval)], where
        assert all(where.concerns(approval) for approval in page)
        assert await store.count_approvals("default", where, most=9) == len(page)
    assert await store.count_approvals("default", ApprovalFilter(), most=9) == 4
    assert await store.count_approvals("default", ApprovalFilter(), most=3) == 3
    assert await store.count_approvals("other", ApprovalFilter(), most=9) == 0
    key = stored[2].session_key
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=HeadChange(deleted=True))))
    assert await store.count_approvals("default", ApprovalFilter(), most=9) == 3, "one session is deleted"


async def test_approvals_are_found_by_their_ids(store: Store) -> None:
    stored = await _approvals(store)
    read = await store.approvals_by_id("default", ["a", "b", "none"])
    assert sorted(read, key=stored.index) == [stored[1], stored[3]]
    assert await store.approvals_by_id("other", ["a", "b"]) == []
    key = stored[1].session_key
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=HeadChange(deleted=True))))
    assert await store.approvals_by_id("default", ["b"]) == [stored[1]], "also of a deleted session"


async def test_a_linearizable_read_shows_what_another_replica_has_stored(new_store: NewStore) -> None:
    one, other = await new_store(), await new_store()
    for _ in range(5):
        key = await begin(one)
        turn = await make_due(one, key)
        async with other.linearizable():
            assert await other.turn(key, turn.id) == turn
            assert await other.session(key) is not None
        assert await other.session(key) is not None
