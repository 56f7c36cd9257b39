"""Where nothing can be made again, inside a stream or a run, what a reading does not show is looked up for certain."""

import random
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import AGENT, a_session, a_session_key
from tests.contracts.stores import begin, make_due
from tests.unit.engine.lagging_store import LaggingStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.rules.sessions import created_event
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.watchers import Watchers
from turnkeeper.engine.turns import Turns
from turnkeeper.errors import SessionNotFound, TurnNotFound
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.telemetry.metrics import Metrics

ABSENT = SessionKey("default", "absent")


def _watchers(store: LaggingStore) -> Watchers:
    times = StreamTimes(keep_alive=60, rotation=600)
    metrics = Metrics(NoOpMeterProvider())
    return Watchers(store, Feeds(store, poll=1), WireCodec(), metrics=metrics, times=times, rng=random.Random(1))


def _turns(store: LaggingStore) -> Turns:
    """Returns the verbs on turns, of which only reads are used."""
    unused: Any = None
    return Turns(
        store, unused, unused, sessions=unused, worker=unused, client_tools=unused, metrics=unused, freezes=unused
    )


async def test_a_stream_finds_its_session() -> None:
    store = LaggingStore()
    key = await begin(store)
    await store.lag(key)
    assert (await _watchers(store).head(key)).session_key == key


async def test_a_stream_of_a_session_that_is_gone_ends() -> None:
    with pytest.raises(SessionNotFound):
        await _watchers(LaggingStore()).head(ABSENT)


async def test_a_stream_finds_its_turn() -> None:
    store = LaggingStore()
    key = await begin(store)
    turn = await make_due(store, key)
    await store.lag(key)
    with _watchers(store).open(key) as watcher:
        await _turns(store).settled(key, turn.id, watcher)
        assert store.confirmed == 1
        with pytest.raises(TurnNotFound):
            await _turns(store).settled(key, "absent", watcher)


async def test_a_turn_finds_the_version_of_its_agent() -> None:
    """Without it the turn would fail for good."""
    store = LaggingStore()
    session = a_session(a_session_key(), agent=AGENT.name, agent_version=AGENT.version)
    await store.create_session(session, AGENT, event=created_event(session))
    await store.lag(session.key)
    assert await AgentVersions({}, store).pinned_by(session) == AGENT
