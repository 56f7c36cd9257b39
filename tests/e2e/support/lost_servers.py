"""Kills a server while tools run, and reads the approvals of the unknown outcomes."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

from tests import harness
from tests.e2e.support.environment import Environment
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2


class Running(NamedTuple):
    """A message whose tools run when the server is killed; its turn's request_id is the message."""

    message: str
    labels: tuple[str, ...]
    """Of the tools that must have been started."""
    agent: str = "worker"
    """The agent `asker` asks first; the approval is given."""


async def killed_while_running(
    env: Environment, doomed: harness.ServerProcess, running: Sequence[Running]
) -> Mapping[str, chat_pb2.Turn]:
    """Kills the server once, while the tools of all these messages run. Returns the turns by their messages."""
    turns: dict[str, chat_pb2.Turn] = {}
    async with harness.connect(doomed.address) as stubs, busy(env):
        for message, labels, agent in running:
            session = await harness.create_test_session(stubs, agent=agent)
            turns[message] = await harness.send_message_to_session(stubs, session, message, wait=0, request_id=message)
            if agent == "asker":
                approval = await harness.wait_for_approval(stubs, session)
                assert approval.tool == "hold_irreversible"
                await harness.decide(stubs, approval)
            for label in labels:
                effects = await env.tool_control.started(label)
                assert [effect.pid for effect in effects] == [doomed.pid]
        await doomed.kill()
    return turns


@contextlib.asynccontextmanager
async def busy(env: Environment) -> AsyncIterator[None]:
    """Keeps the environment's server full, so that another one claims: its script runs a tool on `read LABEL`."""
    labels = [f"busy-{harness.new_request_id()}" for _ in range(env.settings["concurrency"])]
    for label in labels:
        session = await harness.create_test_session(env.stubs, agent="worker")
        await harness.send_message_to_session(env.stubs, session, f"read {label}", wait=0)
        await env.tool_control.started(label)
    try:
        yield
    finally:
        for label in labels:
            env.tool_control.release(label)


async def question(env: Environment, turn: chat_pb2.Turn) -> approval_pb2.Approval:
    """Waits until the turn awaits an outcome. Returns the approval of the call whose outcome is unknown."""
    waiting = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    assert waiting.state == chat_pb2.TURN_STATE_AWAITING_OUTCOME, waiting
    approvals = [await harness.get_approval(env.stubs, item.approval_id) for item in waiting.pending]
    outcomes = [approval for approval in approvals if approval.kind == event_pb2.APPROVAL_KIND_OUTCOME]
    assert len(outcomes) == 1
    assert outcomes[0].state == approval_pb2.APPROVAL_STATE_PENDING
    return outcomes[0]


async def returned(env: Environment, turn: chat_pb2.Turn) -> list[event_pb2.ToolReturned]:
    """Returns every result of the turn's calls, in order."""
    events = await harness.all_events(env.stubs, turn.session_id)
    mine = [event for event in events if event.turn_id == turn.turn_id]
    return [event.tool_returned for event in mine if event.HasField("tool_returned")]
