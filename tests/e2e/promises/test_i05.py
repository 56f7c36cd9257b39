"""Promise I5: an irreversible tool is started at most once, an idempotent one again under the same key.

A real server process is killed with `kill -9` while tools run; another one takes the turns over. A server
whose start of a tool is confirmed after its lease does not start it.
"""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.lost_servers import Running, killed_while_running, question, returned
from tests.e2e.support.server_processes import doomed
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool_events import ToolStarted
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.pb.v1 import chat_pb2, event_pb2
from turnkeeper.store.changeset import Changeset, CommitResult, Committed
from turnkeeper.store.mongo.renewer import MongoRenewer
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
match = '^read (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
SETTINGS = {"concurrency": 4}
"""Room for the four turns whose tools are started again, and held."""
Turns = Mapping[str, chat_pb2.Turn]
RUNNING = (
    Running("reading reading", ("reading",)),
    Running("idempotent idempotent", ("idempotent",)),
    Running("irreversible once", ("once",)),
    Running("beside approved", ("approved-read", "approved-fire"), agent="asker"),
    Running("all mixed", ("mixed-fire", "mixed-put")),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lost(env: Environment) -> Turns:
    """Kills a server once, while the tools of all tests run there. Returns their turns by the messages."""
    async with doomed(env, "--lease", "1s") as server:
        return await killed_while_running(env, server, RUNNING)


class TestI5KilledWhileAToolRuns:
    @pytest.mark.parametrize("kind", ["reading", "idempotent"])
    async def test_i5_what_may_be_repeated_starts_again_with_the_same_key(
        self, env: Environment, lost: Turns, kind: str
    ) -> None:
        turn = lost[f"{kind} {kind}"]
        first, second = await env.tool_control.started(kind, times=2)
        assert first.key == second.key
        assert first.pid != second.pid
        env.tool_control.release(kind)
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert harness.answer_of(ended) == f"Told: {kind} is done"
        events = await harness.all_events(env.stubs, turn.session_id)
        starts = [event.tool_started.key for event in events if event.HasField("tool_started")]
        assert starts == [first.key, first.key]
        assert harness.kinds(events).count("tool_returned") == 1
        assert len(env.tool_control.effects(kind)) == 2

    async def test_i5_what_cannot_be_taken_back_is_not_repeated_by_itself(self, env: Environment, lost: Turns) -> None:
        turn = lost["irreversible once"]
        await question(env, turn)
        events = await harness.all_events(env.stubs, turn.session_id)
        assert not [event for event in events if event.HasField("tool_returned")]
        assert harness.kinds(events).count("tool_started") == 1
        repeated = await harness.send_message_to_session(
            env.stubs, turn.session_id, "irreversible once", request_id="irreversible once"
        )
        assert (repeated.turn_id, repeated.state) == (turn.turn_id, chat_pb2.TURN_STATE_AWAITING_OUTCOME)
        assert len(env.tool_control.effects("once")) == 1

    async def test_i5_an_approval_is_used_up_by_the_start(self, env: Environment, lost: Turns) -> None:
        turn = lost["beside approved"]
        await env.tool_control.started("approved-read", times=2)
        env.tool_control.release("approved-read")
        await question(env, turn)
        assert len(env.tool_control.effects("approved-fire")) == 1
        kinds = harness.kinds(await harness.all_events(env.stubs, turn.session_id))
        assert [kinds.count(kind) for kind in ("approval_requested", "approval_decided", "tool_started")] == [2, 1, 3]

    async def test_i5_of_parallel_calls_each_by_its_class(self, env: Environment, lost: Turns) -> None:
        turn = lost["all mixed"]
        await env.tool_control.started("mixed-put", times=2)
        env.tool_control.release("mixed-put")
        approval = await question(env, turn)
        assert approval.tool == "hold_irreversible"
        assert len(env.tool_control.effects("mixed-fire")) == 1
        assert len(env.tool_control.effects("mixed-next")) == 1, "what was ready ran"
        await harness.answer(env.stubs, approval, event_pb2.APPROVAL_DECISION_GIVE_UP)
        await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        outcomes = {result.tool: result.outcome for result in await returned(env, turn)}
        assert outcomes == {
            "hold_irreversible": event_pb2.TOOL_OUTCOME_UNKNOWN,
            "hold_idempotent": event_pb2.TOOL_OUTCOME_OK,
            "act": event_pb2.TOOL_OUTCOME_OK,
        }


LEASE = timedelta(seconds=2)


class NoRenewals(MongoRenewer):
    """What the thread that renews for a blocked loop gets: the test decides alone how old the lease is."""

    def __init__(self) -> None:
        """Connects to nothing."""

    def renew_all(self, *_: Any, **__: Any) -> Mapping[SessionKey, bool]:
        raise ServiceUnavailable

    def close(self) -> None:
        """Does nothing."""


class Late(MongoStore):
    """A store that loses the answer to a start of tools; the next answer comes when the lease is no longer certain."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.answers_at = 0.0
        """Seconds by the monotonic clock; 0 before the first start of tools."""
        self.results: list[CommitResult] = []
        self.has_started = False
        """A start of tools was sent: from then on no renewal makes the lease younger than that start."""

    async def commit(self, changeset: Changeset) -> CommitResult:
        if not any(isinstance(event.payload, ToolStarted) for event in changeset.events):
            return await super().commit(changeset)
        began, self.has_started = time.monotonic(), True
        if began < self.answers_at:
            raise ServiceUnavailable
        result = await super().commit(changeset)
        self.results.append(result)
        if not self.answers_at:
            self.answers_at = began + LEASE.total_seconds() * 2 / 3 + 0.02
            raise ServiceUnavailable
        return result

    async def renew(self, *args: Any, **kwargs: Any) -> bool:
        if self.has_started:
            raise ServiceUnavailable
        return await super().renew(*args, **kwargs)

    async def renew_all(self, *args: Any, **kwargs: Any) -> Mapping[SessionKey, bool]:
        if self.has_started:
            raise ServiceUnavailable
        return await super().renew_all(*args, **kwargs)

    def renewer(self) -> NoRenewals:
        return NoRenewals()


class TestI5LateAnswers:
    async def test_i5_the_lease_counts_from_the_first_sending_of_the_start(self, env: Environment) -> None:
        stores: list[Late] = []

        def new_store(*args: Any, **settings: Any) -> Late:
            stores.append(Late(*args, **settings))
            return stores[-1]

        async with env.another(lease=LEASE, new_store=new_store) as stubs:
            session = await harness.create_test_session(stubs, agent="worker")
            turn = await harness.send_message_to_session(stubs, session, "act late", wait=0)
            approval = await question(env, turn)
        assert approval.tool == "act"
        assert isinstance(stores[0].results[0], Committed), "the start was stored at once"
        assert not env.tool_control.effects("late"), "who learns of its start so late does not know that it still may"
        events = await harness.all_events(env.stubs, session)
        assert harness.kinds(events).count("tool_started") == 1
        assert harness.kinds(events)[-1] == "approval_requested"
