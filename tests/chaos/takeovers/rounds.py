"""Rounds of one fault each: owners killed, frozen for a while, frozen for ever; the database frozen."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests import harness
from tests.chaos.takeovers.script import TEXT
from tests.chaos.takeovers.stage import DATABASE, Begun, Stage
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2

FROZEN = 12.0
"""Seconds for which owners and the database are frozen."""
LATEST = 30.0
"""Seconds within which a turn must be taken over to count as taken over at all."""
SPREAD = 2.0
"""Seconds over which strikes are spread: leases are of every age then."""
QUIET = 9.0
"""Seconds after the database goes on, in which servers would take turns over."""
END = 60
"""Seconds for the rest of a turn."""


@dataclass(slots=True)
class Findings:
    """What the rounds have shown."""

    struck: dict[str, int] = field(default_factory=dict)
    """Owners by what was done to them; `database`: how often it was frozen."""
    takeovers: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Seconds from the strike to the new owner's first event, by what was done and by the kind of turn."""
    questions: dict[str, int] = field(default_factory=dict)
    """Outcomes that a person had to tell, by what was done."""
    calls: dict[str, int] = field(default_factory=dict)
    """Turns that were in the midst of a call that must not run twice, by what was done."""
    database_turns: int = 0
    database_takeovers: int = 0
    database_lapses: int = 0
    double_starts: int = 0
    complaints: list[str] = field(default_factory=list)

    def count(self, counts: dict[str, int], name: str, number: int = 1) -> None:
        """Adds to one of the counts."""
        counts[name] = counts.get(name, 0) + number


class Rounds:
    """Plays rounds on a stage."""

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self.findings = Findings()
        self._stage = stage
        self._rng = rng
        self._open: list[asyncio.Task[None]] = []
        """What is still watched of earlier rounds."""

    async def kill(self) -> None:
        """Kills all victims with their turns, and starts them again."""
        await self._strike("killed", signal.SIGKILL)
        for server in self._stage.victims:
            await server.start()

    async def freeze(self) -> None:
        """Stops all victims with SIGSTOP for FROZEN; their tools return soon after that."""
        turns, struck_at = await self._strike("frozen", signal.SIGSTOP)
        await asyncio.sleep(struck_at + FROZEN - time.time())
        for server in self._stage.victims:
            server.signal(signal.SIGCONT)
        await asyncio.sleep(self._rng.uniform(0, 1))
        for turn in turns:
            self._stage.tools.release(turn.label)
        await self.settle()

    async def freeze_for_ever(self) -> None:
        """Stops all victims until their turns have ended elsewhere, or ask a person."""
        await self._strike("frozen for ever", signal.SIGSTOP)
        await self.settle()
        for server in self._stage.victims:
            server.signal(signal.SIGKILL)
            await server.start()

    async def freeze_database(self) -> None:
        """Stops the database for FROZEN while each server owns turns."""
        stage, findings = self._stage, self.findings
        turns = await stage.begin([*stage.victims, *stage.survivors])
        process = stage.database.pid
        assert process is not None
        os.kill(process, signal.SIGSTOP)
        await asyncio.sleep(FROZEN)
        os.kill(process, signal.SIGCONT)
        await asyncio.sleep(QUIET)
        for turn in turns:
            stage.tools.release(turn.label)
        findings.count(findings.struck, "database")
        findings.database_turns += len(turns)
        await asyncio.gather(*(self._ends(turn, "database") for turn in turns))
        sessions = [turn.session for turn in turns]
        async for head in stage.client[DATABASE]["heads"].find({"session_id": {"$in": sessions}}):
            findings.database_lapses += head["lapses"]
            findings.database_takeovers += head["fence"] > 1

    async def settle(self) -> None:
        """Waits until the turns of all earlier rounds have ended."""
        done, self._open = self._open, []
        await asyncio.gather(*done)

    async def _strike(self, how: str, number: signal.Signals) -> tuple[Sequence[Begun], float]:
        """Strikes all victims. Returns their turns once they are taken over, and the time of day of the strike."""
        stage, findings = self._stage, self.findings
        turns = await stage.begin(stage.victims)
        await asyncio.sleep(self._rng.uniform(0, SPREAD))
        struck_at = time.time()
        for server in stage.victims:
            server.signal(number)
        findings.count(findings.struck, how, len(stage.victims))
        findings.count(findings.calls, how, sum(turn.kind == "call" for turn in turns))
        await asyncio.gather(*(self._taken_over(turn, how, struck_at) for turn in turns))
        for turn in turns:
            if turn.kind == "again":
                stage.tools.release(turn.label)
        self._open += [asyncio.create_task(self._ends(turn, how)) for turn in turns]
        return turns, struck_at

    async def _taken_over(self, turn: Begun, how: str, struck_at: float) -> None:
        """Waits for the first event of the turn's new owner, and notes its time."""
        request = session_pb2.WatchEventsRequest(session_id=turn.session, follow=True, types=["attempt_superseded"])
        watch = self._stage.stubs.sessions.WatchEvents(request)
        try:
            async with asyncio.timeout(LATEST):
                async for response in watch:
                    for event in response.events:
                        seconds = event.create_time.ToNanoseconds() / 1e9 - struck_at
                        self.findings.takeovers.setdefault(how, {}).setdefault(turn.kind, []).append(seconds)
                        return
        except TimeoutError:
            pass
        finally:
            watch.cancel()
        self.findings.complaints.append(f"{how}: {turn.label} was not taken over within {LATEST:g} s")

    async def _ends(self, turn: Begun, how: str) -> None:
        """Waits for the turn's end, answers what it asks, and compares it with what it should be."""
        stubs, findings = self._stage.stubs, self.findings
        ended = await harness.wait_for_turn(stubs, turn.session, turn.turn, seconds=END)
        events = await harness.all_events(stubs, turn.session)
        questions = [event.approval_requested for event in events if event.HasField("approval_requested")]
        findings.count(findings.questions, how, len(questions))
        if ended.state == chat_pb2.TURN_STATE_AWAITING_OUTCOME and len(questions) == 1:
            approval = await self._stage.approval(questions[0].approval_id)
            await harness.answer(stubs, approval, event_pb2.APPROVAL_DECISION_GIVE_UP)
            ended = await harness.wait_for_turn(stubs, turn.session, turn.turn, seconds=END)
        text = harness.answer_of(ended)
        expected = TEXT if turn.kind == "tell" else f"Told: {turn.label} is done"
        if ended.state != chat_pb2.TURN_STATE_COMPLETED or (not questions and text != expected):
            state = chat_pb2.TurnState.Name(ended.state)
            findings.complaints.append(f"{how}: {turn.label} is {state} with {text[:60]!r}, {len(questions)} questions")
        if turn.kind == "call" and len(self._stage.tools.effects(turn.label)) > 1:
            findings.double_starts += 1
            findings.complaints.append(f"{how}: {turn.label} was started twice")
