"""`--limits`: what each principal and tenant may do, what a refusal says, and when the same call is accepted."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.polling import eventually
from tests.identities import NamedCredentials, connect_as, row
from tests.status_details import details_of, refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import chat_pb2, session_pb2
from turnkeeper.watched_file import CHECK_EVERY

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
ROWS = "".join(
    row(name, tenant=tenant, roles=["caller"])
    for tenant, names in {"acme": ("anna", "adam"), "busy": ("ben", "bob"), "free": ("flo",)}.items()
    for name in names
)
LIMITS = """
profile = "open"
[profiles.open]
principal = { SendMessage = "unlimited", StreamMessage = "unlimited", creates = "unlimited", reads = "unlimited" }
[profiles.slow]
streams = 2
[profiles.slow.principal]
SendMessage = { per_minute = 1200, burst = 4 }
StreamMessage = { per_minute = 60, burst = 1 }
creates = { per_minute = 60, burst = 3 }
GetSession = { per_minute = 600, burst = 2 }
[profiles.full]
based_on = "open"
turns_under_way = 1
turns_queued = 1
[tenants]
acme = "slow"
busy = "full"
"""


@dataclass(kw_only=True)
class Served:
    address: str
    limits: Path
    tool_control: ToolControl

    @contextlib.asynccontextmanager
    async def as_(self, name: str) -> AsyncIterator[Any]:
        async with connect_as(self.address, name) as stubs:
            yield stubs


@pytest_asyncio.fixture(loop_scope="module")
async def served(mongo_uri: str, tmp_path: Path, tool_control: ToolControl) -> AsyncIterator[Served]:
    """A server of this test's own: its buckets are full."""
    principals, limits = tmp_path / "principals.toml", tmp_path / "limits.toml"
    principals.write_text(ROWS)
    limits.write_text(LIMITS)
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(
            mongo_uri,
            f"turnkeeper_test_{time.time_ns():x}",
            model,
            agents=AGENTS,
            authenticator=NamedCredentials(),
            principals=principals,
            limits=limits,
            concurrency=4,
        ) as running,
    ):
        yield Served(address=running.address, limits=limits, tool_control=tool_control)


def a_message(session: str, text: str = "hello") -> chat_pb2.SendMessageRequest:
    return chat_pb2.SendMessageRequest(
        session_id=session, content=harness.text_parts(text), request_id=harness.new_request_id()
    )


async def used_up(stubs: harness.Stubs, session: str) -> chat_pb2.SendMessageRequest:
    """Sends messages until one is refused by the limit. Returns the first one, which was accepted."""
    first = a_message(session)
    await stubs.chat.SendMessage(first)
    code = None
    while code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        with pytest.raises(aio.AioRpcError) as ended:
            await stubs.chat.SendMessage(a_message("there-is-none"))
        code = ended.value.code()
    return first


