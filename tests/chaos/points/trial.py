"""One trial: a conversation whose server dies at a fault point, and what must hold of it afterwards."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc import aio

from tests import harness
from tests.chaos.points.caller import PATIENCE, Caller
from tests.chaos.points.script import LETTER, Plan
from tests.chaos.points.stage import Stage
from tests.e2e.support.stream_reader import Reader, watch
from tests.test_tools import ToolControl
from turnkeeper import faults
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

CONVERSATIONS = 8
"""Which of two servers claims a turn is open: so many conversations are led until the armed one meets its place."""
MARKED = '"marked as done"'

_ASKING = frozenset({chat_pb2.TURN_STATE_AWAITING_APPROVAL, chat_pb2.TURN_STATE_AWAITING_OUTCOME})


@dataclass(slots=True)
class Finding:
    """The result of a trial. Each complaint begins with its kind, as in `KINDS`.

    `struck_at`: when the server met its place, seconds of the wall clock; 0 before. `takeover`: seconds from there to
    the first event of the next attempt, where one was lost. `logs`: each session's events when its turn had ended.
    """

    plan: Plan
    struck_at: float = 0.0
    complaints: list[str] = field(default_factory=list)
    unknown: int = 0
    takeover: float | None = None
    acknowledged: int = 0
    logs: dict[str, list[event_pb2.Event]] = field(default_factory=dict)


KINDS = ("lost", "double start", "wrong text", "not struck")


async def play(stage: Stage, keeper: harness.Stubs, plan: Plan, *, name: str) -> Finding:
    """Leads conversations with an armed server until it is struck, then checks them all.

    `keeper` is the server without faults.
    """
    finding = Finding(plan)
    async with (
        stage.server(**{faults.VARIABLE: plan.armed}) as server,
        harness.connect(server.address) as stubs,
    ):
        watching = asyncio.create_task(_watch(server, plan, finding))
        for number in range(CONVERSATIONS):
            label = f"{name}-{number}"
            try:
                await Conversation(stage.tool_control, plan, label=label, armed=stubs, keeper=keeper).lead(finding)
            except* AssertionError as wrong:
                finding.complaints += [f"wrong text: a subscriber of {label}: {error}" for error in wrong.exceptions]
            except* (aio.AioRpcError, TimeoutError) as lost:
                finding.complaints += [f"lost: a call about {label} failed: {error!r}" for error in lost.exceptions]
            if finding.struck_at:
                break
        watching.cancel()
        if not finding.struck_at:
            finding.complaints.append(f"not struck: {plan.armed}")
        elif plan.action == "stop":
            await _thawed(server, Caller(stubs, keeper))
    return finding


async def changed(keeper: harness.Stubs, finding: Finding) -> list[str]:
    """Returns complaints about writes of a thawed server into a turn that had ended without it."""
    logs = finding.logs.items()
    return [
        f"wrong text: the log of {label} changed after its turn had ended"
        for label, log in logs
        if await harness.all_events(keeper, label) != log
    ]


class Conversation:
    """One session: a message, an approval if the plan has one, a tool, a long answer; a subscriber reads it all."""

    def __init__(
        self,
        tool_control: ToolControl,
        plan: Plan,
        *,
        label: str,
        armed: harness.Stubs,
        keeper: harness.Stubs,
        verb: str = "act",
    ) -> None:
        self._tool_control = tool_control
        self._plan = plan
        self._label = label
        self._verb = verb
        self._stubs = keeper
        self._caller = Caller(armed, keeper)
        self._keeper = Caller(keeper)
        self.reader = Reader()

    async def lead(self, finding: Finding) -> None:
        """Leads the conversation to the end of its turn; adds complaints to the finding."""
        label = self._label
        await self._keeper.create(self._plan.agent, label)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            turn_id = await self._caller.send(label, f"{self._verb} {label}", request_id=label)
            finding.acknowledged += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    turn = await self._until_ended(turn_id, finding)
            except TimeoutError:
                finding.complaints.append(f"lost: the turn of {label} did not end in {PATIENCE:g} s")
                reading.cancel()
                return
            await self._until_read(reading)
        await self._judge(turn, finding)

    async def _until_ended(self, turn_id: str, finding: Finding) -> chat_pb2.Turn:
        while True:
            turn = await self._keeper.turn(self._label, turn_id, wait=2)
            if turn.state in _ASKING and (approval := await self._keeper.pending_approval(self._label)) is not None:
                await self._answer(approval, finding)
            elif turn.HasField("end_time"):
                return turn

    async def _answer(self, approval: approval_pb2.Approval, finding: Finding) -> None:
        if approval.kind == event_pb2.APPROVAL_KIND_OUTCOME:
            finding.unknown += 1
            done = event_pb2.APPROVAL_DECISION_MARK_DONE
            await self._caller.decide(approval, done, result=MARKED)
            return
        decided = await self._caller.decide(approval, event_pb2.APPROVAL_DECISION_APPROVE)
        finding.acknowledged += 1
        if decided.state != approval_pb2.APPROVAL_STATE_APPROVED:
            finding.complaints.append(f"lost: {self._label} was approved, and is {decided.state}")

    async def _read(self) -> None:
        """Reads on over every break; the strict reader fails on text that is repeated, missing or contradicted."""
        while True:
            try:
                async for _ in watch(self._stubs, self._label, self.reader):
                    pass
            except aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

    async def _until_read(self, reading: asyncio.Task[None]) -> None:
        ended = {"turn_completed", "turn_failed", "turn_cancelled"}
        async with asyncio.timeout(PATIENCE):
            while not ended & set(self.reader.kinds):
                if reading.done():
                    break
                await asyncio.sleep(0.02)
        reading.cancel()

    async def _judge(self, turn: chat_pb2.Turn, finding: Finding) -> None:
        label, complain = self._label, finding.complaints.append
        stored = finding.logs[label] = await harness.all_events(self._stubs, label)
        for event in stored:
            if event.HasField("attempt_superseded") and finding.struck_at:
                finding.takeover = event.create_time.ToMicroseconds() / 1e6 - finding.struck_at
        if turn.state != chat_pb2.TURN_STATE_COMPLETED:
            complain(f"lost: the turn of {label} ended as {chat_pb2.TurnState.Name(turn.state)}: {turn.error.message}")
            return
        finding.complaints += self._texts(turn, stored)
        finding.complaints += _repeats(label, stored)
        kinds = harness.kinds(stored)
        if kinds.count("message_received") != 1:
            complain(f"lost: {label} has {kinds.count('message_received')} messages instead of one")
        starts = self._tool_control.effects(label)
        if len(starts) > 1:
            complain(f"double start: the tool of {label} ran {len(starts)} times, in {[start.pid for start in starts]}")
        if not starts and not finding.unknown:
            complain(f"lost: the tool of {label} never ran")

    def _texts(self, turn: chat_pb2.Turn, stored: list[event_pb2.Event]) -> list[str]:
        """Returns complaints about the answer, and about the text and events of the subscriber."""
        label, text = self._label, LETTER.replace("{label}", self._label)
        message = self.reader.completed()[-1].message_completed
        given = self.reader.text(message.message_id)
        wrong: list[str] = []
        if harness.answer_of(turn) != text:
            wrong.append(f"wrong text: the answer of {label} is {harness.answer_of(turn)!r}")
        if given and given != text:
            wrong.append(f"wrong text: a subscriber of {label} received {given!r}")
        if self.reader.events != stored:
            wrong.append(f"wrong text: a subscriber of {label} got other events than are stored")
        return wrong


def _repeats(label: str, stored: list[event_pb2.Event]) -> list[str]:
    """Returns complaints about messages stored twice, and attempts that did not grow."""
    message_ids = [event.message_completed.message_id for event in stored if event.HasField("message_completed")]
    doubled = [
        f"wrong text: message {message_id} of {label} is stored twice"
        for message_id in {*message_ids}
        if message_ids.count(message_id) > 1
    ]
    takeovers = (event for event in stored if event.HasField("attempt_superseded"))
    stuck = [event.attempt for event in takeovers if event.attempt <= event.attempt_superseded.superseded_attempt]
    return doubled + [f"wrong text: attempt {attempt} of {label} does not follow the one before" for attempt in stuck]


async def _thawed(server: harness.ServerProcess, caller: Caller) -> None:
    """Lets the frozen server go on after others took over; its writes must be refused."""
    os.kill(server.pid, signal.SIGCONT)
    await caller.create("auto", f"thawed-{server.pid}")


async def _watch(server: harness.ServerProcess, plan: Plan, finding: Finding) -> None:
    """Records when the server is struck."""
    process = server.process
    while not finding.struck_at:
        killed = process.returncode == -signal.SIGKILL
        if killed if plan.action == "kill" else process.returncode is None and _state(process.pid) == "T":
            finding.struck_at = time.time()
        await asyncio.sleep(0.01)


def _state(pid: int) -> str:
    """Returns the kernel's letter for the process's state: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
