"""I9: the turns of a killed server end on another one, soon. I10: text that was streamed but not stored is not history.

One server is killed once, with turns in every state that a turn can be in.
"""

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment, transcript
from tests.e2e.support.server_processes import LEASE, MARGIN, SWEEP, doomed
from tests.e2e.support.stream_reader import Reader, watch
from tests.harness import Stubs
from tests.processes import until
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"lease": timedelta(seconds=LEASE), "sweep": timedelta(seconds=SWEEP)}
TEXT = "Сто лет одиночества: a text of many bytes, 百年孤独, that is cut wherever it may be 🙂."
CUT = 8
SCRIPT = rf"""
[[reply]]
match = '^cut \d$'
text = "{TEXT}"
chunk = 1
delay = "60ms"
times = {CUT}

[[reply]]
match = '^cut \d$'
text = "{TEXT}"

[[reply]]
match = "^thinks"
first_delay = "60s"
text = "Never said."
times = 1

[[reply]]
match = "^thinks"
text = "Thought again."

[[reply]]
match = "^backs off"
fail = "rate_limit"
retry_after = 4
times = 1

[[reply]]
match = "^backs off"
text = "Tried again."

[[reply]]
match = "^runs a tool"
tool_calls = [{{ name = "hold_idempotent", arguments = {{ label = "killed" }} }}]

[[reply]]
match = "^runs a tool"
after_tools = 1
text = "Told: {{tool_result}}"

[[reply]]
match = "^asks"
tool_calls = [{{ name = "act", arguments = {{ label = "asked" }} }}]

[[reply]]
match = "^asks"
after_tools = 1
text = "Told: {{tool_result}}"

[[reply]]
text = "You said: {{user}}"
"""
CUTS = [f"cut {number}" for number in range(CUT)]
OTHERS = {
    "thinks": ("Thought again.", True),
    "runs a tool": ("Told: killed is done", True),
    "backs off": ("Tried again.", False),
    "queued": ("You said: queued", False),
}
"""What is answered in the end, and whether the killed server owned the turn."""
ENDS = ("turn_completed", "turn_failed", "turn_cancelled")


