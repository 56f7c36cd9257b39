"""The users: each sends messages whose turns call a tool, and decides what only a person can."""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpc import aio

from tests import harness
from turnkeeper.pb.v1 import chat_pb2, event_pb2

SCRIPT = r"""
[[reply]]
match = '^pay (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "ledger__pay", arguments = { label = "{label}" } }]

[[reply]]
match = '^wire (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "ledger__wire", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
AGENTS = """
[[agent]]
name = "clerk"
instructions = "Pay."
tools = ["ledger__*"]
policy = [{ tool = "*", action = "auto" }]
"""
WAIT = 30
"""Seconds of one wait for a turn."""
MOVING = (chat_pb2.TURN_STATE_PENDING, chat_pb2.TURN_STATE_RUNNING)
DECIDED = (chat_pb2.TURN_STATE_AWAITING_OUTCOME, chat_pb2.TURN_STATE_AWAITING_APPROVAL)


@dataclass
class Users:
    """All users, over these replicas."""

    replicas: Sequence[harness.Stubs]
    sessions: list[str] = field(default_factory=list)
    questions: int = 0
    """Outcomes that a person decided."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: list[str] = field(default_factory=list)

    async def run(self, count: int) -> None:
        """Lets so many users send messages until it is over; each finishes what it began."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._user(number))

    async def _user(self, number: int) -> None:
        stubs = self.replicas[number % len(self.replicas)]
        for turn in itertools.count():
            if self.over.is_set():
                return
            tool = "wire" if (number + turn) % 4 == 0 else "pay"
            session = await harness.create_test_session(stubs, agent="clerk")
            self.sessions.append(session)
            sent = await harness.send_message_to_session(stubs, session, f"{tool} {number}-{turn}", wait=0)
            await self._until_ended(stubs, session, sent.turn_id)

    async def _until_ended(self, stubs: harness.Stubs, session: str, turn_id: str) -> None:
        while True:
            turn = await harness.wait_for_turn(stubs, session, turn_id, seconds=WAIT)
            if turn.state in MOVING:
                continue
            if turn.state in DECIDED:
                await self._decide(stubs, session)
            elif turn.state == chat_pb2.TURN_STATE_COMPLETED:
                return
            else:
                self.trouble.append(f"{session} is {chat_pb2.TurnState.Name(turn.state)}")
                return

    async def _decide(self, stubs: harness.Stubs, session: str) -> None:
        """Gives an outcome up: whether it took effect is not the user's to know."""
        approval = await harness.wait_for_approval(stubs, session)
        with contextlib.suppress(aio.AioRpcError):  # it was decided meanwhile
            await harness.answer(stubs, approval, event_pb2.APPROVAL_DECISION_GIVE_UP)
            self.questions += 1
