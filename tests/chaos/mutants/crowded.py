"""Scenes of a server with more work than it takes: refusals at the door, and work that no caller waits for any more."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import grpc
from grpc import aio

from tests import harness
from tests.chaos.calls import Answer, answer_of
from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from tests.checker.compare import differences
from tests.e2e.support.faults import held_up
from turnkeeper.pb.v1 import chat_pb2

LIMIT = 4
"""Calls at work."""
MESSAGES = 12
HELD = timedelta(seconds=1)
"""How long the database holds a commit up."""
TRIES = 5
IMPATIENT = 0.1
"""Seconds that a caller waits: less than a batch waits for the one before it."""


async def more_than_the_limit(stage: Stage) -> Sequence[str]:
    """Sends more messages at once than may be at work, while the database holds the first one up."""
    small = replace(stage, flags=(*stage.flags, "--calls-at-work", str(LIMIT)))
    sessions = [f"crowd{number}" for number in range(MESSAGES)]
    async with (
        small.server() as server,
        harness.connect(server.address) as stubs,
        held_up(stage.mongo_uri, "commitTransaction", by=HELD),
    ):
        answers = await asyncio.gather(*(_answer(stubs, session, create=True) for session in sessions))
    refusals = [answer for answer in answers if answer.reason == "OVERLOADED"]
    if not refusals:
        return [f"overload: {MESSAGES} messages were taken at once; the limit is {LIMIT}"]
    silent = [answer for answer in refusals if not answer.retry]
    return [f"overload: {len(silent)} refusals do not tell when to come back"] if silent else []


async def given_up_in_the_queue(stage: Stage) -> Sequence[str]:
    """Lets a caller's deadline pass while its message waits for a batch that the database holds up.

    A caller that is answered shows nothing. On a busy machine a deadline may pass before the message waits, or when it
    is under way already: so there are several tries, and most of those count in which a deadline passed.
    """
    stored, late_callers = list[str](), 0
    async with stage.server() as server, harness.connect(server.address) as stubs:
        caller = Caller(stubs)
        for number in range(TRIES):
            first, late, last = (f"{name}{number}" for name in ("first", "late", "last"))
            for session in (first, late, last):
                await caller.create("auto", session)
            async with held_up(stage.mongo_uri, "commitTransaction", by=HELD) as held:
                flying = asyncio.create_task(_answer(stubs, first))
                await held.entered()
                answer, _ = await asyncio.gather(_answer(stubs, late, timeout=IMPATIENT), _answer(stubs, last))
                await flying
            if answer.status != grpc.StatusCode.DEADLINE_EXCEEDED.name:
                continue
            turns = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=late))
            late_callers += 1
            stored += [late] if turns.turns else []
    if not late_callers:
        return ["not struck: no deadline passed where the message waited"]
    if 2 * len(stored) > late_callers:
        return [f"overload: the messages of {', '.join(stored)} were stored after their callers' deadlines"]
    return await differences(stage.mongo_uri, stage.database)


async def _answer(stubs: harness.Stubs, session: str, *, timeout: float = 10.0, create: bool = False) -> Answer:
    request = chat_pb2.SendMessageRequest(
        session_id=session, request_id=session, content=harness.text_parts(f"act {session}")
    )
    request.wait.SetInParent()
    if create:
        request.create_session.agent = "auto"
    try:
        return Answer("OK", response=await stubs.chat.SendMessage(request, timeout=timeout))
    except aio.AioRpcError as error:
        return answer_of(error)
