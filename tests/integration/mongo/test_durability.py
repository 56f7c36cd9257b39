"""I3: acknowledged changesets are stored after a kill -9 of the database."""

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path

from tests.builders import a_turn, an_event
from tests.contracts.stores import LONG, TextCodec, a_changeset, begin, head_of, run_turn, until
from tests.integration.mongo.commands import Recorder, name_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Committed
from turnkeeper.store.embedded import EmbeddedMongo
from turnkeeper.store.mongo.store import MongoStore

WRITERS = 4
BEFORE_KILL = 40


async def _write(store: MongoStore, key: SessionKey, acknowledged: dict[str, list[tuple[int, str]]]) -> None:
    """Commits without a pause until the database is gone; the results are kept outside of it."""
    while True:
        turn = a_turn(key)
        try:
            result = await store.commit(a_changeset(await head_of(store, key), an_event(), new_turns=(turn,)))
        except ServiceUnavailable:
            return
        if isinstance(result, Committed):
            acknowledged[key.session_id].append((result.last_seq, turn.id))


async def test_i3_acknowledged_changesets_survive_kill_9(tmp_path: Path) -> None:
    database = EmbeddedMongo(tmp_path)
    acknowledged: dict[str, list[tuple[int, str]]] = {}
    async with database as uri:
        store = MongoStore(uri, database="kept", codec=TextCodec(), operation=timedelta(seconds=1))
        await store.open()
        keys = [await begin(store) for _ in range(WRITERS)]
        acknowledged.update({key.session_id: [] for key in keys})
        writers = [asyncio.create_task(_write(store, key, acknowledged)) for key in keys]

        async def enough() -> bool:
            return sum(map(len, acknowledged.values())) >= BEFORE_KILL

        await until(enough)
        assert database.pid is not None
        os.kill(database.pid, signal.SIGKILL)
        # Cut the wait short: no answer will come any more.
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        closing = asyncio.create_task(store.close())
    async with database as uri:
        again = MongoStore(uri, database="kept", codec=TextCodec())
        await again.open()
        for key in keys:
            events = await again.events(key, after=0, limit=1000)
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert (await head_of(again, key)).last_seq == len(events)
            for sequence, turn_id in acknowledged[key.session_id]:
                assert sequence <= len(events), "an acknowledged event is gone"
                assert await again.turn(key, turn_id) is not None
        await again.close()
    await closing


async def test_i3_every_write_waits_for_a_majority_and_its_journal(recorder: Recorder, store: MongoStore) -> None:
    """Only a frozen member would show a difference, so the test looks at the write concern that is sent."""
    with recorder.recording() as commands:
        key = await begin(store)
        _, owned = await run_turn(store, key)
        assert await store.renew(key, owner="one", fence=owned.fence, lease=LONG)
        await store.secret("name")
    single = [command for command in commands if name_of(command) in ("insert", "update") and "txnNumber" in command]
    outside = [command for command in single if "autocommit" not in command]
    commits = [command for command in commands if name_of(command) == "commitTransaction"]
    assert len(commits) == 3, "a session, a changeset, a renewal"
    assert len(outside) == 2, "an agent, a secret"
    for command in [*outside, *commits]:
        assert command["writeConcern"] == {"w": "majority", "j": True}
    for command in commands:
        if name_of(command) in ("find", "aggregate"):
            assert command["readConcern"]["level"] == "majority"