async def test_a_refusal_says_which_limit_and_when_to_come_back(served: Served) -> None:
    async with served.as_("acme/anna") as anna, served.as_("acme/adam") as adam:
        for _ in range(3):
            await harness.create_test_session(anna, agent="talker")
        with pytest.raises(aio.AioRpcError) as error:
            await harness.create_test_session(anna, agent="talker")
        details = details_of(error.value)
        assert (details.status, details.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED")
        assert details.metadata == {"limit": "creates", "scope": "principal"}
        assert {"google.rpc.RetryInfo", "google.rpc.QuotaFailure"} <= set(details.types)
        assert details.retry_after is not None
        seconds = details.retry_after.total_seconds()
        assert 0 < seconds <= 1
        assert dict(error.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == f"{seconds * 1000:.0f}"
        assert await harness.create_test_session(adam, agent="talker")


@pytest.mark.parametrize("method", ["SendMessage", "GetSession"])
async def test_callers_that_wait_as_told_are_accepted(served: Served, method: str) -> None:
    """More callers than the limit has room for, which send the same call again after exactly that time."""
    outcomes: list[str] = []
    until = time.monotonic() + 4

    async def caller(stubs: harness.Stubs, number: int) -> None:
        for count in itertools.count():
            call: Any
            request: Any
            if method == "SendMessage":
                call, request = stubs.chat.SendMessage, a_message("there-is-none")
            else:
                call, request = stubs.sessions.GetSession, session_pb2.GetSessionRequest(session_id=f"{number}.{count}")
            reason = await _reason(call(request))
            while isinstance(reason, float):
                await asyncio.sleep(reason)
                reason = await _reason(call(request))
                outcomes.append("late" if isinstance(reason, float) else reason)
            if time.monotonic() > until:
                break

    async with served.as_("acme/anna") as stubs:
        await asyncio.gather(*(caller(stubs, number) for number in range(12)))
    assert len(outcomes) >= 30
    counts = Counter(outcomes)
    in_time = counts["SESSION_NOT_FOUND"] + counts["OVERLOADED"]  # the machine has other work, too
    assert in_time >= 0.99 * len(outcomes), counts


async def _reason(call: Any) -> str | float:
    """Returns the reason of the error with which the call ends; of a rate, the seconds to wait."""
    with pytest.raises(aio.AioRpcError) as error:
        await call
    details = details_of(error.value)
    if details.reason == "RATE_LIMIT_EXCEEDED":
        assert details.retry_after is not None
        return details.retry_after.total_seconds()
    return details.reason


async def test_a_repeat_passes_although_nothing_is_left(served: Served) -> None:
    async with served.as_("acme/anna") as stubs:
        session = await harness.create_test_session(stubs, agent="talker")
        first = await used_up(stubs, session)
        again = await stubs.chat.SendMessage(first)
        assert harness.answer_of(again.turn) == "You said: hello"


async def test_a_repeat_costs_no_token(served: Served) -> None:
    async with served.as_("acme/anna") as stubs:
        message = session_pb2.CreateSessionRequest(agent="talker", request_id=harness.new_request_id())
        ids = {(await stubs.sessions.CreateSession(message)).session.session_id for _ in range(20)}
        assert len(ids) == 1
        (session,) = ids
        stream = chat_pb2.StreamMessageRequest(
            session_id=session, content=harness.text_parts("hello"), request_id=harness.new_request_id()
        )
        for _ in range(3):  # its bucket holds one token
            answers = [response async for response in stubs.chat.StreamMessage(stream)]
            assert answers[-1].turn.state == chat_pb2.TURN_STATE_COMPLETED
        with refused("RATE_LIMIT_EXCEEDED"):
            stream.request_id = harness.new_request_id()
            async for _ in stubs.chat.StreamMessage(stream):
                pass


async def test_a_principal_has_only_so_many_streams(served: Served) -> None:
    async with served.as_("acme/anna") as anna, served.as_("acme/adam") as adam:
        session = await harness.create_test_session(anna, agent="talker")
        watch = session_pb2.WatchEventsRequest(session_id=session, follow=True)
        open_ones = [anna.sessions.WatchEvents(watch) for _ in range(2)]
        for stream in open_ones:
            await stream.read()
        with pytest.raises(aio.AioRpcError) as error:
            await anna.sessions.WatchEvents(watch).read()
        details = details_of(error.value)
        assert (details.reason, details.metadata) == ("QUOTA_EXCEEDED", {"limit": "streams", "scope": "principal"})
        assert dict(error.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"
        other = session_pb2.WatchEventsRequest(
            session_id=await harness.create_test_session(adam, agent="talker"), follow=True
        )
        await adam.sessions.WatchEvents(other).read()
        open_ones[0].cancel()

        async def opened() -> bool | None:
            with contextlib.suppress(aio.AioRpcError):
                return await anna.sessions.WatchEvents(watch).read() is not None
            return None

        assert await eventually(opened)


async def test_a_tenants_turns_wait_for_each_other_and_further_ones_are_refused(served: Served) -> None:
    async with served.as_("busy/ben") as ben, served.as_("busy/bob") as bob, served.as_("free/flo") as flo:
        running, waiting, third = [await harness.create_test_session(ben, agent="worker") for _ in range(3)]
        await harness.send_message_to_session(ben, running, "hold one", wait=0)
        await served.tool_control.started("one")
        turn = await harness.send_message_to_session(ben, waiting, "second", wait=0)
        assert turn.state == chat_pb2.TURN_STATE_PENDING
        with refused("QUOTA_EXCEEDED") as refusal:
            await harness.send_message_to_session(ben, third, "third", wait=0)
        assert refusal.details.metadata == {"limit": "turns_queued", "scope": "tenant"}
        of_bob = await harness.create_test_session(bob, agent="talker")
        with refused("QUOTA_EXCEEDED"):
            await harness.send_message_to_session(bob, of_bob, "of another principal", wait=0)
        of_flo = await harness.create_test_session(flo, agent="talker")
        assert harness.answer_of(await harness.send_message_to_session(flo, of_flo, "hello")) == "You said: hello"
        still = await ben.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=waiting, turn_id=turn.turn_id))
        assert still.turn.state == chat_pb2.TURN_STATE_PENDING
        served.tool_control.release("one")
        ended = await harness.wait_for_turn(ben, waiting, turn.turn_id)
        assert harness.answer_of(ended) == "You said: second"


async def test_the_file_is_followed_and_a_bad_one_keeps_the_old(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with served.as_("acme/anna") as stubs:
        served.limits.write_text("mode = 'maybe'\n")
        await eventually(lambda: _logged(caplog, "limits not reloaded"))
        for _ in range(3):
            await harness.create_test_session(stubs, agent="talker")
        with refused("RATE_LIMIT_EXCEEDED"):
            await harness.create_test_session(stubs, agent="talker")
        served.limits.write_text(LIMITS.replace("profile =", "mode = 'shadow'\nprofile =", 1))
        changed = time.monotonic()

        async def admitted() -> str | None:
            with contextlib.suppress(aio.AioRpcError):
                return await harness.create_test_session(stubs, agent="talker")
            return None

        await eventually(admitted)
        for _ in range(10):
            await harness.create_test_session(stubs, agent="talker")
        assert time.monotonic() - changed < CHECK_EVERY + 2


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> bool | None:
    return any(text in record.getMessage() for record in caplog.records) or None
