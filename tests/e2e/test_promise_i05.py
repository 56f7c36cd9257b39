"""Promise I5: an irreversible tool is started at most once, an idempotent one again under the same key.

Real server processes are killed with `kill -9` while a tool runs; another one takes the turn over. And a server that
learns late that it may start a tool does not start it.
"""

import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.world import AGENTS, World, said
from tests.problems import refused
from turnkeeper import app
from turnkeeper.domain.event import ToolStarted
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.pb.v1 import chat_pb2, event_pb2
from turnkeeper.store.contract import Committed, Step, Verdict
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^reading (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = '^idempotent (?P<label>\S+)'
tool_calls = [{ name = "hold_idempotent", arguments = { label = "{label}" } }]

[[reply]]
match = '^irreversible (?P<label>\S+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
match = '^act (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^beside (?P<label>\S+)'
tool_calls = [
    { name = "hold_reading", arguments = { label = "{label}-read" } },
    { name = "hold_irreversible", arguments = { label = "{label}-fire" } },
]

[[reply]]
match = '^all (?P<label>\S+)'
tool_calls = [
    { name = "hold_irreversible", arguments = { label = "{label}-fire" } },
    { name = "hold_idempotent", arguments = { label = "{label}-put" } },
    { name = "act", arguments = { label = "{label}-next" } },
]

[[reply]]
text = "Told: {tool_result}"
"""


@pytest_asyncio.fixture(loop_scope="module")
async def doomed(world: World) -> AsyncIterator[harness.ServerProcess]:
    """A server in a process of its own, to be killed."""
    async with harness.server_process(
        world.mongo_uri,
        world.database,
        world.model,
        flags=("--agents", str(AGENTS), "--lease", "1s"),
        variables=world.workshop.variables,
    ) as server:
        yield server


async def killed_while_running(
    world: World, doomed: harness.ServerProcess, message: str, *labels: str, agent: str = "worker"
) -> chat_pb2.Turn:
    """The turn of a message whose tools were running when their server was killed. Its request_id is the message."""
    async with harness.connect(doomed.address) as stubs:
        session = await harness.create_test_session(stubs, agent=agent)
        turn = await harness.send_message_to_session(stubs, session, message, wait=0, request_id=message)
        if agent == "asker":
            await harness.decide(stubs, await harness.wait_for_approval(stubs, session))
        for label in labels:
            effects = await world.workshop.started(label)
            assert [effect.pid for effect in effects] == [doomed.pid]
    await doomed.kill()
    return turn


class TestI5KilledWhileAToolRuns:
    @pytest.mark.parametrize("kind", ["reading", "idempotent"])
    async def test_i5_what_may_be_repeated_starts_again_with_the_same_key(
        self, world: World, doomed: harness.ServerProcess, kind: str
    ) -> None:
        turn = await killed_while_running(world, doomed, f"{kind} {kind}", kind)
        first, second = await world.workshop.started(kind, times=2)
        assert first.key == second.key
        assert first.pid != second.pid
        world.workshop.release(kind)
        ended = await harness.wait_for_turn(world.stubs, turn.session_id, turn.turn_id)
        assert harness.answer_of(ended) == f"Told: {kind} is done"
        events = await harness.all_events(world.stubs, turn.session_id)
        starts = [event.tool_started.key for event in events if event.HasField("tool_started")]
        assert starts == [first.key, first.key]
        assert harness.kinds(events).count("tool_returned") == 1
        assert len(world.workshop.effects(kind)) == 2

    async def test_i5_what_cannot_be_taken_back_is_not_repeated_and_its_outcome_is_unknown(
        self, world: World, doomed: harness.ServerProcess
    ) -> None:
        turn = await killed_while_running(world, doomed, "irreversible once", "once")
        ended = await harness.wait_for_turn(world.stubs, turn.session_id, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_FAILED
        assert ended.error.metadata["tools"] == "hold_irreversible"
        events = await harness.all_events(world.stubs, turn.session_id)
        returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
        assert [(result.outcome, result.started) for result in returned] == [(event_pb2.TOOL_OUTCOME_UNKNOWN, True)]
        assert harness.kinds(events).count("tool_started") == 1
        assert len(world.workshop.effects("once")) == 1
        with refused("TOOL_OUTCOME_UNKNOWN") as refusal:
            await harness.send_message_to_session(
                world.stubs, turn.session_id, "irreversible once", request_id="irreversible once"
            )
        assert refusal.problem.status == grpc.StatusCode.FAILED_PRECONDITION

    async def test_i5_an_approval_is_used_up_by_the_start(self, world: World, doomed: harness.ServerProcess) -> None:
        turn = await killed_while_running(
            world, doomed, "beside approved", "approved-read", "approved-fire", agent="asker"
        )
        ended = await harness.wait_for_turn(world.stubs, turn.session_id, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_FAILED
        assert len(world.workshop.effects("approved-fire")) == 1
        kinds = harness.kinds(await harness.all_events(world.stubs, turn.session_id))
        assert [kinds.count(kind) for kind in ("approval_requested", "approval_decided", "tool_started")] == [1, 1, 2]

    async def test_i5_of_parallel_calls_each_by_its_class(self, world: World, doomed: harness.ServerProcess) -> None:
        turn = await killed_while_running(world, doomed, "all mixed", "mixed-fire", "mixed-put")
        ended = await harness.wait_for_turn(world.stubs, turn.session_id, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_FAILED
        assert len(world.workshop.effects("mixed-fire")) == 1
        assert not world.workshop.effects("mixed-next"), "a turn that failed starts nothing more"
        events = await harness.all_events(world.stubs, turn.session_id)
        returned = [event.tool_returned for event in events if event.HasField("tool_returned")]
        outcomes = {result.tool: result.outcome for result in returned}
        assert outcomes["hold_irreversible"] == event_pb2.TOOL_OUTCOME_UNKNOWN
        assert len(returned) == 3
        after = await harness.send_message_to_session(world.stubs, turn.session_id, "what now?")
        assert after.state == chat_pb2.TURN_STATE_COMPLETED
        assert [line for line in said(world.heard("what now?")[-1]) if line.startswith("call")] == [
            "call: hold_irreversible",
            "call: hold_idempotent",
            "call: act",
        ]

    async def test_i5_a_retry_tells_the_model_that_nobody_knows_and_repeats_nothing(
        self, world: World, doomed: harness.ServerProcess
    ) -> None:
        turn = await killed_while_running(world, doomed, "irreversible retried", "retried")
        await harness.wait_for_turn(world.stubs, turn.session_id, turn.turn_id)
        await world.stubs.chat.RetryTurn(
            chat_pb2.RetryTurnRequest(
                session_id=turn.session_id, turn_id=turn.turn_id, request_id=harness.new_request_id()
            )
        )
        ended = await harness.wait_for_turn(world.stubs, turn.session_id, turn.turn_id)
        assert "may or may not have taken effect" in harness.answer_of(ended)
        assert len(world.workshop.effects("retried")) == 1


LEASE = timedelta(seconds=2)


class Late(MongoStore):
    """A start of tools is stored, but its answer is lost; the next one comes when the lease is not sure any more."""

    answers_at = 0.0
    verdicts: list[Verdict]

    async def commit(self, step: Step) -> Verdict:
        if not any(isinstance(event.payload, ToolStarted) for event in step.events):
            return await super().commit(step)
        began = time.monotonic()
        if began < self.answers_at:
            raise ServiceUnavailable
        verdict = await super().commit(step)
        self.verdicts.append(verdict)
        if not self.answers_at:
            type(self).answers_at = began + LEASE.total_seconds() * 2 / 3 + 0.02
            raise ServiceUnavailable
        return verdict

    async def renew(self, *args: Any, **kwargs: Any) -> bool:
        if len(self.verdicts) == 1:
            raise ServiceUnavailable
        return await super().renew(*args, **kwargs)


class TestI5LateAnswers:
    async def test_i5_the_lease_counts_from_the_first_sending_of_the_start(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Late, "answers_at", 0.0)
        monkeypatch.setattr(Late, "verdicts", [], raising=False)
        monkeypatch.setattr(app, "MongoStore", Late)
        async with world.another(lease=LEASE) as stubs:
            session = await harness.create_test_session(stubs, agent="worker")
            turn = await harness.send_message_to_session(stubs, session, "act late", wait=0)
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_FAILED
        assert ended.error.metadata["tools"] == "act"
        assert isinstance(Late.verdicts[0], Committed), "the start was stored at once"
        assert not world.workshop.effects("late"), "who learns of its start so late does not know that it still may"
        events = await harness.all_events(world.stubs, session)
        assert harness.kinds(events).count("tool_started") == 1
        returned = [event.tool_returned.outcome for event in events if event.HasField("tool_returned")]
        assert returned == [event_pb2.TOOL_OUTCOME_UNKNOWN]
