"""Scenes in which a broken version shows: each returns complaints, and none about the service itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from tests import harness
from tests.chaos.points.caller import Caller
from tests.chaos.points.script import Plan
from tests.chaos.points.stage import Stage
from tests.chaos.points.trial import Conversation, Finding, changed, play
from tests.checker.compare import differences
from tests.contracts.stores import until as until_true
from tests.e2e.support.faults import held_up, stored_late, unsure
from tests.processes import until
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

Scene = Callable[[Stage], Awaitable[Sequence[str]]]

ENDS_IN = 10
"""Seconds that a turn may take whose approvals are all decided."""


def struck(point: str, action: str, *, passages: Sequence[int] = (1,), agent: str = "auto") -> Scene:
    """Returns a scene in which a server dies at this point, at each of these passages, as in `make chaos-points`."""

    async def scene(stage: Stage) -> Sequence[str]:
        complaints: list[str] = []
        async with stage.server() as server, harness.connect(server.address) as keeper:
            for passage in passages:
                finding = await play(stage, keeper, Plan(point, action, passage, agent), name=f"m{passage}")
                complaints += finding.complaints + await changed(keeper, finding)
        return complaints + await differences(stage.mongo_uri, stage.database)

    return scene


async def unsure_commit(stage: Stage) -> Sequence[str]:
    """Answers the commit of a model's message with an unknown outcome though it is done; renewals before it, too."""
    finding = Finding(Plan("", "", 0, "auto"))
    async with stage.server() as server, harness.connect(server.address) as keeper:
        talk = Conversation(stage.tool_control, finding.plan, label="unsure", armed=keeper, keeper=keeper, verb="say")
        leading = asyncio.create_task(talk.lead(finding))
        await until(lambda: bool(talk.reader.deltas))
        async with unsure(stage.mongo_uri, times=6):
            await leading
    return finding.complaints + await differences(stage.mongo_uri, stage.database)


async def both_approved_at_once(stage: Stage) -> Sequence[str]:
    """Decides two approvals of one turn on two servers, with the first decision held up on its way.

    There is no sweep: a turn that is not queued again waits for ever.
    """
    quiet = replace(stage, flags=(*stage.flags, "--sweep", "1h"))
    async with (
        quiet.server() as first,
        quiet.server() as second,
        harness.connect(first.address) as one,
        harness.connect(second.address) as other,
    ):
        caller = Caller(one)
        await caller.create("asks", "both")
        turn_id = await caller.send("both", "both both", request_id="both")
        await caller.turn("both", turn_id, wait=ENDS_IN)
        open_now = await one.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id="both"))
        async with held_up(stage.mongo_uri, "commitTransaction", by=timedelta(milliseconds=700)) as held:
            late = asyncio.create_task(_approve(one, open_now.approvals[0]))
            await held.entered()
            await _approve(other, open_now.approvals[1])
            await late
        turn = await caller.turn("both", turn_id, wait=ENDS_IN)
    if turn.state == chat_pb2.TURN_STATE_COMPLETED:
        return await differences(stage.mongo_uri, stage.database)
    return [f"lost: both calls are approved, and the turn is {chat_pb2.TurnState.Name(turn.state)}"]


async def claimed_late(stage: Stage) -> Sequence[str]:
    """Lets a claim be stored, but answered as if no majority had it in time. No lease lapses in the scene."""
    patient = replace(stage, flags=(*stage.flags, "--lease", "60s"))
    full = replace(patient, flags=(*patient.flags, "--concurrency", "1"))
    async with full.server() as first, harness.connect(first.address) as stubs:
        caller = Caller(stubs)
        for session in ("busy", "claimed"):
            await caller.create("auto", session)
        await caller.send("busy", "wait long", request_id="busy")
        turn_id = await caller.send("claimed", "act claimed", request_id="claimed")
        async with stored_late(stage.mongo_uri, f"{stage.database}.heads") as late, patient.server():
            await late.entered()
            turn = await caller.turn("claimed", turn_id, wait=ENDS_IN)
    if turn.state == chat_pb2.TURN_STATE_COMPLETED:
        return await differences(stage.mongo_uri, stage.database)
    return [f"lost: a turn was claimed, and is {chat_pb2.TurnState.Name(turn.state)}"]


async def timed_out(stage: Stage) -> Sequence[str]:
    """Lets an irreversible tool outlast its time, and decides for its late result: the model gets no other."""
    async with stage.server() as server, harness.connect(server.address) as stubs:
        caller = Caller(stubs)
        await caller.create("hasty", "late")
        turn_id = await caller.send("late", "late late", request_id="late")
        turn = await caller.turn("late", turn_id, wait=ENDS_IN)
        starts = len(stage.tool_control.effects("late"))
        stage.tool_control.release("late")
        if (turn.state, starts) != (chat_pb2.TURN_STATE_AWAITING_OUTCOME, 1):
            state = chat_pb2.TurnState.Name(turn.state)
            return [f"late: the tool was started {starts} times, and the turn is {state}"]

        async def has_late_result() -> bool:
            approval = await caller.pending_approval("late")
            return approval is not None and bool(approval.late_result_json)

        await until_true(has_late_result)
        approval = await caller.pending_approval("late")
        assert approval is not None
        await caller.decide(approval, event_pb2.APPROVAL_DECISION_MARK_DONE)
        turn = await caller.turn("late", turn_id, wait=ENDS_IN)
    if harness.answer_of(turn) == "late is done":
        return await differences(stage.mongo_uri, stage.database)
    return [f"late: the model was told {harness.answer_of(turn)!r}"]


async def _approve(stubs: harness.Stubs, approval: approval_pb2.Approval) -> None:
    await Caller(stubs).decide(approval, event_pb2.APPROVAL_DECISION_APPROVE)
