"""Checkpoints: listed oldest first, by pages, and the same on every replica."""

from collections.abc import Sequence

import pytest

from tests import harness
from tests.e2e.support.environment import Environment, until_event
from tests.harness import Stubs
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^ask (?P<label>\S+)'
text = "May I?"
tool_calls = [{ name = "act", arguments = { label = "{label}" } }, { name = "add", arguments = { a = 1, b = 2 } }]

[[reply]]
match = '^shaky'
fail = "server_error"
times = 1

[[reply]]
match = '^long'
text = "Once upon a time there was a king who counted"
chunk = 5
fail = "stall"
fail_after = 2

[[reply]]
text = "You said: {user}"
"""


async def listed(stubs: Stubs, session: str, *, page_size: int = 0) -> list[session_pb2.Checkpoint]:
    checkpoints: list[session_pb2.Checkpoint] = []
    request = session_pb2.ListCheckpointsRequest(session_id=session, page_size=page_size)
    while True:
        page = await stubs.sessions.ListCheckpoints(request)
        assert not page_size or len(page.checkpoints) <= page_size
        checkpoints.extend(page.checkpoints)
        if not page.next_page_token:
            return checkpoints
        request.page_token = page.next_page_token


def in_short(checkpoints: Sequence[session_pb2.Checkpoint]) -> list[str]:
    return [checkpoint.checkpoint_id.partition("-")[0] for checkpoint in checkpoints]


async def a_rich_session(env: Environment) -> str:
    """Creates a session with all five kinds of checkpoint: with an approval, a failed attempt, a cut message."""
    session = await harness.create_test_session(env.stubs, agent="asker")
    turn = await harness.send_message_to_session(env.stubs, session, f"ask {session}")
    await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, session))
    await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    await harness.send_message_to_session(env.stubs, session, "shaky")
    turn = await harness.send_message_to_session(env.stubs, session, f"long {session}", wait=0)
    await until_event(env.stubs, session, "content_delta", turn_id=turn.turn_id)
    await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
    return session


class TestCheckpoints:
    async def test_the_five_kinds_are_read_out_of_the_log(self, env: Environment) -> None:
        session = await a_rich_session(env)
        checkpoints = await listed(env.stubs, session)
        assert in_short(checkpoints) == [
            *("execution_start", "tool_call", "approval_pending", "tool_call", "execution_complete"),
            *("execution_start", "content_partial", "execution_complete"),
            *("execution_start", "content_partial", "execution_complete"),
        ]
        events = {event.sequence: event for event in await harness.all_events(env.stubs, session)}
        for checkpoint in checkpoints:
            of = events[int(checkpoint.checkpoint_id.partition("-")[2])]
            assert checkpoint.turn_id == of.turn_id
            assert checkpoint.create_time == of.create_time
            cut = checkpoint.kind == session_pb2.CHECKPOINT_KIND_CONTENT_PARTIAL
            assert checkpoint.sequence == of.sequence - cut
        assert [checkpoint.sequence for checkpoint in checkpoints] == sorted(
            checkpoint.sequence for checkpoint in checkpoints
        )

    async def test_every_page_size_gives_the_same_list_on_another_replica(self, env: Environment) -> None:
        session = await a_rich_session(env)
        whole = await listed(env.stubs, session)
        async with env.another() as other:
            for size in (1, 2, 3, 100):
                assert await listed(other, session, page_size=size) == whole

    async def test_a_token_is_good_for_its_own_list_only(self, env: Environment) -> None:
        session, other = [await a_rich_session(env) for _ in range(2)]
        page = await env.stubs.sessions.ListCheckpoints(
            session_pb2.ListCheckpointsRequest(session_id=session, page_size=1)
        )
        with refused("PAGE_TOKEN_INVALID"):
            await env.stubs.sessions.ListCheckpoints(
                session_pb2.ListCheckpointsRequest(session_id=other, page_token=page.next_page_token)
            )

    async def test_a_session_without_messages_has_none_and_an_absent_one_is_not_found(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        assert await listed(env.stubs, session) == []
        with refused("SESSION_NOT_FOUND"):
            await listed(env.stubs, "there-is-none")
