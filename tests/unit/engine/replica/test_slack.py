"""A replica that is alone needs no news in a hurry, unless its inbox is watched."""

from datetime import timedelta
from typing import Any

import pytest

from tests.unit.engine.streaming.inbox_stage import Stage
from turnkeeper.engine.replica.change_listener import ALONE_SLACK, ChangeListener
from turnkeeper.engine.replica.heartbeat import Heartbeat
from turnkeeper.store.filters import ApprovalFilter


@pytest.mark.parametrize("alone", [True, False])
async def test_notifications_may_come_late_while_there_is_neither_another_replica_nor_a_watcher_of_the_inbox(
    *, alone: bool
) -> None:
    async with Stage() as stage:
        heartbeat = Heartbeat(stage.store, lease=timedelta(seconds=7))
        unused: Any = None
        listener = ChangeListener(
            stage.store,
            feeds=unused,
            inbox=stage.inbox,
            previews=unused,
            worker=unused,
            metrics=stage.metrics,
            jitter=lambda: 0.5,
            heartbeat=heartbeat,
        )
        assert listener.slack() == 0.0, "before the first heartbeat"
        heartbeat.alone = alone
        assert listener.slack() == (ALONE_SLACK if alone else 0.0)
        with stage.inbox.watch(stage.key.tenant, ApprovalFilter()):
            assert listener.slack() == 0.0
        assert listener.slack() == (ALONE_SLACK if alone else 0.0)
