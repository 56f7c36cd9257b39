"""Commits changesets of different sessions at the same time, and checks their results."""

import asyncio
from datetime import timedelta
from typing import Any, Final

from tests.builders import a_turn, an_event
from tests.contracts.stores import LONG, a_changeset, begin, head_of, until
from tests.integration.mongo.commands import Command, Recorder, name_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import Changeset, CommitResult, Committed, HeadChange, LeaseChange
from turnkeeper.store.mongo.store import MongoStore

MANY = 8
HELD_MS = 1000
SOON = timedelta(milliseconds=400)
"""The time of an operation of a store that is to give up."""
REPLY_LOST: Final[dict[str, Any]] = {"writeConcernError": {"code": 91, "errmsg": "no word from a majority"}}
"""The command is carried out; then its reply has a write concern error."""
NEVER_ARRIVED: Final[dict[str, Any]] = {"closeConnection": True}
CONFLICT: Final[dict[str, Any]] = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}
ABORTED: Final[dict[str, Any]] = {"errorCode": 251, "errorLabels": ["TransientTransactionError"]}
TAKEN = HeadChange(lease=LeaseChange.TAKE, owner="one", lease_for=LONG, active_turn="turn")
"""A worker takes the turn."""


async def new_session_keys(store: MongoStore, count: int = MANY) -> list[SessionKey]:
    return [await begin(store) for _ in range(count)]


async def next_changeset(store: MongoStore, key: SessionKey, **given: Any) -> Changeset:
    return a_changeset(await head_of(store, key), an_event("one"), new_turns=(a_turn(key),), **given)


async def new_changesets(store: MongoStore, count: int = MANY, **given: Any) -> list[Changeset]:
    return [await next_changeset(store, key, **given) for key in await new_session_keys(store, count)]


async def together(store: MongoStore, *changesets: Changeset) -> list[CommitResult]:
    """Commits all changesets; all are waiting before the first is sent. Returns their results."""
    return list(await asyncio.gather(*(store.commit(changeset) for changeset in changesets)))


async def assert_stored(store: MongoStore, changeset: Changeset, result: CommitResult | None = None) -> None:
    """Asserts that the changeset is stored once, and that this is known."""
    events = await store.events(changeset.session_key, after=changeset.last_seq, limit=99)
    assert len(events) == len(changeset.events)
    for turn in changeset.new_turns:
        assert await store.turn(changeset.session_key, turn.id) == turn
    expected = Committed(last_seq=changeset.last_seq + len(events), fence=changeset.next_fence, events=tuple(events))
    assert result in (None, expected)
    assert await store.commit(changeset) == expected


async def assert_not_stored(store: MongoStore, changeset: Changeset) -> None:
    assert await store.events(changeset.session_key, after=changeset.last_seq, limit=99) == []
    for turn in changeset.new_turns:
        assert await store.turn(changeset.session_key, turn.id) is None


def sessions_of(commands: list[Command]) -> list[list[str]]:
    """Returns the sessions whose heads each transaction wrote, in order."""
    updates = [command for command in commands if command.get("update") == "heads" and "autocommit" in command]
    return [[statement["q"]["_id"]["session_id"] for statement in command["updates"]] for command in updates]


def count_of(commands: list[Command], name: str) -> int:
    return sum(name_of(command) == name for command in commands)


async def until_sent(recorder: Recorder, name: str) -> None:
    async def sent() -> bool:
        return any(name_of(command) == name for command in recorder.commands)

    await until(sent)
