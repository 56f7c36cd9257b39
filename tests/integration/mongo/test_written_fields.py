"""What a changeset writes: of documents that are as they were read, only what is new."""

from dataclasses import replace

import pytest

from tests.contracts.stores import a_changeset, begin, committed, head_of, run_turn, snapshot_of
from tests.integration.mongo.commands import Recorder, name_of
from turnkeeper.domain.message import Usage
from turnkeeper.store.mongo.store import MongoStore


@pytest.mark.parametrize("is_read", [True, False], ids=["as read", "not known"])
async def test_only_what_differs_from_what_was_read_is_written(
    store: MongoStore, recorder: Recorder, *, is_read: bool
) -> None:
    key = await begin(store)
    await run_turn(store, key)
    read = await snapshot_of(store, key)
    assert read.turn is not None
    changeset = a_changeset(
        await head_of(store, key),
        turns=(replace(read.turn, tries=2, usage=Usage(output_tokens=7)),),
        session=replace(read.session, title="new"),
    )
    if is_read:
        changeset = replace(changeset, turn_as_read=read.turn, session_as_read=read.session)
    with recorder.recording() as commands:
        await committed(store.commit(changeset))
    written = {
        command["update"]: set(command["updates"][0]["u"]["$set"])
        for command in commands
        if name_of(command) == "update" and command["update"] != "heads"
    }
    new = {"turns": {"tries", "usage.output_tokens"}, "sessions": {"title"}}
    assert written == new if is_read else all(new[name] < written[name] for name in new)
