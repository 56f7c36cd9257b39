"""After all faults, the users write once more: whatever happened in their sessions, the next message works."""

import asyncio
import time
from typing import Final

from tests.chaos import flood, tenants
from tests.chaos.calls import Caller
from tests.chaos.record import Recorder
from turnkeeper.pb.v1 import chat_pb2, message_pb2, session_pb2

MOST: Final = 40
"""Sessions of a tenant that are written to."""
AT_ONCE: Final = 8
TIME: Final = 40.0
"""Seconds for all of them."""
WAIT: Final = 4.0
_ENDED: Final = ("COMPLETED", "FAILED", "CANCELLED")


async def write_once_more(caller: Caller, calls: Recorder) -> None:
    """Sends a message to sessions of the caller's tenant that go on, and records the end of each one's turn."""
    sessions = await _sessions(caller)
    chosen = caller.rng.sample(sessions, min(MOST, len(sessions)))
    room, until = asyncio.Semaphore(AT_ONCE), time.monotonic() + TIME

    async def write(number: int, session_id: str) -> None:
        async with room:
            turn_id, state = await _written(caller, number, session_id, until=until)
            calls.line("next", session=session_id, turn=turn_id, state=state)

    await asyncio.gather(*(write(number, session_id) for number, session_id in enumerate(chosen)))


async def _sessions(caller: Caller) -> list[str]:
    request = session_pb2.ListSessionsRequest(states=[session_pb2.SESSION_STATE_ACTIVE], page_size=100)
    names: list[str] = []
    while True:
        answer = await caller.call("ListSessions", request)
        if not answer.ok:
            return names
        names += [one.session_id for one in answer.response.sessions if not one.session_id.startswith(flood.SESSIONS)]
        request.page_token = answer.response.next_page_token
        if not request.page_token:
            return sorted(names)


async def _written(caller: Caller, number: int, session_id: str, *, until: float) -> tuple[str, str]:
    """Returns the turn of the message, and its state at the end; empty if there is none."""
    label = tenants.label(caller.tenant, f"{caller.name}-{number}")
    request = chat_pb2.SendMessageRequest(
        session_id=session_id,
        request_id=f"next-{number}",
        content=[message_pb2.Part(text=f"say {label}: go on")],
        if_busy=chat_pb2.IF_BUSY_INTERRUPT,
    )
    sent = await caller.copies("SendMessage", request, most=1)
    if not sent.ok:
        return "", f"{sent.status} {sent.reason}".strip()
    turn_id, state = sent.response.turn.turn_id, ""
    question = chat_pb2.GetTurnRequest(session_id=session_id, turn_id=turn_id)
    question.wait.FromSeconds(int(WAIT))
    while state not in _ENDED and time.monotonic() < until:
        answer = await caller.call("GetTurn", question, wait=WAIT)
        if answer.ok:
            state = chat_pb2.TurnState.Name(answer.response.turn.state)[11:]
    return turn_id, state