@dataclass(slots=True)
class Aftermath:
    """The turns, readers and messages at the kill of the server, and its time."""

    killed_at: datetime
    turns: Mapping[str, chat_pb2.Turn]
    readers: Mapping[str, Reader]
    messages: dict[str, list[message_pb2.Message]] = field(default_factory=dict)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aftermath(env: Environment) -> Aftermath:
    turns: dict[str, chat_pb2.Turn] = {}
    readers: dict[str, Reader] = {}
    cut = {words: random.Random(words).randrange(1, len(TEXT) // 2) for words in CUTS}
    agents = {"asks": "asker", "runs a tool": "worker"}
    async with (
        doomed(env) as server,
        harness.connect(server.address) as stubs,
        asyncio.TaskGroup() as group,
    ):
        for words in ("thinks", "runs a tool", "asks", "backs off", *cut):
            session = await harness.create_test_session(stubs, agent=agents.get(words, "talker"))
            turns[words] = await harness.send_message_to_session(stubs, session, words, wait=0)
            readers[words] = Reader()
            group.create_task(_follow(stubs, session, readers[words]))
        turns["queued"] = await harness.send_message_to_session(
            stubs, turns["cut 0"].session_id, "queued", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        await env.tool_control.started("killed")
        await env.wait_for_model_requests("thinks")
        await until(lambda: "approval_requested" in readers["asks"].kinds)
        await until(lambda: "attempt_failed" in readers["backs off"].kinds)
        await until(lambda: all(len(readers[words].deltas) >= least for words, least in cut.items()))
        await server.kill()
        after = Aftermath(killed_at=datetime.now(UTC), turns=turns, readers=readers)
    env.tool_control.release("killed")
    for words in cut:
        listed = await env.stubs.sessions.ListMessages(
            session_pb2.ListMessagesRequest(session_id=turns[words].session_id)
        )
        after.messages[words] = list(listed.messages)
    return after


class TestI9:
    @pytest.mark.parametrize("words", [*CUTS, *OTHERS])
    async def test_i9_the_next_server_finishes_the_turn(
        self, env: Environment, aftermath: Aftermath, words: str
    ) -> None:
        answer, owned = OTHERS.get(words, (TEXT, True))
        turn = aftermath.turns[words]
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert (ended.state, harness.answer_of(ended)) == (chat_pb2.TURN_STATE_COMPLETED, answer)
        events = [event for event in await _log(env, turn) if event.turn_id == turn.turn_id]
        assert len([event for event in events if event.WhichOneof("payload") in ENDS]) == 1
        taken = [event for event in events if event.HasField("attempt_superseded")]
        assert len(taken) == int(owned)
        for event in taken:
            took = event.create_time.ToDatetime(tzinfo=UTC) - aftermath.killed_at
            assert took.total_seconds() < LEASE + SWEEP + MARGIN, f"taken over after {took}"

    async def test_i9_what_was_being_done_under_a_key_is_done_again_under_that_key(
        self, env: Environment, aftermath: Aftermath
    ) -> None:
        turn = aftermath.turns["runs a tool"]
        await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        first, second = env.tool_control.effects("killed")
        assert first.key == second.key
        assert first.pid != second.pid

    async def test_i9_a_turn_that_waits_for_a_person_still_waits_and_goes_on(
        self, env: Environment, aftermath: Aftermath
    ) -> None:
        turn = aftermath.turns["asks"]
        waiting = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id, seconds=0)
        assert waiting.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        await harness.decide(env.stubs, await harness.wait_for_approval(env.stubs, turn.session_id))
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert harness.answer_of(ended) == "Told: asked is done"
        assert "attempt_superseded" not in harness.kinds(await _log(env, turn))


class TestI10:
    @pytest.mark.parametrize("words", CUTS)
    async def test_i10_what_was_streamed_and_not_stored_is_no_part_of_the_conversation(
        self, env: Environment, aftermath: Aftermath, words: str
    ) -> None:
        turn, reader = aftermath.turns[words], aftermath.readers[words]
        partial = next(iter(reader.texts.values())).decode()
        assert partial
        assert TEXT.startswith(partial)
        assert partial != TEXT
        assert [message.role for message in aftermath.messages[words]] == [message_pb2.ROLE_USER]
        await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        system = "system: You are a talker."
        assert {tuple(transcript(request)) for request in env.model_requests(words)} <= {
            (system, f"user: {words}"),
            (system, f"user: {words}", f"assistant: {TEXT}", "user: queued"),
        }
        listed = await env.stubs.sessions.ListMessages(
            session_pb2.ListMessagesRequest(session_id=turn.session_id, page_size=2)
        )
        assert ["".join(part.text for part in message.content) for message in listed.messages] == [words, TEXT]

    @pytest.mark.parametrize("words", CUTS)
    async def test_i10_a_reader_of_it_gets_the_event_that_it_does_not_count(
        self, env: Environment, aftermath: Aftermath, words: str
    ) -> None:
        """The reader itself refuses a text that goes on after it was superseded."""
        reader = aftermath.readers[words]
        async with asyncio.timeout(15):
            async for _ in watch(env.stubs, aftermath.turns[words].session_id, reader):
                if "turn_completed" in reader.kinds:
                    break
        partial, whole, *_ = (text.decode() for text in reader.texts.values())
        assert whole == TEXT != partial
        of_turn = [
            str(event.WhichOneof("payload")) for event in reader.events if event.turn_id == reader.events[1].turn_id
        ]
        assert of_turn[1:4] == ["turn_started", "attempt_superseded", "message_completed"]


async def _follow(stubs: Stubs, session: str, reader: Reader) -> None:
    """Follows the session until the server is killed."""
    with contextlib.suppress(aio.AioRpcError):
        async for _ in watch(stubs, session, reader):
            pass


async def _log(env: Environment, turn: chat_pb2.Turn) -> list[event_pb2.Event]:
    return await harness.all_events(env.stubs, turn.session_id)
