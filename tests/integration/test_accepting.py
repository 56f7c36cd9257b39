"""Calls are taken at once, and their ends are sent, also while each iteration of the event loop takes milliseconds."""

import asyncio
import os
import sys
import threading
import time
from typing import Any

import grpc
import pytest
import uvloop

from turnkeeper.event_loop import EventLoop
from turnkeeper.rpc import accepting

ITERATION = 0.005
"""Seconds that each iteration of the server's loop takes."""
CALLS = 200
MOST_ITERATIONS = 150
"""Without the two mends, an iteration takes half a call, and ends a quarter of one: 200 calls take some 800."""


async def refuse(_: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")


async def iterations_for_calls() -> int:
    """Returns how many iterations of this loop pass until CALLS calls, made at the same time, have ended."""
    server = accepting.AcceptingServer(interceptors=(), options=())
    handlers: dict[str, Any] = {"Refuse": grpc.stream_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Refusing", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop, ended, count = asyncio.get_running_loop(), threading.Event(), 0
    caller = threading.Thread(target=call_all, args=(port, ended))
    caller.start()
    busy = True

    def iterate() -> None:
        nonlocal count
        time.sleep(ITERATION)
        count += 1
        if busy:
            loop.call_soon(iterate)

    iterate()
    await asyncio.to_thread(ended.wait, 30)
    busy = False
    await server.stop(0)
    await asyncio.to_thread(caller.join)
    return count


def call_all(port: int, ended: threading.Event) -> None:
    """Makes the calls by a client that needs no event loop, and sets `ended` once each has its status."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/test.v1.Refusing/Refuse")
        calls = [method.future(b"") for _ in range(CALLS)]
        assert {call.code() for call in calls} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        ended.set()


def test_a_busy_loop_takes_and_ends_calls_all_the_same() -> None:
    assert uvloop.run(iterations_for_calls(), loop_factory=EventLoop) < MOST_ITERATIONS


async def policies() -> dict[str, int]:
    """Returns how the system schedules each thread of a process with a server, by the thread's name."""
    server = accepting.AcceptingServer(interceptors=(), options=())
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        threads = [thread for thread in threading.enumerate() if thread.native_id is not None]
        return {thread.name: os.sched_getscheduler(thread.native_id or 0) for thread in threads}
    finally:
        await server.stop(0)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has the policy")
def test_the_thread_that_polls_does_not_interrupt_the_loop() -> None:
    by_thread = uvloop.run(policies(), loop_factory=EventLoop)
    polling = {name: policy for name, policy in by_thread.items() if "_poll_wrapper" in name}
    assert polling, f"the new version of gRPC polls in another of these threads; name it in event_loop.py: {by_thread}"
    assert set(polling.values()) == {os.SCHED_BATCH}
    assert by_thread[threading.main_thread().name] == os.SCHED_OTHER
