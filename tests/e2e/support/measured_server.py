"""A server on an event loop of its own thread, which measures the CPU time that the loop takes from tick to tick."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import grpc

from tests import harness
from turnkeeper.serve import YOUNG_OBJECTS

T = TypeVar("T")


class MeasuredLoop(asyncio.SelectorEventLoop):
    """An event loop that knows how much CPU time its thread has taken at most between two ticks."""

    longest = 0.0
    """Seconds."""

    def _run_once(self) -> None:
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.longest = max(self.longest, time.thread_time() - began)


class MeasuredServer:
    """The server, and its callers' channel. A caller's thread is another one than the loop's."""

    def __init__(self, loop: MeasuredLoop, channel: Any) -> None:
        """`channel` is a synchronous one."""
        self._loop = loop
        self.channel = channel

    def measure(self, work: Callable[[], T]) -> tuple[float, T]:
        """Does the work. Returns the most CPU time that the loop took between two ticks meanwhile, and the result."""
        self.settle()
        self._loop.longest = 0.0
        result = work()
        self.settle()
        return self._loop.longest, result

    def call_soon(self, work: Callable[[], object]) -> None:
        """Has the loop do this work."""
        self._loop.call_soon_threadsafe(work)

    def settle(self) -> None:
        """Waits until the loop has done what was ready."""
        for _ in range(3):
            ticked: Future[None] = Future()
            self._loop.call_soon_threadsafe(ticked.set_result, None)
            ticked.result(30)


@contextlib.contextmanager
def measured_server(mongo_uri: str, database: str, model_url: str, **settings: Any) -> Iterator[MeasuredServer]:
    """Starts the server in a thread; stops it at the end."""
    thresholds = gc.get_threshold()
    started: Future[tuple[MeasuredLoop, str]] = Future()
    stopped: Future[asyncio.Event] = Future()

    async def serve(loop: MeasuredLoop) -> None:
        stop = asyncio.Event()
        async with harness.serving(mongo_uri, database, model_url, **settings) as running:
            gc.collect()
            gc.freeze()  # as the command does: the objects of the start, and here those of all tests before
            gc.set_threshold(YOUNG_OBJECTS, 20, 20)
            stopped.set_result(stop)
            started.set_result((loop, running.address))
            await stop.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=MeasuredLoop) as runner:
                loop = runner.get_loop()
                assert isinstance(loop, MeasuredLoop)
                runner.run(serve(loop))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    thread = threading.Thread(target=run, name="measured server")
    thread.start()
    loop, address = started.result(60)
    options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    try:
        with grpc.insecure_channel(address, options=options) as channel:
            yield MeasuredServer(loop, harness.caller_channel(channel, address))
    finally:
        loop.call_soon_threadsafe(stopped.result().set)
        thread.join(60)
        gc.unfreeze()
        gc.set_threshold(*thresholds)
