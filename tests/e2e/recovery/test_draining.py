"""SIGTERM: unhealthy at once, serving for a while; then streams end, turns change hands, the process ends with 0."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment, until_event
from tests.e2e.support.polling import eventually
from tests.e2e.support.server_processes import doomed
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.harness import Stubs
from tests.processes import until
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.rpc.health import LIVENESS
from turnkeeper.rpc.server import SERVICES

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
STORY = "A story that its first teller cannot tell to the end."
SCRIPT = f"""
[[reply]]
match = "story"
text = "{STORY}"
chunk = 1
delay = "100ms"
times = 1

[[reply]]
match = "story"
text = "{STORY}"

[[reply]]
match = "long"
text = "{STORY}"
chunk = 1
delay = "100ms"
times = 1

[[reply]]
match = "short"
text = "Half a second."
chunk = 1
delay = "40ms"

[[reply]]
match = "^three of (?P<label>[a-z]+)"
tool_calls = [
    {{ name = "hold_reading", arguments = {{ label = "{{label}}-soon" }} }},
    {{ name = "hold_idempotent", arguments = {{ label = "{{label}}-late" }} }},
    {{ name = "act", arguments = {{ label = "{{label}}-next" }} }},
]

[[reply]]
text = "You said: {{user}}"
"""


class TestDraining:
    async def test_sigterm_drains_hands_over_and_ends_with_0(self, env: Environment) -> None:
        flags = ("--drain-delay", "1s", "--drain-grace", "500ms", "--lease", "60s")
        async with doomed(env, *flags) as server, harness.connect(server.address) as stubs:
            session, request_id = await harness.create_test_session(stubs, agent="talker"), harness.new_request_id()
            health, reader = await _health(stubs), Reader(whole=False)
            assert set(health.values()) == {SERVING}
            assert set(health) == {"", *SERVICES, LIVENESS}
            async with asyncio.TaskGroup() as group:
                cut = group.create_task(_until_drained(stubs, session, reader, request_id))
                await until(lambda: len(reader.deltas) > 2)
                server.process.send_signal(signal.SIGTERM)
                health = await eventually(lambda: _when_unhealthy(stubs))
                assert {name for name, status in health.items() if status == SERVING} == {LIVENESS}
                late = await harness.create_test_session(stubs, agent="talker")
                answered = await harness.send_message_to_session(stubs, late, "still there?")
                assert harness.answer_of(answered) == "You said: still there?"
                status = await server.process.wait()
            reader.cursor = cut.result()
        assert status == 0
        async with asyncio.timeout(20):
            async for _ in stream(env.stubs, session, "a story", reader, request_id=request_id):
                pass
        assert reader.turn is not None
        assert harness.answer_of(reader.turn) == STORY
        assert reader.kinds[-3:] == ["attempt_superseded", "message_completed", "turn_completed"]

    async def test_ctrl_c_skips_the_delay_and_its_streams_end_with_a_cursor(self, env: Environment) -> None:
        async with doomed(env, "--drain-delay", "10m") as server, harness.connect(server.address) as stubs:
            session, reader = await harness.create_test_session(stubs, agent="talker"), Reader()
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                group.create_task(_until_told(stubs, session, reader))
                await until(lambda: bool(reader.events))
                server.process.send_signal(signal.SIGINT)
                assert await server.process.wait() == 0
            assert reader.cursor

    async def test_a_message_that_ends_within_the_grace_is_not_cut(self, env: Environment) -> None:
        async with _draining(env, drain_grace=timedelta(seconds=10)) as (stubs, going):
            session = await harness.create_test_session(stubs, agent="talker")
            turn = await harness.send_message_to_session(stubs, session, "a short one", wait=0)
            await env.wait_for_model_requests("a short one")
            await going.aclose()
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id, seconds=0)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert "attempt_superseded" not in harness.kinds(await harness.all_events(env.stubs, session))

    async def test_a_watcher_of_its_health_does_not_delay_a_drain(self, env: Environment) -> None:
        async with _draining(env, drain_grace=timedelta(seconds=50)) as (stubs, going):
            health: Any = health_pb2_grpc.HealthStub(stubs.channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
            assert (await watch.read()).status == SERVING
            async with asyncio.timeout(20):
                await going.aclose()
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()

    async def test_a_caller_that_waits_is_answered_before_the_server_goes(self, env: Environment) -> None:
        async with _draining(env, drain_grace=timedelta(milliseconds=300)) as (stubs, going):
            session = await harness.create_test_session(stubs, agent="asker")
            waiting = asyncio.create_task(harness.send_message_to_session(stubs, session, "a long one"))
            await env.wait_for_model_requests("a long one")
            await going.aclose()
            turn = await waiting
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED

    async def test_tools_that_outlive_the_grace_change_hands_and_none_starts_meanwhile(self, env: Environment) -> None:
        async with _draining(env, drain_grace=timedelta(seconds=1)) as (stubs, going):
            session = await harness.create_test_session(stubs, agent="worker")
            turn = await harness.send_message_to_session(stubs, session, "three of drain", wait=0)
            first = [*await env.tool_control.started("drain-soon"), *await env.tool_control.started("drain-late")]
            async with asyncio.TaskGroup() as group:
                drained = group.create_task(_until_told(stubs, session))
                await until_event(stubs, session, "tool_started")
                group.create_task(going.aclose())
                await drained
                env.tool_control.release("drain-soon")
        again = await env.tool_control.started("drain-late", times=2)
        env.tool_control.release("drain-late")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "You said: three of drain"
        assert [effect.key for effect in again] == [first[1].key] * 2, "what may be repeated is, under its key"
        assert len(env.tool_control.effects("drain-soon")) == 1
        assert len(env.tool_control.effects("drain-next")) == 1
        events = await harness.all_events(env.stubs, session)
        starts = [(event.tool_started.tool, event.attempt) for event in events if event.HasField("tool_started")]
        assert [tool for tool, attempt in starts if attempt == turn.attempt] == ["hold_reading", "hold_idempotent"]
        assert sorted(tool for tool, attempt in starts if attempt > turn.attempt) == ["act", "hold_idempotent"]


async def _until_told(stubs: Stubs, session: str, reader: Reader | None = None) -> None:
    """Waits until a stream ends with SERVER_DRAINING: turns are released from then on."""
    with refused("SERVER_DRAINING"):
        async for _ in watch(stubs, session, reader or Reader()):
            pass


@contextlib.asynccontextmanager
async def _draining(env: Environment, **settings: Any) -> AsyncIterator[tuple[Stubs, contextlib.AsyncExitStack]]:
    """Starts a server that drains when its stack is closed."""
    async with contextlib.AsyncExitStack() as going:
        running = await going.enter_async_context(
            harness.serving(
                env.mongo_uri, env.database, env.model, agents=AGENTS, lease=timedelta(seconds=60), **settings
            )
        )
        async with harness.connect(running.address) as stubs:
            yield stubs, going


async def _health(stubs: Stubs) -> dict[str, int]:
    health: Any = health_pb2_grpc.HealthStub(stubs.channel)
    names = ("", *SERVICES, LIVENESS)
    return {name: (await health.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}


async def _when_unhealthy(stubs: Stubs) -> dict[str, int] | None:
    health = await _health(stubs)
    return health if NOT_SERVING in health.values() else None


async def _until_drained(stubs: Stubs, session: str, reader: Reader, request_id: str) -> str:
    """Waits for SERVER_DRAINING. Returns the error's cursor."""
    with refused("SERVER_DRAINING") as refusal:
        async for _ in stream(stubs, session, "a story", reader, request_id=request_id):
            pass
    assert refusal.details.status is grpc.StatusCode.UNAVAILABLE
    return str(refusal.details.detail.cursor)
