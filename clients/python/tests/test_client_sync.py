"""The client without asyncio: generated, of the same names, and as exact as the one that it is generated from."""

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

import turnkeeper_client as asynchronous
from turnkeeper_client import Credentials, ResumePolicy, sync
from turnkeeper_client.agents import Agents
from turnkeeper_client.approvals import Approvals
from turnkeeper_client.errors import Aborted, ClientClosed, FailedPrecondition, TransportError, Unauthenticated
from turnkeeper_client.pb.v1 import chat_pb2, error_pb2, session_pb2
from turnkeeper_client.sessions import Sessions
from turnkeeper_client_testing.events import completed, delta, done, ended, message_response, started, watch_response
from turnkeeper_client_testing.server import QUICK, STAY, Refuse, Stage, Step, cut_off, refuse, stage

SCRIPT = Path(__file__).parents[1] / "generate_sync.py"
TURN = chat_pb2.Turn(turn_id="t1", session_id="s1")
SESSION = session_pb2.Session(session_id="s1")
GOT = session_pb2.GetSessionResponse(session=SESSION)
REFUSED = refuse(error_pb2.SESSION_ERROR_CODE_UNAUTHENTICATED)
PAIRS = [
    (asynchronous.Client, sync.Client),
    (asynchronous.Session, sync.Session),
    (asynchronous.EventStream, sync.EventStream),
    (asynchronous.TurnStream, sync.TurnStream),
    (Sessions, sync.sessions.Sessions),
    (Approvals, sync.approvals.Approvals),
    (Agents, sync.agents.Agents),
]
Result = TypeVar("Result")


async def run(
    on: Stage,
    work: Callable[[sync.Client], Result],
    *,
    credentials: Credentials | None = None,
    resume: ResumePolicy = QUICK,
) -> Result:
    """Runs the work in a thread, with a client of the same server."""

    def in_thread() -> Result:
        with sync.Client(f"127.0.0.1:{on.relay.port}", credentials=credentials, resume=resume) as client:
            return work(client)

    return await asyncio.to_thread(in_thread)


