"""The preview chunks of unfinished messages: stored for other replicas, and only when there are some."""

from contextlib import ExitStack
from datetime import timedelta

from tests.integration.mongo.conftest import NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import HeldLease, HeldLeases
from turnkeeper.engine.replica.heartbeat import Heartbeat
from turnkeeper.engine.replica.preview_publisher import PreviewPublisher
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.store.mongo.store import MongoStore

KEY = SessionKey("acme", "session")


async def _text(store: MongoStore, preview: Preview) -> str:
    chunks = await store.previews(KEY, message_id=preview.message_id, attempt=preview.attempt, after=0)
    return "".join(chunk.text for chunk in chunks)


async def test_only_lasting_previews_are_shared_and_only_with_other_replicas(store: MongoStore) -> None:
    feeds, held_leases = Feeds(store, poll=60), HeldLeases()
    held_leases.add(HeldLease(key=KEY, turn_id="turn", owner="one", fence=1, duration=timedelta(minutes=5)))
    heartbeat = Heartbeat(store, lease=timedelta(minutes=5))
    publisher = PreviewPublisher(store, feeds, held_leases=held_leases, heartbeat=heartbeat)
    with ExitStack() as stack:
        feed = stack.enter_context(feeds.attach(KEY))
        short = feed.begin_preview(turn_id="turn", message_id="short", attempt=1)
        short.append("Yes.")
        await publisher.publish()
        feed.drop_preview()
        await publisher.publish()
        assert await _text(store, short) == "", "it was whole by the second look"

        long = feed.begin_preview(turn_id="turn", message_id="long", attempt=1)
        await publisher.publish()
        long.append("Once ")
        await publisher.publish()
        assert await _text(store, long) == "", "it had no text at the look before"
        long.append("upon ")
        await publisher.publish()
        assert await _text(store, long) == "Once upon "

        heartbeat.alone = True
        for words in ("a ", "time ", "there "):
            long.append(words)
            await publisher.publish()
        assert await _text(store, long) == "Once upon "
        heartbeat.alone = False
        await publisher.publish()
        await publisher.publish()
        assert await _text(store, long) == "Once upon a time there "


async def test_another_replica_counts_until_its_heartbeat_is_older_than_its_limit(
    new_store: NewStore,
) -> None:
    one, two = await new_store(replica="one"), await new_store(replica="two")
    long = timedelta(minutes=1)
    assert not (await one.write_heartbeat(silent_after=long)).others_alive
    assert (await two.write_heartbeat(silent_after=timedelta(milliseconds=1))).others_alive
    while (await one.write_heartbeat(silent_after=long)).others_alive:
        pass
    assert (await two.write_heartbeat(silent_after=long)).others_alive
    assert (await one.write_heartbeat(silent_after=long)).others_alive
