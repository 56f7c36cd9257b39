"""How far a call is, is shown by its owner alone, and only while it runs."""

import asyncio

import pytest

from tests.builders import a_call, a_session_key
from tests.unit.engine.execution.one_replica import Replica
from turnkeeper.engine.execution.call_progress import WatchedProgress
from turnkeeper.engine.streaming.feed import Feed


def lines_of(feed: Feed) -> list[str]:
    """Returns what a watcher that comes now is shown."""
    return [line.message for line in feed.progress.since(0, last_seq=0)] if feed.progress is not None else []


@pytest.mark.parametrize("is_held", [True, False])
def test_nothing_is_shown_once_another_owner_may_have_the_lease(is_held: bool) -> None:
    feed = Feed()
    progress = WatchedProgress(feed, lease_held=lambda: is_held)
    progress.show(a_call(a_session_key()), "half")
    assert lines_of(feed) == ["half"] * is_held


@pytest.mark.parametrize("has_ended", [True, False])
async def test_a_tool_that_reports_after_its_calls_end_is_not_shown(has_ended: bool) -> None:
    replica = Replica()
    async with replica.running():
        replica.model.tool, replica.tools.error = "act", None
        key, turn_id = await replica.accepted()
        with replica.feeds.attach(key) as feed:
            await replica.tools.started.wait()
            if has_ended:
                replica.tools.released.set()
                await replica.ended(key, turn_id)
            replica.tools.contexts[0].report("half")
            await asyncio.sleep(0)
            assert lines_of(feed) == ["half"] * (not has_ended)
        replica.tools.released.set()