def test_it_is_generated_from_the_asynchronous_one() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_the_same_names_and_takes_the_same_arguments() -> None:
    assert set(sync.__all__) <= set(asynchronous.__all__)
    assert {"Client", "Session", "EventStream", "TurnStream"} <= set(sync.__all__)
    for ours, other in PAIRS:
        names = {name for name in vars(ours) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in names:
            method, twin = getattr(ours, name), getattr(other, name)
            if inspect.isfunction(method):
                assert list(inspect.signature(method).parameters) == list(inspect.signature(twin).parameters), name
                assert not inspect.iscoroutinefunction(twin)
                assert not inspect.isasyncgenfunction(twin)


async def test_calls_and_lists() -> None:
    async with stage() as on:
        on.script.answers += [
            session_pb2.CreateSessionResponse(session=SESSION),
            Refuse(status=grpc.StatusCode.UNAVAILABLE),
            chat_pb2.SendMessageResponse(turn=TURN),
            session_pb2.ListSessionsResponse(sessions=[SESSION], next_page_token="p2"),
            session_pb2.ListSessionsResponse(sessions=[SESSION]),
            session_pb2.ListEventsResponse(events=[started(1)], cursor="c1", more=True),
            session_pb2.ListEventsResponse(events=[done(2)]),
        ]

        def work(client: sync.Client) -> list[object]:
            session = client.sessions.create("helper")
            turn = session.send("Hello", wait=5)
            return [session.id, turn, len(list(client.sessions.list())), [event.sequence for event in session.events()]]

        assert await run(on, work) == ["s1", TURN, 2, [1, 2]]
        assert on.script.requests[1].wait.seconds == 5
        assert on.script.requests[1].request_id == on.script.requests[2].request_id


async def test_a_refused_call_and_a_refused_stream_are_made_again_after_the_given_time() -> None:
    wait = timedelta(milliseconds=20)
    over = error_pb2.SESSION_ERROR_CODE_OVERLOADED
    async with stage([cut_off(over, retry_after=wait)], [watch_response(done(1))]) as on:
        on.script.answers += [refuse(over, retry_after=wait), GOT]
        assert await run(on, lambda client: client.session("s1").get()) == SESSION
        assert await run(on, lambda client: [event.sequence for event in client.session("s1").follow()]) == [1]


async def test_a_cut_stream_goes_on_at_the_last_cursor_to_the_exact_text() -> None:
    first: list[Step] = [message_response(started(2), delta(0, "grü"), cursor="c1"), STAY]
    second: list[Step] = [ended(delta(0, "gr"), delta(2, "üße"), completed(3, "grüße"), cursor="c2")]
    async with stage(first, second) as on:
        loop = asyncio.get_running_loop()

        def work(client: sync.Client) -> tuple[list[str], chat_pb2.Turn | None]:
            stream = client.session("s1").stream("Hello")
            texts = []
            for text in stream.text():
                texts.append(text + "")
                if len(texts) == 1:
                    loop.call_soon_threadsafe(on.relay.cut)
            return texts, stream.turn

        texts, turn = await run(on, work)
        assert texts == ["grü", "ße"]
        assert turn is not None
        assert [request.after for request in on.script.requests] == ["", "c1"]


async def test_a_silent_stream_is_cancelled_and_resumed() -> None:
    policy = replace(QUICK, silence=timedelta(seconds=0.2))
    async with stage([watch_response(started(1), cursor="c1"), STAY], [watch_response(done(2))]) as on:
        work: Callable[[sync.Client], list[int]] = lambda client: [e.sequence for e in client.session("s1").follow()]  # noqa: E731
        assert await run(on, work, resume=policy) == [1, 2]
        assert on.script.requests[1].after == "c1"
        await on.script.caller_left()


async def test_leaving_the_loop_closes_the_call_and_its_thread() -> None:
    async with stage([watch_response(started(1)), STAY]) as on:

        def work(client: sync.Client) -> None:
            for _ in client.session("s1").follow():
                break

        await run(on, work)
        await on.script.caller_left()
    assert not [thread for thread in threading.enumerate() if thread.name == "turnkeeper-silence"]


async def test_a_token_is_renewed_once() -> None:
    tokens = iter(["t1", "t2", "t3"])
    ends = cut_off(error_pb2.SESSION_ERROR_CODE_UNAUTHENTICATED, cursor="c1")
    async with stage([watch_response(started(1), cursor="c1"), ends], [watch_response(done(2))]) as on:
        on.script.answers += [REFUSED, GOT, REFUSED, REFUSED]

        def work(client: sync.Client) -> list[int]:
            assert client.session("s1").get() == SESSION
            sequences = [event.sequence for event in client.session("s1").follow()]
            with pytest.raises(Unauthenticated):
                client.session("s1").get()
            return sequences

        given = Credentials(token=lambda: next(tokens, "t4"), on_behalf_of="ada")
        assert await run(on, work, credentials=given) == [1, 2]
        sent = [metadata["authorization"].removeprefix("Bearer ") for metadata in on.script.metadata]
        assert sent == ["t1", "t2", "t2", "t3", "t3", "t4"]
        assert {metadata["turnkeeper-on-behalf-of"] for metadata in on.script.metadata} == {"ada"}


async def test_a_source_of_tokens_that_is_a_coroutine_function_is_a_mistake() -> None:
    async def source() -> str:
        return "t1"

    async with stage() as on:
        with pytest.raises(TypeError, match="from a plain function"):
            await run(on, lambda client: client.session("s1").get(), credentials=Credentials(token=source))


async def test_errors_are_those_of_the_asynchronous_client() -> None:
    async with stage([cut_off(error_pb2.SESSION_ERROR_CODE_LLM_API_ERROR)]) as on:
        on.script.answers += [refuse(error_pb2.SESSION_ERROR_CODE_SESSION_SUSPENDED)]
        with pytest.raises(FailedPrecondition) as refused:
            await run(on, lambda client: client.session("s1").send("Hello"))
        assert refused.value.metadata == {"from": "script"}
        assert refused.value.__suppress_context__
        with pytest.raises(Aborted) as failed:
            await run(on, lambda client: list(client.session("s1").stream("Hello")))
        assert failed.value.turn_id == "t1"


async def test_a_closed_client_raises_an_error_and_closing_ends_a_call() -> None:
    async with stage() as on:
        on.script.answers += [STAY]
        client = sync.Client(f"127.0.0.1:{on.relay.port}")
        sending = asyncio.create_task(asyncio.to_thread(client.session("s1").send, "Hello"))
        await on.script.call_arrived()
        await asyncio.to_thread(client.close)
        with pytest.raises((TransportError, ClientClosed)):
            await sending
        with pytest.raises(ClientClosed):
            client.session("s1").get()


async def test_one_client_serves_many_threads() -> None:
    async with stage() as on:
        on.script.answers += [GOT] * 40

        def work(client: sync.Client) -> list[session_pb2.Session]:
            sessions: list[session_pb2.Session] = []
            threads = [
                threading.Thread(target=lambda: sessions.extend(client.session("s1").get() for _ in range(5)))
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return sessions

        assert await run(on, work) == [SESSION] * 40
