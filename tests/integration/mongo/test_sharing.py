"""What is stored of messages that are being written: for others, and only when there is something to wait for."""

from contextlib import ExitStack
from datetime import timedelta

from tests.integration.mongo.conftest import NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.execution.lease import HeldLease
from turnkeeper.engine.replica.preview_publisher import PreviewPublisher
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.store.mongo.store import MongoStore

KEY = SessionKey("acme", "session")


async def _text(store: MongoStore, preview: Preview) -> str:
    chunks = await store.previews(KEY, message_id=preview.message_id, attempt=preview.attempt, after=0)
    return "".join(chunk.text for chunk in chunks)


async def test_only_lasting_previews_are_shared_and_only_with_other_replicas(store: MongoStore) -> None:
    feeds, alone = Feeds(store, poll=60), False
    held = HeldLease(key=KEY, turn_id="turn", owner="one", fence=1, lease=timedelta(minutes=5))
    sharing = PreviewPublisher(store, feeds, held=lambda: [held], alone=lambda: alone)
    with ExitStack() as stack:
        feed = stack.enter_context(feeds.attach(KEY))
        short = feed.begin(turn_id="turn", message_id="short", attempt=1)
        short.append("Yes.")
        await sharing.share()
        feed.drop_preview()
        await sharing.share()
        assert await _text(store, short) == "", "it was whole by the second look"

        long = feed.begin(turn_id="turn", message_id="long", attempt=1)
        await sharing.share()
        long.append("Once ")
        await sharing.share()
        assert await _text(store, long) == "", "it has said nothing for longer than one look"
        long.append("upon ")
        await sharing.share()
        assert await _text(store, long) == "Once upon "

        alone = True
        for words in ("a ", "time ", "there "):
            long.append(words)
            await sharing.share()
        assert await _text(store, long) == "Once upon "
        alone = False
        await sharing.share()
        await sharing.share()
        assert await _text(store, long) == "Once upon a time there "


async def test_another_replica_lives_until_it_was_silent_for_as_long_as_it_said(
    new_store: NewStore,
) -> None:
    one, two = await new_store(replica="one"), await new_store(replica="two")
    assert not await one.write_heartbeat(silent_after=timedelta(minutes=1))
    assert await two.write_heartbeat(silent_after=timedelta(milliseconds=1))
    while await one.write_heartbeat(silent_after=timedelta(minutes=1)):
        pass
    assert await two.write_heartbeat(silent_after=timedelta(minutes=1))
    assert await one.write_heartbeat(silent_after=timedelta(minutes=1))
