"""Many callers, many sessions, two servers."""

import asyncio

import pytest
from grpc import aio

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.polling import eventually
from tests.harness import Stubs
from tests.processes import until
from tests.status_details import details_of
from turnkeeper.pb.v1 import chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

PENDING, RUNNING = chat_pb2.TURN_STATE_PENDING, chat_pb2.TURN_STATE_RUNNING
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\w+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = "linger"
text = "At last."
first_delay = "2s"

[[reply]]
match = "slow"
text = "You said: {user}"
chunk = 4
delay = "30ms"

[[reply]]
text = "You said: {user}"
"""


class TestConcurrency:
    async def test_sessions_at_once_on_two_servers_get_their_own_answers(self, env: Environment) -> None:
        async def talk(stubs: Stubs, name: str) -> None:
            session = await harness.create_test_session(stubs, agent="talker")
            for number in range(3):
                turn = await harness.send_message_to_session(stubs, session, f"{name}, {number}, slow")
                assert harness.answer_of(turn) == f"You said: {name}, {number}, slow"

        async with env.another() as other, asyncio.TaskGroup() as group:
            for number in range(24):
                group.create_task(talk((env.stubs, other)[number % 2], f"caller {number}"))

    async def test_of_many_messages_at_once_a_free_session_takes_one(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")

        async def send(stubs: Stubs, number: int) -> str:
            try:
                return (await harness.send_message_to_session(stubs, session, f"linger {number}")).turn_id
            except aio.AioRpcError as error:
                return details_of(error).reason

        async with env.another() as other:
            for _ in range(2):
                servers = (env.stubs, other) * 5
                outcomes = await asyncio.gather(*(send(stubs, number) for number, stubs in enumerate(servers)))
                assert outcomes.count("TURN_IN_PROGRESS") == len(outcomes) - 1
        turns = await env.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
        assert [turn.state for turn in turns.turns] == [chat_pb2.TURN_STATE_COMPLETED] * 2

    async def test_queued_messages_are_answered_in_the_order_of_the_log(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")

        async def send(stubs: Stubs, name: str) -> None:
            for number in range(8):
                await harness.send_message_to_session(
                    stubs, session, f"{name} {number}", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
                )

        async with env.another() as other:
            await asyncio.gather(
                *(send(stubs, f"sender {number}") for number, stubs in enumerate((env.stubs, other) * 2))
            )
            events = await eventually(lambda: _when_all_ended(env.stubs, session, turns=32))
        received = {event.turn_id: _text(event) for event in events if event.HasField("message_received")}
        answers = [_text(event) for event in events if event.HasField("message_completed")]
        assert answers == [f"You said: {text}" for text in received.values()]
        for name in (f"sender {number}" for number in range(4)):
            sent = [text for text in received.values() if text.startswith(name)]
            assert sent == [f"{name} {number}" for number in range(8)], "each sender's own order is kept"

    async def test_of_many_interruptions_the_last_in_the_log_is_answered(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with env.another() as other:
            await asyncio.gather(
                *(
                    harness.send_message_to_session(
                        stubs, session, f"slow {number}", wait=0, if_busy=chat_pb2.IF_BUSY_INTERRUPT
                    )
                    for number, stubs in enumerate((env.stubs, other) * 6)
                )
            )
            events = await eventually(lambda: _when_all_ended(env.stubs, session, turns=12))
        completed = [event.turn_id for event in events if event.HasField("turn_completed")]
        cancelled = [event.turn_id for event in events if event.HasField("turn_cancelled")]
        assert len(set(completed)) + len(set(cancelled)) == 12
        assert completed

    async def test_a_server_runs_no_more_turns_at_once_than_it_may(self, env: Environment) -> None:
        database, labels = f"{env.database}_small", [f"room{number}" for number in range(4)]
        async with (
            harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, concurrency=2) as running,
            harness.connect(running.address) as stubs,
        ):
            turns = []
            for label in labels:
                session = await harness.create_test_session(stubs, agent="worker")
                turns.append(await harness.send_message_to_session(stubs, session, f"hold {label}", wait=0))
            await asyncio.gather(*(env.tool_control.started(label) for label in labels[:2]))
            assert await _states(stubs, turns) == [RUNNING, RUNNING, PENDING, PENDING]
            env.tool_control.release(labels[0])
            await harness.wait_for_turn(stubs, turns[0].session_id, turns[0].turn_id)
            await until(lambda: any(env.tool_control.effects(label) for label in labels[2:]))
            assert sorted(await _states(stubs, turns[2:])) == [PENDING, RUNNING]
            for label in labels[1:]:
                env.tool_control.release(label)
            for turn in turns:
                ended = await harness.wait_for_turn(stubs, turn.session_id, turn.turn_id)
                assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert [len(env.tool_control.effects(label)) for label in labels] == [1] * 4
        await check(env.mongo_uri, database)


async def _states(stubs: Stubs, turns: list[chat_pb2.Turn]) -> list[chat_pb2.TurnState.ValueType]:
    return [(await harness.wait_for_turn(stubs, turn.session_id, turn.turn_id, seconds=0)).state for turn in turns]


async def _when_all_ended(stubs: Stubs, session: str, *, turns: int) -> list[event_pb2.Event] | None:
    """Waits until so many turns have ended. Returns the session's log."""
    events = await harness.all_events(stubs, session)
    ends = [event for event in events if event.WhichOneof("payload") in ("turn_completed", "turn_cancelled")]
    return events if len(ends) == turns else None


def _text(event: event_pb2.Event) -> str:
    payload = event.message_received if event.HasField("message_received") else event.message_completed
    return "".join(part.text for part in payload.content)
